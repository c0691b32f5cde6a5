"""Packets that are too large: for what carries them out of a node, or for a hop on their way."""

from __future__ import annotations

from typing import Dict, FrozenSet, Iterable, Iterator, List, Optional, Set

from ..model import Interface, Pod, Probe, Remedy
from ..walk import Packet
from . import calico_mends as mends
from .case import DROPPED, Case, ids
from .flannel import misplaced
from .path import Overlay, Passage, Paths
from .registry import FABRIC, KERNEL, Suspicion, fault
from .stops import describe, removal

# Bytes that a tunnel puts before a packet: outer IPv4 20, UDP 8, VXLAN 8, inner Ethernet 14 (RFC 7348, section 5);
# IPv4 20 (RFC 2003, section 3.1).
OVERHEAD = {"vxlan": 50, "ipip": 20}
CALICO_TUNNELS = ("tunl0", "vxlan.calico")
CLAMP = "-o {} -p tcp -m tcp --tcp-flags SYN,RST SYN -j TCPMSS --set-mss {}"  # as iptables-save prints it
TCP_HEADERS = 40  # bytes of IPv4 and TCP without options


@fault("path-mtu-black-hole", 14, "Large packets vanish between nodes without a word", FABRIC)
def path_mtu_black_hole(case: Case, paths: Paths) -> Iterator[Suspicion]:
    """A hop takes smaller packets than its neighbours, and its ICMP (type 3 code 4, RFC 1191) does not come back, so
    that senders never learn of it (RFC 2923, section 2.1)."""
    sweeps = [probe for probe in case.run["probes"] if probe["protocol"] == "mtu"]
    failed = _oversize(case, sweeps)
    shut = [each for each in sweeps if each["id"] in failed and each["row"] == "host-host"]
    for probe in (each for each in shut if each["source_node"] in case.nodes):
        here, there, size = probe["source_node"], probe.get("target_node", ""), case.passed(probe)
        device = case.device(here, probe["address"])
        other = _nic_mtu(case, there, here)
        yield Suspicion(
            where=f"{here}>{there}",
            evidence=[
                f"{here}>{there}: IP packets of up to {size} bytes pass with DF, larger ones vanish, and no ICMP "
                f"frag-needed comes back. {device} of {here} has MTU {_nic_mtu(case, here, there)}"
                f"{f', the card of {there} {other}' if other else ''}. "
                f"{case.tally(case.pings(here, there))} pings between the two nodes passed."
            ],
            remedy=_let_it_be_known(case, paths, probe, device)
            or _clamp(case, here, _segments(case, paths, here, shut)),
            confidence=0.9,
            explains=_oversize(case, (each for each in sweeps if _between(each) == {here, there})),
            ruled_out=["Pods' MTU: packets of the nodes themselves vanish, which no tunnel has made larger."],
        )


@fault("pod-mtu-too-high", 13, "Pods' packets are too large for what carries them", KERNEL)
def pod_mtu_too_high(case: Case, paths: Paths) -> Iterator[Suspicion]:
    """A tunnel has to leave room for its own headers: its MTU, and its pods', is at most the NIC's less those.

    The kernel refuses Flannel's device an MTU without that room (drivers/net/vxlan, vxlan_change_mtu), but does not
    lower it where the NIC's is lowered later: VXLAN then leaves in fragments, as it is sent without DF, a fact that
    bites where those are dropped. A pod whose MTU is larger than its tunnel's is told so by its own node, by ICMP, so
    that alone counts only where it fails.
    """
    # Where the nodes' own large packets vanish, pods' would with any MTU.
    shut = [_between(probe) for probe in _sweeps(case, "host-host") if not case.met(probe)]
    for node in case.nodes:
        for overlay in _overlays(case, paths, node):
            tunnel, nic = case.interface(node, overlay.device), _underlay(case, paths, node, overlay)
            if not tunnel or not nic:
                continue
            right, pods = nic["mtu"] - OVERHEAD[overlay.kind], _pod_mtu(case, node)
            sweeps = [probe for probe in _sweeps(case, "pod-pod") if probe["source_node"] == node]
            failed = _oversize(case, (probe for probe in sweeps if _between(probe) not in shut))
            # Flannel on the wrong card has that card's MTU, and gets the right one with the right card.
            tunnel_too = tunnel["mtu"] > right and not misplaced(case, node)
            if not tunnel_too and not (pods > right and failed):
                continue
            largest = max((case.passed(probe) for probe in sweeps), default=0)
            yield Suspicion(
                where=node,
                evidence=[
                    f"{node}: {overlay.device} has MTU {tunnel['mtu']}, and the pods up to {pods}. {nic['name']} has "
                    f"{nic['mtu']}, which leaves {right}, as {overlay.kind} takes {OVERHEAD[overlay.kind]}. "
                    f"{case.tally(sweeps)} sweeps of packet sizes from pods there came out as expected; the largest "
                    f"packet that passed with DF had {largest} bytes."
                ],
                remedy=_calico_mtu(case, paths)
                if overlay.device in CALICO_TUNNELS
                else _flannel_mtu(node, overlay, right, tunnel_too),
                confidence=0.95 if failed else 0.75,
                explains=failed,
                ruled_out=["A smaller hop on the way: these figures are the node's own."],
            )


