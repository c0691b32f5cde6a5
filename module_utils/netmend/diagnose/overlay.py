"""The tunnels between nodes: stopped by a node's firewall, or lost on the way."""

from __future__ import annotations

from typing import Dict, Iterator, List, NamedTuple, Optional, Tuple

from .. import overlays
from ..model import Probe, Remedy, Underlay
from . import calico_mends as mends
from .calico_view import view_of
from .case import DROPPED, Case, contains, ids, is_private
from .flannel import arrive_damaged, misplaced, wrong_entries
from .path import Block, Paths, crossings
from .registry import FABRIC, FIREWALL, Suspicion, fault
from .stops import Stop, by_kubernetes_backend, describe, opening, stops

SWAP = "ansible-playbook -i INVENTORY playbooks/swap_cni.yml"
CALICO_VXLAN = "vxlan-4789"  # as overlays.OVERLAYS has it
NAMES = {"vxlan": "VXLAN (UDP {port})", "ipip": "IPIP (IP protocol 4)"}


@fault("vxlan-dropped-by-host", 2, "The node's firewall drops Flannel's VXLAN", FIREWALL)
def vxlan_dropped_by_host(case: Case, paths: Paths) -> Iterator[Suspicion]:
    yield from _dropped_by_host(case, paths, "vxlan")


@fault("ipip-dropped-by-host", 0, "The node's firewall drops Calico's IPIP", FIREWALL)
def ipip_dropped_by_host(case: Case, paths: Paths) -> Iterator[Suspicion]:
    yield from _dropped_by_host(case, paths, "ipip")


@fault("vxlan-dropped-by-fabric", 1, "VXLAN gets lost between the nodes", FABRIC)
def vxlan_dropped_by_fabric(case: Case, paths: Paths) -> Iterator[Suspicion]:
    yield from _dropped_by_fabric(case, paths, "vxlan")


@fault("ipip-dropped-by-fabric", 6, "IPIP gets lost between the nodes", FABRIC)
def ipip_dropped_by_fabric(case: Case, paths: Paths) -> Iterator[Suspicion]:
    yield from _dropped_by_fabric(case, paths, "ipip")


def clues(case: Case, paths: Paths, probes: List[Probe]) -> Iterator[str]:
    """What was measured of the tunnels that the probes take, unless it passes."""
    crossed = (flow.crosses for probe in probes for flow in paths.flows(probe) if flow.crosses)
    for here, there in dict.fromkeys(ends for one, two in crossed for ends in ((one, two), (two, one))):
        overlay = paths.overlay(here, there)
        seen = measured_tunnel(case, here, there, overlay.kind, overlay.port) if overlay else None
        if seen and seen.verdict != "passes":
            yield seen.sentence


def _dropped_by_host(case: Case, paths: Paths, kind: str) -> Iterator[Suspicion]:
    def wanted(block: Block) -> bool:
        # To let VXLAN in from where it is not to come from would be no cure.
        astray = kind == "vxlan" and any(misplaced(case, end) for end in (block.passage.node, block.passage.peer))
        return by_kubernetes_backend(case, block) and block.passage.what == kind and not astray

    for stop in stops(case, paths, wanted):
        node = stop.node
        name = NAMES[kind].format(port=stop.passage.packet.dport)
        direction = "from" if stop.passage.hook == "INPUT" else "to"
        yield Suspicion(
            where=node,
            evidence=[
                f"{node} stops {name} {direction} {', '.join(stop.peers)}: {describe(case, node, stop.verdict)}. "
                f"{case.tally(_across(case, paths, node))} probes to pods that cross the overlay there, and "
                f"{case.tally(case.pings(node))} node pings, came out as expected."
            ],
            remedy=opening(case, stop, name),
            confidence=0.95,
            explains=stop.explains,
            ruled_out=[_fabric_ruled_out(case, stop, kind)],
        )


def _fabric_ruled_out(case: Case, stop: Stop, kind: str) -> str:
    for peer in stop.peers:
        seen = measured_tunnel(case, peer, stop.node, kind, stop.passage.packet.dport)
        if seen and seen.verdict == "host":
            return f"The fabric: {seen.sentence}"
    return "The fabric: the node's own rules stop what arrives, whatever else does."


