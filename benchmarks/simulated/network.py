"""Nodes and their pods as network namespaces around a router, and somebody who answers in each of them.

The router is the namespace of who calls. Pods' packets are routed there, as no overlay is made.
"""

from __future__ import annotations

import ctypes
import os
import select
import signal
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing import Process
from pathlib import Path

from .cluster import Member

NAMESPACES = Path("/run/netns")
CLONE_NEWNET = 0x40000000
GATEWAY = "10.0.0.1"
DNS, DNS_POD = 53, "10.42.0.200"
CLUSTER_IPS = ("10.43.0.1", "10.43.0.10", "10.43.86.176")
# kubelet, API server, etcd; the API's, DNS' and the web's Services; the NodePort. ClusterIPs are the node's own here.
NODE_PORTS = (10250, 6443, 2379, 2380, 443, DNS, 80, 31695)
POD_PORTS = (8080, DNS)
ANSWER = bytes.fromhex("c00c00010001000000050004") + socket.inet_aton("10.43.0.1")  # the name asked for, A, 5 s
SETTINGS = {"ipv4/ip_forward": "1", "ipv4/conf/all/rp_filter": "0", "ipv6/conf/all/disable_ipv6": "1"}


def build(members: list[Member]) -> dict[str, int]:
    """Makes the namespaces, and returns node -> a process in its pod's."""
    _configure()
    for member in members:
        for namespace in (member.name, pod_of(member)):
            _ip("netns", "add", namespace)
            with inside(namespace):
                _configure()
    _batch("\n".join(line for number, member in enumerate(members) for line in _router(number, member)))
    for number, member in enumerate(members):
        _batch("\n".join(_node(number, member)), "-n", member.name)
        _batch("\n".join(_pod(number, member)), "-n", pod_of(member))
    pods = {member.name: NAMESPACES / pod_of(member) for member in members}
    return {
        name: subprocess.Popen(["nsenter", f"--net={path}", "sleep", "infinity"]).pid for name, path in pods.items()
    }


def answer(members: list[Member]) -> Process:
    """A process that accepts connections and answers DNS, on all nodes and in all pods."""
    streams, datagrams = [], []
    for member in members:
        with inside(member.name):
            streams += [_listening(port) for port in NODE_PORTS]
            datagrams.append(_bound(CLUSTER_IPS[1]))
        with inside(pod_of(member)):
            streams += [_listening(port) for port in POD_PORTS]
            datagrams.append(_bound(_pod_addresses(member)[-1]))
    process = Process(target=_serve, args=(streams, datagrams), daemon=True)
    process.start()
    return process


def pod_of(member: Member) -> str:
    return f"{member.name}-pod"


@contextmanager
def inside(namespace: str) -> Iterator[None]:
    """Puts this thread into a namespace for a while."""
    with Path("/proc/thread-self/ns/net").open() as own, (NAMESPACES / namespace).open() as other:
        _setns(other.fileno())
        try:
            yield
        finally:
            _setns(own.fileno())


def set_parameter(name: str, value: str) -> None:
    """Of the namespace that this thread is in. name: as below /proc/sys/net."""
    Path("/proc/sys/net", name).write_text(value)


def _configure() -> None:
    for name, value in SETTINGS.items():
        set_parameter(name, value)
    _ip("link", "set", "lo", "up")


# Neighbours are permanent: those that the kernel learns have one table for all namespaces, and it holds 1024.
def _router(number: int, member: Member) -> Iterator[str]:
    device = f"to{number}"
    yield (
        f"link add {device} mtu 1450 address {_mac('01', number)} type veth "
        f"peer name vec0 mtu 1450 address {_mac('02', number)} netns {member.name}"
    )
    yield f"link set {device} up"
    yield f"addr add {GATEWAY}/32 dev {device}"
    yield f"neigh add {member.address} lladdr {_mac('02', number)} dev {device} nud permanent"
    yield f"route add {member.address} dev {device}"
    yield f"route add {member.network}0/24 via {member.address} dev {device} onlink"


def _node(number: int, member: Member) -> Iterator[str]:
    yield "link set vec0 up"
    yield f"addr add {member.address}/32 dev vec0"
    yield f"neigh add {GATEWAY} lladdr {_mac('01', number)} dev vec0 nud permanent"
    yield f"route add {GATEWAY} dev vec0"
    yield f"route add default via {GATEWAY}"
    yield from (f"addr add {address}/32 dev lo" for address in CLUSTER_IPS)
    yield (
        f"link add cni0 mtu 1400 address {_mac('03', number)} type veth "
        f"peer name eth0 mtu 1400 address {_mac('04', number)} netns {pod_of(member)}"
    )
    yield "link set cni0 up"
    yield f"addr add {member.network}1/24 dev cni0"
    for address in _pod_addresses(member):
        yield f"neigh add {address} lladdr {_mac('04', number)} dev cni0 nud permanent"


def _pod(number: int, member: Member) -> Iterator[str]:
    gateway = f"{member.network}1"
    yield "link set eth0 up"
    yield from (f"addr add {address}/24 dev eth0" for address in _pod_addresses(member))
    yield f"neigh add {gateway} lladdr {_mac('03', number)} dev eth0 nud permanent"
    yield f"route add default via {gateway}"


def _pod_addresses(member: Member) -> list[str]:
    """CoreDNS's, too, where it runs."""
    return [member.pod, *([DNS_POD] if DNS_POD.startswith(member.network) else [])]


def _mac(kind: str, number: int) -> str:
    return f"02:00:00:00:{kind}:{number:02x}"


def _listening(port: int) -> socket.socket:
    return socket.create_server(("", port), backlog=1024)


def _bound(address: str) -> socket.socket:
    sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    sock.bind((address, DNS))
    return sock


def _serve(streams: list[socket.socket], datagrams: list[socket.socket]) -> None:
    """Closes what it accepts, but answers on DNS' port first."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_DFL)
    asking: dict[int, socket.socket] = {}
    listening = {sock.fileno(): sock for sock in streams}
    by_number = {sock.fileno(): sock for sock in datagrams}
    poll = select.epoll()
    for number in (*listening, *by_number):
        poll.register(number, select.EPOLLIN)
    while True:
        for number, _ in poll.poll():
            if number in by_number:
                question, sender = by_number[number].recvfrom(512)
                by_number[number].sendto(_reply(question), sender)
            elif number in asking:
                with asking.pop(number) as connection:
                    poll.unregister(number)
                    _answer_by_tcp(connection)
            else:
                connection, _ = listening[number].accept()
                if connection.getsockname()[1] == DNS:
                    asking[connection.fileno()] = connection
                    poll.register(connection.fileno(), select.EPOLLIN)
                else:
                    connection.close()


def _answer_by_tcp(connection: socket.socket) -> None:
    try:
        question = connection.recv(512)[2:]
        if question:
            reply = _reply(question)
            connection.sendall(len(reply).to_bytes(2, "big") + reply)
    except OSError:
        pass  # who asked has gone


def _reply(question: bytes) -> bytes:
    """One address for every name: QR, RD and RA are set, and one record follows the question."""
    return question[:2] + bytes.fromhex("81800001000100000000") + question[12:] + ANSWER


def _batch(lines: str, *options: str) -> None:
    subprocess.run(["ip", *options, "-batch", "-"], input=lines + "\n", text=True, check=True)


def _ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True)


def _setns(descriptor: int) -> None:
    # os.setns is there from Python 3.12 on.
    if ctypes.CDLL(None, use_errno=True).setns(descriptor, CLONE_NEWNET):
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
