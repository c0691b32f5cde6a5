"""What a probe's packets pass on their way: every hook of every node where a firewall rules on them.

A probe of a Service takes one of several ways, and nothing tells which one it took: all of them are looked at.
"""

from __future__ import annotations

from typing import Dict, FrozenSet, Iterator, List, NamedTuple, Optional, Set, Tuple

from ..model import Probe
from ..walk import Packet, Verdict, blockers, judge
from .case import Case, Endpoint

MASQUERADE_MARK = 0x4000  # what kube-proxy sets on what comes by a NodePort
VXLAN_PORT = 8472  # Linux's own default, which Flannel keeps
LAYER4 = {**dict.fromkeys(("udp", "dns-udp", "dns-pair", "dns-apart"), "udp"), "icmp": "icmp", "mtu": "icmp"}


class Overlay(NamedTuple):
    """The device by which a node's routes reach a peer's pods."""

    kind: str  # vxlan, ipip
    device: str
    port: int  # UDP; 0 for ipip


class Passage(NamedTuple):
    """One hook of one node, and what passes it there."""

    node: str
    hook: str  # INPUT, OUTPUT, FORWARD
    what: str  # vxlan, ipip: a tunnel between nodes; host: to a port of the node; pod: from a pod or to one
    peer: str  # the node at the other side
    packet: Packet


class Flow(NamedTuple):
    """One way of a probe: from the source, by the node whose NodePort was asked, to the endpoint."""

    source: str
    pod: str  # the source's address; "" for the host
    via: str  # the source, where no NodePort was asked
    end: Endpoint

    @property
    def crosses(self) -> Tuple[str, ...]:
        """The two nodes between which the overlay carries it; empty where it does not."""
        return (self.via, self.end.node) if self.end.overlay and self.via != self.end.node else ()


class Block(NamedTuple):
    """A rule or a policy that stops packets, and which."""

    passage: Passage
    verdict: Verdict


