"""kube-proxy's rules: what makes a Service's address lead anywhere."""

from __future__ import annotations

from typing import FrozenSet, Iterator, List, Set, Tuple

from ..kube_proxy import JUMPS, Jump, missing_jumps
from ..model import Probe, Remedy
from .case import BLOCKED, Case, ids
from .path import Paths
from .registry import FLUSH, SERVICE, Suspicion, fault

NAMED_JUMPS = 3  # in a sentence


@fault("firewall-flush", 26, "A firewall reload flushes the rules of Kubernetes", FLUSH)
def firewall_flush(case: Case, paths: Paths) -> Iterator[Suspicion]:
    """None of kube-proxy's jumps is left in the filter table, or UFW is set to flush it.

    MANAGE_BUILTINS=yes with all jumps in place is a finding too, though nothing fails yet: `ufw reload`, `ufw enable`
    and a reboot flush the filter table for certain, and kube-proxy does not notice, as its canary stands in mangle.
    It is given less confidence, and stands behind what does fail. With UFW off it is none.
    """
    for node, facts in case.nodes.items():
        lost = flushed(case, node)
        bites = facts["ufw"]["enabled"] and facts["ufw"]["manage_builtins"]
        if not lost and not bites:
            continue
        missing = missing_jumps(case.ruleset(node)) if _keeps_jumps(case, node) else []
        evidence = [f"{node}: {_listed(missing)}."] if missing else []
        if bites:
            evidence.append(
                f"{node}: MANAGE_BUILTINS=yes in /etc/default/ufw: each reload of UFW flushes the filter table, "
                "with all rules of kube-proxy, the kubelet and the CNI."
            )
            text = "Set MANAGE_BUILTINS=no in /etc/default/ufw."
        else:
            text = "Let kube-proxy write its rules again, and find out what flushes them: UFW's setting is not it."
        yield Suspicion(
            where=node,
            evidence=evidence,
            remedy=Remedy(role="ufw" if bites else "kube_proxy_resync", nodes=[node], text=text),
            confidence=(0.95 if bites else 0.8) if lost else 0.6,
            explains=_explained(case, paths, node, missing) if lost else frozenset(),
            ruled_out=["A single lost jump: all of the filter table's are gone at once."] if lost else [],
        )


@fault("kube-services-jump-missing", 27, "Jumps to kube-proxy's chains are missing", SERVICE)
def kube_services_jump_missing(case: Case, paths: Paths) -> Iterator[Suspicion]:
    """A fact that bites: the chains are there, and nothing leads to them. kube-proxy itself does not look."""
    for node in case.nodes:
        if not _keeps_jumps(case, node):
            continue
        missing = missing_jumps(case.ruleset(node))
        managed = case.nodes[node]["ufw"]["enabled"] and case.nodes[node]["ufw"]["manage_builtins"]
        if not missing or (flushed(case, node) and not managed):
            continue  # nothing is missing, or a flush is named, with the same remedy
        rules = case.ruleset(node).get("nat", {}).get("KUBE-SERVICES", {"rules": []})["rules"]
        explained = _explained(case, paths, node, missing)
        there = _to_pods(case, node)
        yield Suspicion(
            where=node,
            evidence=[
                f"{node}: {_listed(missing)}; the chain KUBE-SERVICES itself has {len(rules)} rules. "
                f"Failing probes that ask a Service there: {len(explained)}; "
                f"{case.tally(there)} probes from there to pods' own addresses came out as expected."
            ],
            remedy=Remedy(role="kube_proxy_resync", nodes=[node], text="Let kube-proxy write its jumps again."),
            confidence=0.97 if explained else 0.85,
            explains=explained,
            ruled_out=["The overlay and the pods: a Service's address leads nowhere before either is reached."],
        )


def _keeps_jumps(case: Case, node: str) -> bool:
    """Whether kube-proxy runs here in its iptables mode: in the others it has no canary, and other jumps or none."""
    return "KUBE-PROXY-CANARY" in case.ruleset(node).get("mangle", {})


def flushed(case: Case, node: str) -> bool:
    """Whether none of kube-proxy's jumps is left in the filter table."""
    jumps = {jump for jump in JUMPS if jump.table == "filter"}
    return _keeps_jumps(case, node) and jumps <= set(missing_jumps(case.ruleset(node)))


def _listed(missing: List[Jump]) -> str:
    named = f" ({', '.join(map(str, missing))})" if len(missing) <= NAMED_JUMPS else ""
    return f"{len(missing)} of {len(JUMPS)} jumps of kube-proxy are missing{named}"


def _explained(case: Case, paths: Paths, node: str, missing: List[Jump]) -> FrozenSet[str]:
    """Failing probes whose Service would be found by a missing jump; all that the node forwards, if those are gone."""
    untranslated: Set[Tuple[str, str]] = {(node, jump.hook) for jump in missing if jump.table == "nat"}
    unaccepted = flushed(case, node)
    return ids(
        probe
        for probe in case.failed
        if case.outcome(probe) in BLOCKED
        and (
            untranslated & paths.translators(probe)
            or (unaccepted and any(p.node == node and p.hook == "FORWARD" for p in paths.passages(probe)))
        )
    )


def _to_pods(case: Case, node: str) -> List[Probe]:
    probes = case.run["probes"]
    return [probe for probe in probes if probe["source_node"] == node and probe["row"] in ("pod-pod", "host-pod")]
