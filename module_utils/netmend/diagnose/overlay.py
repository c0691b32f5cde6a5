"""The tunnels between nodes: stopped by a node's firewall, or lost on the way."""

from __future__ import annotations

import json
from typing import Dict, Iterator, List, Tuple

from ..model import Probe, Remedy
from .case import DROPPED, Case, contains, ids, is_private
from .path import Block, Paths
from .registry import FABRIC, FIREWALL, Suspicion, fault
from .stops import by_kubernetes_backend, describe, opening, stops

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


def _dropped_by_host(case: Case, paths: Paths, kind: str) -> Iterator[Suspicion]:
    def wanted(block: Block) -> bool:
        return by_kubernetes_backend(case, block) and block.passage.what == kind

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
            ruled_out=["The fabric: the node's own rules stop what arrives, whatever else does."],
        )


def _dropped_by_fabric(case: Case, paths: Paths, kind: str) -> Iterator[Suspicion]:
    """What is left when nothing else stops it, as far as one side sees: so never certain.

    Every probe of a pair that crosses the overlay times out, the nodes ping each other, and neither a firewall, nor
    forwarding, nor a route, a device, an FDB entry at either end accounts for it.
    """
    for (here, there), probes in crossings(case, paths).items():
        overlay = paths.overlay(here, there)
        pings = case.pings(here, there)
        if (
            not overlay
            or overlay.kind != kind
            or any(case.outcome(probe) not in DROPPED for probe in probes)
            or not pings
            or not all(case.met(ping) for ping in pings)
            or not all(end_is_right(case, paths, *ends) for ends in ((here, there), (there, here)))
            or (kind == "ipip" and not all(at_internal_ip(case, end) for end in (here, there)))
            or any(paths.blocks(passage) for probe in probes for passage in paths.passages(probe))
        ):
            continue
        verdicts = [paths.judge(passage) for passage in paths.tunnel(here, there)]
        certain = all(verdict.action == "accept" for verdict in verdicts)
        name = NAMES[kind].format(port=overlay.port)
        received = case.interface(there, overlay.device)
        packets = f"{received['rx_packets']} packets" if received else "nothing known"
        pair = {here, there}
        yield Suspicion(
            where=f"{here}>{there}",
            evidence=[
                f"{here}>{there}: {case.tally(probes)} probes to pods passed, all others timed out, while "
                f"{case.tally(pings)} pings between the two nodes passed. {overlay.device} of {there} has received "
                f"{packets} since it came up."
            ],
            remedy=Remedy(
                role="",
                nodes=sorted(pair),
                text=f"Another network card for the overlay, or an overlay other than {name} that passes here. "
                "No firewall rule of a node helps.",
            ),
            confidence=0.7 if certain else 0.4,
            explains=ids(
                probe
                for probe in case.failed
                if case.outcome(probe) in DROPPED and any(set(flow.crosses) == pair for flow in paths.flows(probe))
            ),
            ruled_out=[
                *([f"The nodes' firewalls: both ends accept {name} from each other."] if certain else []),
                f"The nodes' own part: forwarding, routes and {overlay.device} are as they should be at both ends.",
            ],
        )


def _across(case: Case, paths: Paths, node: str) -> List[Probe]:
    """Probes of pods' own addresses that cross the overlay from the node or to it."""
    return [probe for pair, probes in crossings(case, paths).items() if node in pair for probe in probes]


def crossings(case: Case, paths: Paths) -> Dict[Tuple[str, ...], List[Probe]]:
    """Probes of pods' own addresses, by the ordered pair of nodes between which the overlay carries them."""
    crossings: Dict[Tuple[str, ...], List[Probe]] = {}
    for probe in case.run["probes"]:
        if probe["row"] in ("pod-pod", "host-pod"):
            for flow in paths.flows(probe):
                if flow.crosses:
                    crossings.setdefault(flow.crosses, []).append(probe)
    return crossings


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
    return overlay.kind != "vxlan" or _knows_vtep(case, node, peer, overlay.device)


def at_internal_ip(case: Case, node: str) -> bool:
    """Whether Calico's tunnel ends at the node's internal address, in a private network."""
    address = case.underlay_address(node, "ipip")
    return address == case.internal_ip(node) and is_private(address)


def _knows_vtep(case: Case, node: str, peer: str, device: str) -> bool:
    """Whether the node's FDB sends the peer's VTEP to the address that the peer announced."""
    announced = case.members[peer]["annotations"].get("flannel.alpha.coreos.com/backend-data")
    if not announced:
        return True
    mac = str(json.loads(announced).get("VtepMAC", "")).lower()
    entry = (mac, device, case.underlay_address(peer, "vxlan"))
    return entry in {(each["mac"].lower(), each["device"], each["destination"]) for each in case.nodes[node]["fdb"]}
