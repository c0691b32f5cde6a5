"""The report on a terminal of 120 columns."""

from __future__ import annotations

from collections import Counter
from typing import Dict, Iterator, List, Optional

from ..model import Coverage, Matrix, OverlayVerdict, Point, Remedy, Walk
from ..overlays import passing
from . import Change, Judgement, Named, Report
from .matrix import Seen, asked, cells, destinations, losses, named, sentences

COLUMNS = 6  # destinations that fit side by side; what fails of more is told of in sentences
SOURCES = 12  # the same below each other
SENTENCES = 12  # of one row
OTHERS = 4  # nodes in such a sentence
PLACES = 12  # of a finding
WALKS = 3  # the page and report.json have more
AGREEMENT = {
    True: "as by these hops",
    False: "AGAINST what these hops say: {says}",
    None: "which these hops can neither confirm nor deny",
}


def measured(judgement: Judgement) -> str:
    """The matrix and the findings, for a terminal of 120 columns."""
    lines = _matrix_lines(judgement["matrix"]) + _coverage_lines(judgement["coverage"])
    lines += _checklist_lines(judgement["checklist"])
    lost = losses(judgement["matrix"])
    lines += ["", "Lost now and then", *(f"  {path}" for path in lost)] if lost else []
    lines += _overlay_lines(judgement["overlays"]) if judgement["findings"] else []
    return "\n".join([*lines, "", *_finding_lines(judgement["findings"]), *_walk_lines(judgement["walks"])])


def render(whole: Report) -> str:
    """The whole report, for a terminal: what is known since the first measurement was shown is not shown again."""
    lines = measured(whole["now"]).splitlines()
    if whole["changes"]:
        lines += ["", "Would change" if whole["check_mode"] else "Changed", *_change_lines(whole["changes"])]
    return "\n".join(["", *lines, "", whole["verdict"]])


def _matrix_lines(matrix: Matrix) -> List[str]:
    lines = ["Matrix"]
    for name, row in matrix["rows"].items():
        good = row["ok"] == row["total"]
        lines.append(f"  {name:<16} {row['ok']:>4} of {row['total']:<4} {'ok' if good else 'NOT OK'}")
        lines += [] if good else _row_lines(matrix, name)
    return lines


def _checklist_lines(points: List[Point]) -> List[str]:
    lines = [f"  {'ok    ' if point['met'] else 'NOT OK'}  {point['name']} ({point['seen']})" for point in points]
    return ["", "Checklist", *lines] if points else []


def _coverage_lines(coverage: Optional[Coverage]) -> List[str]:
    said = sampled(coverage)
    return [f"  {said}"] if said else []


def sampled(coverage: Optional[Coverage]) -> str:
    """How sure a sample is; "" where all pairs were measured."""
    if not coverage or coverage["peers"] >= coverage["others"]:
        return ""
    return (
        f"A sample: each node probed {coverage['peers']} of {coverage['others']} others. What is wrong with a node is "
        f"in it for certain, what is wrong with a single pair by {coverage['peers'] / coverage['others']:.0%}; "
        "netmend_all_pairs=true measures all."
    )


def _overlay_lines(measured: Dict[str, OverlayVerdict]) -> List[str]:
    """Only where something does not pass is there something to choose."""
    if all(overlay["verdict"] == "works" for overlay in measured.values()):
        return []
    found = passing(measured)
    return ["", "Overlays that can pass between all nodes", *(f"  {overlay}" for overlay in found or ["none"])]


def _row_lines(matrix: Matrix, name: str) -> List[str]:
    row = matrix["rows"][name]
    targets = destinations(row)
    if len(targets) > COLUMNS or len(row["sources"]) > SOURCES:
        said = sentences(matrix, name, OTHERS)
        lines = [f"      {sentence}" for sentence in said[:SENTENCES]]
        return lines + ([f"      and {len(said) - SENTENCES} more of the kind"] if len(said) > SENTENCES else [])
    seen = cells(matrix, name)
    widths = {target: max(len(target), 11) for target in targets}
    lines = [" " * 24 + "  ".join(f"{target:<{widths[target]}}" for target in targets)]
    for source in row["sources"]:
        shown = (f"{_cell(seen.get((source, target), [])):<{widths[target]}}" for target in targets)
        lines.append(f"      {source:<16}  " + "  ".join(shown))
    return [line.rstrip() for line in lines]


def _cell(probes: List[Seen]) -> str:
    """The probes of one source and destination in a word: ok, what went wrong, or nothing where none was made."""
    if not probes:
        return "-"
    wrong = [probe.outcome["outcome"] for probe in probes if not probe.outcome["met"]]
    if not wrong:
        return "ok"
    worst = Counter(wrong).most_common(1)[0][0]
    return worst.upper() if len(wrong) == len(probes) else f"{worst} {len(wrong)}/{len(probes)}"


def _finding_lines(findings: List[Named]) -> List[str]:
    if not findings:
        return ["No findings."]
    lines = ["Findings"]
    for place, finding in enumerate(findings, 1):
        where = named(finding["where"], PLACES)
        lines.append(f"  {place}. {finding['title']} [{finding['fault']}, {finding['confidence']:.0%} sure]")
        lines.append(f"       where:  {where}")
        lines += [f"       seen:   {sentence}" for sentence in finding["evidence"]]
        lines += [f"       not:    {sentence}" for sentence in finding["ruled_out"]]
        lines.append(f"       remedy: {remedy(finding['remedy'])}")
    return lines


def _walk_lines(walks: List[Walk]) -> List[str]:
    lines = ["", "The way of a failing packet, by what was gathered"] if walks else []
    for walk in walks[:WALKS]:
        lines.append(f"  {walk['row']} {walk['source']} to {walk['to']} ({asked(walk)}): {walk['packet']}")
        width = max(len(hop["node"]) for hop in walk["hops"])
        for hop in walk["hops"]:
            verdict = "" if hop["verdict"] == "passes" else f"{hop['verdict'].upper()}: "
            lines.append(f"      {hop['node']:<{width}}  {hop['place']:<8}  {verdict}{hop['said']}")
        lines.append(f"      seen: {walk['saw']}, {agreement(walk)}")
    return lines


def agreement(walk: Walk) -> str:
    """How what was seen compares with the hops."""
    return AGREEMENT[walk["agrees"]].format(says=walk["says"])


def remedy(of: Remedy) -> str:
    parts = [of.get("text", "")]
    if of.get("role"):
        parts.append(f"role {of['role']} on {named(of.get('nodes', []), PLACES)}")
    if of.get("pods"):
        parts.append(f"these pods made anew: {named(sorted(of['pods'].values()), PLACES)}")
    if of.get("command"):
        parts.append(f"`{of['command']}`")
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
