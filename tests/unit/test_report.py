"""What is said at the end: the verdict, what was changed where, and what findings ask of the roles."""

from __future__ import annotations

from typing import Any

from ansible.module_utils.netmend.report import findings_text, judge, report, text


def matrix(*outcomes: str) -> Any:
    cells = [{"id": f"p{place}", "outcome": outcome, "met": outcome == "ok"} for place, outcome in enumerate(outcomes)]
    row = {"ok": outcomes.count("ok"), "total": len(outcomes), "sources": {"a": {"b": cells}}}
    return {"ok": row["ok"], "total": row["total"], "rows": {"pod-pod": row}}


def finding(fault: str, **remedy: Any) -> Any:
    return {
        "fault": fault, "number": 0, "title": fault.title(), "where": ["a"], "confidence": 0.9,
        "evidence": ["Seen."], "ruled_out": ["Not that."], "remedy": remedy, "explains": [],
    }  # fmt: skip


HEALTHY = judge(matrix("ok", "ok"), [])
SICK = judge(matrix("ok", "timeout"), [finding("dropped", role="ufw", nodes=["a"], text="Allow it.")])


def change(node: str, *added: str) -> Any:
    return {"node": node, "role": "ufw", "diff": [{"before": "", "after": "\n".join(added)}]}


def test_a_healthy_cluster() -> None:
    assert HEALTHY["healthy"]
    assert report(HEALTHY, None, [], "now")["verdict"] == "Healthy. 2 of 2 probes as expected (100 %)."


def test_failed_probes_without_a_finding_are_not_healthy() -> None:
    judged = judge(matrix("ok", "timeout"), [])
    assert not judged["healthy"]
    assert report(judged, None, [], "now")["verdict"].startswith("Findings left: none named")


def test_nothing_measured_is_not_healthy_by_the_score() -> None:
    assert judge(matrix(), [])["score"] == 0


def test_mended_says_what_and_from_where() -> None:
    verdict = report(HEALTHY, SICK, [change("a", "rule")], "now")["verdict"]
    assert verdict == "Mended: dropped. 2 of 2 probes as expected (100 %), 50 % before."


def test_what_is_left_is_named() -> None:
    assert report(SICK, SICK, [], "now")["verdict"].startswith("Findings left: dropped.")


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


def test_foreign_rules_go_only_with_consent() -> None:
    foreign = finding("x", role="", nodes=["a"], vars={"iptables_forward_remove_rules": ["rule"]})
    assert judge(matrix("ok"), [foreign])["remedies"] == {}
    asked = {"a": {"iptables_forward": {"iptables_forward_remove_rules": ["rule"]}}}
    assert judge(matrix("ok"), [foreign], remove_foreign_rules=True)["remedies"] == asked


def test_the_text_shows_where_it_fails_and_why() -> None:
    shown = findings_text(SICK)
    assert "pod-pod             1 of 2    NOT OK" in shown
    assert "timeout 1/2" in shown
    assert "1. Dropped [dropped, 90% sure]" in shown
    assert "remedy: Allow it; role ufw on a" in shown


def test_a_change_that_all_nodes_share_stands_once() -> None:
    shown = text(report(HEALTHY, SICK, [change("a", "all", "one"), change("b", "all")], "now"))
    assert "  ufw on a, b\n    + all\n    + one  [a]\n" in shown
