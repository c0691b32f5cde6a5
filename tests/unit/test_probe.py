"""Every outcome, provoked on real sockets: client - router - server, each in a network namespace of its own.

The client's namespace is entered through the pid of a process in it, as a pod's is.
"""

from __future__ import annotations

import ctypes
import json
import os
import socket
import ssl
import struct
import subprocess
import threading
import time
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Callable, Iterator

import pytest
from ansible.module_utils.netmend import probe as probing
from ansible.module_utils.netmend.counters import losses, moved, risen
from ansible.module_utils.netmend.model import Observation, Probe
from ansible.module_utils.netmend.parse import dns
from ansible.module_utils.netmend.parse.iptables import parse_save
from ansible.module_utils.netmend.probe import problem, run_probes

CLIENT, ROUTER, SERVER = (f"nm-probe-{os.getpid()}-{role}" for role in ("client", "router", "server"))
CLIENT_IP, ROUTER_IP, SERVER_IP = "192.0.2.2", "192.0.2.1", "198.51.100.2"
MTU = 1450


def ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True)


def inside(namespace: str, *command: str) -> str:
    return subprocess.run(["ip", "netns", "exec", namespace, *command], check=True, text=True, stdout=-1).stdout


@contextmanager
def entered(namespace: str) -> Iterator[None]:
    """For sockets of the servers: they stay in the namespace that they are created in."""
    setns = ctypes.CDLL(None).setns
    with open("/proc/thread-self/ns/net") as own, open(f"/run/netns/{namespace}") as other:
        assert setns(other.fileno(), 0) == 0
        try:
            yield
        finally:
            assert setns(own.fileno(), 0) == 0


@pytest.fixture(scope="module")
def client() -> Iterator[int]:
    """The pid of a process in the client's namespace."""
    with ExitStack() as stack:
        for namespace in (CLIENT, ROUTER, SERVER):
            ip("netns", "add", namespace)
            stack.callback(ip, "netns", "del", namespace)
            ip("-n", namespace, "link", "set", "lo", "up")
        for namespace, end, gateway in ((CLIENT, "to-client", ROUTER_IP), (SERVER, "to-server", "198.51.100.1")):
            ip("-n", ROUTER, "link", "add", end, "mtu", str(MTU), "type", "veth",
               "peer", "name", "eth0", "mtu", str(MTU), "netns", namespace)  # fmt: skip
            address = CLIENT_IP if namespace == CLIENT else SERVER_IP
            ip("-n", namespace, "addr", "add", f"{address}/24", "dev", "eth0")
            ip("-n", namespace, "link", "set", "eth0", "up")
            ip("-n", ROUTER, "addr", "add", f"{gateway}/24", "dev", end)
            ip("-n", ROUTER, "link", "set", end, "up")
            ip("-n", namespace, "route", "add", "default", "via", gateway)
        for namespace in (ROUTER, SERVER):
            inside(namespace, "sysctl", "-qw", "net.ipv4.ip_forward=1")
            # Otherwise the second rejected probe within a second is told nothing.
            inside(namespace, "sysctl", "-qw", "net.ipv4.icmp_ratelimit=0")
        with subprocess.Popen(["ip", "netns", "exec", CLIENT, "sleep", "infinity"]) as sleeper:
            stack.callback(sleeper.kill)
            wait_until_inside(sleeper.pid)
            yield sleeper.pid
            sleeper.kill()


def wait_until_inside(pid: int) -> None:
    while os.stat(f"/proc/{pid}/ns/net").st_ino != os.stat(f"/run/netns/{CLIENT}").st_ino:
        pass


@contextmanager
def rule(namespace: str, *spec: str) -> Iterator[None]:
    inside(namespace, "iptables", "-w", "-A", *spec)
    try:
        yield
    finally:
        inside(namespace, "iptables", "-w", "-D", *spec)


@contextmanager
def route(namespace: str, *spec: str) -> Iterator[None]:
    ip("-n", namespace, "route", "add", *spec)
    try:
        yield
    finally:
        ip("-n", namespace, "route", "del", *spec)


@contextmanager
def listening(kind: int, serve: Callable[[socket.socket], Any], backlog: int = 64) -> Iterator[int]:
    """The port of a socket in the server's namespace, which ``serve`` is called with until it is closed."""
    with entered(SERVER):
        sock = socket.socket(socket.AF_INET, kind)
    with sock:
        sock.bind((SERVER_IP, 0))
        if kind == socket.SOCK_STREAM:
            sock.listen(backlog)
        stopped = threading.Event()
        thread = threading.Thread(target=lambda: until(stopped, sock, serve))
        thread.start()
        try:
            yield sock.getsockname()[1]
        finally:
            stopped.set()
            thread.join()


def until(stopped: threading.Event, sock: socket.socket, serve: Callable[[socket.socket], Any]) -> None:
    sock.settimeout(0.05)
    while not stopped.is_set():
        try:
            serve(sock)
        except TimeoutError:
            continue


def observe(client: int, protocol: str, port: int = 0, **more: Any) -> Observation:
    probe: Probe = {"id": "it", "protocol": protocol, "address": SERVER_IP, "port": port, "source_pid": client}
    probe.update({"timeout": 2.0, **more})  # type: ignore[typeddict-item]  # a plain dict for a TypedDict
    assert problem(probe) == ""
    (observation,) = run_probes([probe])
    assert observation["id"] == "it"
    return observation


def outcome(client: int, protocol: str, port: int = 0, **more: Any) -> tuple[str, str]:
    observation = observe(client, protocol, port, **more)
    return observation["outcome"], observation["detail"]


