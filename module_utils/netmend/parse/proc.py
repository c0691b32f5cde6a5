"""Reads what the kernel and its tools say of counters, sockets and sets."""

from __future__ import annotations

import ipaddress
import re
import sys
from typing import Dict, List, Tuple, Union

from ..model import BgpConnection, Socket

Address = Union[ipaddress.IPv4Address, ipaddress.IPv6Address]

_LISTEN = "0A"  # linux/tcp_states.h
_CARRIES = {"01", "03", "04", "08", "09", "0B"}  # all but those of which both ends have all that they will get
_PROCESS = re.compile(r'users:\(\("([^"]*)"')
# In a cgroup's path: pod<uid> (cgroupfs), or kubepods-besteffort-pod<uid with _>.slice (systemd).
_POD = re.compile(r"\bkubepods.*[/-]pod([0-9a-f]{8}(?:[-_]?[0-9a-f]{4}){3}[-_]?[0-9a-f]{12})\b")


def snmp(*texts: str) -> Dict[str, Dict[str, int]]:
    """From /proc/net/snmp and /proc/net/netstat: a line of names, then one of values, for each protocol."""
    counters: Dict[str, Dict[str, int]] = {}
    for text in texts:
        lines = text.splitlines()
        for names, values in zip(lines[::2], lines[1::2]):
            protocol, _, keys = names.partition(":")
            same, _, numbers = values.partition(":")
            if protocol != same or len(keys.split()) != len(numbers.split()):
                raise ValueError(f"/proc/net/snmp: names and values of {protocol!r} do not match")
            counters.setdefault(protocol, {}).update(zip(keys.split(), map(int, numbers.split())))
    return counters


def conntrack(text: str) -> Dict[str, int]:
    """From /proc/net/stat/nf_conntrack: hexadecimal, a line for each CPU. The sums, without what is not per CPU."""
    header, *cpus = text.splitlines() or [""]
    names = header.split()
    columns = zip(*(map(_hexadecimal, line.split()) for line in cpus))
    return {name: sum(column) for name, column in zip(names, columns) if name != "entries"}


def sockets(text: str) -> List[Socket]:
    """From ``ss -H -lntup``. An address is written as the socket has it: "*" is "::" for both families."""
    found = []
    for number, line in enumerate(text.splitlines(), 1):
        fields = line.split(None, 6)
        if len(fields) < 6:
            raise ValueError(f"ss, line {number}: cannot read {line!r}")
        address, _, port = fields[4].rpartition(":")
        process = _PROCESS.search(line)
        found.append(
            Socket(
                protocol=fields[0],
                address="::" if address == "*" else address.partition("%")[0].strip("[]"),
                port=int(port),
                process=process[1] if process else "",
            )
        )
    return found


def listening(text: str) -> List[str]:
    """From /proc/PID/net/tcp or tcp6: "0.0.0.0:8080", "[::]:8080" of each socket that listens."""
    bound = [_bound(row) for row in _rows(text) if row[3] == _LISTEN]
    return [f"[{address}]:{port}" if address.version == 6 else f"{address}:{port}" for address, port in bound]


def incoming(*texts: str) -> int:
    """From the tables of one network namespace, the same ones: connections to ports that something listens on.

    Without those over loopback, which nobody outside has.
    """
    rows = [row for text in texts for row in _rows(text)]
    served = {_bound(row)[1] for row in rows if row[3] == _LISTEN}
    bound = [_bound(row) for row in rows if row[3] in _CARRIES]
    return sum(port in served and not _is_loopback(address) for address, port in bound)


def _rows(text: str) -> List[List[str]]:
    return [line.split() for line in text.splitlines()[1:]]


def _bound(row: List[str]) -> Tuple[Address, int]:
    """The kernel writes an address as words of four bytes, each in the machine's order (net/ipv4/tcp_ipv4.c)."""
    words, _, port = row[1].partition(":")
    raw = bytes.fromhex(words)
    if sys.byteorder == "little":
        raw = b"".join(raw[start : start + 4][::-1] for start in range(0, len(raw), 4))
    return ipaddress.ip_address(raw), int(port, 16)


def _is_loopback(address: Address) -> bool:
    return (getattr(address, "ipv4_mapped", None) or address).is_loopback


def bgp(text: str) -> List[BgpConnection]:
    """From ``ss -H -tn state connected`` for port 179."""
    found = []
    for number, line in enumerate(text.splitlines(), 1):
        fields = line.split()
        if len(fields) < 5:
            raise ValueError(f"ss, line {number}: cannot read {line!r}")
        own, peer = (field.rpartition(":")[0].partition("%")[0].strip("[]") for field in fields[3:5])
        found.append(BgpConnection(own=own, peer=peer, state=fields[0]))
    return found


def ipsets(text: str) -> Dict[str, List[str]]:
    """From ``ipset save``: set -> members, without a member's options (timeout, comment ...)."""
    sets: Dict[str, List[str]] = {}
    for line in text.splitlines():
        verb, _, rest = line.partition(" ")
        name, _, rest = rest.partition(" ")
        if verb == "create":
            sets[name] = []
        elif verb == "add":
            sets.setdefault(name, []).append(rest.split()[0])
    return sets


def pod_uid(cgroup: str) -> str:
    """The UID of the pod that a process belongs to, from its /proc/PID/cgroup; "" for a process of no pod."""
    found = _POD.search(cgroup)
    if not found:
        return ""
    digits = re.sub(r"[-_]", "", found[1])
    if "-" not in found[1] and "_" not in found[1]:
        return digits  # a static pod's: its manifest's hash
    return "-".join((digits[:8], digits[8:12], digits[12:16], digits[16:20], digits[20:]))


def _hexadecimal(text: str) -> int:
    return int(text, 16)
