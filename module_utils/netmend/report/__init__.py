"""What was measured, found and changed, as one object; each file here writes it for another reader. Pure."""

from __future__ import annotations

from typing import Any, Dict, Iterable, List, Mapping, Optional, Sequence, TypedDict

from ..diagnose.registry import is_gate
from ..model import ClusterFacts, Coverage, Finding, Matrix, OverlayVerdict, Point, Remedy, Walk

SCHEMA = 1  # of docs/report.schema.json; another number where a reader of the old shape would go wrong


class Named(TypedDict):
    """A finding as it is reported: of the probes that it accounts for, their number."""

    fault: str
    number: int
    title: str
    where: List[str]
    confidence: float
    evidence: List[str]
    ruled_out: List[str]
    remedy: Remedy
    explains: int


class Judgement(TypedDict):
    """One measurement and what was made of it."""

    matrix: Matrix
    findings: List[Named]
    remedies: Dict[str, Dict[str, Dict[str, Any]]]  # node -> role -> the role's further variables there
    pods: Dict[str, str]  # uid -> "namespace/name" of pods that are to be made anew behind the roles
    score: float  # percent of the probes that met their expectation, or of the checklist's points: the lower one
    healthy: bool  # nothing found, every probe as expected, every point of the checklist met
    coverage: Optional[Coverage]
    checklist: List[Point]  # empty: nothing is asked for
    overlays: Dict[str, OverlayVerdict]  # what can carry pods' packets between all nodes; empty: not measured
    walks: List[Walk]  # of failing probes, those of the findings first


class Change(TypedDict):
    """What one role changed on one node."""

    node: str
    role: str
    diff: List[Dict[str, str]]  # {"before", "after", "before_header"?}, as Ansible's modules return it


class Member(TypedDict):
    """A node of the cluster or of the inventory."""

    name: str
    role: str  # server, agent; "" where the cluster does not know it
    address: str  # its internal one
    ready: bool
    asked: bool  # whether it answered, and so is a source of the matrix


class Mark(TypedDict):
    """When a phase of the run began."""

    phase: str
    at: float  # seconds on a clock of the controller that never goes back


class Phase(TypedDict):
    name: str
    seconds: float


class Report(TypedDict):
    schema: int
    time: str  # ISO 8601, UTC
    verdict: str  # one sentence
    healthy: bool
    score: float
    pass_mark: Optional[float]  # percent; None: only a healthy cluster passes
    passed: bool
    version: str  # of Kubernetes
    nodes: List[Member]
    before: Optional[Judgement]  # None: it was measured once only
    now: Judgement
    check_mode: bool  # then the changes are those that would be made
    drift: bool  # in check mode: something would be changed
    changes: List[Change]
    phases: List[Phase]


def judge(
    matrix: Matrix,
    findings: Sequence[Finding],
    *,
    remove_foreign_rules: bool = False,
    coverage: Optional[Coverage] = None,
    overlays: Optional[Mapping[str, OverlayVerdict]] = None,
    walks: Sequence[Walk] = (),
) -> Judgement:
    """A measurement's matrix and findings -> what they ask for.

    While a finding is a gate, it alone is mended. Rules that are not netmend's are taken away only where a role says
    that nobody can mean them, or with the operator's consent, which ``remove_foreign_rules`` is.
    """
    remedies: Dict[str, Dict[str, Dict[str, Any]]] = {}
    pods: Dict[str, str] = {}
    gates = [finding for finding in findings if is_gate(finding["fault"])]
    for finding in gates or findings:
        remedy = finding["remedy"]
        pods.update(remedy.get("pods", {}))
        consented = remove_foreign_rules and "iptables_forward_remove_rules" in remedy.get("vars", {})
        role = remedy.get("role") or ("iptables_forward" if consented else "")
        for node in remedy.get("nodes", []) if role else []:
            _merge(remedies.setdefault(node, {}).setdefault(role, {}), remedy.get("vars", {}))
    score = 100.0 * matrix["ok"] / matrix["total"] if matrix["total"] else 0.0
    healthy = not findings and matrix["ok"] == matrix["total"]
    named: List[Named] = [{**finding, "explains": len(finding["explains"])} for finding in findings]
    return {
        "matrix": matrix,
        "findings": named,
        "remedies": remedies,
        "pods": pods,
        "score": _rounded(score),
        "healthy": healthy,
        "coverage": coverage,
        "checklist": [],
        "overlays": dict(overlays or {}),
        "walks": list(walks),
    }


