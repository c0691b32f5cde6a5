"""Where the nodes' firewalls stop the probes that failed, and what would let them through."""

from __future__ import annotations

from typing import Callable, Dict, FrozenSet, List, NamedTuple, Set, Tuple

from ..model import Remedy, Rule, Ruleset
from ..walk import Place, Verdict
from .case import BLOCKED, DROPPED, Case, contains
from .path import Block, Passage, Paths

# Chains of those who enforce NetworkPolicies: what they stop is theirs to stop.
POLICY_JUMPS = ("KUBE-ROUTER-FORWARD", "cali-FORWARD")
POLICY_CHAINS = ("KUBE-ROUTER-", "KUBE-POD-FW-", "KUBE-NWPLCY-", "cali-")
# Behind the jumps to these the role iptables_forward puts its accepts.
CHAINS_BEFORE_ACCEPTS = ("KUBE-", "cali-")


class Stop(NamedTuple):
    """One rule or policy of one node that stops failing probes."""

    node: str
    verdict: Verdict
    passage: Passage  # one of those that it stops
    peers: List[str]
    explains: FrozenSet[str]


def stops(case: Case, paths: Paths, wanted: Callable[[Block], bool], policies: bool = False) -> List[Stop]:
    """A stop for every place whose blocks are wanted: without those that a policy's chain decides, or only those."""
    blocks: Dict[Tuple[str, str, str, str, int], Block] = {}
    peers: Dict[Tuple[str, str, str, str, int], Set[str]] = {}
    explains: Dict[Tuple[str, str, str, str, int], Set[str]] = {}
    for probe in case.failed:
        for passage in paths.passages(probe):
            found = paths.blocks(passage)
            rejected = any(block.verdict.action == "reject" for block in found)
            if case.outcome(probe) not in (BLOCKED if rejected else DROPPED):
                continue
            for block in found:
                if wanted(block) and by_policy(block.verdict) == policies:
                    verdict = block.verdict
                    key = (passage.node, verdict.backend, *verdict.rule[:3])
                    blocks.setdefault(key, block)
                    peers.setdefault(key, set()).add(passage.peer)
                    explains.setdefault(key, set()).add(probe["id"])
    return [
        Stop(key[0], block.verdict, block.passage, sorted(peers[key]), frozenset(explains[key]))
        for key, block in blocks.items()
    ]


def by_policy(verdict: Verdict) -> bool:
    return any(step.chain.startswith(POLICY_CHAINS) for step in (*verdict.path, verdict.rule))


def by_kubernetes_backend(case: Case, block: Block) -> bool:
    """False: in the rule set that Kubernetes does not write to."""
    return block.verdict.backend == case.backend(block.passage.node)


def policy_jumps(ruleset: Ruleset) -> List[int]:
    """Numbers of the rules of FORWARD that hand a packet to its NetworkPolicies."""
    return [number for number, rule in enumerate(_forward(ruleset), 1) if rule["target"] in POLICY_JUMPS]


def accepting(case: Case, stop: Stop) -> Remedy:
    """For what FORWARD stops: accepts before it.

    They have to stay behind the jumps to Kubernetes' chains. A rule that stands before those has to go, then. One that
    stops all pods' packets can be meant by nobody; any other is left to the operator.
    """
    verdict, node = stop.verdict, stop.node
    rules = _forward(case.ruleset(node))
    jumps = [i for i, rule in enumerate(rules, 1) if (rule["target"] or "").startswith(CHAINS_BEFORE_ACCEPTS)]
    if verdict.root.table == "filter" and (verdict.root.number or len(rules) + 1) > max(jumps, default=0):
        text = "Put accepts for pods behind the policy chains and before what stops them; the policy stays as it is."
        return Remedy(role="iptables_forward", nodes=[node], vars={"iptables_forward_accepts": True}, text=text)
    remedy = removal(verdict.rule, verdict.backend, node)
    direct = verdict.rule == verdict.root and verdict.root.table == "filter"
    if direct and _stops_all_pods(case, rules[verdict.root.number - 1]):
        remedy["role"] = "iptables_forward"
        remedy["vars"]["iptables_forward_accepts"] = False  # what else would stop them is a finding of its own
        remedy["text"] = "Remove this rule, which stops all pods' packets; what stands behind it decides again."
    return remedy


def _stops_all_pods(case: Case, rule: Rule) -> bool:
    addresses = {"source", "destination"}
    return (
        not rule["opaque"]
        and set(rule["matches"]) <= addresses
        and all(contains(network, case.cluster["cluster_cidr"]) for network in rule["matches"].values())
    )


def _forward(ruleset: Ruleset) -> List[Rule]:
    return ruleset["filter"]["FORWARD"]["rules"] if "FORWARD" in ruleset.get("filter", {}) else []


def describe(case: Case, node: str, verdict: Verdict) -> str:
    """The deciding rule with its counter."""
    rule = verdict.rule
    moved = case.counted(node, verdict.backend, rule.table, rule.chain, rule.number)
    while_probing = f", {moved} of them while probing" if moved else ""
    return f"{verdict.backend} {verdict}, {rule.packets + moved} packets{while_probing}"


def removal(rule: Place, backend: str, node: str) -> Remedy:
    """For a rule that is somebody else's: it is named, and taken away only if the operator says so."""
    return Remedy(
        role="",
        nodes=[node],
        vars={
            "iptables_forward_remove_rules": [
                {"backend": backend, "table": rule.table, "chain": rule.chain, "spec": rule.spec}
            ]
        },
        command=f"iptables-{backend} -w -t {rule.table} -D {rule.chain} {rule.spec}",
        text="Remove this rule, which is not netmend's, and so goes only with the operator's consent.",
    )


def opening(case: Case, stop: Stop, what: str) -> Remedy:
    """For what INPUT or OUTPUT stops: UFW lets it in, if UFW is what stops it."""
    verdict, node = stop.verdict, stop.node
    in_ufw = any(step.chain.startswith("ufw-") for step in (*verdict.path, verdict.rule))
    is_policy = verdict.rule.table == "filter" and verdict.rule.number == 0
    if stop.passage.hook == "INPUT" and case.nodes[node]["ufw"]["enabled"] and (in_ufw or is_policy):
        sources = "nodes' and pods'" if stop.passage.what == "host" else "nodes' own"
        text = f"Allow {what} in UFW, from the {sources} addresses and no others."
        return Remedy(role="ufw", nodes=[node], text=text)
    if verdict.rule.number:
        return removal(verdict.rule, verdict.backend, node)
    return Remedy(
        role="",
        nodes=[node],
        text=f"Accept {what} of the nodes in {verdict.rule.chain}: its policy is {verdict.rule.spec}, and UFW is off.",
    )