# --- tcp -------------------------------------------------------------------------------------------------------------


def accept(sock: socket.socket) -> None:
    sock.accept()[0].close()


def test_tcp_connects(client: int) -> None:
    with listening(socket.SOCK_STREAM, accept) as port:
        observation = observe(client, "tcp", port)
    assert observation["outcome"] == "ok"
    assert 0 < observation["rtt_ms"] < 2000


@pytest.mark.parametrize(
    ("chain", "answer", "expected"),
    [
        ("INPUT", "tcp-reset", ("refused", "RST")),
        ("INPUT", "icmp-port-unreachable", ("refused", f"icmp port-unreachable from {SERVER_IP}")),
        ("FORWARD", "icmp-port-unreachable", ("refused", f"icmp port-unreachable from {ROUTER_IP}")),
        ("FORWARD", "icmp-net-unreachable", ("unreachable", f"icmp net-unreachable from {ROUTER_IP}")),
        ("FORWARD", "icmp-host-unreachable", ("unreachable", f"icmp host-unreachable from {ROUTER_IP}")),
        ("FORWARD", "icmp-net-prohibited", ("prohibited", f"icmp net-prohibited from {ROUTER_IP}")),
        ("FORWARD", "icmp-host-prohibited", ("prohibited", f"icmp host-prohibited from {ROUTER_IP}")),
        ("FORWARD", "icmp-admin-prohibited", ("prohibited", f"icmp admin-prohibited from {ROUTER_IP}")),
    ],
)
def test_tcp_tells_who_rejects_and_how(client: int, chain: str, answer: str, expected: tuple[str, str]) -> None:
    namespace = SERVER if chain == "INPUT" else ROUTER
    with (
        listening(socket.SOCK_STREAM, accept) as port,
        rule(namespace, chain, "-p", "tcp", "-d", SERVER_IP, "-j", "REJECT", "--reject-with", answer),
    ):
        assert outcome(client, "tcp", port) == expected


def test_tcp_without_listener_is_refused(client: int) -> None:
    assert outcome(client, "tcp", 9) == ("refused", "RST")


def test_tcp_dropped_times_out(client: int) -> None:
    with listening(socket.SOCK_STREAM, accept) as port, rule(SERVER, "INPUT", "-p", "tcp", "-j", "DROP"):
        assert outcome(client, "tcp", port, timeout=0.3) == ("timeout", "no answer to SYN")


def test_tcp_to_a_full_backlog_times_out(client: int) -> None:
    with (
        listening(socket.SOCK_STREAM, lambda sock: threading.Event().wait(0.05), backlog=0) as port,
        ExitStack() as stack,
    ):
        with entered(CLIENT):
            stack.enter_context(socket.create_connection((SERVER_IP, port)))
        assert outcome(client, "tcp", port, timeout=0.3) == ("timeout", "no answer to SYN")


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("blackhole", ("unreachable", "a blackhole route")),
        ("unreachable", ("unreachable", "an unreachable route, or no neighbour answers")),
        ("prohibit", ("prohibited", "a prohibit route")),
    ],
)
@pytest.mark.parametrize("protocol", ["tcp", "udp", "icmp", "mtu"])
def test_own_routes_that_refuse(client: int, protocol: str, kind: str, expected: tuple[str, str]) -> None:
    with route(CLIENT, kind, "203.0.113.0/24"):
        assert outcome(client, protocol, 80, address="203.0.113.9") == expected


def test_no_route(client: int) -> None:
    ip("-n", CLIENT, "route", "del", "default")
    try:
        assert outcome(client, "tcp", 80) == ("unreachable", "no route")
    finally:
        ip("-n", CLIENT, "route", "add", "default", "via", ROUTER_IP)


def test_a_routing_loop(client: int) -> None:
    with route(ROUTER, "203.0.113.0/24", "via", SERVER_IP):
        kind, detail = outcome(client, "tcp", 80, address="203.0.113.9")
    assert kind == "unreachable"
    assert detail.startswith("icmp ttl-exceeded from ")


# --- udp, icmp -------------------------------------------------------------------------------------------------------


def echo(sock: socket.socket) -> None:
    message, sender = sock.recvfrom(2048)
    sock.sendto(message, sender)


def test_udp_echo(client: int) -> None:
    with listening(socket.SOCK_DGRAM, echo) as port:
        assert outcome(client, "udp", port) == ("ok", "")


def test_udp_answered_by_something_else(client: int) -> None:
    with listening(socket.SOCK_DGRAM, lambda sock: sock.sendto(b"?", sock.recvfrom(2048)[1])) as port:
        assert outcome(client, "udp", port) == ("ok", "answered by 1 bytes that are no echo")


def test_udp_survives_one_lost_datagram(client: int) -> None:
    received: list[bytes] = []

    def second_only(sock: socket.socket) -> None:
        message, sender = sock.recvfrom(2048)
        if received:
            sock.sendto(message, sender)
        received.append(message)

    with listening(socket.SOCK_DGRAM, second_only) as port:
        assert outcome(client, "udp", port) == ("ok", "")
    assert len(received) == 2


def test_udp_to_a_closed_port_is_refused(client: int) -> None:
    assert outcome(client, "udp", 9) == ("refused", f"icmp port-unreachable from {SERVER_IP}")


def test_udp_silence(client: int) -> None:
    with listening(socket.SOCK_DGRAM, lambda sock: sock.recvfrom(2048)) as port:
        assert outcome(client, "udp", port, timeout=0.3) == ("timeout", "no answer")


