"""Faults of the network between a lab's nodes: the namespace that routes their packets drops, damages or shrinks them.

What is in is read from the kernel, never from a note: drops and damage are rules of one nft table, known by their
comment; a lower MTU and a delay are routing rules to a table whose number tells which. Sources and targets of drops are
told by the NICs that lead to them, so that packets with pods' addresses are meant, too.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from . import delay, machines, network
from .spec import Lab

TABLE = "fabric"
RULE_PRIORITY = 100
EXEMPT_PRIORITY = 99
TABLES = {"mtu": 10000, "delay": 20000}  # the table for MTU 1400 is 11400, the one for 50 ms is 20050
PRIVATE = "10.0.0.0/16"
BAD_CHECKSUM = 0x1234  # right for one packet in 65,536
HELP = (
    "FAULT is drop WHAT, corrupt udp/8472 (its checksum), loss 10%%, delay 50ms or mtu 1400; WHAT is udp/8472, "
    "tcp/2379-2380, proto/4, icmp or icmp/frag-needed; behind it may stand FROM TO, two nodes, for that direction alone"
)


class FabricError(Exception):
    """A fault that cannot be had, or did not take hold."""


@dataclass(frozen=True)
class Fault:
    kind: str  # drop, corrupt, loss, mtu or delay
    value: str
    source: str | None = None  # the node that sends; None: any
    target: str | None = None

    def __str__(self) -> str:
        pair = [self.source or "any", self.target or "any"] if self.source or self.target else []
        return " ".join([self.kind, self.value, *pair])


def parse(words: Sequence[str]) -> Fault:
    """A fault of its words: KIND VALUE, or KIND VALUE FROM TO with any for one of them."""
    if len(words) not in (2, 4):
        raise FabricError(f"a fault has a kind, a value and perhaps two nodes, not {' '.join(words)!r}")
    pair = [None if node == "any" else node for node in words[2:]] or [None, None]
    fault = Fault(words[0], words[1], *pair)
    if fault.kind == "mtu":
        if not re.fullmatch(r"\d+", fault.value) or not 68 <= int(fault.value) <= 1500:
            raise FabricError(f"{fault.value!r} is no MTU from 68 to 1500")
    elif fault.kind == "delay":
        if not re.fullmatch(r"[1-9]\d{0,3}ms", fault.value):
            raise FabricError(f"{fault.value!r} is no delay from 1ms to 9999ms")
    else:
        _match(fault)
    return fault


def rules(fault: Fault, lab: Lab) -> Iterator[str]:
    """The nft commands that put in a drop, a loss or bad checksums."""
    source = _nic(lab, fault.source)
    target = _nic(lab, fault.target)
    action = f"udp checksum set {BAD_CHECKSUM}" if fault.kind == "corrupt" else "drop"
    verdict = f'{_match(fault)} counter {action} comment "{fault}"'
    yield f"add rule inet {TABLE} forward iifname {source} oifname {target} {verdict}"
    if fault.value.startswith("icmp"):
        # What the gateway itself says about a packet comes from nowhere.
        yield f"add rule inet {TABLE} output oifname {target} {verdict}"


def _match(fault: Fault) -> str:
    name, _, detail = fault.value.partition("/")
    if fault.kind == "loss" and (percent := re.fullmatch(r"(\d+(?:\.\d+)?)%", fault.value)):
        return f"numgen random mod 10000 < {round(float(percent[1]) * 100)}"
    if fault.kind == "corrupt" and name == "udp" and re.fullmatch(r"\d+", detail):
        return f"udp dport {detail}"
    if fault.kind == "drop":
        if name in ("tcp", "udp") and re.fullmatch(r"\d+(-\d+)?", detail):
            return f"{name} dport {detail}"
        if name == "proto" and re.fullmatch(r"\d+", detail):
            return f"ip protocol {detail}"
        if fault.value == "icmp":
            return "ip protocol icmp"
        if fault.value == "icmp/frag-needed":
            return "icmp type destination-unreachable icmp code frag-needed"
    raise FabricError(f"no fault {fault.kind} {fault.value}; {HELP.replace('%%', '%')}")


def _nic(lab: Lab, node: str | None) -> str:
    return f'"{network.neighbour(lab, lab.machine(node))}"' if node else '"private-*"'


class Fabric:
    """The network between the nodes of a lab that is up. Nodes are told by their names; None is any node."""

    def __init__(self, name: str) -> None:
        self._lab = machines.recall(name)

    def drop(self, what: str, source: str | None = None, target: str | None = None) -> None:
        """Drop "udp/8472", "tcp/2379-2380", "proto/4", "icmp" or "icmp/frag-needed"."""
        self.put_in(parse(["drop", what, source or "any", target or "any"]))

    def loss(self, percent: float, source: str | None = None, target: str | None = None) -> None:
        """Lose that share of packets, at random."""
        self.put_in(parse(["loss", f"{percent}%", source or "any", target or "any"]))

    def mtu(self, size: int, source: str | None = None, target: str | None = None) -> None:
        """Route packets of up to size bytes only; a larger one with DF set is answered with ICMP.

        A machine that got the answer keeps to that size for ten minutes, or until `ip route flush cache`.
        """
        self.put_in(parse(["mtu", str(size), source or "any", target or "any"]))

    def delay(self, milliseconds: int, source: str | None = None, target: str | None = None) -> None:
        """Hold packets back for so long, in one direction; alone, without another fault."""
        self.put_in(parse(["delay", f"{milliseconds}ms", source or "any", target or "any"]))

    def add(self, words: Sequence[str]) -> None:
        """Put in a fault of its words, as the command line takes them."""
        self.put_in(parse(words))

    def put_in(self, fault: Fault) -> None:
        """Put a fault in and read back that it is; the same one twice is one."""
        others = self.list()
        if fault in others:
            return
        if others and "delay" in (fault.kind, *(other.kind for other in others)):
            # What is held back comes by another NIC than its sender's, and drops are told by NICs.
            raise FabricError(f"a delay goes with no other fault; in already: {', '.join(map(str, others))}")
        if fault.kind == "mtu":
            self._lower_mtu(fault)
        elif fault.kind == "delay":
            self._delay(fault)
        else:
            commands = [
                f"add table inet {TABLE}",
                f"add chain inet {TABLE} forward {{ type filter hook forward priority filter - 10; }}",
                f"add chain inet {TABLE} output {{ type filter hook output priority filter - 10; }}",
                *rules(fault, self._lab),
            ]
            self._run("nft", "-f", "-", text="\n".join(commands))
        if fault not in self.list():
            raise FabricError(f"fault {fault} did not take hold")

    def clear(self) -> None:
        """Take all faults out."""
        self._run("nft", "-f", "-", text=f"add table inet {TABLE}\ndelete table inet {TABLE}")
        for rule in self._routing_rules():
            self._run("ip", "rule", "del", "priority", str(RULE_PRIORITY))
            self._run("ip", "route", "flush", "table", rule["table"])
        for _ in self._routing_rules(EXEMPT_PRIORITY):
            self._run("ip", "rule", "del", "priority", str(EXEMPT_PRIORITY))
        for link in self._read("ip", "-j", "link", "list"):
            if link["ifname"].startswith("delay-"):
                self._run("ip", "link", "delete", link["ifname"])
        if left := self.list():
            raise FabricError(f"still in: {', '.join(map(str, left))}")

    def list(self) -> dict[Fault, int | None]:
        """The faults that are in, with how many packets each one ate (None: not counted)."""
        found: dict[Fault, int | None] = {}
        tables = self._read("nft", "-j", "list", "tables")["nftables"]
        if any(item.get("table", {}).get("name") == TABLE for item in tables):
            for item in self._read("nft", "-j", "list", "table", "inet", TABLE)["nftables"]:
                if comment := item.get("rule", {}).get("comment"):
                    fault = parse(comment.split())
                    packets = sum(part["counter"]["packets"] for part in item["rule"]["expr"] if "counter" in part)
                    found[fault] = (found.get(fault) or 0) + packets
        names = {network.neighbour(self._lab, machine): machine for machine in self._lab.machines}
        targets = {machine.private: machine.name for machine in self._lab.machines}
        for rule in self._routing_rules():
            source = names[rule["iif"]].name if "iif" in rule else None
            kind = "delay" if int(rule["table"]) >= TABLES["delay"] else "mtu"
            value = f"{int(rule['table']) - TABLES[kind]}{'ms' if kind == 'delay' else ''}"
            found[Fault(kind, value, source, targets.get(rule["dst"]))] = None
        return found

    def _lower_mtu(self, fault: Fault) -> None:
        table = str(TABLES["mtu"] + int(fault.value))
        for machine in self._lab.machines:
            nic = network.neighbour(self._lab, machine)
            self._run("ip", "route", "replace", machine.private, "dev", nic, "mtu", fault.value, "table", table)
        self._add_rule(fault, table)

    def _delay(self, fault: Fault) -> None:
        milliseconds = fault.value.removesuffix("ms")
        device, table = f"delay-{milliseconds}", str(TABLES["delay"] + int(milliseconds))
        command = network.inside(self._lab.name, sys.executable, delay.__file__, device, milliseconds)
        holder = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, start_new_session=True)
        assert holder.stdout
        if holder.stdout.readline() != b"ready\n":
            raise FabricError(f"fault {fault} did not take hold: {device} could not be made")
        self._run("ip", "route", "replace", "default", "dev", device, "table", table)
        # What comes back from there has been held; what the gateway itself sends would not be taken back.
        for exempt in (device, "lo"):
            self._run("ip", "rule", "add", "priority", str(EXEMPT_PRIORITY), "iif", exempt, "lookup", "main")
        self._add_rule(fault, table)

    def _add_rule(self, fault: Fault, table: str) -> None:
        selector = ["to", self._lab.machine(fault.target).private if fault.target else PRIVATE]
        if fault.source:
            selector += ["iif", network.neighbour(self._lab, self._lab.machine(fault.source))]
        self._run("ip", "rule", "add", "priority", str(RULE_PRIORITY), *selector, "lookup", table)

    def _routing_rules(self, priority: int = RULE_PRIORITY) -> Iterable[dict[str, str]]:
        return [rule for rule in self._read("ip", "-j", "rule", "list") if rule["priority"] == priority]

    def _read(self, *argv: str) -> Any:
        return json.loads(self._run(*argv))

    def _run(self, *argv: str, text: str | None = None) -> str:
        command = network.inside(self._lab.name, *argv)
        done = subprocess.run(command, input=text, capture_output=True, text=True, check=False)
        if done.returncode:
            raise FabricError(f"{' '.join(argv)}: {done.stderr.strip()}")
        return done.stdout


def command(lab: Lab, words: Sequence[str]) -> list[str]:
    """What the command line's `fabric` does; returns the lines to show."""
    fabric = Fabric(lab.name)
    if words[0] == "add":
        fabric.add(words[1:])
    elif words == ["clear"]:
        fabric.clear()
    elif words != ["list"]:
        raise FabricError(f"fabric does add FAULT..., clear and list, not {' '.join(words)!r}")
    return [f"{fault}{'' if eaten is None else f'  ({eaten} packets)'}" for fault, eaten in fabric.list().items()]
