"""The report as metrics in Prometheus' text format, for node_exporter's textfile collector.

Format: https://prometheus.io/docs/instrumenting/exposition_formats/. The collector takes no timestamps on samples, so
the time of the run is a metric of its own: alert when it grows old.
"""

from __future__ import annotations

from collections import Counter
from datetime import datetime, timezone
from typing import Dict, List, Mapping, Tuple, Union

from ..model import Matrix
from . import Report
from .matrix import probes

Number = Union[int, float]
Samples = List[Tuple[Mapping[str, str], Number]]


def render(report: Report) -> str:
    now = report["now"]
    observed: Counter[Tuple[str, str, str]] = Counter(
        (row, probe.outcome["outcome"], str(probe.outcome["met"]).lower())
        for row in now["matrix"]["rows"]
        for probe in probes(now["matrix"], row)
    )
    points = Counter(str(point["met"]).lower() for point in now["checklist"])
    faults = Counter(finding["fault"] for finding in now["findings"])
    took: Dict[str, float] = {}
    for phase in report["phases"]:
        took[phase["name"]] = took.get(phase["name"], 0.0) + phase["seconds"]
    matrix = now["matrix"]
    families = [
        _family("score_ratio", "Share of the probes that came out as expected.", [({}, _ratio(matrix))]),
        _family(
            "healthy", "Whether nothing was found and every probe came out as expected.", [({}, int(now["healthy"]))]
        ),
        _family(
            "probes",
            "Probes of the last measurement by row of the matrix and outcome; met says whether that was expected.",
            [({"row": row, "outcome": outcome, "met": met}, n) for (row, outcome, met), n in observed.items()],
        ),
        _family(
            "checklist_points",
            "Points of the checklist; met says whether the cluster meets them.",
            [({"met": met}, n) for met, n in points.items()],
        ),
        _family("findings", "Findings that are left, by fault.", [({"fault": name}, n) for name, n in faults.items()]),
        _family("nodes", "Nodes of the cluster and of the inventory.", [({}, len(report["nodes"]))]),
        _family(
            "nodes_asked",
            "Nodes that answered and were measured from.",
            [({}, sum(n["asked"] for n in report["nodes"]))],
        ),
        _family(
            "changes",
            "Roles that changed a node in this run, counted once for each node.",
            [({}, 0 if report["check_mode"] else len(report["changes"]))],
        ),
        _family("phase_seconds", "What the run took.", [({"phase": name}, round(s, 2)) for name, s in took.items()]),
        _family("run_timestamp_seconds", "When the run ended, since the epoch.", [({}, _epoch(report["time"]))]),
    ]
    return "".join(families)


def _family(name: str, text: str, samples: Samples) -> str:
    """One metric with its samples; "" where there are none, as a family without samples says nothing."""
    if not samples:
        return ""
    lines = [f"# HELP netmend_{name} {_escaped_help(text)}", f"# TYPE netmend_{name} gauge"]
    for labels, value in samples:
        inside = ",".join(f'{label}="{_escaped(text)}"' for label, text in labels.items())
        lines.append(f"netmend_{name}{{{inside}}} {value}" if inside else f"netmend_{name} {value}")
    return "\n".join(lines) + "\n"


def _escaped_help(text: str) -> str:
    return text.replace("\\", "\\\\").replace("\n", "\\n")


def _escaped(text: str) -> str:
    return _escaped_help(text).replace('"', '\\"')


def _ratio(matrix: Matrix) -> float:
    return matrix["ok"] / matrix["total"] if matrix["total"] else 0.0


def _epoch(time: str) -> int:
    return int(datetime.strptime(time, "%Y-%m-%dT%H:%M:%SZ").replace(tzinfo=timezone.utc).timestamp())