@pytest.mark.parametrize("protocol", ["udp", "icmp"])
def test_dropped_by_a_rule_for_outgoing_packets(client: int, protocol: str) -> None:
    with rule(CLIENT, "OUTPUT", "-p", protocol, "-j", "DROP"):
        assert outcome(client, protocol, 9) == ("prohibited", "dropped by a rule for outgoing packets")


def test_icmp_echo(client: int) -> None:
    assert outcome(client, "icmp") == ("ok", "")


def test_icmp_dropped(client: int) -> None:
    with rule(SERVER, "INPUT", "-p", "icmp", "-j", "DROP"):
        assert outcome(client, "icmp", timeout=0.3) == ("timeout", "no answer")


def test_icmp_rejected(client: int) -> None:
    with rule(ROUTER, "FORWARD", "-p", "icmp", "-j", "REJECT", "--reject-with", "icmp-admin-prohibited"):
        assert outcome(client, "icmp") == ("prohibited", f"icmp admin-prohibited from {ROUTER_IP}")


# --- mtu -------------------------------------------------------------------------------------------------------------


@contextmanager
def narrow(mtu: int) -> Iterator[None]:
    ip("-n", ROUTER, "link", "set", "to-server", "mtu", str(mtu))
    try:
        yield
    finally:
        ip("-n", ROUTER, "link", "set", "to-server", "mtu", str(MTU))
        ip("-n", CLIENT, "route", "flush", "cache")


def test_mtu_of_the_device_passes(client: int) -> None:
    assert observe(client, "mtu") == {"id": "it", "outcome": "ok", "detail": "", "mtu": MTU}


def test_mtu_with_frag_needed(client: int) -> None:
    with narrow(1400):
        observation = observe(client, "mtu")
    detail = f"icmp frag-needed from {ROUTER_IP} above 1400 bytes; device MTU {MTU}"
    assert observation == {"id": "it", "outcome": "ok", "detail": detail, "mtu": 1400}


def test_mtu_and_ping_to_the_same_host_are_not_mixed_up(client: int) -> None:
    probes: list[Probe] = [
        {"id": protocol + str(number), "protocol": protocol, "address": SERVER_IP, "source_pid": client}
        for number in range(10)
        for protocol in ("mtu", "icmp")
    ]
    with narrow(1400):
        observations = run_probes(probes)
    assert {observation["outcome"] for observation in observations} == {"ok"}
    assert {observation["mtu"] for observation in observations if "mtu" in observation} == {1400}


@pytest.mark.parametrize("mtu", [577, 1000, 1387, MTU - 1])
def test_mtu_black_hole(client: int, mtu: int) -> None:
    with narrow(mtu), rule(ROUTER, "OUTPUT", "-p", "icmp", "--icmp-type", "fragmentation-needed", "-j", "DROP"):
        observation = observe(client, "mtu")
    detail = f"packets over {mtu} bytes vanish; device MTU {MTU}"
    assert observation == {"id": "it", "outcome": "timeout", "detail": detail, "mtu": mtu}


def test_mtu_where_nothing_passes(client: int) -> None:
    with rule(SERVER, "INPUT", "-p", "icmp", "-j", "DROP"):
        assert observe(client, "mtu") == {"id": "it", "outcome": "timeout", "detail": "no answer to ICMP echo"}


# --- http, https -----------------------------------------------------------------------------------------------------


def answering(answer: bytes) -> Callable[[socket.socket], None]:
    def serve(sock: socket.socket) -> None:
        connection = sock.accept()[0]
        with connection:
            connection.recv(4096)
            connection.sendall(answer)

    return serve


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        (b"HTTP/1.1 200 OK\r\n\r\n", ("ok", "status 200")),
        (b"HTTP/1.1 301 Moved\r\n\r\n", ("ok", "status 301")),
        (b"HTTP/1.1 404 Not Found\r\n\r\n", ("ok", "status 404")),
        (b"HTTP/1.1 503 Service Unavailable\r\n\r\n", ("http", "status 503")),
        (b"SSH-2.0-OpenSSH_9.2\r\n", ("http", "not an HTTP answer")),
        (b"", ("http", "closed without an answer")),
    ],
)
def test_http(client: int, answer: bytes, expected: tuple[str, str]) -> None:
    with listening(socket.SOCK_STREAM, answering(answer)) as port:
        assert outcome(client, "http", port) == expected


@pytest.mark.parametrize(("status", "expected"), [(200, "http"), (404, "ok"), (0, "ok")])
def test_http_with_the_status_that_is_wanted(client: int, status: int, expected: str) -> None:
    with listening(socket.SOCK_STREAM, answering(b"HTTP/1.1 404 Not Found\r\n\r\n")) as port:
        assert outcome(client, "http", port, status=status) == (expected, "status 404")


def test_http_asks_for_path_and_host(client: int) -> None:
    requests: list[bytes] = []

    def serve(sock: socket.socket) -> None:
        with sock.accept()[0] as connection:
            requests.append(connection.recv(4096))
            connection.sendall(b"HTTP/1.1 200 OK\r\n\r\n")

    with listening(socket.SOCK_STREAM, serve) as port:
        assert outcome(client, "http", port, name="platform.keybuzz.io", path="/health")[0] == "ok"
    assert requests[0].startswith(b"GET /health HTTP/1.1\r\nHost: platform.keybuzz.io\r\n")


def test_http_reset(client: int) -> None:
    def serve(sock: socket.socket) -> None:
        with sock.accept()[0] as connection:
            connection.recv(4096)
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))

    with listening(socket.SOCK_STREAM, serve) as port:
        assert outcome(client, "http", port) == ("reset", "RST on an open connection")


