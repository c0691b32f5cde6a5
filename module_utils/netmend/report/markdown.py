"""The report as Markdown, to be pasted into a ticket: GitHub's and GitLab's dialect."""

from __future__ import annotations

import re
from typing import List, Optional

from ..model import Point
from ..overlays import passing
from . import Judgement, Named, Report
from .changes import gathered
from .matrix import losses, named, sentences
from .text import remedy, sampled

PLACES = 12  # of a finding
SENTENCES = 10  # of a row
DIFF_LINES = 200  # of one change


def render(report: Report) -> str:
    """Verdict, findings, matrix, overlays and changes."""
    parts = [
        f"# netmend: {_escaped(report['verdict'])}",
        f"{report['time']}, {len(report['nodes'])} nodes"
        + (f", Kubernetes {_escaped(report['version'])}" if report["version"] else ""),
        *_findings("Findings", report["now"]["findings"]),
    ]
    if report["before"]:
        parts += _findings("Findings before", report["before"]["findings"])
    parts += _matrix(report["now"], report["before"])
    if report["now"]["checklist"]:
        parts += _checklist(report["now"]["checklist"])
    lost = losses(report["now"]["matrix"])
    parts += ["## Lost now and then", "\n".join(f"- {_escaped(path)}" for path in lost)] if lost else []
    if report["now"]["overlays"]:
        found = passing(report["now"]["overlays"]) or ["None."]
        parts += ["## Overlays that can pass between all nodes", "\n".join(f"- {_escaped(each)}" for each in found)]
    if report["changes"]:
        parts += _changes(report)
    return "\n\n".join(parts) + "\n"


def _findings(title: str, findings: List[Named]) -> List[str]:
    parts = [f"## {title}"]
    for place, finding in enumerate(findings, 1):
        parts.append(f"### {place}. {_escaped(finding['title'])}")
        lines = [
            f"- `{finding['fault']}`, {finding['confidence']:.0%} sure,"
            f" at {_escaped(named(finding['where'], PLACES))}; accounts for {finding['explains']} failing probes",
            *(f"- Seen: {_escaped(sentence)}" for sentence in finding["evidence"]),
            *(f"- Ruled out: {_escaped(sentence)}" for sentence in finding["ruled_out"]),
        ]
        command = finding["remedy"].get("command", "")
        said = remedy({**finding["remedy"], "command": ""})
        lines += [f"- Remedy: {_escaped(said)}"] if said else []
        parts.append("\n".join(lines))
        parts += [_fenced(command, "sh")] if command else []
    return parts if findings else [*parts, "None."]


def _matrix(now: Judgement, before: Optional[Judgement]) -> List[str]:
    head = ["row", *(["before"] if before else []), "now", "failing paths"]
    lines = [f"| {' | '.join(head)} |", f"|{'---|' * len(head)}"]
    for name, row in now["matrix"]["rows"].items():
        failing = sentences(now["matrix"], name)
        shown = failing[:SENTENCES] + ([f"and {len(failing) - SENTENCES} more"] if len(failing) > SENTENCES else [])
        cells = [f"{row['ok']} of {row['total']}", "<br>".join(map(_escaped, shown))]
        if before:
            was = before["matrix"]["rows"].get(name)
            cells.insert(0, f"{was['ok']} of {was['total']}" if was else "")
        lines.append(f"| {_escaped(name)} | {' | '.join(cells)} |")
    said = sampled(now["coverage"])
    return ["## Matrix", "\n".join(lines), *([_escaped(said)] if said else [])]


def _checklist(points: List[Point]) -> List[str]:
    lines = [
        f"| {_escaped(point['name'])} | {'met' if point['met'] else '**not met**'} | {_escaped(point['seen'])} |"
        for point in points
    ]
    return ["## Checklist", "\n".join(["| point | | seen |", "|---|---|---|", *lines])]


def _changes(report: Report) -> List[str]:
    parts = ["## Would change" if report["check_mode"] else "## Changed"]
    for change in gathered(report["changes"]):
        parts.append(f"### {_escaped(change.role)} on {_escaped(named(change.nodes, PLACES))}")
        lines = [f"{'#' if sign == '@' else sign} {text}".rstrip() for sign, text in change.lines]
        lines = lines[:DIFF_LINES] + ([f"# {len(lines) - DIFF_LINES} more lines"] if len(lines) > DIFF_LINES else [])
        parts.append(_fenced("\n".join(lines), "diff"))
    return parts


def _fenced(text: str, language: str) -> str:
    """A code block whose fence is longer than any in the text."""
    longest = max((len(run) for run in re.findall(r"`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}{language}\n{text}\n{fence}"


def _escaped(text: str) -> str:
    """Shown as it is, on one line, in a table's cell too."""
    text = re.sub(r"([\\`*_\[\]|~#])", r"\\\1", " ".join(text.split()))
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