def _let_it_be_known(case: Case, paths: Paths, probe: Probe, device: str) -> Optional[Remedy]:
    """For a node's own rule that drops the ICMP; what another hop does is not seen from here."""
    here = probe["source_node"]
    routes = [route for route in case.nodes[here]["routes"] if route["device"] == device and route["gateway"]]
    hop = next((route["gateway"] for route in routes), probe["address"])
    told = Packet(hop, case.internal_ip(here), "icmp", interface_in=device, states=("RELATED",), to_local=True)
    verdict = paths.judge(Passage(here, "INPUT", "host", probe["target_node"], told._replace(icmp_type="3/4")))
    if not verdict.blocked:
        return None
    rule = verdict.rule
    remedy = removal(rule, verdict.backend, here) if rule.number else Remedy(role="", nodes=[here])
    if (rule.table, verdict.root.chain) == ("filter", "INPUT") and verdict.backend == case.backend(here):
        accept = "-p icmp --icmp-type fragmentation-needed -m conntrack --ctstate RELATED -j ACCEPT"
        typed = f"iptables-{verdict.backend} -w -I INPUT 1 {accept}"
        remedy = Remedy(role="path_mtu", nodes=[here], vars={"path_mtu_heard": True}, command=typed)
    remedy["text"] = f"Let ICMP type 3 code 4 in, which {describe(case, here, verdict)} stops on {here}."
    return remedy


def _segments(case: Case, paths: Paths, here: str, shut: Iterable[Probe]) -> Dict[str, int]:
    """The node's devices that lead to the hop -> the largest TCP segments that fit through it, in tunnels as well."""
    found: Dict[str, int] = {}
    for probe in shut:
        if probe["source_node"] != here:
            continue
        size, overlay = case.passed(probe) - TCP_HEADERS, paths.overlay(here, probe.get("target_node", ""))
        leads = {case.device(here, probe["address"]): size}
        if overlay:
            leads[overlay.device] = size - OVERHEAD[overlay.kind]
        found.update({device: min(least, found.get(device, least)) for device, least in leads.items()})
    return found


def _clamp(case: Case, here: str, segments: Dict[str, int]) -> Remedy:
    """TCP alone is helped, where a node has no say about the ICMP (RFC 2923, section 3)."""
    text = "Permit ICMP type 3 code 4 (fragmentation needed) on the hops between the nodes"
    rules = [CLAMP.format(device, size) for device, size in sorted(segments.items())]
    chain = case.ruleset(here).get("mangle", {}).get("POSTROUTING")
    found = [
        (rule["matches"].get("out"), rule["target_options"].get("set-mss"))
        for rule in (chain["rules"] if chain else [])
    ]
    if all((device, str(size)) in found for device, size in segments.items()):
        return Remedy(
            role="", nodes=[here], text=f"{text}. TCP's segments are clamped on {here}: what is left is the rest."
        )
    return Remedy(
        role="path_mtu",
        nodes=[here],
        vars={"path_mtu_clamps": [{"rule": rule} for rule in rules]},
        command=" && ".join(f"iptables -w -t mangle -A POSTROUTING {rule}" for rule in rules),
        text=f"{text}; where that cannot be had, clamp TCP's segments on the nodes, which helps TCP alone.",
    )