@pytest.mark.parametrize("protocol", ["http", "https", "dns-tcp"])
def test_silence_on_a_connection(client: int, protocol: str) -> None:
    connections = []
    with listening(socket.SOCK_STREAM, lambda sock: connections.append(sock.accept())) as port:
        observed = outcome(client, protocol, port, name="kubernetes.default", timeout=0.3)
    assert observed[0] == "timeout"
    assert observed[1].startswith("connected, but no answer")


def test_a_trickle_does_not_outlast_the_time_limit(client: int) -> None:
    def trickle(sock: socket.socket) -> None:
        with sock.accept()[0] as connection:
            while True:
                try:
                    connection.sendall(b"H")
                except OSError:
                    return
                threading.Event().wait(0.01)

    with listening(socket.SOCK_STREAM, trickle) as port:
        assert outcome(client, "http", port, timeout=0.3)[0] == "timeout"


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> ssl.SSLContext:
    directory = tmp_path_factory.mktemp("tls")
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes",
         "-subj", "/CN=ingress", "-addext", "subjectAltName=DNS:*.keybuzz.io,DNS:keybuzz.io",
         "-keyout", directory / "key", "-out", directory / "cert"],
        check=True, capture_output=True,
    )  # fmt: skip
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(directory / "cert", directory / "key")
    return context


def over_tls(certificate: ssl.SSLContext) -> Callable[[socket.socket], None]:
    def serve(sock: socket.socket) -> None:
        connection = sock.accept()[0]
        connection.settimeout(2)
        try:
            with certificate.wrap_socket(connection, server_side=True) as secured:
                secured.recv(4096)
                secured.sendall(b"HTTP/1.1 503 Service Unavailable\r\n\r\n")
        except OSError:
            return  # the client did not like the certificate

    return serve


def test_https_with_a_certificate_of_nobody(client: int, certificate: ssl.SSLContext) -> None:
    with listening(socket.SOCK_STREAM, over_tls(certificate)) as port:
        assert outcome(client, "https", port, name="platform.keybuzz.io") == ("tls", "self-signed certificate")


def test_https_without_verification(client: int, certificate: ssl.SSLContext) -> None:
    with listening(socket.SOCK_STREAM, over_tls(certificate)) as port:
        observed = outcome(client, "https", port, name="platform.keybuzz.io", verify=False)
    assert observed == ("http", "status 503")


def test_https_says_whose_certificate_it_was_shown(client: int, certificate: ssl.SSLContext) -> None:
    probe = Probe(id="x", protocol="https", address=SERVER_IP, name="my.keybuzz.io", verify=False, source_pid=client)
    with listening(socket.SOCK_STREAM, over_tls(certificate)) as port:
        (seen,) = run_probes([{**probe, "port": port, "expect": "http"}])
    assert (seen["status"], seen["outcome"]) == (503, "http")
    shown = seen["certificate"]
    assert (shown["subject"], shown["issuer"], shown["names"]) == ("ingress", "ingress", ["*.keybuzz.io", "keybuzz.io"])
    assert shown["not_after"] > time.time()


def ingress(expects: bool) -> Callable[[socket.socket], None]:
    """As nginx is with use-proxy-protocol, or without."""

    def serve(sock: socket.socket) -> None:
        with sock.accept()[0] as connection:
            has_it = connection.recv(4096).startswith(f"PROXY TCP4 {CLIENT_IP} {SERVER_IP} ".encode())
            if has_it == expects:
                connection.sendall(b"HTTP/1.1 200 OK\r\n\r\n")
            elif not expects:
                connection.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")

    return serve


@pytest.mark.parametrize(
    ("expects", "proxy", "expected"),
    [
        (True, "sent", ("ok", "status 200")),
        (False, "none", ("ok", "status 200")),
        (True, "none", ("http", "closed without an answer; with the PROXY header: status 200")),
        (False, "sent", ("http", "status 400; without the PROXY header: status 200")),
        (True, "unknown", ("ok", "status 200 with the PROXY header")),
        (False, "unknown", ("ok", "status 200")),
    ],
)
def test_the_proxy_header_is_sent_or_not_and_tried_the_other_way(
    client: int, expects: bool, proxy: str, expected: tuple[str, str]
) -> None:
    with listening(socket.SOCK_STREAM, ingress(expects)) as port:
        assert outcome(client, "http", port, proxy=proxy) == expected


def test_a_400_of_the_application_is_not_taken_for_one_of_the_header(client: int) -> None:
    with listening(socket.SOCK_STREAM, answering(b"HTTP/1.1 400 Bad Request\r\n\r\n")) as port:
        assert outcome(client, "http", port, proxy="none") == ("ok", "status 400")


@pytest.mark.parametrize(
    ("declared", "expected"), [({"statuses": [404]}, "ok"), ({"unwanted": [400, 404]}, "http"), ({}, "ok")]
)
def test_http_with_statuses_that_are_wanted_or_not(client: int, declared: dict[str, Any], expected: str) -> None:
    with listening(socket.SOCK_STREAM, answering(b"HTTP/1.1 404 Not Found\r\n\r\n")) as port:
        assert outcome(client, "http", port, **declared) == (expected, "status 404")


def test_an_answer_is_waited_for_with_patience_once_connected(client: int) -> None:
    def late(sock: socket.socket) -> None:
        with sock.accept()[0] as connection:
            connection.recv(4096)
            time.sleep(0.6)
            connection.sendall(b"HTTP/1.1 504 Gateway Time-out\r\n\r\n")

    with listening(socket.SOCK_STREAM, late) as port:
        assert outcome(client, "http", port, timeout=0.3, patience=5.0) == ("http", "status 504")
        assert outcome(client, "http", port, timeout=0.3)[0] == "timeout"


