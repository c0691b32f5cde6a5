"""What hosts' variables become on their way through the filters."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any, Callable

import pytest

PATH = Path(__file__).parents[2] / "plugins/filter/netmend.py"
specification = importlib.util.spec_from_file_location("netmend_filters", PATH)
assert specification
assert specification.loader
filters = importlib.util.module_from_spec(specification)
specification.loader.exec_module(filters)

ADDRESSES = {"a": "10.0.0.1", "b": "10.0.0.2"}


def host(name: str, skew: float = 0.0) -> dict[str, Any]:
    node = {"name": name, "time": 100.5 + skew, "took": 1.0, "interfaces": []}
    call = {"sent": 100.0, "received": 101.7}
    return {"inventory_hostname": name, "netmend_node_info": {"netmend_node": node, "netmend_call": call}}


@pytest.fixture
def facts() -> dict[str, Any]:
    nodes = {name: host(name)["netmend_node_info"]["netmend_node"] for name in ADDRESSES}
    members = [{"name": name, "internal_ip": address, "labels": {}} for name, address in ADDRESSES.items()]
    return {"expected_nodes": list(ADDRESSES), "nodes": nodes, "cluster": {"nodes": members}}


def test_all_nodes_get_one_moment_by_their_own_clocks(facts: dict[str, Any]) -> None:
    orders = filters.netmend_underlay_plan(facts, [host("a"), host("b", skew=-20.0)])
    assert set(orders) == {"a", "b"}
    assert orders["a"]["run"] == orders["b"]["run"] != ""
    assert orders["b"]["start"] - orders["a"]["start"] == pytest.approx(-20.0, abs=0.7)
    again = filters.netmend_underlay_plan(facts, [host("a"), host("b")])
    assert again["a"]["run"] != orders["a"]["run"]


def test_a_single_node_measures_nothing(facts: dict[str, Any]) -> None:
    del facts["nodes"]["b"]
    assert filters.netmend_underlay_plan(facts, [host("a"), {"inventory_hostname": "b"}]) == {}


def test_a_diagnosis_says_which_overlays_can_work(
    facts: dict[str, Any], underlay_reports: Callable[[dict[str, str]], dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    runs: list[dict[str, Any]] = []
    monkeypatch.setattr(filters, "diagnose", lambda run: runs.append(run) or [])
    hosts = [{**host(name), "netmend_underlay": {"netmend_underlay": report, "changed": False}}
             for name, report in underlay_reports(ADDRESSES).items()]  # fmt: skip
    judgement = filters.netmend_diagnose(facts, {}, hosts)
    assert (judgement["overlays"]["ipip"]["verdict"], judgement["overlays"]["ipip"]["mtu"]) == ("works", 1430)
    assert runs[0]["underlay"]["overlays"] == judgement["overlays"]

    hosts[1]["netmend_underlay"] = {"unreachable": True, "msg": "gone"}
    assert filters.netmend_diagnose(facts, {}, hosts)["overlays"]["ipip"]["verdict"] == "unknown"

    skipped = [{**each, "netmend_underlay": {"skipped": True}} for each in hosts]
    assert filters.netmend_diagnose(facts, {}, skipped)["overlays"] == {}
    assert "underlay" not in runs[-1]
