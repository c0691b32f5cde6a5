"""What is said at the end: the verdict, what was changed where, and what findings ask of the roles."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from ansible.module_utils.netmend.report import judge, members, report, with_checklist
from jsonschema import Draft202012Validator, ValidationError

from tests.unit.report import sample

SCHEMA = Path(__file__).parents[3] / "docs/report.schema.json"


def matrix(*outcomes: str) -> Any:
    """A row in which a asks b once for each outcome."""
    distinct = list(dict.fromkeys(outcomes))
    check = {"to": "b", "protocol": "tcp", "address": "10.0.0.2", "port": 80, "pod": "", "service": "", "expect": "ok"}
    row = {
        "ok": outcomes.count("ok"),
        "total": len(outcomes),
        "checks": [check for _ in outcomes],
        "sources": {"a": {"pod": "", "seen": list(map(distinct.index, outcomes)), "rtt_ms": [None] * len(outcomes)}},
        "losses": [],
    }
    seen = [{"outcome": outcome, "detail": "", "met": outcome == "ok"} for outcome in distinct]
    return {"ok": row["ok"], "total": row["total"], "outcomes": seen, "rows": {"pod-pod": row}}


def finding(fault: str, **remedy: Any) -> Any:
    return {
        "fault": fault, "number": 0, "title": fault.title(), "where": ["a"], "confidence": 0.9,
        "evidence": ["Seen."], "ruled_out": ["Not that."], "remedy": remedy, "explains": ["one", "two"],
    }  # fmt: skip


def said(now: Any, before: Any = None, changes: Any = (), **more: Any) -> Any:
    return report(now, before, list(changes), [], [], time=sample.TIME, **more)


HEALTHY = judge(matrix("ok", "ok"), [])
SICK = judge(matrix("ok", "timeout"), [finding("dropped", role="ufw", nodes=["a"], text="Allow it.")])
CHANGE = {"node": "a", "role": "ufw", "diff": [{"before": "", "after": "rule"}]}


def test_a_healthy_cluster() -> None:
    assert HEALTHY["healthy"]
    assert said(HEALTHY)["verdict"] == "Healthy. 2 of 2 probes as expected (100 %)."


def test_failed_probes_without_a_finding_are_not_healthy() -> None:
    judged = judge(matrix("ok", "timeout"), [])
    assert not judged["healthy"]
    assert said(judged)["verdict"].startswith("Findings left: none named")


def test_nothing_measured_is_not_healthy_by_the_score() -> None:
    assert judge(matrix(), [])["score"] == 0


def test_only_all_of_them_are_a_hundred_percent() -> None:
    assert judge(matrix(*["ok"] * 9999, "timeout"), [])["score"] == 99.9


POINTS: Any = [{"name": name, "met": name != "c", "seen": "1 of 1"} for name in "abcd"]


def test_a_checklist_is_judged_beside_the_probes() -> None:
    judged = with_checklist(HEALTHY, POINTS)
    assert (judged["score"], judged["healthy"]) == (75, False)
    assert said(judged)["verdict"] == (
        "Findings left: none, but the checklist is not met. "
        "2 of 2 probes as expected, 3 of 4 points of the checklist (75 %)."
    )
    assert with_checklist(HEALTHY, POINTS[:2])["healthy"]
    assert with_checklist(SICK, POINTS[:2])["score"] == 50


@pytest.mark.parametrize(
    ("judged", "mark", "passed", "sentence"),
    [
        (SICK, None, False, ""),
        (SICK, 50.0, True, "The pass mark of 50 % is reached."),
        (SICK, 50.1, False, "The pass mark of 50.1 % is missed."),
        (HEALTHY, None, True, ""),
        (HEALTHY, 101.0, True, ""),
    ],
)
def test_a_pass_mark_decides_where_something_is_wrong(judged: Any, mark: Any, passed: bool, sentence: str) -> None:
    whole = said(judged, pass_mark=mark)
    assert whole["passed"] is passed
    assert whole["verdict"].endswith(sentence or "%).")


def test_mended_says_what_and_from_where() -> None:
    assert said(HEALTHY, SICK, [CHANGE])["verdict"] == (
        "Mended: dropped. 2 of 2 probes as expected (100 %), 50 % before."
    )


@pytest.mark.parametrize(
    ("changes", "check_mode", "drift"), [([CHANGE], True, True), ([CHANGE], False, False), ([], True, False)]
)
def test_drift_is_what_would_change(changes: Any, check_mode: bool, drift: bool) -> None:
    whole = said(SICK, SICK, changes, check_mode=check_mode)
    assert whole["drift"] is drift
    assert whole["verdict"].endswith(" Would change: ufw." if drift else "(50 %).")
    assert not whole["passed"]


def test_what_is_left_is_named() -> None:
    assert said(SICK, SICK)["verdict"].startswith("Findings left: dropped.")


def test_one_measurement_is_written_once() -> None:
    assert said(SICK, SICK)["before"] is None
    assert said(HEALTHY, SICK)["before"] == SICK


def test_of_what_a_finding_explains_the_number_is_kept() -> None:
    assert SICK["findings"][0]["explains"] == 2


def test_parts_of_a_diff_that_are_alike_are_left_out() -> None:
    alike = {"before": "same\n", "after": "same\n"}
    change = {**CHANGE, "diff": [alike, *CHANGE["diff"]]}
    assert said(HEALTHY, SICK, [change])["changes"] == [CHANGE]


def test_phases_last_until_the_next_begins() -> None:
    marks: Any = [{"phase": "Probe", "at": 10.0}, {"phase": "Diagnose", "at": 12.5}, {"phase": "end", "at": 12.75}]
    phases = report(HEALTHY, None, [], [], marks, time=sample.TIME)["phases"]
    assert phases == [{"name": "Probe", "seconds": 2.5}, {"name": "Diagnose", "seconds": 0.25}]


def test_nodes_of_the_inventory_that_nobody_knows() -> None:
    known = {"name": "b", "role": "agent", "internal_ip": "10.0.0.2", "ready": True}
    server = {"name": "a", "role": "server", "internal_ip": "10.0.0.1", "ready": False}
    cluster: Any = {"nodes": [known, server]}
    assert members(cluster, ["a", "b", "c"], ["b"]) == [
        {"name": "a", "role": "server", "address": "10.0.0.1", "ready": False, "asked": False},
        {"name": "b", "role": "agent", "address": "10.0.0.2", "ready": True, "asked": True},
        {"name": "c", "role": "", "address": "", "ready": False, "asked": False},
    ]


def test_findings_ask_for_roles_on_nodes() -> None:
    assert SICK["remedies"] == {"a": {"ufw": {}}}


def test_beside_a_gate_nothing_else_is_mended() -> None:
    gate = finding("etcd-dropped-by-host", role="ufw", nodes=["a"])
    judged = judge(matrix("timeout"), [gate, finding("x", role="iptables_forward", nodes=["a", "b"])])
    assert judged["remedies"] == {"a": {"ufw": {}}}


def test_what_several_findings_ask_of_one_role_is_taken_together() -> None:
    one = finding("x", role="r", nodes=["a"], vars={"rules": [1], "switch": False, "set": {"k": 1}})
    two = finding("y", role="r", nodes=["a"], vars={"rules": [1, 2], "switch": True, "set": {"l": 2}})
    both = {"rules": [1, 2], "switch": True, "set": {"k": 1, "l": 2}}
    assert judge(matrix("ok"), [one, two])["remedies"] == {"a": {"r": both}}
    assert judge(matrix("ok"), [two, one])["remedies"] == {"a": {"r": both}}


def test_pods_are_made_anew_for_all_that_is_mended_now() -> None:
    one = finding("x", role="r", nodes=["a"], pods={"u1": "default/one"})
    two = finding("y", role="", nodes=["a"], pods={"u2": "default/two"})
    assert judge(matrix("ok"), [one, two])["pods"] == {"u1": "default/one", "u2": "default/two"}
    gate = finding("etcd-dropped-by-host", role="ufw", nodes=["a"])
    assert judge(matrix("ok"), [one, gate])["pods"] == {}


def test_foreign_rules_go_only_with_consent() -> None:
    foreign = finding("x", role="", nodes=["a"], vars={"iptables_forward_remove_rules": ["rule"]})
    assert judge(matrix("ok"), [foreign])["remedies"] == {}
    asked = {"a": {"iptables_forward": {"iptables_forward_remove_rules": ["rule"]}}}
    assert judge(matrix("ok"), [foreign], remove_foreign_rules=True)["remedies"] == asked


# --- the schema -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def schema() -> Draft202012Validator:
    text = json.loads(SCHEMA.read_text())
    Draft202012Validator.check_schema(text)
    return Draft202012Validator(text)


@pytest.mark.parametrize(
    "whole",
    [
        sample.healthy(3),
        sample.mended(8),
        sample.checked(3),
        sample.lossy(5),
        sample.sick(13, sample.overlay_to("k3s-worker-004"), [sample.finding(["k3s-worker-004"], command="ufw allow")]),
        said(SICK, None, [CHANGE], check_mode=True),
    ],
    ids=["healthy", "mended", "checklist", "lossy", "sick", "check mode"],
)
def test_reports_are_as_the_schema_says(schema: Draft202012Validator, whole: Any) -> None:
    schema.validate(json.loads(json.dumps(whole)))


@pytest.mark.parametrize(
    "wrong",
    [
        {"schema": 2},
        {"surprise": 1},
        {"time": "yesterday"},
        {"score": 101},
        {"nodes": [{"name": "a"}]},
        {"changes": [{"node": "a", "role": "ufw", "diff": [], "more": 1}]},
    ],
    ids=str,
)
def test_what_is_no_report_is_not(schema: Draft202012Validator, wrong: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        schema.validate({**said(SICK), **wrong})
