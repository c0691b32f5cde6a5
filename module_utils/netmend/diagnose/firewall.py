"""Rules of a node's firewall that stop what has to pass, or let pass what they should leave to policies."""

from __future__ import annotations

from typing import Dict, Iterator, List

from ..model import Remedy
from ..walk import Packet, Verdict, walk
from .case import Case
from .path import Block, Paths
from .registry import FIREWALL, KERNEL, Suspicion, fault
from .service import flushed
from .stops import Stop, accepting, by_kubernetes_backend, describe, opening, policy_jumps, removal, stops

KUBELET_PORT = 10250


@fault("nft-and-legacy-mixed", 29, "The rule set that Kubernetes does not use stops its packets", FIREWALL)
def nft_and_legacy_mixed(case: Case, paths: Paths) -> Iterator[Suspicion]:
    for stop in stops(case, paths, lambda block: not by_kubernetes_backend(case, block)):
        node, rule, backend = stop.node, stop.verdict.rule, stop.verdict.backend
        other = case.backend(node)
        remedy = removal(rule, backend, node)
        if rule.number == 0:
            command = f"iptables-{backend} -w -t {rule.table} -P {rule.chain} ACCEPT"
            text = f"Keep one rule set: {other} is the one that Kubernetes and UFW are in; the other is to be empty."
            remedy = Remedy(role="", nodes=[node], command=command, text=text)
        yield Suspicion(
            where=node,
            evidence=[
                f"{node}: {describe(case, node, stop.verdict)}. It stops {_what(stop)}, which the rule set of {other}, "
                f"where Kubernetes writes, says nothing about. Failing probes that pass there: {len(stop.explains)}."
            ],
            remedy=remedy,
            confidence=0.95,
            explains=stop.explains,
            ruled_out=[f"The rules that `iptables-{other}-save` shows: an accept there does not undo a drop here."],
        )


@fault("reject-before-accept", 24, "A rule stops forwarded packets before they can be accepted", FIREWALL)
def reject_before_accept(case: Case, paths: Paths) -> Iterator[Suspicion]:
    """A rule, not the policy: an accept behind it, which may be there, is never reached."""

    def wanted(block: Block) -> bool:
        return by_kubernetes_backend(case, block) and block.passage.hook == "FORWARD" and block.verdict.rule.number > 0

    for stop in stops(case, paths, wanted):
        yield Suspicion(
            where=stop.node,
            evidence=[
                f"{stop.node}: {describe(case, stop.node, stop.verdict)}. It stops {_what(stop)}. "
                f"Failing probes that pass there: {len(stop.explains)}."
            ],
            remedy=accepting(case, stop),
            confidence=0.95,
            explains=stop.explains,
            ruled_out=["A NetworkPolicy: the rule is in no chain of a policy controller."],
        )


@fault("forward-drop-without-accept", 23, "FORWARD drops by policy, and nothing accepts pods' packets", FIREWALL)
def forward_drop_without_accept(case: Case, paths: Paths) -> Iterator[Suspicion]:
    """FORWARD with policy DROP is healthy while the accepts before it work, as with UFW: only a failure counts.

    Where a flush took the accepts, those of Kubernetes come back, and need none of ours.
    """

    def wanted(block: Block) -> bool:
        return by_kubernetes_backend(case, block) and block.passage.hook == "FORWARD" and block.verdict.rule.number == 0

    for stop in stops(case, paths, wanted):
        if flushed(case, stop.node):
            continue
        yield Suspicion(
            where=stop.node,
            evidence=[
                f"{stop.node}: {describe(case, stop.node, stop.verdict)}. No rule before it accepts {_what(stop)}. "
                f"Failing probes that pass there: {len(stop.explains)}."
            ],
            remedy=accepting(case, stop),
            confidence=0.95,
            explains=stop.explains,
            ruled_out=["A rule that rejects: none matches, the policy decides."],
        )


@fault("kubelet-dropped-by-host", 31, "The node's firewall stops the kubelet's port (TCP 10250)", FIREWALL)
def kubelet_dropped_by_host(case: Case, paths: Paths) -> Iterator[Suspicion]:
    yield from _host_port(case, paths, kubelet=True)