def test_what_may_yet_come_right_is_waited_for_as_long_as_it_may_take(
    client: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    statuses = [503, 503, 503]

    def settling(sock: socket.socket) -> None:
        with sock.accept()[0] as connection:
            connection.recv(4096)
            status = statuses.pop() if statuses else 200
            connection.sendall(f"HTTP/1.1 {status} Whatever\r\n\r\n".encode())

    monkeypatch.setattr(probing, "SETTLING", 0.05)
    with listening(socket.SOCK_STREAM, settling) as port:
        assert outcome(client, "http", port, settle=30.0) == ("ok", "status 200")
    statuses += [503] * 1000
    with listening(socket.SOCK_STREAM, settling) as port:
        assert outcome(client, "http", port, settle=0.3) == ("http", "status 503")
        assert 0 < len(statuses) < 999


def test_https_to_a_server_that_speaks_http(client: int) -> None:
    with listening(socket.SOCK_STREAM, answering(b"HTTP/1.1 400 Bad Request\r\n\r\n")) as port:
        assert outcome(client, "https", port) == ("tls", "wrong version number")


# --- dns -------------------------------------------------------------------------------------------------------------

NAME = "kubernetes.default.svc.cluster.local"


def reply(question: bytes, flags: int = 0x8180, *addresses: str) -> bytes:
    header = question[:2] + struct.pack("!5H", flags, 1, len(addresses), 0, 0)
    records = [b"\xc0\x0c" + struct.pack("!HHIH", 1, 1, 5, 4) + socket.inet_aton(address) for address in addresses]
    return header + question[12:] + b"".join(records)


@contextmanager
def resolver(kind: int, *messages: Callable[[bytes], bytes]) -> Iterator[int]:
    def by_udp(sock: socket.socket) -> None:
        question, sender = sock.recvfrom(2048)
        for message in messages:
            sock.sendto(message(question), sender)

    def by_tcp(sock: socket.socket) -> None:
        with sock.accept()[0] as connection:
            question = connection.recv(2048)[2:]
            for message in messages:
                connection.sendall(struct.pack("!H", len(message(question))) + message(question))

    with listening(kind, by_udp if kind == socket.SOCK_DGRAM else by_tcp) as port:
        yield port


@pytest.mark.parametrize(("protocol", "kind"), [("dns-udp", socket.SOCK_DGRAM), ("dns-tcp", socket.SOCK_STREAM)])
@pytest.mark.parametrize(
    ("message", "expected"),
    [
        (lambda question: reply(question, 0x8180, "10.43.0.1"), ("ok", "10.43.0.1")),
        (lambda question: reply(question, 0x8183), ("dns", "NXDOMAIN")),
        (lambda question: reply(question, 0x8182), ("dns", "SERVFAIL")),
        (lambda question: reply(question, 0x8185), ("dns", "REFUSED")),
        (lambda question: reply(question, 0x8180), ("dns", "no address")),
        (
            lambda question: reply(question, 0x8380, "10.43.0.1", "10.43.0.2")[:-3],
            ("ok", "truncated after 1 addresses"),
        ),
    ],
)
def test_dns(
    client: int, protocol: str, kind: int, message: Callable[[bytes], bytes], expected: tuple[str, str]
) -> None:
    with resolver(kind, message) as port:
        assert outcome(client, protocol, port, name=NAME) == expected


def test_dns_udp_waits_for_the_answer_to_its_own_question(client: int) -> None:
    def stale(question: bytes) -> bytes:
        return bytes([question[0] ^ 1]) + reply(question, 0x8183)[1:]

    with resolver(socket.SOCK_DGRAM, stale, lambda question: reply(question, 0x8180, "10.43.0.1")) as port:
        assert outcome(client, "dns-udp", port, name=NAME) == ("ok", "10.43.0.1")


def test_dns_tcp_names_a_malformed_answer(client: int) -> None:
    with resolver(socket.SOCK_STREAM, lambda question: reply(question, 0x8180, "10.43.0.1")[:-1]) as port:
        assert outcome(client, "dns-tcp", port, name=NAME) == ("dns", "malformed answer: the message ends too early")


@contextmanager
def racing(lost: int) -> Iterator[tuple[int, list[tuple[int, bytes]]]]:
    """The port of a resolver that leaves each port's ``lost``-th question unanswered, and what it was asked by whom."""
    asked: list[tuple[int, bytes]] = []

    def serve(sock: socket.socket) -> None:
        question, sender = sock.recvfrom(2048)
        asked.append((sender[1], question))
        if len([port for port, _ in asked if port == sender[1]]) != lost:
            sock.sendto(reply(question), sender)  # without an address, as AAAA has none where there is no IPv6

    with listening(socket.SOCK_DGRAM, serve) as port:
        yield port, asked


@pytest.mark.parametrize(("protocol", "ports"), [("dns-pair", 1), ("dns-apart", 2)])
def test_both_questions_at_once_are_answered_though_by_no_address(client: int, protocol: str, ports: int) -> None:
    with racing(lost=0) as (port, asked):
        assert outcome(client, protocol, port, name=NAME) == ("ok", "A and AAAA answered")
    assert len({source for source, _ in asked}) == ports
    assert [question[-4:] for _, question in asked] == [b"\0\x01\0\x01", b"\0\x1c\0\x01"]
    assert len({question[:2] for _, question in asked}) == 2


@pytest.mark.parametrize(
    ("protocol", "lost", "expected"),
    [
        ("dns-pair", 1, ("timeout", "no answer to A")),
        ("dns-pair", 2, ("timeout", "no answer to AAAA")),
        ("dns-apart", 1, ("timeout", "no answer to A and AAAA")),
        ("dns-apart", 2, ("ok", "A and AAAA answered")),
    ],
)
def test_the_question_that_is_lost_is_told_and_not_asked_again(
    client: int, protocol: str, lost: int, expected: tuple[str, str]
) -> None:
    with racing(lost) as (port, asked):
        assert outcome(client, protocol, port, name=NAME, timeout=1.3) == expected
    assert len(asked) == 2


def test_a_pair_of_questions_to_a_port_where_nobody_listens(client: int) -> None:
    assert outcome(client, "dns-pair", 9, name=NAME) == ("refused", f"icmp port-unreachable from {SERVER_IP}")


def test_dns_answer_to_another_name_is_none() -> None:
    with pytest.raises(ValueError, match="another question"):
        dns.answer(reply(dns.question("a.example", 7)), dns.question("b.example", 7))


# --- all at once -----------------------------------------------------------------------------------------------------


def test_all_probes_are_under_way_at_the_same_time(client: int) -> None:
    count = 100
    waiting: list[socket.socket] = []

    def answer_when_all_are_there(sock: socket.socket) -> None:
        waiting.append(sock.accept()[0])
        if len(waiting) == count:
            for connection in waiting:
                connection.sendall(b"HTTP/1.1 204 No Content\r\n\r\n")
                connection.close()

    with listening(socket.SOCK_STREAM, answer_when_all_are_there, backlog=count) as port:
        probe: Probe = {"protocol": "http", "address": SERVER_IP, "port": port, "source_pid": client, "timeout": 10}
        probes: list[Probe] = [{**probe, "id": str(number)} for number in range(count)]
        observations = run_probes(probes)
    assert [observation["id"] for observation in observations] == [probe["id"] for probe in probes]
    assert {observation["detail"] for observation in observations} == {"status 204"}


def test_more_probes_than_may_run_at_once(client: int) -> None:
    probe: Probe = {"protocol": "tcp", "address": SERVER_IP, "port": 9, "source_pid": client}
    observations = run_probes([{**probe, "id": str(number)} for number in range(7)], concurrency=2)
    assert [(observation["id"], observation["outcome"]) for observation in observations] == [
        (str(number), "refused") for number in range(7)
    ]


def test_attempts_are_all_made_and_one_that_fails_is_told(client: int) -> None:
    statuses = [b"200", b"503", b"200"]

    def serve(sock: socket.socket) -> None:
        with sock.accept()[0] as connection:
            connection.recv(4096)
            connection.sendall(b"HTTP/1.1 %s Whatever\r\n\r\n" % statuses.pop())

    with listening(socket.SOCK_STREAM, serve) as port:
        assert outcome(client, "http", port, attempts=3) == ("http", "1 of 3 attempts: status 503")
    assert statuses == []


def test_no_probes() -> None:
    assert run_probes([]) == []


# --- asked again, rounds ----------------------------------------------------------------------------------------------


@contextmanager
def every(count: int, port: int) -> Iterator[None]:
    """Drops the first datagram to the port, and then each time as many have come."""
    nth = ["-m", "statistic", "--mode", "nth", "--every", str(count), "--packet", "0"]
    with rule(SERVER, "INPUT", "-p", "udp", "--dport", str(port), *nth, "-j", "DROP"):
        yield


def beside_others(client: int, protocol: str, port: int, rounds: int = 1, **more: Any) -> Observation:
    """What a probe sees of which a node has others, that pass."""
    probe: Probe = {"id": "it", "protocol": protocol, "address": SERVER_IP, "port": port, "source_pid": client}
    probe.update({"timeout": 0.3, **more})  # type: ignore[typeddict-item]  # a plain dict for a TypedDict
    others: list[Probe] = [
        {"id": f"ping {number}", "protocol": "icmp", "address": SERVER_IP, "source_pid": client} for number in range(2)
    ]
    it, *pings = run_probes([probe, *others], rounds)
    assert {ping["outcome"] for ping in pings} == {"ok"}
    return it


def test_a_datagram_that_is_lost_once_is_no_failure(client: int) -> None:
    with listening(socket.SOCK_DGRAM, echo) as port, every(8, port):
        observation = beside_others(client, "udp", port)
    assert (observation["outcome"], observation["detail"]) == ("ok", "1 of 7 attempts: timeout, no answer")
    assert (observation["attempts"], observation["failed"]) == (7, 1)
    assert list(observation["ports"].values()) == [[2, 1]]
    assert observation["rtt_ms"] < 300


def test_loss_that_goes_on_is_one(client: int) -> None:
    with listening(socket.SOCK_DGRAM, echo) as port, every(3, port):
        observation = beside_others(client, "udp", port)
    assert (observation["outcome"], observation["detail"]) == ("timeout", "3 of 7 attempts: no answer")


def test_what_never_answers_says_so_as_before(client: int) -> None:
    with listening(socket.SOCK_DGRAM, lambda sock: sock.recvfrom(2048)) as port:
        observation = beside_others(client, "udp", port)
    assert (observation["outcome"], observation["detail"], observation["failed"]) == ("timeout", "no answer", 7)


def test_a_port_that_fails_is_asked_from_again(client: int) -> None:
    """As where connection tracking has an entry that is stuck."""
    stuck: list[int] = []

    def answer_others(sock: socket.socket) -> None:
        message, sender = sock.recvfrom(2048)
        stuck[:] = stuck or [sender[1]]
        if sender[1] not in stuck:
            sock.sendto(message, sender)

    with listening(socket.SOCK_DGRAM, answer_others) as port:
        observation = beside_others(client, "udp", port)
    assert (observation["outcome"], observation["detail"]) == ("timeout", "2 of 7 attempts: no answer")
    assert observation["ports"] == {str(stuck[0]): [2, 2]}


def counting(received: list[int]) -> Callable[[socket.socket], None]:
    """Answers nobody, and notes the ports of those who ask."""
    return lambda sock: received.append(sock.recvfrom(2048)[1][1])


def test_where_most_probes_fail_none_is_asked_again(client: int) -> None:
    received: list[int] = []
    with listening(socket.SOCK_DGRAM, counting(received)) as port:
        observation = observe(client, "udp", port, timeout=0.3)
    assert len(received) == 1
    assert "attempts" not in observation


def test_where_more_fail_than_can_be_asked_again_at_once_none_is(client: int) -> None:
    received: list[int] = []
    probe: Probe = {"protocol": "udp", "address": SERVER_IP, "source_pid": client, "timeout": 0.3}
    with listening(socket.SOCK_DGRAM, counting(received)) as silent, listening(socket.SOCK_DGRAM, echo) as port:
        probes: list[Probe] = [
            {**probe, "id": f"{number}", "port": silent if number % 2 else port} for number in range(8)
        ]
        run_probes(probes, concurrency=39)
        assert len(received) == 4
        run_probes(probes, concurrency=40)
    assert len(received) == 4 + 4 + 4 * 6


def test_what_is_to_be_blocked_and_is_not_is_no_chance(client: int) -> None:
    with listening(socket.SOCK_DGRAM, echo) as port, every(2, port):
        observation = beside_others(client, "udp", port, expect="blocked", rounds=2)
    assert (observation["outcome"], observation["attempts"], observation["failed"]) == ("ok", 2, 1)


def test_all_attempts_at_a_service_are_made_again(client: int) -> None:
    """Each may have met another endpoint, and as many may be needed to meet that one."""
    with listening(socket.SOCK_DGRAM, echo) as port, every(100, port):
        observation = beside_others(client, "udp", port, attempts=12)
    assert (observation["outcome"], observation["attempts"], observation["failed"]) == ("ok", 12 + 12 + 1, 1)


def test_rounds_are_made_one_behind_the_other(client: int) -> None:
    """Two in ten are lost, each at another moment."""
    with listening(socket.SOCK_DGRAM, echo) as port, every(5, port):
        observation = beside_others(client, "udp", port, rounds=10)
    assert observation["outcome"] == "timeout"
    assert (observation["attempts"], observation["failed"]) == (10 + 5 + 2, 4)


def test_a_round_that_loses_one_of_many_is_no_failure(client: int) -> None:
    with listening(socket.SOCK_DGRAM, echo) as port, every(100, port):
        observation = beside_others(client, "udp", port, rounds=10)
    assert (observation["outcome"], observation["attempts"], observation["failed"]) == ("ok", 10 + 5 + 1, 1)


def test_the_endpoint_behind_a_service_is_told(namespace: Any) -> None:
    """Of two, to which connections are led in turn, one refuses."""
    namespace("ip", "link", "set", "lo", "up")
    for address in ("10.42.0.1", "10.42.0.2", "10.42.0.3"):
        namespace("ip", "addr", "add", address, "dev", "lo")
    namespace("ip", "route", "add", "10.43.0.0/16", "dev", "lo", "src", "10.42.0.1")
    to_service = ["iptables", "-w", "-t", "nat", "-A", "OUTPUT", "-p", "udp", "-d", "10.43.0.7"]
    turn = ["-m", "statistic", "--mode", "nth", "--every", "2", "--packet", "0"]
    namespace(*to_service, *turn, "-j", "DNAT", "--to-destination", "10.42.0.2")
    namespace(*to_service, "-j", "DNAT", "--to-destination", "10.42.0.3")
    told = namespace.python(
        "import json, socket, threading\n"
        "from ansible.module_utils.netmend.probe import run_probes\n"
        "server = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)\n"
        "server.bind(('10.42.0.2', 0))\n"
        "def serve():\n"
        "    while True: server.sendto(*server.recvfrom(2048))\n"
        "threading.Thread(target=serve, daemon=True).start()\n"
        "probe = {'id': 'it', 'protocol': 'udp', 'address': '10.43.0.7', 'port': server.getsockname()[1],\n"
        "         'timeout': 0.3, 'attempts': 6, 'target_service': 'default/web'}\n"
        "print(json.dumps(run_probes([probe])[0]))"
    )
    assert json.loads(told)["endpoints"] == {"10.42.0.2": [3, 0], "10.42.0.3": [3, 3]}


# --- namespaces ------------------------------------------------------------------------------------------------------


def test_host_and_pod_probe_in_one_call_and_the_host_stays_at_home(client: int) -> None:
    before = os.readlink("/proc/thread-self/ns/net")
    with socket.create_server(("127.0.0.1", 0)) as server:
        probe: Probe = {"id": "host", "protocol": "tcp", "address": "127.0.0.1", "port": server.getsockname()[1]}
        host, pod = run_probes([probe, {**probe, "id": "pod", "source_pid": client}])
    assert (host["outcome"], pod["outcome"]) == ("ok", "refused")
    assert os.readlink("/proc/thread-self/ns/net") == before


def test_a_pod_that_is_gone() -> None:
    with subprocess.Popen(["true"]) as gone:
        gone.wait()
    expected = ("error", f"process {gone.pid} is gone: its pod was deleted or restarted")
    assert outcome(gone.pid, "tcp", 80) == expected


def test_a_pid_that_a_process_of_the_host_took_over() -> None:
    expected = ("error", f"process {os.getpid()} is in the host's network namespace, not in a pod's")
    assert outcome(os.getpid(), "icmp") == expected


# --- counters, declared probes ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("backend", ["nft", "legacy"])
def test_the_rule_that_ate_a_probe(client: int, backend: str) -> None:
    save = f"iptables-{backend}-save"
    table = inside(SERVER, f"iptables-{backend}", "-w", "-S")
    assert "-P INPUT ACCEPT" in table
    for spec in ("-p udp -j DROP", "-p tcp --dport 9 -j ACCEPT", "-p tcp -j DROP"):
        inside(SERVER, f"iptables-{backend}", "-w", "-A", "INPUT", *spec.split())
    try:
        before = {backend: parse_save(inside(SERVER, save, "-c"))}
        assert moved(before, before) == []
        assert outcome(client, "tcp", 9)[0] == "refused"
        assert outcome(client, "tcp", 10, timeout=0.3)[0] == "timeout"
        after = {backend: parse_save(inside(SERVER, save, "-c"))}
    finally:
        inside(SERVER, f"iptables-{backend}", "-w", "-F", "INPUT")
    (risen,) = moved(before, after)
    assert risen == {
        "backend": backend, "table": "filter", "chain": "INPUT", "index": 3, "spec": "-p tcp -j DROP", "packets": 1,
    }  # fmt: skip


def saved(*lines: str) -> dict[str, Any]:
    return {"nft": parse_save("\n".join(["*filter", *lines, "COMMIT", ""]))}


def test_a_policy_that_drops() -> None:
    before = saved(":FORWARD DROP [3:180]", ":INPUT ACCEPT [3:180]")
    after = saved(":FORWARD DROP [5:300]", ":INPUT ACCEPT [9:540]")
    (risen,) = moved(before, after)
    assert (risen["chain"], risen["index"], risen["spec"], risen["packets"]) == ("FORWARD", 0, "-P DROP", 2)


def test_rules_that_read_alike_and_rules_that_shifted() -> None:
    chain = ":FORWARD ACCEPT [0:0]"
    before = saved(chain, "[7:0] -A FORWARD -j DROP", "[0:0] -A FORWARD -j DROP")
    after = saved(chain, "[1:0] -A FORWARD -j ACCEPT", "[7:0] -A FORWARD -j DROP", "[2:0] -A FORWARD -j DROP")
    assert [(risen["index"], risen["packets"]) for risen in moved(before, after)] == [(3, 2)]


def test_losses_are_read_and_only_those_that_rose_are_told(fixtures: Path, tmp_path: Path) -> None:
    netstat = (fixtures / "k3s-1.36.3/flannel/agent0/netstat.txt").read_text()
    (tmp_path / "netstat").write_text(netstat)
    before = losses(tmp_path)
    assert before == {"TcpExt.IPReversePathFilter": 0}
    (tmp_path / "stat").mkdir()
    (tmp_path / "stat/nf_conntrack").write_text("entries insert_failed drop\n0000000b 00000001 0000000f\n")
    after = losses(tmp_path)
    assert after == {"TcpExt.IPReversePathFilter": 0, "conntrack.drop": 15, "conntrack.insert_failed": 1}
    assert risen(before, after) == {}
    assert risen({**after, "conntrack.drop": 3}, after) == {"conntrack.drop": 12}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"protocol": "sctp"},
            "protocol 'sctp' is none of tcp, udp, icmp, http, https, dns-udp, dns-tcp, dns-pair, dns-apart, mtu",
        ),
        ({"address": "platform.keybuzz.io"}, "address 'platform.keybuzz.io' is not an IPv4 address"),
        ({"port": 0}, "protocol tcp needs a port from 1 to 65535"),
        ({"protocol": "dns-udp"}, "protocol dns-udp needs a name to ask for"),
        ({"name": "a..b"}, "name 'a..b' is not a domain name"),
        ({"name": "a\r\nX: y"}, "name 'a\\r\\nX: y' is not a domain name"),
        ({"path": "/a b"}, "path '/a b' is not an absolute path in printable ASCII"),
        ({"status": 20}, "status must be from 100 to 599"),
        ({"timeout": 0}, "timeout must be more than 0 seconds"),
        ({"expect": "open"}, "expect 'open' is none of"),
    ],
)
def test_a_wrong_declaration_is_named(change: Any, message: str) -> None:
    probe: Probe = {"id": "it", "protocol": "tcp", "address": "192.0.2.1", "port": 80}
    assert problem(probe) == ""
    assert problem({**probe, **change}).startswith(message)


def test_datagrams_with_a_bad_checksum_are_counted(namespace: Any) -> None:
    namespace("ip", "link", "set", "lo", "up")
    counted = namespace.python(
        "import socket, struct\n"
        "from ansible.module_utils.netmend.counters import losses\n"
        "before = losses()\n"
        "datagram = struct.pack('!4H', 4000, 4001, 12, 0x1234) + b'data'\n"
        "with socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_UDP) as sock:\n"
        "    sock.sendto(datagram, ('127.0.0.1', 0))\n"
        "while losses() == before: pass\n"
        "print(losses()['Udp.InCsumErrors'] - before['Udp.InCsumErrors'])"
    )
    assert counted == "1\n"
