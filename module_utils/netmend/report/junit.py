"""The report as JUnit XML, for a pipeline that shows tests.

A suite is a row of the matrix, and a case one source node in it: "from agent1". A case a probe would be hundreds of
thousands at two hundred nodes, which no pipeline shows; a case a row would not say which node is to blame. Names are
the same in every run of one cluster, so that a pipeline can say what is new: no count, outcome or address is in them.
Findings are cases of the suite "findings" that fail, with their evidence; where there is none, its one case passes.
The points of a checklist are the cases of the suite "checklist".

The dialect is the one that Jenkins, GitLab and GitHub's actions read: testsuites > testsuite > testcase > failure,
with tests, failures, name and classname (https://github.com/testmoapp/junitxml).
"""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET
from collections import Counter
from typing import Dict, List, NamedTuple

from ..model import Matrix, Point
from . import Named, Report
from .matrix import Seen, asked, named, probes
from .text import remedy

LINES = 20  # of one case's failing probes
PLACES = 12  # of a finding

_NOT_XML = re.compile(r"[^\t\n\r\x20-\uD7FF\uE000-\uFFFD\U00010000-\U0010FFFF]")  # https://www.w3.org/TR/xml/#charsets


class _Case(NamedTuple):
    name: str
    message: str = ""  # of its failure; "" = it passed
    kind: str = ""
    text: str = ""


def render(report: Report) -> str:
    """What was measured last, whether or not something was mended before."""
    matrix = report["now"]["matrix"]
    suites = {"findings": _findings(report["now"]["findings"])}
    if report["now"]["checklist"]:
        suites["checklist"] = [_point(point) for point in report["now"]["checklist"]]
    suites.update({name: _sources(matrix, name) for name in matrix["rows"]})
    cases = [case for suite in suites.values() for case in suite]
    root = ET.Element("testsuites", {"name": "netmend", **_counts(cases)})
    for name, suite in suites.items():
        of_suite = ET.SubElement(
            root, "testsuite", {"name": name, **_counts(suite), "timestamp": report["time"].rstrip("Z")}
        )
        for case in suite:
            element = ET.SubElement(
                of_suite, "testcase", {"name": _clean(case.name), "classname": f"netmend.{name}", "time": "0"}
            )
            if case.message:
                failure = {"message": _clean(case.message), "type": case.kind}
                ET.SubElement(element, "failure", failure).text = _clean(case.text)
    ET.indent(root)
    return '<?xml version="1.0" encoding="UTF-8"?>\n' + ET.tostring(root, encoding="unicode") + "\n"


def _findings(findings: List[Named]) -> List[_Case]:
    if not findings:
        return [_Case("nothing found")]
    times: Counter[str] = Counter()
    cases = []
    for finding in findings:
        times[finding["fault"]] += 1
        again = times[finding["fault"]]
        name = finding["fault"] if again == 1 else f"{finding['fault']} ({again})"
        lines = [
            f"where: {named(finding['where'], PLACES)}",
            *(f"seen: {sentence}" for sentence in finding["evidence"]),
            *(f"not: {sentence}" for sentence in finding["ruled_out"]),
            f"remedy: {remedy(finding['remedy'])}",
        ]
        cases.append(_Case(name, finding["title"], finding["fault"], "\n".join(lines)))
    return cases


def _point(point: Point) -> _Case:
    return _Case(point["name"]) if point["met"] else _Case(point["name"], point["seen"], "unmet", point["seen"])


def _sources(matrix: Matrix, row: str) -> List[_Case]:
    made: Dict[str, List[Seen]] = {source: [] for source in matrix["rows"][row]["sources"]}
    for probe in probes(matrix, row):
        made[probe.source].append(probe)
    cases = []
    for source, all_of_it in made.items():
        wrong = [probe for probe in all_of_it if not probe.outcome["met"]]
        message = f"{len(wrong)} of {len(all_of_it)} probes not as expected" if wrong else ""
        kind = Counter(probe.outcome["outcome"] for probe in wrong).most_common(1)[0][0] if wrong else ""
        lines = [_line(probe) for probe in wrong[:LINES]]
        lines += [f"and {len(wrong) - LINES} more"] if len(wrong) > LINES else []
        cases.append(_Case(f"from {source}", message, kind, "\n".join(lines)))
    return cases


def _line(probe: Seen) -> str:
    check, outcome = probe.check, probe.outcome
    detail = f" ({outcome['detail']})" if outcome["detail"] else ""
    expected = "" if check["expect"] == "ok" else f", expected {check['expect']}"
    return f"to {check['to']} {asked(check)} at {check['address']}: {outcome['outcome']}{detail}{expected}"


def _counts(cases: List[_Case]) -> Dict[str, str]:
    failures = sum(bool(case.message) for case in cases)
    return {"tests": str(len(cases)), "failures": str(failures), "errors": "0", "skipped": "0", "time": "0"}


def _clean(text: str) -> str:
    """Without the characters that XML cannot hold."""
    return _NOT_XML.sub("\N{REPLACEMENT CHARACTER}", text)