@fault("port-dropped-by-host", 0, "The node's firewall stops a port that other nodes or pods need", FIREWALL)
def port_dropped_by_host(case: Case, paths: Paths) -> Iterator[Suspicion]:
    """Any other port of a host that a probe asked and that its INPUT stops: the API server, etcd, a hostNetwork pod."""
    yield from _host_port(case, paths, kubelet=False)


@fault("accept-before-policy", 25, "A rule accepts pods' packets before their NetworkPolicies are asked", KERNEL)
def accept_before_policy(case: Case, paths: Paths) -> Iterator[Suspicion]:
    """Nothing fails: that is the fault. So it rests on the walk alone, and with no NetworkPolicy in the cluster, on
    less confidence, as nothing is bypassed yet."""
    for node in case.nodes:
        for verdict in _accepted_early(case, node):
            first, policies = min(policy_jumps(case.ruleset(node))), len(case.cluster["network_policies"])
            jump = case.ruleset(node)["filter"]["FORWARD"]["rules"][first - 1]
            remedy = removal(verdict.root, verdict.backend, node)
            if "netmend:" in verdict.root.spec:
                remedy = Remedy(
                    role="iptables_forward",
                    nodes=[node],
                    vars={"iptables_forward_accepts": True},
                    text="Put the accept behind the policy chains.",
                )
            yield Suspicion(
                where=node,
                evidence=[
                    f"{node}: {describe(case, node, verdict)}. It stands before rule {first}, the jump to "
                    f"{jump['target']}: what it accepts is held to no NetworkPolicy; the cluster has {policies}."
                ],
                remedy=remedy,
                confidence=0.9 if policies else 0.7,
            )


def _host_port(case: Case, paths: Paths, kubelet: bool) -> Iterator[Suspicion]:
    def wanted(block: Block) -> bool:
        passage = block.passage
        of_kubelet = passage.packet.protocol == "tcp" and passage.packet.dport == KUBELET_PORT
        return by_kubernetes_backend(case, block) and passage.what == "host" and of_kubelet == kubelet

    for stop in stops(case, paths, wanted):
        yield Suspicion(
            where=stop.node,
            evidence=[
                f"{stop.node} stops {_what(stop)} from {_senders(stop)}: "
                f"{describe(case, stop.node, stop.verdict)}. Failing probes that pass there: {len(stop.explains)}; "
                f"{case.tally(case.pings(stop.node))} node pings came out as expected."
            ],
            remedy=opening(case, stop, _what(stop)),
            confidence=0.95,
            explains=stop.explains,
            ruled_out=["The service being down, or the fabric: the node's own rules stop it, whatever listens."],
        )


def _senders(stop: Stop) -> str:
    """A node itself is no sender to its own INPUT by its network card: its pods are."""
    return ", ".join(f"pods of {peer}" if peer == stop.node else peer for peer in stop.peers)


def _what(stop: Stop) -> str:
    packet = stop.passage.packet
    port = f" {packet.dport}" if packet.dport else ""
    if stop.passage.hook == "FORWARD":
        return f"{packet.protocol.upper()} from {packet.source} to {packet.destination}{port.replace(' ', ':')}"
    return f"{packet.protocol.upper()}{port}"


def _accepted_early(case: Case, node: str) -> List[Verdict]:
    """One for each rule of FORWARD before the first policy jump that accepts a connection between two pods."""
    ruleset, sets = case.ruleset(node), case.nodes[node]["ipsets"]
    first = min(policy_jumps(ruleset), default=0)
    found: Dict[int, Verdict] = {}
    for packet in _between_pods(case, node) if first > 1 else []:
        verdict = walk(ruleset, "filter", "FORWARD", packet, sets)._replace(backend=case.backend(node))
        if verdict.action == "accept" and 0 < verdict.root.number < first:
            found.setdefault(verdict.root.number, verdict)
    return list(found.values())


def _between_pods(case: Case, node: str) -> Iterator[Packet]:
    """From a pod here to one of each other node, and back."""
    own = case.pod_address(node)
    for peer in case.peers(node):
        other = case.pod_address(peer)
        if own and other:
            packet = Packet(own, other, "tcp", 80, interface_in=case.device(node, own))
            yield packet._replace(interface_out=case.device(node, other))
            packet = Packet(other, own, "tcp", 80, interface_in=case.device(node, other))
            yield packet._replace(interface_out=case.device(node, own))
