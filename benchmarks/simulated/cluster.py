"""A cluster of any size: the facts of captured machines, over and over, with other names and addresses. Pure."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

import ansible.module_utils

ROOT = Path(__file__).parents[2]
ansible.module_utils.__path__.append(str(ROOT / "module_utils"))

from ansible.module_utils.netmend.parse.iptables import parse_rule  # noqa: E402  found by the line above

from tests.unit.diagnose.conftest import Bench  # noqa: E402  as above
from tests.unit.test_gather import Machine  # noqa: E402  as above

CAPTURED = ROOT / "tests/fixtures/k3s-1.36.3/flannel"
MOST = 240  # the nodes' addresses are in one /24
SERVERS = 3
WEB, WEB_CHAIN = "default/web", "KUBE-SVC-LOLE4ISW44XBNF3G"


class Member(NamedTuple):
    name: str
    role: str  # server, agent
    address: str
    network: str  # of its pods: the first three bytes, "10.42.7."
    mac: str  # of its flannel.1

    @property
    def pod(self) -> str:
        """The address of its one pod."""
        return f"{self.network}2"


# The captured node that stands for all of them.
TEMPLATE = Member("agent0", "agent", "10.0.0.110", "10.42.1.", "26:b2:6e:d9:d2:10")


def members(count: int) -> list[Member]:
    """So many nodes, the first SERVERS of them servers."""
    found = []
    for index in range(count):
        role = "server" if index < SERVERS else "agent"
        name = f"k3s-master-{index + 1:02}" if role == "server" else f"k3s-worker-{index + 1 - SERVERS:03}"
        found.append(Member(name, role, f"10.0.0.{10 + index}", f"10.42.{index}.", f"02:42:00:00:00:{index:02x}"))
    return found


def facts(everybody: list[Member], pids: dict[str, int]) -> dict[str, dict[str, Any]]:
    """Node -> its NodeFacts. ``pids``: node -> a process in the network namespace of its pod."""
    with tempfile.TemporaryDirectory() as agent, tempfile.TemporaryDirectory() as server:
        captured = Machine(CAPTURED / TEMPLATE.name, Path(agent)).facts()
        of_server = Machine(CAPTURED / "server0", Path(server)).facts()
    found, endpoints = {}, _endpoints(captured["iptables"]["nft"]["nat"], everybody)
    for member in everybody:
        own = json.loads(_renamed(captured, member))
        if member.role == "server":
            own.update(sockets=of_server["sockets"], k3s={**of_server["k3s"], "config": own["k3s"]["config"]})
        own.update(time=0.0, took=0.0)  # the module's own come in their place
        own["pods"] = [{"uid": f"pod-of-{member.name}", "pid": pids[member.name], "netns": 1}]
        _know_peers(own, [peer for peer in everybody if peer != member])
        own["iptables"]["nft"]["nat"].update(endpoints)
        found[member.name] = own
    return found


def cluster(everybody: list[Member]) -> dict[str, Any]:
    """The ClusterFacts: on every node a pod of a DaemonSet behind a NodePort, on the first one CoreDNS."""
    bench = Bench(CAPTURED)
    bench.with_dns()
    known: dict[str, Any] = bench.run["cluster"]
    (node,) = [node for node in known["nodes"] if node["name"] == TEMPLATE.name]
    (web,) = [pod for pod in known["pods"] if pod["node"] == TEMPLATE.name]
    (dns,) = [pod for pod in known["pods"] if pod["name"] == "coredns-1"]
    first = everybody[0]
    known["nodes"] = [_node(node, member) for member in everybody]
    known["pods"] = [
        {**web, "name": f"web-{member.name}", "uid": f"pod-of-{member.name}", "node": member.name, "ip": member.pod}
        for member in everybody
    ] + [{**dns, "node": first.name}]
    ends = {
        "kubernetes": [{"ip": each.address, "node": "", "pod": ""} for each in everybody if each.role == "server"],
        "web": [{"ip": pod["ip"], "node": pod["node"], "pod": f"default/{pod['name']}"} for pod in known["pods"][:-1]],
    }
    for service in known["services"]:
        if service["name"] in ends:
            of_one = service["endpoints"][0]
            service["endpoints"] = [{**of_one, **end} for end in ends[service["name"]]]
        else:
            service["endpoints"] = [{**end, "node": first.name} for end in service["endpoints"]]
    return known


def _renamed(thing: Any, member: Member) -> str:
    text = json.dumps(thing)
    for old, new in zip(TEMPLATE, member):
        text = text.replace(old, new) if old != TEMPLATE.role else text
    return text


def _node(template: dict[str, Any], member: Member) -> dict[str, Any]:
    return {**json.loads(_renamed(template, member)), "role": member.role}


def _know_peers(own: dict[str, Any], peers: list[Member]) -> None:
    """Routes, neighbours and forwarding entries as Flannel makes them for each other node."""
    route = next(each for each in own["routes"] if each["device"] == "flannel.1" and each["gateway"])
    neighbour, entry = own["neighbours"][0], own["fdb"][0]
    own["routes"] = [each for each in own["routes"] if each["device"] != "flannel.1" or not each["gateway"]]
    own["routes"] += [{**route, "destination": f"{p.network}0/24", "gateway": f"{p.network}0"} for p in peers]
    own["neighbours"] = [each for each in own["neighbours"] if each["device"] != "flannel.1"]
    own["neighbours"] += [{**neighbour, "address": f"{peer.network}0", "mac": peer.mac} for peer in peers]
    own["fdb"] = [{**entry, "mac": peer.mac, "destination": peer.address} for peer in peers]


def _endpoints(nat: dict[str, Any], everybody: list[Member]) -> dict[str, Any]:
    """The chains of kube-proxy for a Service with a pod on every node."""
    web = {**nat[WEB_CHAIN], "rules": nat[WEB_CHAIN]["rules"][:1]}
    chains, comment = {WEB_CHAIN: web}, f'-m comment --comment "{WEB}"'
    for left, member in zip(range(len(everybody), 0, -1), everybody):
        name = f"KUBE-SEP-{member.name.upper().replace('-', ''):A<16}"
        chance = f"-m statistic --mode random --probability {1 / left:.11f} " if left > 1 else ""
        web["rules"].append(parse_rule(f'-m comment --comment "{WEB} -> {member.pod}:8080" {chance}-j {name}'))
        rules = (
            f"-s {member.pod}/32 {comment} -j KUBE-MARK-MASQ",
            f"-p tcp {comment} -m tcp -j DNAT --to-destination {member.pod}:8080",
        )
        chains[name] = {"policy": None, "packets": 0, "bytes": 0, "rules": [parse_rule(rule) for rule in rules]}
    return chains
