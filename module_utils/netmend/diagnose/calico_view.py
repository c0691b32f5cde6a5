"""What a run's facts say of Calico: blocks, routes, BGP, and who is to make the routes."""

from __future__ import annotations

import re
from functools import lru_cache
from typing import Any, Dict, FrozenSet, List, Optional, Set, Tuple

from ..model import Interface, Pod, Probe, Route
from ..walk import Packet
from .case import BLOCKED, Case, contains
from .path import Passage, Paths, crossings

BGP_PORT = 179
ENDED = ("Succeeded", "Failed")  # phases of pods
# Who makes routes to other nodes' pods.
NOBODY: FrozenSet[str] = frozenset()
BIRD, FELIX, BOTH = frozenset(["bird"]), frozenset(["felix"]), frozenset(["bird", "felix"])

Pair = Tuple[str, str]


class View:
    def __init__(self, case: Case) -> None:
        calico = case.cluster["calico"]
        self.case = case
        self.pools: List[Dict[str, Any]] = [pool for pool in calico.get("ippools", []) if _gives_addresses(pool)]
        self.node: Dict[str, Any] = calico.get("node", {})  # the DaemonSet calico-node
        self._felix = _default(calico.get("felixconfigurations", []))
        self._bgp = _default(calico.get("bgpconfigurations", []))
        self._blocks: Dict[str, List[str]] = {}
        for affinity in calico.get("blockaffinities", []):
            if affinity.get("state") == "confirmed" and affinity.get("deleted") != "true":
                self._blocks.setdefault(affinity["node"], []).append(affinity["cidr"])
        self.with_facts = [node for node in case.members if node in case.nodes]
        self._routes: Dict[str, Set[str]] = {}
        self._lost: Optional[Dict[Pair, List[Probe]]] = None
        self._unrouted: Optional[List[Pair]] = None

    # --- addresses and pods ---

    def blocks(self, node: str) -> List[str]:
        """What the node's pods have their addresses from."""
        return self._blocks.get(node, [])

    def pods(self, node: str) -> List[Pod]:
        """Those of the node that have an address of its blocks."""
        blocks = self.blocks(node)
        return [pod for pod in self.case.pods_on(node) if any(contains(block, pod["ip"]) for block in blocks)]

    def strays(self, node: str) -> List[Pod]:
        """Those of the node that have an address of no pool; of pods that have ended it is only told."""
        networks = [pool["cidr"] for pool in self.pools]
        pods = [pod for pod in self.case.pods_on(node) if pod["phase"] not in ENDED]
        return [pod for pod in pods if not any(contains(each, pod["ip"]) for each in networks)]

    def agent(self, node: str) -> Optional[Pod]:
        """The pod calico-node of a node."""
        owner = f"DaemonSet/{self.node.get('name', 'calico-node')}"
        return next((pod for pod in self.case.pods.values() if (pod["owner"], pod["node"]) == (owner, node)), None)

    def has_address(self, node: str, address: str) -> bool:
        """True where the node's facts are not known."""
        interfaces: List[Interface] = self.case.nodes[node]["interfaces"] if node in self.case.nodes else []
        own = [each.partition("/")[0] for interface in interfaces for each in interface["addresses"]]
        return not own or address in own

    def astray(self, *nodes: str) -> bool:
        return any(self.case.calico_address(node) not in ("", self.case.internal_ip(node)) for node in nodes)

    # --- Flannel ---

    def runs_flannel(self, node: str) -> bool:
        """Whether pods that start there now get their addresses from Flannel."""
        return "flannel" in self._plugins(node)

    def _plugins(self, node: str) -> Set[str]:
        """Of the configuration that counts there: the first in order."""
        networks = self.case.nodes[node]["cni"]["networks"]
        first: Dict[str, Any] = next(iter(networks.values()), {})
        return {plugin.get("type", "") for plugin in plugins_of(first)}

    def has_calico(self, node: str) -> bool:
        """Whether pods that start there now get their addresses from Calico."""
        return "calico" in self._plugins(node)

    def wants_no_flannel(self, node: str) -> bool:
        """Whether K3s is configured for flannel-backend none; an agent does what the servers say."""
        servers = {
            name: facts["k3s"]["config"].get("flannel-backend")
            for name, facts in self.case.nodes.items()
            if facts["k3s"].get("role") == "server"
        }
        wanted = [servers[node]] if node in servers else list(servers.values())
        return bool(wanted) and all(backend == "none" for backend in wanted)

    def is_off_flannel(self, node: str) -> bool:
        """Whether nothing uses Flannel there, nor will after another start: pods that have its addresses are reached by
        its routes from every node."""
        off = self.wants_no_flannel(node) and not self.runs_flannel(node)
        return off and not any(map(self.strays, self.case.members))

    # --- routes ---

    def lost(self, paths: Paths) -> Dict[Pair, List[Probe]]:
        """Failing probes by the pair of nodes, in order of their names, between which the overlay may carry them."""
        if self._lost is None:
            self._lost = {}
            for probe in self.case.failed:
                if self.case.outcome(probe) in BLOCKED:
                    for pair in {pair_of(*flow.crosses) for flow in paths.flows(probe) if flow.crosses}:
                        self._lost.setdefault(pair, []).append(probe)
        return self._lost

    def unrouted(self, paths: Paths) -> List[Pair]:
        """(here, there) where pods cannot reach each other, and here has no route of Calico's to there's blocks."""
        if self._unrouted is None:
            self._unrouted = [
                ends
                for pair in (self.lost(paths) if self.pools else {})
                for ends in (pair, pair[::-1])
                if ends[0] in self.with_facts and self.missing(*ends)
            ]
        return self._unrouted

    def missing(self, here: str, there: str) -> List[str]:
        """There's blocks that no route of here leads to, other than one of Flannel's or by default."""
        if here not in self._routes:
            self._routes[here] = {
                route["destination"]
                for route in self.case.nodes[here]["routes"]
                if self._in_pool(route) and not of_flannel(self.case, here, route)
            }
        known = self._routes[here]
        return [
            block
            for block in self.blocks(there)
            if block not in known and not any(contains(route, block) for route in known)
        ]

    def _in_pool(self, route: Route) -> bool:
        in_main = route["table"] == "main" and route["type"] == "unicast"
        return in_main and any(contains(pool["cidr"], route["destination"]) for pool in self.pools)

    def between(self, here: str, there: str, paths: Paths) -> List[Probe]:
        """Probes of pods' own addresses between the two nodes."""
        found = crossings(self.case, paths)
        return [probe for ends in ((here, there), (there, here)) for probe in found.get(ends, [])]

    def without_bgp(self, paths: Paths) -> List[Pair]:
        """(who dials, who listens) of the pairs that lack routes which BIRD alone is to make.

        In the mesh of all nodes the one with the lower address, as text, is passive (confd's bgp_processor.go).
        """
        pairs = {
            max((here, there), (there, here), key=lambda ends: self.case.calico_address(ends[0]))
            for here, there in self.unrouted(paths)
            if self.makers(there) == BIRD and not self.astray(here, there)
        }
        return sorted(pairs)

    def dialling(self, here: str, there: str) -> List[Passage]:
        """What the first packet of a BGP session from here to there passes."""
        case = self.case
        source, target = case.calico_address(here), case.calico_address(there)
        passages = []
        if here in case.nodes:
            packet = Packet(source, target, "tcp", BGP_PORT, interface_out=case.device(here, target), from_local=True)
            passages.append(Passage(here, "OUTPUT", "bgp", there, packet))
        if there in case.nodes:
            packet = Packet(source, target, "tcp", BGP_PORT, interface_in=case.device(there, source), to_local=True)
            passages.append(Passage(there, "INPUT", "bgp", here, packet))
        return passages

    # --- who makes the routes ---

    def makers(self, node: str) -> Optional[FrozenSet[str]]:
        """Who is to make the routes to a node's pods; None where that is not known."""
        blocks = self.blocks(node)
        pool = next((pool for pool in self.pools if blocks and contains(pool["cidr"], blocks[0])), None)
        return self.makers_of(pool) if pool else None

    def makers_of(self, pool: Dict[str, Any]) -> Optional[FrozenSet[str]]:
        """Until 3.32 Felix does nothing unless told to, from 3.33 on it has IPIP's routes by default.

        Source: felix/config/config_params.go and confd's bgp_processor.go of v3.31.7, v3.32.1 and v3.33.
        """
        if self.is_vxlan(pool):
            return FELIX
        version, ipip = self._version, pool.get("ipipMode", "Never") != "Never"
        if not version:
            return None
        felix, bird = self._switches(version)
        on = ("Enabled", "EnabledIPIPOnly" if ipip else "EnabledNoEncapOnly")
        by_felix = felix in on and (ipip or version >= (3, 32))
        by_bird = bird in on and self.node["backend"] == "bird"
        return frozenset([*(["felix"] if by_felix else []), *(["bird"] if by_bird else [])])

    @property
    def bird_has_a_switch(self) -> bool:
        """programClusterRoutes of BGPConfiguration came with 3.32."""
        return not self._version or self._version >= (3, 32)

    @property
    def _version(self) -> Optional[Tuple[int, int]]:
        found = re.match(r"v(\d+)\.(\d+)", self.node.get("version", ""))
        return (int(found[1]), int(found[2])) if found else None

    @staticmethod
    def is_vxlan(pool: Dict[str, Any]) -> bool:
        return bool(pool.get("vxlanMode", "Never") != "Never")

    def _switches(self, version: Tuple[int, int]) -> Pair:
        """programClusterRoutes of Felix, and of BIRD, which has it from 3.32 on."""
        defaults = ("EnabledIPIPOnly", "EnabledNoEncapOnly") if version >= (3, 33) else ("Disabled", "Enabled")
        felix = self.node.get("program_cluster_routes") or self._felix.get("programClusterRoutes") or defaults[0]
        bird = self._bgp.get("programClusterRoutes") if version >= (3, 32) else ""
        return felix, bird or defaults[1]

    # --- sentences ---

    def switches(self) -> str:
        felix, bird = (each.get("programClusterRoutes", "not set") for each in (self._felix, self._bgp))
        calico = f"Calico {self.node.get('version', 'of an unknown version')}"
        return (
            f"{calico} has the backend {self.node.get('backend', 'not known')}, and programClusterRoutes {felix} in "
            f"FelixConfiguration, {bird} in BGPConfiguration."
        )

    def routes(self, node: str, paths: Paths) -> str:
        """What the node has, and what it lacks."""
        lacks = [(there, self.missing(node, there)) for here, there in self.unrouted(paths) if here == node]
        routes = self.case.nodes[node]["routes"] if node in self.case.nodes else []
        local = sum(route["device"].startswith("cali") and self._in_pool(route) for route in routes)
        blocks = ", ".join(f"{block} of {there}" for there, missing in lacks for block in missing)
        return f"{node} has the routes of {local} pods of its own, and none to {blocks or 'nodes that lack it, too'}."

    def readiness(self) -> str:
        return f"calico-node: {self.node['ready']} of {self.node['desired']} Ready. " if self.node else ""


@lru_cache(maxsize=1)
def view_of(case: Case) -> View:
    return View(case)


def _default(configurations: List[Dict[str, Any]]) -> Dict[str, Any]:
    return next((each for each in configurations if each["name"] == "default"), {})


def _gives_addresses(pool: Dict[str, Any]) -> bool:
    """Whether pods' IPv4 addresses come from it."""
    return ":" not in pool["cidr"] and not pool.get("disabled") and "Workload" in pool.get("allowedUses", ["Workload"])


def pair_of(*nodes: str) -> Pair:
    first, second = sorted(nodes)
    return first, second


def of_flannel(case: Case, node: str, route: Route) -> bool:
    return route["device"] == "cni0" or (
        route["device"].startswith("flannel") and case.kind(node, route["device"]) in ("vxlan", "wireguard")
    )


def plugins_of(network: Dict[str, Any]) -> List[Dict[str, Any]]:
    plugins: List[Dict[str, Any]] = network.get("plugins", [network])
    return plugins
