"""One run, indexed for the questions that diagnosis asks of it."""

from __future__ import annotations

import ipaddress
from functools import cached_property, lru_cache
from typing import Any, Dict, FrozenSet, Iterable, List, NamedTuple, Optional, Set, Tuple

from ..edge import Edge
from ..loss import Tally
from ..model import (
    ControllerSaid,
    Interface,
    Moved,
    Node,
    NodeFacts,
    Observation,
    Pod,
    Probe,
    Route,
    Ruleset,
    Run,
    Service,
    met,
)

# Outcomes of a probe whose packets were stopped on their way. A REJECT is often seen as a timeout: the kernel limits
# how many ICMP errors it sends to one address.
DROPPED = frozenset(["timeout"])
BLOCKED = frozenset(["timeout", "refused", "reset", "unreachable", "prohibited"])
MISSING = "missing"  # planned, but nothing came back

KUBE_CHAIN = "KUBE-"
PRIVATE = ("10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "100.64.0.0/10")  # RFC 1918, RFC 6598


class Endpoint(NamedTuple):
    """What a probe may end at. A Service has several."""

    node: str
    address: str
    port: int
    pod: bool  # False: it lives in the host's network namespace
    overlay: bool  # its address is one of the overlay's: a pod's, or the one that the node has there


class Case:
    def __init__(self, run: Run) -> None:
        self.run = run
        self.nodes: Dict[str, NodeFacts] = run["nodes"]
        self.cluster = run["cluster"]
        self.members: Dict[str, Node] = {node["name"]: node for node in self.cluster["nodes"]}
        self.observations: Dict[str, Observation] = {
            observation["id"]: observation
            for result in run["results"].values()
            for observation in result["observations"]
        }
        self.pods: Dict[str, Pod] = {f"{pod['namespace']}/{pod['name']}": pod for pod in self.cluster["pods"]}
        self._pods_by_ip = {pod["ip"]: pod for pod in self.cluster["pods"] if pod["ip"] and not pod["host_network"]}
        self._pods_by_node: Dict[str, List[Pod]] = {}
        for pod in self._pods_by_ip.values():
            self._pods_by_node.setdefault(pod["node"], []).append(pod)
        self._nodes_by_ip = {node["internal_ip"]: name for name, node in self.members.items() if node["internal_ip"]}
        self._services = {
            (service["cluster_ip"], port["port"]): (service, port)
            for service in self.cluster["services"]
            for port in service["ports"]
        }
        self._node_ports = {
            port["nodePort"]: (service, port)
            for service in self.cluster["services"]
            for port in service["ports"]
            if port.get("nodePort")
        }
        self.failed = [probe for probe in run["probes"] if not self.met(probe)]
        self._routes: Dict[str, Dict[int, Dict[int, List[Route]]]] = {}  # by node, mask and network
        self._devices: Dict[Tuple[str, str], str] = {}
        self._backends: Dict[str, str] = {}

    @cached_property
    def edge(self) -> Edge:
        return Edge(self.cluster, self.run.get("balancers", []))

    @property
    def controllers(self) -> List[Tuple[str, ControllerSaid]]:
        """What each ingress controller says itself, with its node."""
        return [(node, each) for node, said in sorted(self.run.get("controllers", {}).items()) for each in said]

    # --- probes ---

    @cached_property
    def by_backend(self) -> Dict[str, List[Probe]]:
        """Those that are about a backend of Ingresses."""
        found: Dict[str, List[Probe]] = {}
        for probe in self.run["probes"]:
            if probe.get("backend"):
                found.setdefault(probe["backend"], []).append(probe)
        return found

    def outcome(self, probe: Probe) -> str:
        observation = self.observations.get(probe["id"])
        return observation["outcome"] if observation else MISSING

    def said(self, probe: Probe) -> str:
        """The outcome, and what more is known of it: "unreachable (icmp host-unreachable from 10.0.0.111)"."""
        detail = self.seen(probe).get("detail", "")
        return f"{self.outcome(probe)} ({detail})" if detail else self.outcome(probe)

    def attempts(self, probe: Probe) -> Tally:
        seen = self.seen(probe)
        return Tally(seen.get("attempts", 1), seen.get("failed", int(not self.met(probe))))

    def comes_and_goes(self, probe: Probe) -> bool:
        """Whether the probe failed, though some of its attempts passed."""
        tally = self.attempts(probe)
        return not self.met(probe) and tally.failed < tally.attempts

    def dropped(self, probe: Probe) -> bool:
        """Whether nothing came back, whenever it was asked."""
        return self.outcome(probe) in DROPPED and not self.comes_and_goes(probe)

    def led(self, probe: Probe) -> Dict[str, Tally]:
        """The endpoints that a Service's address led to, as far as connection tracking told."""
        seen = self.seen(probe)
        return {address: Tally(*tally) for address, tally in seen.get("endpoints", {}).items()}

    def ports(self, probe: Probe) -> Dict[str, Tally]:
        """The local ports from which attempts failed."""
        seen = self.seen(probe)
        return {port: Tally(*tally) for port, tally in seen.get("ports", {}).items()}

    def passed(self, probe: Probe) -> int:
        """Bytes of the largest IP packet that passed with DF; 0 where none did, or none was to be measured."""
        return self.seen(probe).get("mtu", 0)

    def met(self, probe: Probe) -> bool:
        """Whether the probe came out as expected."""
        return met(probe, Observation(outcome=self.outcome(probe)))

    def tally(self, probes: Iterable[Probe]) -> str:
        """ "3 of 4" that came out as expected."""
        met = [self.met(probe) for probe in probes]
        return f"{sum(met)} of {len(met)}"

    def pings(self, *pair: str) -> List[Probe]:
        """Pings between two nodes, or of one node with all others."""
        return [
            probe
            for probe in self.run["probes"]
            if probe["row"] == "host-host"
            and probe["protocol"] == "icmp"
            and probe["source_node"] != probe["target_node"]
            and set(pair) <= {probe["source_node"], probe["target_node"]}
        ]

    def counted(self, node: str, backend: str, table: str, chain: str, number: int) -> int:
        """How many packets a rule took while the node was probing."""
        return sum(
            moved["packets"]
            for moved in self.moved(node)
            if (moved["backend"], moved["table"], moved["chain"], moved["index"]) == (backend, table, chain, number)
        )

    def moved(self, node: str) -> List[Moved]:
        """The rules that dropped or rejected something while the node was probing."""
        result = self.run["results"].get(node)
        return result["moved"] if result else []

    def rose(self, node: str, counter: str) -> int:
        """How much more a counter of the kernel's lost packets was after the node had probed."""
        result = self.run["results"].get(node)
        return result.get("risen", {}).get(counter, 0) if result else 0

    # --- the cluster ---

    def endpoints(self, probe: Probe) -> List[Endpoint]:
        """All that the probe may end at."""
        address, port = probe.get("address", ""), probe.get("port", 0)
        if (address, port) in self._services:
            return self._behind(*self._services[address, port])
        if address in self._nodes_by_ip and port in self._node_ports:
            return self._behind(*self._node_ports[port])
        if address in self._pods_by_ip:
            return [Endpoint(self._pods_by_ip[address]["node"], address, port, pod=True, overlay=True)]
        node = probe.get("target_node") or self._nodes_by_ip.get(address, "")
        known = node in self.members
        return [Endpoint(node, address, port, pod=False, overlay=address not in self._nodes_by_ip)] if known else []

    def by_service(self, probe: Probe) -> bool:
        """Whether the probe asks a ClusterIP."""
        return (probe.get("address", ""), probe.get("port", 0)) in self._services

    def by_node_port(self, probe: Probe) -> bool:
        return probe.get("address", "") in self._nodes_by_ip and probe.get("port", 0) in self._node_ports

    def node_port(self, port: int) -> Optional[Service]:
        """The Service that has the NodePort."""
        found = self._node_ports.get(port)
        return found[0] if found else None

    def behind_node_port(self, port: int) -> List[Endpoint]:
        return self._behind(*self._node_ports[port]) if port in self._node_ports else []

    def seen(self, probe: Probe) -> Observation:
        """Empty where nothing came back."""
        return self.observations.get(probe["id"], Observation())

    def listens(self, pod: Pod) -> List[str]:
        """The TCP sockets in the pod's network namespace, as far as known: "0.0.0.0:8080"."""
        facts = self.nodes.get(pod["node"])
        processes = facts["pods"] if facts else []
        return next((each.get("listens", []) for each in processes if each["uid"] == pod["uid"]), [])

    def _behind(self, service: Service, port: Dict[str, Any]) -> List[Endpoint]:
        numbers = {port.get("targetPort"), port["port"]}
        behind = [each for each in service["endpoints"] if each["ready"]]
        matching = [each for each in behind if each["port"] in numbers] or behind
        return [
            # The API server's own endpoints name no node.
            Endpoint(node, each["ip"], each["port"], pod=not of_host, overlay=not of_host)
            for each in matching
            for of_host in [each["ip"] in self._nodes_by_ip]
            for node in [each["node"] or self._nodes_by_ip.get(each["ip"], "")]
            if node in self.members
        ]

    def peers(self, node: str) -> List[str]:
        return [name for name in self.members if name != node]

    def internal_ip(self, node: str) -> str:
        return self.members[node]["internal_ip"] if node in self.members else ""

    def pod_at(self, address: str) -> Optional[Pod]:
        """The pod with an address of its own; None for a host's."""
        return self._pods_by_ip.get(address)

    def pods_on(self, node: str) -> List[Pod]:
        return self._pods_by_node.get(node, [])

    def pod_address(self, node: str) -> str:
        """Of a pod there, else one that a pod there could have; "" where nothing is known."""
        if pods := self.pods_on(node):
            return pods[0]["ip"]
        network = _network(self.members[node]["pod_cidr"]) if node in self.members else None
        return str(network[2]) if network else ""

    # --- a node ---

    def interface(self, node: str, name: str) -> Optional[Interface]:
        return next((each for each in self.nodes[node]["interfaces"] if each["name"] == name), None)

    def kind(self, node: str, device: str) -> str:
        interface = self.interface(node, device)
        return interface["kind"] if interface else ""

    def device(self, node: str, address: str) -> str:
        """The interface by which the node's main table reaches the address; "" for none."""
        if (node, address) not in self._devices:
            self._devices[node, address] = next((route["device"] for route in self.routes(node, address)), "")
        return self._devices[node, address]

    def routes(self, node: str, address: str) -> List[Route]:
        """Those of the node's main table that lead to the address, the one that it takes first."""
        if node not in self._routes:
            routes = [
                (network, route)
                for route in self.nodes[node]["routes"]
                if route["table"] == "main" and route["type"] == "unicast"
                for network in [_network(route["destination"])]
                if network
            ]
            # By their numbers: on a few hundred nodes with as many routes each, this is what a diagnosis does most.
            self._routes[node] = {}
            for network, route in sorted(routes, key=lambda each: (-each[0].prefixlen, each[1]["metric"])):
                of_mask = self._routes[node].setdefault(int(network.netmask), {})
                of_mask.setdefault(int(network.network_address), []).append(route)
        wanted = _number(address)
        return [route for mask, routes_of in self._routes[node].items() for route in routes_of.get(wanted & mask, ())]

    def tunnel_address(self, node: str, device: str) -> str:
        """The address that the node itself has in the overlay; its internal one where it has none."""
        interface = self.interface(node, device) if node in self.nodes else None
        for address in interface["addresses"] if interface else []:
            if ":" not in address:
                return address.partition("/")[0]
        return self.internal_ip(node)

    def underlay_address(self, node: str, kind: str) -> str:
        """The address that the node's tunnels have: what Flannel, for ipip Calico, announced, else the internal one."""
        by_flannel = self.members[node]["annotations"].get("flannel.alpha.coreos.com/public-ip")
        return (self.calico_address(node) if kind == "ipip" else by_flannel) or self.internal_ip(node)

    def calico_address(self, node: str) -> str:
        """Where Calico's tunnels and its BGP end, without the prefix length; "" for a node that is none of Calico's."""
        return self.members[node]["annotations"].get("projectcalico.org/IPv4Address", "").partition("/")[0]

    def bgp_state(self, node: str, peer: str) -> str:
        """Of the node's TCP connection for BGP with an address; "" for none. An ended one may linger beside it."""
        states = [each["state"] for each in self.nodes[node]["bgp"] if each["peer"] == peer]
        return next((state for state in ("ESTAB", "SYN-SENT") if state in states), next(iter(states), ""))

    def route(self, node: str, address: str) -> Optional[Route]:
        """The route of the node's main table that decides about the address, of whatever type."""
        wanted = _network(address)
        routes = [
            (network.prefixlen, -route["metric"], route)
            for route in self.nodes[node]["routes"]
            if route["table"] == "main"
            for network in [_network(route["destination"])]
            if network and wanted and wanted.subnet_of(network)
        ]
        return max(routes, key=lambda each: each[:2])[2] if routes else None

    def rulesets(self, node: str) -> Dict[str, Ruleset]:
        iptables = self.nodes[node]["iptables"]
        return {"nft": iptables["nft"], "legacy": iptables["legacy"]}

    def backend(self, node: str) -> str:
        """The rule set that Kubernetes writes to: what is not decided by it, is decided by somebody else."""

        def kube_chains(ruleset: Ruleset) -> int:
            return sum(chain.startswith(KUBE_CHAIN) for table in ruleset.values() for chain in table)

        if node not in self._backends:
            counts = {name: kube_chains(ruleset) for name, ruleset in self.rulesets(node).items()}
            most = max(counts, key=lambda name: counts[name])
            default = self.nodes[node]["iptables"]["backend"] or "nft"
            self._backends[node] = default if counts["nft"] == counts["legacy"] else most
        return self._backends[node]

    def ruleset(self, node: str) -> Ruleset:
        """The one that Kubernetes writes to."""
        return self.rulesets(node)[self.backend(node)]

    def bridge(self, node: str) -> Optional[Interface]:
        """The bridge that the node's pods hang on. Calico has none."""
        cidr = _network(self.members[node]["pod_cidr"]) if node in self.members else None
        for interface in self.nodes[node]["interfaces"]:
            addresses = [ipaddress.ip_interface(address).ip for address in interface["addresses"]]
            if interface["kind"] == "bridge" and cidr and any(address in cidr for address in addresses):
                return interface
        return None


def ids(probes: Iterable[Probe]) -> FrozenSet[str]:
    return frozenset(probe["id"] for probe in probes)


def nodes_of(places: Iterable[str]) -> Set[str]:
    """The nodes in "a" and "a>b"."""
    return {node for place in places for node in place.split(">")}


def contains(network: str, other: str) -> bool:
    """Whether all of the other network lies in this one."""
    outer, inner = _network(network), _network(other)
    return outer is not None and inner is not None and inner.subnet_of(outer)


def overlap(one: str, other: str) -> bool:
    """Whether two networks have an address in common: then one lies in the other."""
    return contains(one, other) or contains(other, one)


def is_private(address: str) -> bool:
    return any(contains(network, address) for network in PRIVATE)


@lru_cache(maxsize=65536)
def _number(address: str) -> int:
    return int(ipaddress.ip_address(address))


@lru_cache(maxsize=65536)
def _network(cidr: str) -> Optional[ipaddress.IPv4Network]:
    """None for what is not IPv4."""
    try:
        return ipaddress.IPv4Network("0.0.0.0/0" if cidr == "default" else cidr, strict=False)
    except ValueError:
        return None
