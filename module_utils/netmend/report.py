"""What was measured, found and changed, as one object and as text. Pure; the page is a template over the object."""

from __future__ import annotations

from typing import Any, Dict, Iterator, List, Optional, TypedDict

from .diagnose.registry import is_gate
from .model import Cell, Finding, Matrix, Row

SCHEMA = 1


class Judgement(TypedDict):
    """One measurement and what was made of it."""

    matrix: Matrix
    findings: List[Finding]
    remedies: Dict[str, Dict[str, Dict[str, Any]]]  # node -> role -> the role's further variables there
    score: float  # percent of the matrix's probes that met their expectation
    healthy: bool  # nothing found, and every probe as expected


class Change(TypedDict):
    """What one role changed on one node."""

    node: str
    role: str
    diff: List[Dict[str, str]]  # {"before", "after", "before_header"?}, as Ansible's modules return it


class Report(TypedDict):
    schema: int
    time: str  # ISO 8601, UTC
    verdict: str  # one sentence
    healthy: bool
    score: float
    before: Optional[Judgement]  # None: nothing was mended, so there is one measurement only
    now: Judgement
    changes: List[Change]


def judge(matrix: Matrix, findings: List[Finding], remove_foreign_rules: bool = False) -> Judgement:
    """A measurement's matrix and findings -> what they ask for.

    While a finding is a gate, it alone is mended. Rules that are not netmend's are taken away only where a role says
    that nobody can mean them, or with the operator's consent, which ``remove_foreign_rules`` is.
    """
    remedies: Dict[str, Dict[str, Dict[str, Any]]] = {}
    gates = [finding for finding in findings if is_gate(finding["fault"])]
    for finding in gates or findings:
        remedy = finding["remedy"]
        consented = remove_foreign_rules and "iptables_forward_remove_rules" in remedy.get("vars", {})
        role = remedy.get("role") or ("iptables_forward" if consented else "")
        for node in remedy.get("nodes", []) if role else []:
            _merge(remedies.setdefault(node, {}).setdefault(role, {}), remedy.get("vars", {}))
    score = 100.0 * matrix["ok"] / matrix["total"] if matrix["total"] else 0.0
    healthy = not findings and matrix["ok"] == matrix["total"]
    return {"matrix": matrix, "findings": findings, "remedies": remedies, "score": round(score, 1), "healthy": healthy}


def report(now: Judgement, before: Optional[Judgement], changes: List[Change], time: str) -> Report:
    """Two measurements and what happened in between -> the object that is shown and written."""
    return {
        "schema": SCHEMA,
        "time": time,
        "verdict": _verdict(now, before, changes),
        "healthy": now["healthy"],
        "score": now["score"],
        "before": before,
        "now": now,
        "changes": changes,
    }


def findings_text(judgement: Judgement) -> str:
    """The matrix and the findings, for a terminal of 120 columns."""
    return "\n".join([*_matrix_lines(judgement["matrix"]), "", *_finding_lines(judgement["findings"])])


def text(whole: Report) -> str:
    """The whole report, for a terminal: what is known since the first measurement was shown is not shown again."""
    lines = findings_text(whole["now"]).splitlines()
    if whole["changes"]:
        lines += ["", "Changed", *_change_lines(whole["changes"])]
    return "\n".join(["", *lines, "", whole["verdict"]])


def _verdict(now: Judgement, before: Optional[Judgement], changes: List[Change]) -> str:
    passed = f"{now['matrix']['ok']} of {now['matrix']['total']} probes as expected ({now['score']:g} %)"
    left = ", ".join(finding["fault"] for finding in now["findings"])
    if not now["healthy"]:
        return f"Findings left: {left or 'none named, but not every probe passed'}. {passed}."
    if before and not before["healthy"] and changes:
        gone = ", ".join(finding["fault"] for finding in before["findings"])
        return f"Mended: {gone}. {passed}, {before['score']:g} % before."
    return f"Healthy. {passed}."


def _matrix_lines(matrix: Matrix) -> List[str]:
    lines = ["Matrix"]
    for name, row in matrix["rows"].items():
        good = row["ok"] == row["total"]
        lines.append(f"  {name:<16} {row['ok']:>4} of {row['total']:<4} {'ok' if good else 'NOT OK'}")
        lines += [] if good else _row_lines(row)
    return lines


def _row_lines(row: Row) -> List[str]:
    targets = list(dict.fromkeys(target for cells in row["sources"].values() for target in cells))
    widths = {target: max(len(target), 11) for target in targets}
    lines = [" " * 24 + "  ".join(f"{target:<{widths[target]}}" for target in targets)]
    for source, cells in row["sources"].items():
        shown = (f"{_cell(cells.get(target, [])):<{widths[target]}}" for target in targets)
        lines.append(f"      {source:<16}  " + "  ".join(shown))
    return [line.rstrip() for line in lines]


def _cell(cells: List[Cell]) -> str:
    """The probes of one source and destination in a word: ok, what went wrong, or nothing where none was made."""
    if not cells:
        return "-"
    wrong = [cell["outcome"] for cell in cells if not cell["met"]]
    if not wrong:
        return "ok"
    worst = max(set(wrong), key=wrong.count)
    return worst.upper() if len(wrong) == len(cells) else f"{worst} {len(wrong)}/{len(cells)}"


def _finding_lines(findings: List[Finding]) -> List[str]:
    if not findings:
        return ["No findings."]
    lines = ["Findings"]
    for place, finding in enumerate(findings, 1):
        where = ", ".join(finding["where"])
        lines.append(f"  {place}. {finding['title']} [{finding['fault']}, {finding['confidence']:.0%} sure]")
        lines.append(f"       where:  {where}")
        lines += [f"       seen:   {sentence}" for sentence in finding["evidence"]]
        lines += [f"       not:    {sentence}" for sentence in finding["ruled_out"]]
        lines.append(f"       remedy: {_remedy(finding)}")
    return lines


def _remedy(finding: Finding) -> str:
    remedy = finding["remedy"]
    parts = [remedy.get("text", "")]
    if remedy.get("role"):
        parts.append(f"role {remedy['role']} on {', '.join(remedy.get('nodes', []))}")
    if remedy.get("command"):
        parts.append(f"`{remedy['command']}`")
    return "; ".join(part.rstrip(".") for part in parts if part)


def _change_lines(changes: List[Change]) -> List[str]:
    """What each role changed; what several nodes share stands once, with their names unless it is all of them."""
    lines = []
    for role in dict.fromkeys(change["role"] for change in changes):
        of_role = [change for change in changes if change["role"] == role]
        nodes = list(dict.fromkeys(change["node"] for change in of_role))
        where: Dict[str, List[str]] = {}
        for change in of_role:
            for line in _diff_lines(change["diff"]):
                where.setdefault(line, []).append(change["node"])
        lines.append(f"  {role} on {', '.join(nodes)}")
        lines += [f"    {line}" + ("" if at == nodes else f"  [{', '.join(at)}]") for line, at in where.items()]
    return lines


def _diff_lines(diff: List[Dict[str, str]]) -> Iterator[str]:
    for part in diff:
        before, after = part.get("before", "").splitlines(), part.get("after", "").splitlines()
        yield from (f"- {line}" for line in before if line not in after)
        yield from (f"+ {line}" for line in after if line not in before)


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
