"""From a run's facts and probes to ranked findings. Pure."""

from __future__ import annotations

import json
from typing import Dict, FrozenSet, Iterable, List, Tuple, TypeVar

from ..model import Finding, Remedy, Run
from . import (
    backend,
    calico,
    cluster,
    control_plane,
    dns,
    edge,
    firewall,
    flannel,
    host,
    intermittent,
    mtu,
    overlay,
    service,
)
from .case import Case
from .path import Paths
from .registry import FAULTS, SYMPTOM, Fault, Suspicion

# Importing them registers their faults.
FAMILIES = (control_plane, host, service, firewall, flannel, overlay, calico, mtu, dns, backend, edge, cluster)
# Found from what the others leave, in this order.
RESIDUES = (
    (intermittent.ENDPOINT_FAILS, intermittent.endpoint_fails),
    (intermittent.FAILS_AT_TIMES, intermittent.fails_at_times),
    (dns.UNREACHABLE, dns.unreachable),
    (cluster.UNEXPLAINED, cluster.unexplained),
)
SENTENCES = 6  # of evidence in a finding; the nodes where a fault is in resemble each other

T = TypeVar("T")


def diagnose(run: Run) -> List[Finding]:
    """Causes before symptoms; what makes probes fail before what is going to; nothing for a healthy cluster."""
    case = Case(run)
    paths = Paths(case)
    found = [(fault, each) for fault in FAULTS.values() if fault.find for each in fault.find(case, paths)]
    found = edge.reaching(case, found)
    for fault, residue in RESIDUES:
        explained = frozenset(probe for _, suspicion in found for probe in suspicion.explains)
        found += [(fault, each) for each in residue(case, paths, explained)]
    return sorted(_merged(found), key=_rank)


def _merged(found: Iterable[Tuple[Fault, Suspicion]]) -> List[Finding]:
    """One finding for one fault with one remedy, wherever it is."""
    groups: Dict[Tuple[str, str], List[Tuple[Fault, Suspicion]]] = {}
    for fault, suspicion in found:
        remedy = {key: value for key, value in suspicion.remedy.items() if key not in ("nodes", "pods")}
        groups.setdefault((fault.name, json.dumps(remedy, sort_keys=True)), []).append((fault, suspicion))
    return [
        _finding(group[0][0], sorted((suspicion for _, suspicion in group), key=lambda each: each.where))
        for group in groups.values()
    ]


def _finding(fault: Fault, suspicions: List[Suspicion]) -> Finding:
    remedy: Remedy = {**suspicions[0].remedy}
    remedy["nodes"] = _unique(node for each in suspicions for node in each.remedy.get("nodes", []))
    if pods := {uid: name for each in suspicions for uid, name in each.remedy.get("pods", {}).items()}:
        remedy["pods"] = pods
    explains: FrozenSet[str] = frozenset().union(*(each.explains for each in suspicions))
    return Finding(
        fault=fault.name,
        number=fault.number,
        title=fault.title,
        where=_unique(each.where for each in suspicions),
        confidence=min(each.confidence for each in suspicions),
        evidence=_few(sentence for each in suspicions for sentence in each.evidence),
        ruled_out=_few(sentence for each in suspicions for sentence in each.ruled_out),
        remedy=remedy,
        explains=sorted(explains),
    )


def _rank(finding: Finding) -> Tuple[int, int, int, float, str]:
    layer = FAULTS[finding["fault"]].layer
    stage = 2 if layer == SYMPTOM else 0 if finding["explains"] else 1
    return stage, layer, -len(finding["explains"]), -finding["confidence"], finding["fault"]


def _few(sentences: Iterable[str]) -> List[str]:
    kept = _unique(sentences)
    if len(kept) > SENTENCES:
        kept[SENTENCES - 1 :] = [f"{len(kept) - SENTENCES + 1} more of the kind."]
    return kept


def _unique(items: Iterable[T]) -> List[T]:
    return list(dict.fromkeys(items))
