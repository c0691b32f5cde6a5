"""JUnit, Prometheus and Markdown: well formed whatever is in them, and what they say is what was measured."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET
from typing import Any

import pytest
from ansible.module_utils.netmend.report import junit, markdown, prometheus

from tests.unit.report import sample

WORKER = "k3s-worker-002"
HEALTHY, MENDED, CHECKED = sample.healthy(3), sample.mended(3), sample.checked(3)
SICK = sample.sick(3, sample.overlay_to(WORKER), [sample.finding([WORKER]), sample.finding(["b"], command="ufw allow")])


def odd() -> Any:
    """A report with what other formats mean something by."""
    trouble = 'a|b `c` <script>"\\ \x00\x1b[31m\nnew # line & ``` ]]> *x*'
    found = {**sample.finding([trouble], text=trouble, command=f"```\n{trouble}"), "title": trouble}
    whole = sample.whole(sample.measured(3, sample.overlay_to(WORKER), [found]), None, 3)
    whole["now"]["matrix"]["outcomes"][-1]["detail"] = trouble
    whole["phases"].append({"name": trouble, "seconds": 1.0})
    whole["changes"] = [{"node": trouble, "role": "ufw", "diff": [{"before": "", "after": f"{trouble}\n```\n"}]}]
    return whole


# --- JUnit ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("whole", [HEALTHY, MENDED, SICK, odd()], ids=["healthy", "mended", "sick", "odd"])
def test_junit_counts_what_it_holds(whole: Any) -> None:
    root = ET.fromstring(junit.render(whole).encode())
    assert root.tag == "testsuites"
    for element in [root, *root]:
        cases = element.findall(".//testcase")
        assert int(element.attrib["tests"]) == len(cases)
        assert int(element.attrib["failures"]) == len(element.findall(".//failure"))
        names = [(case.attrib["classname"], case.attrib["name"]) for case in cases]
        assert len(set(names)) == len(names)


def test_junit_has_a_case_for_each_row_and_source() -> None:
    root = ET.fromstring(junit.render(HEALTHY))
    rows = [suite.attrib["name"] for suite in root][1:]
    assert rows == list(HEALTHY["now"]["matrix"]["rows"])
    assert [case.attrib["name"] for case in root[1]] == [f"from {name}" for name in sample.names(3)]
    assert root.attrib["failures"] == "0"
    assert [case.attrib["name"] for case in root[0]] == ["nothing found"]


def test_junit_says_what_failed_and_what_was_found() -> None:
    root = ET.fromstring(junit.render(SICK))
    failed = {(case.attrib["classname"], case.attrib["name"]): case[0] for case in root.iter("testcase") if len(case)}
    failure = failed["netmend.pod-pod", f"from {WORKER}"]
    assert failure.attrib == {"message": "4 of 5 probes not as expected", "type": "timeout"}
    assert failure.text
    assert failure.text.splitlines()[0] == "to k3s-master-01 tcp/8080 at 10.42.0.5: timeout (no answer to SYN)"
    first, second = (
        failed["netmend.findings", name] for name in ("vxlan-dropped-by-host", "vxlan-dropped-by-host (2)")
    )
    assert "seen: UDP 8472" in str(first.text)
    assert "not: The fabric" in str(first.text)
    assert str(second.text).endswith("remedy: `ufw allow`")
    assert ("netmend.host-host", f"from {WORKER}") not in failed


def test_junit_has_a_case_for_each_point_of_a_checklist() -> None:
    root = ET.fromstring(junit.render(CHECKED))
    suite = next(suite for suite in root if suite.attrib["name"] == "checklist")
    assert [case.attrib["name"] for case in suite] == [point["name"] for point in sample.POINTS]
    assert [len(case) for case in suite] == [0, 1]
    assert suite[1][0].attrib["message"] == sample.POINTS[1]["seen"]


# --- Prometheus -------------------------------------------------------------------------------------------------------

SAMPLE = re.compile(r'([a-z_]+)(?:\{((?:[a-z_]+="(?:[^"\\\n]|\\["\\n])*",?)*)\})? (-?[0-9.e+-]+)')


def parsed(text: str) -> dict[str, float]:
    """Samples by name and labels; every line is of the format, and every sample has its HELP and TYPE before it."""
    assert text.endswith("\n")
    samples, family = {}, ""
    for line in text[:-1].split("\n"):
        if line.startswith("# HELP "):
            family = line.split(" ")[2]
            assert not any(key.startswith(family + "{") or key == family for key in samples)
        elif line.startswith("#"):
            assert line == f"# TYPE {family} gauge"
        else:
            found = SAMPLE.fullmatch(line)
            assert found, line
            assert found[1] == family
            key = line.rpartition(" ")[0]
            assert key not in samples
            samples[key] = float(found[3])
    return samples


def test_prometheus_of_a_healthy_cluster() -> None:
    samples = parsed(prometheus.render(HEALTHY))
    assert samples["netmend_score_ratio"] == samples["netmend_healthy"] == 1
    assert samples['netmend_probes{row="pod-pod",outcome="ok",met="true"}'] == 15
    assert samples["netmend_run_timestamp_seconds"] == 1795230765  # date --date 2026-11-21T03:12:45Z +%s
    assert not any("findings" in name for name in samples)


def test_prometheus_of_a_sick_cluster() -> None:
    samples = parsed(prometheus.render(SICK))
    assert samples["netmend_healthy"] == 0
    assert 0 < samples["netmend_score_ratio"] < 1
    assert samples['netmend_probes{row="pod-pod",outcome="timeout",met="false"}'] == 8
    assert samples['netmend_findings{fault="vxlan-dropped-by-host"}'] == 2
    total = sum(value for name, value in samples.items() if name.startswith("netmend_probes{"))
    assert total == SICK["now"]["matrix"]["total"]


def test_prometheus_adds_up_the_phases_of_both_measurements() -> None:
    samples = parsed(prometheus.render(MENDED))
    assert samples['netmend_phase_seconds{phase="Plan and probe"}'] == 5.1
    assert samples["netmend_changes"] == 1


def test_prometheus_counts_the_points_of_a_checklist() -> None:
    samples = parsed(prometheus.render(CHECKED))
    assert samples['netmend_checklist_points{met="true"}'] == samples['netmend_checklist_points{met="false"}'] == 1
    assert not any(name.startswith("netmend_checklist") for name in parsed(prometheus.render(SICK)))


def test_prometheus_escapes() -> None:
    parsed(prometheus.render(odd()))


# --- Markdown ---------------------------------------------------------------------------------------------------------


def test_markdown_holds_verdict_findings_matrix_and_changes() -> None:
    text = markdown.render(MENDED)
    assert text.startswith("# netmend: Mended: vxlan-dropped-by-host. ")
    assert "## Findings\n\nNone.\n\n## Findings before\n\n### 1. The node's own firewall drops VXLAN\n" in text
    assert "| pod-pod | 7 of 15 | 15 of 15 |  |" in text
    assert "```diff\n  To Action From\n  22/tcp ALLOW Anywhere\n+ 8472/udp" in text


def test_markdown_names_failing_paths_and_the_command() -> None:
    text = markdown.render(SICK)
    assert "| pod-pod | 7 of 15 | k3s-worker-002 to k3s-master-01, k3s-worker-001: timeout (tcp/8080, mtu)<br>" in text
    assert "```sh\nufw allow\n```" in text


def test_markdown_lists_the_points_of_a_checklist() -> None:
    text = markdown.render(CHECKED)
    assert "## Checklist\n\n| point | | seen |\n|---|---|---|\n| at least 3 nodes, all Ready | met | 3 of 3 |\n" in text
    assert "| **not met** | 7 of 10; controller to 203.0.113.81: http (status 503) |\n" in text
    assert "Checklist" not in markdown.render(SICK)


def test_markdown_tells_what_is_lost() -> None:
    text = markdown.render(sample.lossy(3))
    assert (
        "## Lost now and then\n\n- pod-pod k3s-worker-002 to k3s-master-01 (tcp/8080): 4 of 20 (20 %, 8.07 to" in text
    )
    assert "Lost now and then" not in markdown.render(SICK)


def test_markdown_is_not_broken_by_what_is_in_it() -> None:
    text = markdown.render(odd())
    fence = ""
    for line in text.splitlines():
        opens = re.match(r"(`{3,})(\w*)$", line)
        if opens and not fence and opens[2]:
            fence = opens[1]
        elif fence:
            fence = "" if line == fence else fence
        else:
            assert "<script" not in line
            if line.startswith("|"):
                assert len(re.findall(r"(?<!\\)\|", line)) == 4
    assert not fence


def test_markdown_stays_small_at_two_hundred_nodes() -> None:
    text = markdown.render(sample.sick(60, lambda probe: "timeout" if probe["row"] != "host-host" else ""))
    assert len(text) < 60000  # what an issue of GitHub takes
