"""Rules of a node's firewall that stop what has to pass, or let pass what they should leave to policies."""

from __future__ import annotations

from typing import Dict, Iterator, List

from ..model import Pod, Remedy
from ..walk import Packet, Verdict, walk
from .calico_view import view_of
from .case import Case
from .path import Block, Paths
from .registry import CONTROL_PLANE, FIREWALL, KERNEL, Suspicion, fault
from .service import flushed
from .stops import Stop, accepting, by_kubernetes_backend, describe, opening, policy_jumps, removal, stops

PORTS = {10250: "kubelet", 2379: "etcd", 2380: "etcd"}
# Chains of K3s's policy controller.
KUBE_ROUTER = ("KUBE-ROUTER-", "KUBE-POD-FW-", "KUBE-NWPLCY-")
# One transaction that takes nothing but those chains and what jumps to them, from a copy of the table, which is kept.
REMOVE_KUBE_ROUTER = (
    "iptables-{0}-save -t filter > /root/filter.before && (echo '*filter'; "
    r"sed -nE -e 's/^-A ((INPUT|FORWARD|OUTPUT) .*KUBE-ROUTER.*)/-D \1/p' "
    r"-e 's/^:(KUBE-(ROUTER|POD-FW|NWPLCY)-\S+).*/-F \1/p' /root/filter.before; "
    r"sed -nE 's/^:(KUBE-(ROUTER|POD-FW|NWPLCY)-\S+).*/-X \1/p' /root/filter.before; "
    "echo COMMIT) | iptables-{0}-restore -w --noflush"
)


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
    yield from _host_port(case, paths, "kubelet")


@fault("etcd-dropped-by-host", 32, "The server's firewall stops etcd (TCP 2379-2380)", CONTROL_PLANE, gate=True)
def etcd_dropped_by_host(case: Case, paths: Paths) -> Iterator[Suspicion]:
    """Members that cannot connect are lost sooner or later, and with most of them the cluster: first of all repairs.

    Connections that are established go on until they break, so that etcd may say that it is well.
    """
    for suspicion in _host_port(case, paths, "etcd"):
        if suspicion.remedy["role"] == "ufw":
            suspicion.remedy["text"] = "Allow TCP 2379-2380 in UFW, from the other servers' addresses and no others."
        yield suspicion


@fault("port-dropped-by-host", 0, "The node's firewall stops a port that other nodes or pods need", FIREWALL)
def port_dropped_by_host(case: Case, paths: Paths) -> Iterator[Suspicion]:
    """Any other port of a host that a probe asked and that its INPUT stops: the API server, a hostNetwork pod."""
    yield from _host_port(case, paths, "")


@fault("stale-network-policy", 17, "Rules of a policy controller that is switched off still decide", FIREWALL)
def stale_network_policy(case: Case, paths: Paths) -> Iterator[Suspicion]:
    """K3s takes no rule away when disable-network-policy is set (docs.k3s.io/networking/networking-services).

    What they allow and deny stays as it was. Chains for addresses that no pod has any more concern nobody.
    """
    if not policy_controller_is_off(case):
        return

    def wanted(block: Block) -> bool:
        steps = (*block.verdict.path, block.verdict.rule)
        return by_kubernetes_backend(case, block) and any(step.chain.startswith(KUBE_ROUTER) for step in steps)

    found = stops(case, paths, wanted, policies=True)
    for node in case.nodes:
        held = [pod for pod in case.pods_on(node) if _held(case, node, pod)]
        here = [stop for stop in found if stop.node == node]
        if not held and not here:
            continue
        explained = frozenset().union(*(stop.explains for stop in here))
        chains = [name for name in case.ruleset(node).get("filter", {}) if name.startswith(KUBE_ROUTER)]
        yield Suspicion(
            where=node,
            evidence=[
                f"{node}: disable-network-policy is set, and {len(chains)} chains of the policy controller are still "
                f"there. They decide about {len(held)} pods that are there now.",
                *(f"{node}: {describe(case, node, stop.verdict)}. It stops {_what(stop)}." for stop in here),
            ],
            remedy=Remedy(
                # Where Calico holds to the policies, nothing is let in that they keep out.
                role="cni_leftovers" if view_of(case).is_off_flannel(node) else "",
                nodes=[node],
                vars={"cni_leftovers_of": ["policy"]},
                command=REMOVE_KUBE_ROUTER.format(case.backend(node)),
                text="Remove these chains and the jumps to them, and nothing else; the command keeps a copy before.",
            ),
            confidence=0.95 if explained else 0.7,
            explains=explained,
            ruled_out=["A NetworkPolicy that is in force: nobody looks after these rules any more."],
        )


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


def policy_controller_is_off(case: Case) -> bool:
    """Agents take the switch over from a server."""
    servers = [facts["k3s"]["config"] for facts in case.nodes.values() if facts["k3s"]["role"] == "server"]
    return bool(servers) and all(config.get("disable-network-policy") in (True, "true") for config in servers)


def _held(case: Case, node: str, pod: Pod) -> bool:
    """Whether packets of the pod are led into the policy controller's chains."""
    rules = case.ruleset(node).get("filter", {}).get("KUBE-ROUTER-FORWARD", {"rules": []})["rules"]
    ends = {rule["matches"].get(end, "").partition("/")[0] for rule in rules for end in ("source", "destination")}
    return pod["ip"] in ends and bool(policy_jumps(case.ruleset(node)))


def _host_port(case: Case, paths: Paths, owner: str) -> Iterator[Suspicion]:
    """Stops of the ports of one owner in PORTS, or with "" of all that have none there."""

    def wanted(block: Block) -> bool:
        passage = block.passage
        owner_there = PORTS.get(passage.packet.dport, "") if passage.packet.protocol == "tcp" else ""
        return by_kubernetes_backend(case, block) and passage.what == "host" and owner_there == owner

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
