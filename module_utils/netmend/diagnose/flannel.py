"""What Flannel keeps on a node for its VXLAN: the address it announces, its entries for the peers, its checksums."""

from __future__ import annotations

import ipaddress
import json
from typing import FrozenSet, Iterator, List, Set

from ..model import Moved, Probe, Remedy
from .case import BLOCKED, DROPPED, Case, ids
from .path import Paths
from .registry import FABRIC, KERNEL, Suspicion, fault

ANNOTATION = "flannel.alpha.coreos.com/"
CHECKSUMS = "Udp.InCsumErrors"
# RFC 1918 and RFC 6598.
PRIVATE = tuple(map(ipaddress.IPv4Network, ("10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "100.64.0.0/10")))


@fault("flannel-on-wrong-nic", 5, "Flannel's VXLAN runs over another network card than the cluster", KERNEL)
def flannel_on_wrong_nic(case: Case, paths: Paths) -> Iterator[Suspicion]:
    """Flannel announces the address of the interface that it was given, and its peers send there.

    K3s gives it the interface of node-ip; only flannel-iface, or flannel-external-ip, makes it another one
    (https://docs.k3s.io/cli/agent, "Networking"). Where nothing fails, another private card may be meant; a public one
    is not.
    """
    for node in case.members:
        if not misplaced(case, node) or not _in_use(case, paths, node):
            continue
        announced, internal = case.underlay_address(node, "vxlan"), case.internal_ip(node)
        explained = _blocked_across(case, paths, {node})
        if not explained and not (_private(internal) and not _private(announced)):
            continue
        yield Suspicion(
            where=node,
            evidence=[
                f"{node}: Flannel announces {announced}{_on(case, node, announced)}; the node's InternalIP is "
                f"{internal}{_on(case, node, internal)}. {_configured(case, node)}"
            ],
            remedy=_right_nic(case, node, internal),
            confidence=0.95 if explained else 0.85,
            explains=explained,
            ruled_out=[f"A firewall or the network between the nodes: {announced} is where VXLAN is not to run."],
        )


@fault("stale-vxlan-peer", 4, "A node sends a peer's VXLAN to the wrong place", KERNEL)
def stale_vxlan_peer(case: Case, paths: Paths) -> Iterator[Suspicion]:
    """Flannel writes a peer's FDB and neighbour entries when the peer's annotations change or it starts itself, and
    does not look at them again (flannel-io/flannel, pkg/backend/vxlan/vxlan_network.go)."""
    failing = {frozenset(flow.crosses) for probe in _failed(case, BLOCKED) for flow in paths.flows(probe)}
    for node in case.nodes:
        for peer in case.peers(node):
            overlay = paths.overlay(node, peer) if frozenset({node, peer}) in failing else None
            wrong = wrong_entries(case, node, peer, overlay.device) if overlay and overlay.kind == "vxlan" else []
            explained = _blocked_between(case, paths, {node, peer}) if wrong else frozenset()
            if not explained:
                continue
            yield Suspicion(
                where=f"{node}>{peer}",
                evidence=[
                    f"{node}: {'; '.join(wrong)}. Failing probes between pods of the two nodes: {len(explained)}; "
                    f"{case.tally(case.pings(node, peer))} pings between the nodes came out as expected."
                ],
                remedy=Remedy(
                    role="k3s_restart",
                    nodes=[node],
                    text="Restart K3s there: Flannel then writes its entries for all peers anew; pods go on running.",
                ),
                confidence=0.95,
                explains=explained,
                ruled_out=[f"A drop on the way: what {node} sends does not go where {peer} announces that it listens."],
            )


@fault("vxlan-bad-checksum", 3, "VXLAN arrives with bad UDP checksums", FABRIC)
def vxlan_bad_checksum(case: Case, paths: Paths) -> Iterator[Suspicion]:
    """The receiving kernel drops such packets and counts them (UdpInCsumErrors, Linux net/ipv4/udp.c).

    Before, connection tracking takes them for invalid (net/netfilter/nf_conntrack_proto_udp.c), and where a rule drops
    what is invalid, as UFW's do, that rule counts them.
    Known from checksum offload on flannel.1 (flannel-io/flannel#1279, kubernetes/kubernetes#88986). The receiver cannot
    tell a sender's offload from a network that damages packets.
    """
    for node in case.nodes:
        risen = _bad_checksums(case, node)
        failed = {peer: arrive_damaged(case, paths, node, peer) for peer in case.peers(node)} if risen else {}
        explained: FrozenSet[str] = frozenset().union(*failed.values())
        senders = [peer for peer, probes in failed.items() if probes]
        if not explained:
            continue
        device = next((found.device for peer in senders if (found := paths.overlay(peer, node))), "flannel.1")
        yield Suspicion(
            where=node,
            evidence=[
                f"{node}: {_counted(case, node)} while probing. Probes to pods that fail between there and "
                f"{', '.join(senders)}: {len(explained)}; {case.tally(case.pings(node))} node pings, which VXLAN does "
                "not carry, came out as expected."
            ],
            remedy=Remedy(
                role="",
                nodes=senders,
                command=f"ethtool -K {device} tx-checksum-ip-generic off",
                text=f"Turn checksum offload of {device} off on the sending nodes. If what the receivers count then "
                "stands still, keep it off by a udev rule; if it goes on to rise, the network between the nodes "
                "damages the packets: turn offload on again, and take it to whoever runs that network.",
            ),
            confidence=0.9 if case.rose(node, CHECKSUMS) else 0.7,
            explains=explained,
            ruled_out=["A loss on the way: the packets arrive, and are thrown away there as damaged."],
        )


def _in_use(case: Case, paths: Paths, node: str) -> bool:
    """Whether the node's routes to pods lead into Flannel's device: its annotations stay when another CNI took over."""
    overlays = (paths.overlay(node, peer) for peer in case.peers(node))
    return any(overlay and overlay.device.startswith("flannel") for overlay in overlays)


def misplaced(case: Case, node: str) -> bool:
    """Whether Flannel announces another address than the node's internal one, and nobody said that it shall."""
    annotations = case.members[node]["annotations"]
    announced = annotations.get(f"{ANNOTATION}public-ip")
    if not announced or announced == case.internal_ip(node):
        return False
    meant = f"{ANNOTATION}public-ip-overwrite" in annotations or any(
        str(facts["k3s"]["config"].get("flannel-external-ip", "")).lower() == "true" for facts in case.nodes.values()
    )
    return not meant and annotations.get(f"{ANNOTATION}backend-type") == "vxlan"


def arrive_damaged(case: Case, paths: Paths, node: str, peer: str) -> FrozenSet[str]:
    """Probes that VXLAN carries between the two and that time out, where there are bad checksums enough for each."""
    overlay = paths.overlay(node, peer)
    risen = _bad_checksums(case, node) + _bad_checksums(case, peer)
    if not risen or not overlay or overlay.kind != "vxlan":
        return frozenset()
    lost = _blocked_between(case, paths, {node, peer}, DROPPED)
    return lost if risen >= len(lost) else frozenset()


def _bad_checksums(case: Case, node: str) -> int:
    """How many packets the node threw away while it was probing that may have had a bad UDP checksum."""
    return case.rose(node, CHECKSUMS) + sum(rule["packets"] for rule in _against_invalid(case, node))


def _counted(case: Case, node: str) -> str:
    risen = case.rose(node, CHECKSUMS)
    kernel = [f"UdpInCsumErrors rose by {risen}"] if risen else []
    rules = [
        f"the rule `-A {rule['chain']} {rule['spec']}` dropped {rule['packets']} packets, and connection tracking "
        "takes UDP for invalid when its checksum is bad"
        for rule in _against_invalid(case, node)
    ]
    return " and ".join(kernel + rules)


def _against_invalid(case: Case, node: str) -> List[Moved]:
    """The rules that dropped invalid packets to the node itself while it was probing."""
    return [
        rule
        for rule in case.moved(node)
        if "--ctstate INVALID" in rule["spec"] and rule["chain"].lower().endswith("input")
    ]


def wrong_entries(case: Case, node: str, peer: str, device: str) -> List[str]:
    """What in the node's FDB and neighbour table is not as the peer announced it; clauses for a sentence."""
    announced = case.members[peer]["annotations"].get(f"{ANNOTATION}backend-data")
    mac = str(json.loads(announced).get("VtepMAC", "")).lower() if announced else ""
    if not mac:
        return []
    facts, address, wrong = case.nodes[node], case.underlay_address(peer, "vxlan"), []
    sent = sorted({e["destination"] for e in facts["fdb"] if e["device"] == device and e["mac"].lower() == mac})
    if sent != [address]:
        leads = f"leads to {', '.join(sent)}" if sent else "is in no FDB entry"
        wrong.append(f"{peer}'s VTEP {mac} {leads} on {device}, where {peer} announces {address}")
    networks = (case.members[peer]["pod_cidr"], device)
    gateways = {r["gateway"] for r in facts["routes"] if (r["destination"], r["device"]) == networks and r["gateway"]}
    for gateway in sorted(gateways):
        neighbours = [e for e in facts["neighbours"] if (e["address"], e["device"]) == (gateway, device)]
        known = sorted({e["mac"].lower() for e in neighbours if e["mac"]})
        if known != [mac]:
            leads = f"is at {', '.join(known)}" if known else "has no neighbour entry"
            wrong.append(f"{peer}'s {gateway} {leads} on {device}, where {peer} announces {mac}")
    return wrong


def _on(case: Case, node: str, address: str) -> str:
    name = _nic(case, node, address)
    return f" ({name})" if name else ""


def _nic(case: Case, node: str, address: str) -> str:
    """The interface that has the address; "" where the node gave no facts."""
    interfaces = case.nodes[node]["interfaces"] if node in case.nodes else []
    held = ((each["name"], cidr.partition("/")[0]) for each in interfaces for cidr in each["addresses"])
    return next((name for name, own in held if own == address), "")


def _configured(case: Case, node: str) -> str:
    k3s = case.nodes[node]["k3s"] if node in case.nodes else None
    chosen = k3s["config"].get("flannel-iface") if k3s else None
    if not k3s or not chosen:
        return "flannel-iface is not set, as far as is known."
    return f"flannel-iface is {chosen}, by {k3s['sources'].get('flannel-iface', 'an unknown source')}."


def _right_nic(case: Case, node: str, internal: str) -> Remedy:
    nic = _nic(case, node, internal)
    k3s = case.nodes[node]["k3s"] if node in case.nodes else None
    source = k3s["sources"].get("flannel-iface", "") if k3s and "flannel-iface" in k3s["config"] else ""
    if not k3s or not source.startswith("/"):
        where = f"in {source}" if source else "in /etc/rancher/k3s/config.yaml"
        text = f"Set flannel-iface to {nic or 'the private card'} {where}, or node-ip to {internal}; then restart K3s."
        return Remedy(role="", nodes=[node], text=text)
    change = f"s/^flannel-iface:.*/flannel-iface: {nic}/"
    return Remedy(
        role="",
        nodes=[node],
        command=f"sed -i '{change}' {source} && systemctl restart {k3s['unit']}",
        text=f"Set the key flannel-iface in {source} to {nic}, and restart K3s.",
    )


def _private(address: str) -> bool:
    try:
        return any(ipaddress.IPv4Address(address) in network for network in PRIVATE)
    except ValueError:
        return False


def _blocked_across(case: Case, paths: Paths, ends: Set[str]) -> FrozenSet[str]:
    """Failing probes that the overlay carries to or from these nodes."""
    return ids(
        probe for probe in _failed(case, BLOCKED) if any(ends & set(flow.crosses) for flow in paths.flows(probe))
    )


def _blocked_between(case: Case, paths: Paths, pair: Set[str], outcomes: FrozenSet[str] = BLOCKED) -> FrozenSet[str]:
    """Failing probes that the overlay carries between the two nodes."""
    return ids(
        probe for probe in _failed(case, outcomes) if any(pair == set(flow.crosses) for flow in paths.flows(probe))
    )


def _failed(case: Case, outcomes: FrozenSet[str]) -> List[Probe]:
    return [probe for probe in case.failed if case.outcome(probe) in outcomes]
