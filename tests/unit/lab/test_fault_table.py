"""The table at the end of the fault suite, and the seconds in it."""

from __future__ import annotations

import pytest

from lab.playbooks import Outcome
from tests.faults import table
from tests.faults.table import Row

OVERLAY = ["vxlan-dropped-by-host"]


@pytest.mark.parametrize(
    ("named", "place"),
    [
        (["vxlan-dropped-by-host", "unexplained"], "first"),
        (["node-not-ready", "clock-skew", "vxlan-dropped-by-host"], "among the first three"),
        (["node-not-ready", "clock-skew", "unexplained", "vxlan-dropped-by-host"], "missed"),
        ([], "missed"),
    ],
)
def test_a_fault_has_its_place_among_what_was_named(named, place):
    assert table.place(Row(OVERLAY, named, 20.0, 0)) == place


def test_several_faults_are_first_in_any_order_with_nothing_else_before_one_of_them():
    wanted = ["ip-forward-off", "clock-skew"]
    assert table.place(Row(wanted, ["clock-skew", "ip-forward-off", "unexplained"], 20.0, 0)) == "first"
    assert table.place(Row(wanted, ["clock-skew", "unexplained", "ip-forward-off"], 20.0, 0)) == "among the first three"
    assert table.place(Row(wanted, ["clock-skew"], 20.0, 0)) == "missed"


@pytest.mark.parametrize(
    ("row", "place"),
    [
        (Row([], [], 20.0, 0), "left alone"),
        (Row([], ["unexplained"], 20.0, 0), "false alarm"),
        (Row([], [], 20.0, 1), "false alarm"),
        (None, "not measured"),
    ],
)
def test_what_is_healthy_is_to_be_left_alone(row, place):
    assert table.place(row) == place


def test_a_line_for_each_fault_and_the_totals():
    rows = {
        "vxlan-dropped-by-host": Row(OVERLAY, OVERLAY, 21.04, 12),
        "clock-skew": Row(["clock-skew"], ["unexplained", "clock-skew"], 19.5, 0),
        "coredns-down": None,
        "odd": Row([], [], 18.0, 0),
    }
    assert list(table.render(rows)) == [
        "fault                  named                  seconds  changes",
        "vxlan-dropped-by-host  first                     21.0       12",
        "clock-skew             among the first three     19.5        0",
        "coredns-down           not measured                 -        -",
        "odd                    left alone                18.0        0",
        "1 of 2 first, 1 among the first three, 1 not measured, 1 of 1 that are healthy, if odd, left alone",
    ]


def test_a_row_is_what_a_run_found_first_and_when_it_was_known():
    phases = [("Read nodes and cluster", 3.0), ("Plan and probe", 4.5), ("Diagnose", 0.5), ("Mend", 30.0)]
    phases += [("Read nodes and cluster", 3.0), ("Diagnose", 0.5)]
    report = {
        "before": {"findings": [{"fault": "ip-forward-off"}]},
        "now": {"findings": []},
        "phases": [{"name": name, "seconds": seconds} for name, seconds in phases],
    }
    recap = "PLAY RECAP\na : ok=30 changed=2 failed=0\nb : ok=28 changed=1 failed=0\n"
    row = table.row(["ip-forward-off"], Outcome(0, recap, report))
    assert row == Row(["ip-forward-off"], ["ip-forward-off"], 8.0, 3)


def test_a_run_without_a_report_was_not_measured():
    assert table.row(OVERLAY, Outcome(1, "", {})) is None


def test_the_rows_of_one_run_are_read_by_the_next():
    rows = {"none-measured": None, "ufw-blocks-overlay": Row(["ufw-blocks-overlay"], ["ufw-blocks-overlay"], 9.5, 3)}
    assert table.from_json(table.to_json(rows)) == rows
