"""A lab's network: a private and a public one of routed /32 addresses, as Hetzner Cloud has them, and an internet.

All of it is in one network namespace that nothing leads out of, and that is the gateway of both networks; a client on
the internet has a namespace of its own. A machine's two NICs are one end each of two veth pairs. Whoever looks for
what belongs to a lab finds it by these namespaces.
"""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path

from .spec import Lab, Machine

NAMESPACES = Path("/run/netns")
PRIVATE_GATEWAY = "10.0.0.1"
CONTROLLER = "10.0.0.2"  # whom the machines see when the lab's host talks to them
PUBLIC_GATEWAY = "172.31.1.1"
INTERNET = "198.51.100.1"
OUTSIDE = "198.51.100.10"

SYSCTLS = {
    "net.ipv4.ip_forward": 1,
    "net.ipv4.icmp_ratelimit": 0,
    "net.ipv4.icmp_errors_use_inbound_ifaddr": 1,
    "net.ipv4.conf.all.rp_filter": 0,
    "net.ipv4.conf.default.rp_filter": 0,
    "net.ipv6.conf.all.disable_ipv6": 1,
    "net.ipv6.conf.default.disable_ipv6": 1,
}
# The two networks are two: what a machine sends out of one NIC never comes in by another machine's other NIC.
SEPARATION = """
table inet separation {
    chain forward {
        type filter hook forward priority filter; policy drop
        iifname { "private-*", "delay-*" } oifname { "private-*", "delay-*" } accept
        iifname "public-*" oifname "public-*" accept
        iifname "public-*" oifname "outside" accept
        iifname "outside" oifname "public-*" accept
    }
    chain input {
        type filter hook input priority filter
        iifname "outside" ip daddr 10.0.0.0/8 drop
        iifname "public-*" ip daddr 10.0.0.0/8 drop
    }
}
"""


class NetworkError(Exception):
    """A lab's namespaces are not as they would have to be."""


def namespace(lab: str) -> str:
    return f"netmend-{lab}"


def outside_namespace(lab: str) -> str:
    return f"netmend-{lab}-out"


def inside(lab: str, *argv: str, outside: bool = False) -> list[str]:
    """The command that runs argv in a lab's network, or as the client on the internet."""
    return ["ip", "netns", "exec", outside_namespace(lab) if outside else namespace(lab), *argv]


def enter(lab: str) -> None:
    """Take the calling thread into a lab's network."""
    with (NAMESPACES / namespace(lab)).open() as place:
        if ctypes.CDLL(None, use_errno=True).setns(place.fileno(), 0):
            raise OSError(ctypes.get_errno(), f"cannot enter namespace {namespace(lab)}")


def exists(lab: str) -> bool:
    return (NAMESPACES / namespace(lab)).exists()


def create(lab: Lab) -> None:
    """Make both namespaces and everything in them; NetworkError when the lab has them already."""
    if exists(lab.name):
        raise NetworkError(f"lab {lab.name} is up already; `python -m lab down {lab.name}` ends it")
    here, out = namespace(lab.name), outside_namespace(lab.name)
    _run(["ip", "netns", "add", here])
    _run(["ip", "netns", "add", out])
    settings = [f"{key}={value}" for key, value in SYSCTLS.items()]
    _run(["ip", "netns", "exec", here, "sysctl", "-qw", *settings])
    _run(["ip", "-n", here, "-batch", "-"], "\n".join(_commands(lab, out)))
    _run(
        ["ip", "-n", out, "-batch", "-"],
        f"link set lo up\nlink set eth0 up\naddress add {OUTSIDE}/24 dev eth0\nroute add default via {INTERNET}",
    )
    _run(["ip", "netns", "exec", here, "nft", "-f", "-"], SEPARATION)
    for nic in nics(lab):
        # The other end is a packet socket that takes what comes as it is.
        _run(["ip", "netns", "exec", here, "ethtool", "-K", nic, "tx", "off", "gso", "off", "tso", "off"])
        _run(["ip", "netns", "exec", here, "sysctl", "-qw", f"net.ipv4.conf.{nic}.proxy_arp=1"])


def delete(lab: str) -> None:
    """End every process in a lab's namespaces, then the namespaces; nothing happens where there are none."""
    for name in (namespace(lab), outside_namespace(lab)):
        if (NAMESPACES / name).exists():
            _end_processes(name)
            _run(["ip", "netns", "delete", name])


def nics(lab: Lab) -> Iterator[str]:
    """This side's ends of the veth pairs; the machines' ends are named the same with an m at the end."""
    for index in range(len(lab.machines)):
        yield f"public-{index}"
        yield f"private-{index}"


def mac(address: str) -> str:
    """A locally administered one for an IPv4 address: machines keep theirs over a reboot."""
    return "02:00:" + ":".join(f"{int(byte):02x}" for byte in address.split("."))


def neighbour(lab: Lab, machine: Machine) -> str:
    """The private NIC that leads to a machine."""
    return f"private-{lab.machines.index(machine)}"


def _commands(lab: Lab, out: str) -> Iterator[str]:
    yield "link set lo up"
    yield f"address add {CONTROLLER}/32 dev lo"
    yield f"link add outside type veth peer name eth0 netns {out}"
    yield "link set outside up"
    yield f"address add {INTERNET}/24 dev outside"
    for balancer in lab.balancers:
        yield f"address add {balancer.private}/32 dev lo"
        yield f"address add {balancer.public}/32 dev lo"
    for index, machine in enumerate(lab.machines):
        yield from _link(f"public-{index}", lab.mtu_public, machine.public, PUBLIC_GATEWAY, INTERNET)
        yield from _link(f"private-{index}", lab.mtu_private, machine.private, PRIVATE_GATEWAY, CONTROLLER)


def _link(nic: str, mtu: int, address: str, gateway: str, controller: str) -> Iterator[str]:
    yield f"link add {nic} mtu {mtu} type veth peer name {nic}m mtu {mtu}"
    yield f"link set {nic} up"
    yield f"link set {nic}m up"
    yield f"address add {gateway}/32 dev {nic}"
    yield f"route add {address}/32 dev {nic} src {controller}"


def _end_processes(name: str) -> None:
    """Kill until none is left: a process may be starting others while it is told to end."""
    inode = os.stat(NAMESPACES / name).st_ino
    deadline = time.monotonic() + 20
    while pids := _run(["ip", "netns", "pids", name]).split():
        if time.monotonic() > deadline:
            raise NetworkError(f"processes {' '.join(pids)} in namespace {name} do not end")
        for pid in map(int, pids):
            # The number may be somebody else's by now: the file descriptor is not.
            with suppress(ProcessLookupError, FileNotFoundError):
                process = os.pidfd_open(pid)
                try:
                    if os.stat(f"/proc/{pid}/ns/net").st_ino == inode:
                        signal.pidfd_send_signal(process, signal.SIGKILL)
                finally:
                    os.close(process)
        time.sleep(0.05)


def _run(argv: Sequence[str], text: str | None = None) -> str:
    done = subprocess.run(argv, input=text, capture_output=True, text=True, check=False)
    if done.returncode:
        raise NetworkError(f"{' '.join(argv)}: {done.stderr.strip()}")
    return done.stdout