def _dropped_by_fabric(case: Case, paths: Paths, kind: str) -> Iterator[Suspicion]:
    """Every probe of a pair that crosses the overlay times out, and what carries them gets lost between the nodes.

    Where it was measured from both ends, that decides. Where not, it is what is left when nothing else stops it, as far
    as one side sees, and so never certain: the nodes ping each other, and neither a firewall, nor forwarding, nor a
    route, a device, an FDB entry at either end accounts for it.
    """
    for (here, there), probes in crossings(case, paths).items():
        overlay = paths.overlay(here, there)
        if not overlay or overlay.kind != kind or not all(map(case.dropped, probes)):
            continue
        both = ((here, there), (there, here))
        seen = [measured_tunnel(case, *ends, kind, overlay.port) for ends in both]
        lost = [each.sentence for each in seen if each and each.verdict == "fabric"]
        arrives = all(each and each.verdict in ("passes", "host", "sender") for each in seen)
        astray = kind == "ipip" and not all(at_internal_ip(case, end) for end in (here, there))
        if not lost and (arrives or astray or not _is_left(case, paths, both, probes)):
            continue
        verdicts = [paths.judge(passage) for passage in paths.tunnel(here, there)]
        accepted = all(verdict.action == "accept" for verdict in verdicts)
        name = NAMES[kind].format(port=overlay.port)
        received = case.interface(there, overlay.device)
        packets = f"{received['rx_packets']} packets" if received else "nothing known"
        right = all(end_is_right(case, paths, *ends) for ends in both)
        pair = {here, there}
        yield Suspicion(
            where=f"{here}>{there}",
            evidence=[
                *lost,
                f"{here}>{there}: {case.tally(probes)} probes to pods passed, all others timed out, while "
                f"{case.tally(case.pings(here, there))} pings between the two nodes passed. {overlay.device} of "
                f"{there} has received {packets} since it came up.",
            ],
            remedy=_another(case, kind, name, sorted(pair)),
            confidence=0.98 if lost else 0.7 if accepted else 0.4,
            explains=ids(
                probe
                for probe in case.failed
                if case.outcome(probe) in DROPPED and any(set(flow.crosses) == pair for flow in paths.flows(probe))
            ),
            ruled_out=[
                *([f"The nodes' firewalls: both ends accept {name} from each other."] if accepted else []),
                *([f"The nodes' own part: forwarding, routes and {overlay.device} are as they should be at both ends."]
                  if right else []),
            ],
        )  # fmt: skip


def _is_left(case: Case, paths: Paths, both: Tuple[Tuple[str, str], ...], probes: List[Probe]) -> bool:
    """Whether nothing at the two nodes stops the probes, which ping each other."""
    pings = case.pings(*both[0])
    return (
        bool(pings)
        and all(case.met(ping) for ping in pings)
        and all(end_is_right(case, paths, *ends) for ends in both)
        and not any(paths.blocks(passage) for probe in probes for passage in paths.passages(probe))
    )


def _another(case: Case, kind: str, name: str, nodes: List[str]) -> Remedy:
    """Another overlay; where it is Calico's IPIP in the place of Flannel, what brings it. Calico has both IPIP and
    VXLAN, and changes from one to the other where the one passes nowhere, and the other everywhere."""
    remedy = Remedy(role="", nodes=nodes, text=_other_ways(case, name))
    underlay = case.run.get("underlay")
    if not underlay:
        return remedy
    works = {name: overlay["verdict"] in ("works", "host") for name, overlay in underlay["overlays"].items()}
    if kind == "ipip" and works[CALICO_VXLAN] and _lost_everywhere(underlay, kind):
        return _to_vxlan(case, underlay, remedy["text"])
    if works["ipip"] and kind == "vxlan" and not case.run["cluster"]["calico"].get("ippools"):
        remedy["command"] = SWAP
    return remedy


def _lost_everywhere(underlay: Underlay, packets: str) -> bool:
    verdicts = {pair["kinds"][packets]["verdict"] for pair in underlay["pairs"].values()}
    return not underlay["unknown"] and verdicts == {"fabric"}


