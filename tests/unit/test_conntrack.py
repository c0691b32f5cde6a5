"""Where real connections of a network namespace were led."""

from __future__ import annotations

from typing import Any

from ansible.module_utils.netmend.conntrack import endpoints


def test_a_connection_that_was_led_elsewhere_one_that_was_not_and_one_that_is_none(namespace: Any) -> None:
    namespace("ip", "link", "set", "lo", "up")
    namespace("ip", "route", "add", "10.43.0.0/16", "dev", "lo", "src", "127.0.0.1")
    to_service = ["iptables", "-w", "-t", "nat", "-A", "OUTPUT", "-p", "tcp", "-d", "10.43.0.7", "--dport", "80"]
    namespace(*to_service, "-j", "DNAT", "--to-destination", "127.0.0.2:8080")
    told = namespace.python(
        "import socket\n"
        "from ansible.module_utils.netmend.conntrack import Connection, endpoints\n"
        "server = socket.create_server(('127.0.0.2', 8080))\n"
        "by_service = socket.create_connection(('10.43.0.7', 80))\n"
        "direct = socket.create_connection(('127.0.0.2', 8080))\n"
        "opened = [Connection(socket.IPPROTO_TCP, each.getsockname(), to)\n"
        "          for each, to in ((by_service, ('10.43.0.7', 80)), (direct, ('127.0.0.2', 8080)))]\n"
        "print(endpoints([*opened, opened[0]._replace(source=('192.0.2.1', 1)), opened[0]]))"
    )
    assert told == "['127.0.0.2', '', '', '127.0.0.2']\n"


def test_nothing_is_asked_for_no_connection() -> None:
    assert endpoints([]) == []


def test_what_began_while_rules_were_missing_is_forgotten_and_nothing_else(namespace: Any) -> None:
    namespace("ip", "link", "set", "lo", "up")
    namespace("ip", "route", "add", "10.43.0.0/16", "dev", "lo", "src", "127.0.0.1")
    namespace("iptables", "-w", "-A", "OUTPUT", "-m", "conntrack", "--ctstate", "NEW", "-j", "ACCEPT")
    told = namespace.python(
        "import socket, subprocess\n"
        "from ansible.module_utils.netmend.conntrack import forget\n"
        "server = socket.create_server(('127.0.0.2', 8080))\n"
        "alive = socket.create_connection(('127.0.0.2', 8080))\n"
        "def ask(address):\n"
        "    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:\n"
        "        sock.sendto(b'?', (address, 53))\n"
        "for address in ('10.43.0.7', '10.43.0.8', '10.43.0.9'): ask(address)\n"
        "with socket.socket() as sock:\n"
        "    sock.setblocking(False)\n"
        "    sock.connect_ex(('10.43.0.7', 80))\n"
        "    seen = [forget({'10.43.0.7', '127.0.0.2'}), forget({'10.43.0.7', '127.0.0.2'}), forget({'10.43.0.8'})]\n"
        "print(seen)"
    )
    assert told == "[2, 0, 1]\n"