class Paths:
    def __init__(self, case: Case) -> None:
        self.case = case
        self._flows: Dict[str, List[Flow]] = {}
        self._passages: Dict[str, List[Passage]] = {}
        self._overlays: Dict[Tuple[str, str], Optional[Overlay]] = {}
        self._tunnels: Dict[Tuple[str, str], List[Passage]] = {}
        self._blocks: Dict[Passage, List[Block]] = {}
        self._proven: Optional[Set[Passage]] = None

    def flows(self, probe: Probe) -> List[Flow]:
        if probe["id"] not in self._flows:
            case, source = self.case, probe["source_node"]
            pod = case.pods.get(probe.get("source_pod", ""))
            via = probe.get("target_node", "") if case.by_node_port(probe) else ""
            self._flows[probe["id"]] = [
                Flow(source, pod["ip"] if pod else "", via or source, end) for end in case.endpoints(probe)
            ]
        return self._flows[probe["id"]]

    def nodes(self, probe: Probe) -> FrozenSet[str]:
        """All that may have to do with the probe: where it starts, whose port it asks, where it may end."""
        ends = (node for flow in self.flows(probe) for node in (flow.via, flow.end.node))
        return frozenset({probe["source_node"], probe.get("target_node", ""), *ends} - {""})

    def translators(self, probe: Probe) -> Set[Tuple[str, str]]:
        """The node and the hook of nat where a Service's address becomes an endpoint's."""
        if not (self.case.by_service(probe) or self.case.by_node_port(probe)):
            return set()
        here = "PREROUTING" if probe.get("source_pod") else "OUTPUT"
        return {(flow.via, here if flow.via == flow.source else "PREROUTING") for flow in self.flows(probe)}

    def along(self, probe: Probe, flow: Flow) -> List[Passage]:
        """Those of one flow, on the nodes whose facts are known."""
        return [passage for passage in self._along(probe, flow) if passage.node in self.case.nodes]

    def passages(self, probe: Probe) -> List[Passage]:
        """On the nodes whose facts are known."""
        if probe["id"] not in self._passages:
            found = (passage for flow in self.flows(probe) for passage in self.along(probe, flow))
            self._passages[probe["id"]] = list(dict.fromkeys(found))
        return self._passages[probe["id"]]

    def blocks(self, passage: Passage) -> List[Block]:
        """All that stops packets there. Where a probe was seen to get through, the walk is not believed."""
        if passage not in self._blocks:
            sets = self.case.nodes[passage.node]["ipsets"]
            found = [
                Block(passage, verdict._replace(backend=backend))
                for backend, ruleset in self.case.rulesets(passage.node).items()
                for verdict in blockers(ruleset, passage.hook, passage.packet, sets)
            ]
            self._blocks[passage] = found if found and passage not in self._seen_through() else []
        return self._blocks[passage]

    def judge(self, passage: Passage) -> Verdict:
        facts = self.case.nodes[passage.node]
        return judge(facts["iptables"], passage.hook, passage.packet, facts["ipsets"])

    def overlay(self, node: str, peer: str) -> Optional[Overlay]:
        """How the node reaches the peer's pods: by the route to one of them."""
        if (node, peer) not in self._overlays:
            self._overlays[node, peer] = self._overlay(node, peer)
        return self._overlays[node, peer]

    def _overlay(self, node: str, peer: str) -> Optional[Overlay]:
        if node not in self.case.nodes or peer not in self.case.members:
            return None
        address = self.case.pod_address(peer)
        device = self.case.device(node, address) if address else ""
        interface = self.case.interface(node, device)
        if interface and interface["kind"] == "vxlan":
            return Overlay("vxlan", device, int(interface["info"].get("port", VXLAN_PORT)))
        return Overlay("ipip", device, 0) if interface and interface["kind"] == "ipip" else None

    def tunnel(self, here: str, there: str) -> List[Passage]:
        """What a connection between the two nodes' pods takes of their firewalls: both directions at both ends."""
        ends = (here, there)
        if ends not in self._tunnels:
            self._tunnels[ends] = [passage for end in (ends, ends[::-1]) for passage in self._tunnel_end(*end)]
        return self._tunnels[ends]

    # --- the hooks of one flow ---

    def _along(self, probe: Probe, flow: Flow) -> Iterator[Passage]:
        source, pod, via, end = flow
        protocol = LAYER4.get(probe["protocol"], "tcp")
        by_node_port, translated = self.case.by_node_port(probe), bool(self.translators(probe))
        states = ("NEW", "DNAT") if translated else ("NEW",)
        mark = MASQUERADE_MARK if by_node_port else 0
        last = via if via != end.node else source  # the node that the packets come from in the end

        if pod and via != source:
            packet = Packet(pod, probe["address"], protocol, probe.get("port", 0))
            yield from self._forward(source, via, packet)
        elif pod and (end.pod or end.node != source):
            packet = Packet(pod, end.address, protocol, end.port, states=states, mark=mark)
            yield from self._forward(source, end.node, packet)
        if via != source and (end.pod or end.node != via):
            packet = Packet(self.case.internal_ip(source), end.address, protocol, end.port, states=states, mark=mark)
            yield from self._forward(via, source, packet)
        if flow.crosses:
            yield from self.tunnel(via, end.node)
            address = pod if pod and not by_node_port else self._address_in_overlay(via, end.node)
            arriving = Packet(address, end.address, protocol, end.port)
            yield from self._forward(end.node, via, arriving) if end.pod else self._input(end.node, via, arriving)
        elif not end.pod and (pod or last != end.node):
            address = pod if pod and last == end.node else self.case.internal_ip(last)
            states = states if via == end.node else ("NEW",)
            yield from self._input(end.node, last, Packet(address, end.address, protocol, end.port, states=states))

    def _forward(self, node: str, peer: str, packet: Packet) -> Iterator[Passage]:
        if node not in self.case.nodes or not packet.source:
            return
        arrives, leaves = self.case.device(node, packet.source), self.case.device(node, packet.destination)
        bridged = arrives == leaves and self.case.kind(node, arrives) == "bridge"
        if bridged and self.case.nodes[node]["sysctls"].get("net.bridge.bridge-nf-call-iptables") == "0":
            return
        packet = packet._replace(interface_in=arrives, interface_out=leaves, bridged=bridged)
        yield Passage(node, "FORWARD", "pod", peer, packet)
        yield Passage(node, "FORWARD", "pod", peer, _answer(packet))

    def _input(self, node: str, peer: str, packet: Packet) -> Iterator[Passage]:
        if node in self.case.nodes and packet.source:
            arrives = self.case.device(node, packet.source)
            yield Passage(node, "INPUT", "host", peer, packet._replace(interface_in=arrives, to_local=True))

    def _tunnel_end(self, node: str, peer: str) -> Iterator[Passage]:
        overlay = self.overlay(node, peer)
        if overlay is None:
            return
        own, other = (self.case.underlay_address(each, overlay.kind) for each in (node, peer))
        if own and other:
            device = self.case.device(node, other)
            protocol = "udp" if overlay.kind == "vxlan" else "ipip"
            incoming = Packet(other, own, protocol, overlay.port, interface_in=device, to_local=True)
            outgoing = Packet(own, other, protocol, overlay.port, interface_out=device, from_local=True)
            yield Passage(node, "INPUT", overlay.kind, peer, incoming)
            yield Passage(node, "OUTPUT", overlay.kind, peer, outgoing)

    def _address_in_overlay(self, node: str, peer: str) -> str:
        overlay = self.overlay(node, peer)
        return self.case.tunnel_address(node, overlay.device if overlay else "")

    def _seen_through(self) -> Set[Passage]:
        if self._proven is None:
            self._proven = {
                passage
                for probe in self.case.run["probes"]
                if (self.case.outcome(probe) == "ok" or self.case.comes_and_goes(probe)) and len(self.flows(probe)) == 1
                for passage in self.passages(probe)
            }
        return self._proven


def _answer(packet: Packet) -> Packet:
    """As FORWARD sees it: addresses are translated back before and after."""
    return packet._replace(
        source=packet.destination,
        destination=packet.source,
        sport=packet.dport,
        dport=packet.sport,
        interface_in=packet.interface_out,
        interface_out=packet.interface_in,
        states=("ESTABLISHED", *packet.states[1:]),
        mark=0,
        icmp_type="0",
    )


def crossings(case: Case, paths: Paths) -> Dict[Tuple[str, ...], List[Probe]]:
    """Probes of pods' own addresses, by the ordered pair of nodes between which the overlay carries them."""
    crossings: Dict[Tuple[str, ...], List[Probe]] = {}
    for probe in case.run["probes"]:
        if probe["row"] in ("pod-pod", "host-pod"):
            for flow in paths.flows(probe):
                if flow.crosses:
                    crossings.setdefault(flow.crosses, []).append(probe)
    return crossings