def _to_vxlan(case: Case, underlay: Underlay, text: str) -> Remedy:
    """The pools' own switches. An MTU that Calico was told gives way to VXLAN's, which is smaller; one that Felix finds
    follows by itself. Pods' own may be larger: their node tells them.
    Source: https://docs.tigera.io/calico/latest/networking/configuring/vxlan-ipip
    """
    modes = {pool["name"]: pool.get("ipipMode", "Never") for pool in view_of(case).pools}
    over_ipip = {pool: mode for pool, mode in modes.items() if mode != "Never"}
    patches = [mends.custom("IPPool", pool, ipipMode="Never", vxlanMode=mode) for pool, mode in over_ipip.items()]
    sizes = [verdicts[CALICO_VXLAN]["mtu"] for verdicts in underlay["by_pair"].values()]
    if any(mends.said_mtus(case)) and all(sizes):
        patches = [*mends.mtu(case, min(sizes)), *patches]
    return mends.remedy(case, f"{text} Calico's pools change to VXLAN (UDP 4789).", patches=patches)


def _other_ways(case: Case, name: str) -> str:
    underlay = case.run.get("underlay")
    if not underlay:
        return (
            f"Another network card for the overlay, or an overlay other than {name} that passes here. "
            "No firewall rule of a node helps."
        )
    others = overlays.passing(underlay["overlays"])
    if others:
        return f"An overlay that passes between all nodes here: {', '.join(others)}. No firewall rule of a node helps."
    if any(overlay["verdict"] == "unknown" for overlay in underlay["overlays"].values()):
        return "Another network card, or another overlay: of not all nodes is it known which ones pass here."
    return (
        "Another network card: here no overlay passes between all nodes. Until then, applications on the nodes' own "
        "network (host_network) stay up. No firewall rule of a node helps."
    )


class Seen(NamedTuple):
    verdict: str
    sentence: str
    answered: int


def measured_tunnel(case: Case, here: str, there: str, kind: str, port: int) -> Optional[Seen]:
    """What became of a tunnel's packets."""
    ends = {node: case.underlay_address(node, kind) for node in (here, there)}
    return measured(case, ends, f"udp-{port}" if kind == "vxlan" else kind)


def measured(case: Case, ends: Dict[str, str], packets: str) -> Optional[Seen]:
    """What became of such packets from the first node to the second, whose addresses ``ends`` has, measured at both
    ends; None where it is not known, or of other addresses."""
    underlay, (here, there) = case.run.get("underlay"), ends
    if not underlay or any(underlay["addresses"].get(node) != address for node, address in ends.items()):
        return None
    pair = underlay["pairs"].get(f"{here}>{there}")
    crossing = pair["kinds"].get(packets) if pair else None
    if not crossing or crossing["verdict"] == "unknown":
        return None
    sentence = overlays.sentence(underlay["pairs"], here, there, packets)
    return Seen(crossing["verdict"], sentence, crossing["answered"])


def _across(case: Case, paths: Paths, node: str) -> List[Probe]:
    """Probes of pods' own addresses that cross the overlay from the node or to it."""
    return [probe for pair, probes in crossings(case, paths).items() if node in pair for probe in probes]


def end_is_right(case: Case, paths: Paths, node: str, peer: str) -> bool:
    """Whether the node's own part of the tunnel to the peer is as it should be, as far as the facts tell."""
    overlay = paths.overlay(node, peer)
    if overlay is None or case.nodes[node]["sysctls"].get("net.ipv4.ip_forward") == "0":
        return False
    interface = case.interface(node, overlay.device)
    if interface is None or interface["state"] == "DOWN":
        return False
    if overlay.device.startswith("flannel") and not contains(case.members[peer]["pod_cidr"], case.pod_address(peer)):
        return False  # those pods are another overlay's
    if overlay.kind != "vxlan":
        return True
    return not (
        wrong_entries(case, node, peer, overlay.device)
        or misplaced(case, node)
        or arrive_damaged(case, paths, node, peer)
    )


def at_internal_ip(case: Case, node: str) -> bool:
    """Whether Calico's tunnel ends at the node's internal address, in a private network."""
    address = case.underlay_address(node, "ipip")
    return address == case.internal_ip(node) and is_private(address)