def _flannel_mtu(node: str, overlay: Overlay, right: int, tunnel_too: bool) -> Remedy:
    if not tunnel_too:
        text = (
            f"Recreate the pods there, whose MTU is to be {right}: Flannel's plugin takes it from "
            "/run/flannel/subnet.env, unless an mtu stands in its conflist, which is then to go."
        )
        return Remedy(role="", nodes=[node], command="grep FLANNEL_MTU /run/flannel/subnet.env", text=text)
    return Remedy(
        role="",
        nodes=[node],
        command=f"ip link set {overlay.device} mtu {right}",
        text=f"Give {overlay.device} MTU {right}, restart K3s, which writes Flannel's MTU to /run/flannel/subnet.env "
        "for new pods, and recreate the pods there.",
    )


def _calico_mtu(case: Case, paths: Paths) -> Remedy:
    """One for all nodes, as Calico has it: the least that any of them leaves. 0 lets Felix find it, and stays."""
    found = [
        (nic["mtu"] - OVERHEAD[overlay.kind], case.interface(node, overlay.device))
        for node in case.nodes
        for overlay in _overlays(case, paths, node)
        if (nic := _underlay(case, paths, node, overlay))
    ]
    right = min(least for least, _ in found)
    tunnels = [tunnel["mtu"] for _, tunnel in found if tunnel]
    wide = max([*mends.said_mtus(case), *tunnels]) > right
    pods = [pod for node in case.nodes for pod in case.pods_on(node) if _host_end_mtu(case, node, pod) > right]
    text = (
        f"Set Calico's MTU to {right} (veth_mtu of the ConfigMap calico-config), and recreate the pods that have more."
    )
    return mends.remedy(case, text, patches=mends.mtu(case, right) if wide else [], pods=pods)


def _host_end_mtu(case: Case, node: str, pod: Pod) -> int:
    """Of the pod's veth pair, which Calico's route leads to; 0 where it is not known."""
    route = case.route(node, pod["ip"])
    interface = case.interface(node, route["device"]) if route else None
    return interface["mtu"] if interface else 0


def _overlays(case: Case, paths: Paths, node: str) -> List[Overlay]:
    """Those that lead to the node's peers."""
    return sorted({found for peer in case.peers(node) if (found := paths.overlay(node, peer))})


def _underlay(case: Case, paths: Paths, node: str, overlay: Overlay) -> Optional[Interface]:
    """The NIC by which the tunnel's packets leave."""
    peer = next(peer for peer in case.peers(node) if paths.overlay(node, peer) == overlay)
    return case.interface(node, case.device(node, case.underlay_address(peer, overlay.kind)))


def _nic_mtu(case: Case, node: str, peer: str) -> int:
    """The MTU of the NIC that leads to the peer; 0 where it is not known."""
    nic = case.interface(node, case.device(node, case.internal_ip(peer))) if node in case.nodes else None
    return nic["mtu"] if nic else 0


def _pod_mtu(case: Case, node: str) -> int:
    """The largest of the node's pods', as their ends at the host have it; a veth's two ends are made alike."""
    return max((each["mtu"] for each in case.nodes[node]["interfaces"] if each["kind"] == "veth"), default=0)


def _sweeps(case: Case, row: str) -> List[Probe]:
    """The probes of a row that look for the largest packet."""
    return [probe for probe in case.run["probes"] if (probe["row"], probe["protocol"]) == (row, "mtu")]


def _oversize(case: Case, probes: Iterable[Probe]) -> FrozenSet[str]:
    """Failing sweeps of which smaller packets passed."""
    return ids(
        probe
        for probe in probes
        if probe["protocol"] == "mtu" and not case.met(probe) and case.outcome(probe) in DROPPED and case.passed(probe)
    )


def _between(probe: Probe) -> Set[str]:
    return {probe["source_node"], probe.get("target_node", "")}