def with_checklist(judgement: Judgement, points: List[Point]) -> Judgement:
    """The same measurement, judged by a checklist, too: few points do not drown among many probes, nor the reverse."""
    met = sum(point["met"] for point in points)
    score = 100.0 * met / len(points) if points else 100.0
    return {
        **judgement,
        "checklist": points,
        "score": min(judgement["score"], _rounded(score)),
        "healthy": judgement["healthy"] and met == len(points),
    }


def report(
    now: Judgement,
    before: Optional[Judgement],
    changes: List[Change],
    nodes: List[Member],
    marks: Sequence[Mark],
    *,
    time: str,
    version: str = "",
    check_mode: bool = False,
    pass_mark: Optional[float] = None,
) -> Report:
    """Two measurements and what happened in between -> the object that is shown and written.

    Where there was one measurement only, ``before`` may be None or the same as ``now``. The last mark ends the run.
    """
    before = None if before == now else before
    drift = check_mode and bool(changes)
    return {
        "schema": SCHEMA,
        "time": time,
        "verdict": _verdict(now, before, changes) + _mark(now, pass_mark) + (_drift(changes) if drift else ""),
        "healthy": now["healthy"],
        "score": now["score"],
        "pass_mark": pass_mark,
        "passed": _passes(now, pass_mark),
        "version": version,
        "nodes": nodes,
        "before": before,
        "now": now,
        "check_mode": check_mode,
        "drift": drift,
        "changes": [
            {**change, "diff": [part for part in change["diff"] if part.get("before") != part.get("after")]}
            for change in changes
        ],
        "phases": [
            {"name": mark["phase"], "seconds": round(following["at"] - mark["at"], 2)}
            for mark, following in zip(marks, marks[1:])
        ],
    }


def members(cluster: ClusterFacts, expected: Iterable[str], asked: Iterable[str]) -> List[Member]:
    """The cluster's nodes, servers first, and those of the inventory that it does not know."""
    answered = set(asked)
    known: List[Member] = [
        {
            "name": node["name"],
            "role": node["role"],
            "address": node["internal_ip"],
            "ready": node["ready"],
            "asked": node["name"] in answered,
        }
        for node in sorted(cluster["nodes"], key=lambda node: node["role"] != "server")
    ]
    names = {member["name"] for member in known}
    return known + [
        {"name": name, "role": "", "address": "", "ready": False, "asked": name in answered}
        for name in expected
        if name not in names
    ]


def _verdict(now: Judgement, before: Optional[Judgement], changes: List[Change]) -> str:
    passed = f"{now['matrix']['ok']} of {now['matrix']['total']} probes as expected"
    if now["checklist"]:
        met = sum(point["met"] for point in now["checklist"])
        passed += f", {met} of {len(now['checklist'])} points of the checklist"
    passed += f" ({now['score']:g} %)"
    if not now["healthy"]:
        return f"Findings left: {_left(now)}. {passed}."
    if before and not before["healthy"] and changes:
        gone = ", ".join(dict.fromkeys(finding["fault"] for finding in before["findings"]))
        return f"Mended: {gone}. {passed}, {before['score']:g} % before."
    return f"Healthy. {passed}."


def _left(now: Judgement) -> str:
    named = ", ".join(dict.fromkeys(finding["fault"] for finding in now["findings"]))
    all_passed = now["matrix"]["ok"] == now["matrix"]["total"]
    return named or ("none, but the checklist is not met" if all_passed else "none named, but not every probe passed")


def _passes(now: Judgement, pass_mark: Optional[float]) -> bool:
    return now["healthy"] or (pass_mark is not None and now["score"] >= pass_mark)


def _mark(now: Judgement, pass_mark: Optional[float]) -> str:
    """What decides where the cluster is not healthy."""
    if now["healthy"] or pass_mark is None:
        return ""
    return f" The pass mark of {pass_mark:g} % is {'reached' if _passes(now, pass_mark) else 'missed'}."


def _drift(changes: List[Change]) -> str:
    roles = dict.fromkeys(change["role"] for change in changes)
    return f" Would change: {', '.join(roles)}."


def _rounded(percent: float) -> float:
    """To one digit, and to 100 only where it is all of them."""
    return min(round(percent, 1), 99.9) if percent < 100 else 100.0


def _merge(into: Dict[str, Any], more: Dict[str, Any]) -> None:
    """What two findings ask of one role on one node, taken together: all lists, all keys, either switch."""
    for key, value in more.items():
        there = into.get(key)
        if isinstance(value, list):
            into[key] = (there or []) + [item for item in value if item not in (there or [])]
        elif isinstance(value, dict):
            into[key] = {**(there or {}), **value}
        else:
            into[key] = there or value
