"""Who takes part in a round, when, and what the reports say together."""

from __future__ import annotations

import json
from typing import Any, Callable

import pytest
from ansible.module_utils.netmend.overlays import Call, Clock, clocks, evaluate, lead, passing, plan_round
from ansible.module_utils.netmend.sample import PEERS
from ansible.module_utils.netmend.underlay import GRACE, LONGEST_CALL, WINDOW

NODES = {"a": "10.0.0.1", "b": "10.0.0.2", "c": "10.0.0.3"}
Reports = Callable[[dict[str, str]], dict[str, Any]]


def call(skew: float, sent: float = 100.0, until_begun: float = 0.8, took: float = 1.0, back: float = 0.2) -> Call:
    """One of a node whose clock is ``skew`` seconds ahead."""
    begun = sent + until_begun
    return Call(sent, begun + took + back, begun + skew, took)


# --- clocks -----------------------------------------------------------------------------------------------------------


def test_clocks_that_agree_are_taken_to_be_right() -> None:
    found = clocks({"a": call(0.0), "b": call(0.0, until_begun=2.0), "c": call(0.0, until_begun=0.1)})
    assert {clock.offset for clock in found.values()} == {0.0}
    assert all(clock.error <= 2.0 for clock in found.values())


def test_one_clock_that_is_wrong_is_found() -> None:
    found = clocks({"a": call(0.0), "b": call(-7.0), "c": call(0.0)})
    assert (found["a"].offset, found["c"].offset) == (0.0, 0.0)
    assert found["b"].offset == pytest.approx(-7.0, abs=0.5)
    assert abs(found["b"].offset + 7.0) <= found["b"].error


def test_a_controller_whose_clock_is_wrong_does_not_set_the_nodes_apart() -> None:
    found = clocks({"a": call(30.0), "b": call(30.0, until_begun=0.3), "c": call(30.0, until_begun=1.5)})
    assert len({clock.offset for clock in found.values()}) == 1
    assert found["a"].offset == pytest.approx(30.0, abs=0.3)


def test_no_clocks() -> None:
    assert clocks({}) == {}


def test_the_moment_is_as_far_ahead_as_starting_a_module_takes() -> None:
    fast, slow = call(0.0, until_begun=0.5), call(0.0, until_begun=1.5)
    assert lead([fast], 25) == pytest.approx(1.0)
    assert lead([fast, slow], 25) == pytest.approx(1.7)
    assert lead([fast, fast._replace(sent=100.8, received=102.5)], 25) == pytest.approx(1.5)


def test_who_was_late_gets_as_much_more_time() -> None:
    assert lead([call(0.0, until_begun=0.5)], 25, late=0.8) == pytest.approx(2.3)


def test_nobody_is_waited_for_long() -> None:
    fast, slow = call(0.0, until_begun=0.5), call(0.0, until_begun=60.0)
    assert lead([fast, slow], 25) == pytest.approx(0.7 + 3.0)
    assert lead([], 25) + WINDOW + GRACE < LONGEST_CALL


def test_calls_that_took_turns_tell_what_all_at_once_take_together() -> None:
    calls = [call(0.0, sent=100.0 + number / 50, until_begun=0.5, back=0.5) for number in range(50)]
    assert lead(calls, 50) == pytest.approx(0.98 + 1.0)
    in_turn = [each._replace(sent=each.sent + number // 5, received=each.received + number // 5)
               for number, each in enumerate(calls)]  # fmt: skip
    assert lead(in_turn, 5) == pytest.approx(1.25 * 50 * 1.0 / 5 + 1.0)


# --- who takes part ---------------------------------------------------------------------------------------------------


def members(names: Any) -> tuple[Any, Any]:
    names = list(names)
    addresses = {name: f"10.0.{number // 256}.{number % 256}" for number, name in enumerate(names)}
    cluster = {"nodes": [{"name": name, "internal_ip": address, "labels": {}} for name, address in addresses.items()]}
    return {name: {"interfaces": []} for name in names}, cluster


def test_all_send_to_all_and_those_without_facts_do_not_take_part() -> None:
    nodes, cluster = members("abc")
    del nodes["c"]
    orders = plan_round(nodes, cluster, {"a": call(0.0), "b": call(5.0)}, now=200.0, run="r", forks=25)
    assert {name: [peer["node"] for peer in order["peers"]] for name, order in orders.items()} == {
        "a": ["b"],
        "b": ["a"],
    }
    assert orders["a"]["start"] == pytest.approx(200.0 + lead([call(0.0), call(5.0)], 25))
    assert orders["b"]["start"] - orders["a"]["start"] == pytest.approx(5.0, abs=0.6)
    assert json.loads(json.dumps(orders)) == orders


def test_in_a_large_cluster_each_sends_to_a_sample_that_sends_to_it() -> None:
    nodes, cluster = members(f"node{number:03}" for number in range(100))
    orders = plan_round(nodes, cluster, {}, now=200.0, run="r", forks=25)
    pairs = {(name, peer["node"]) for name, order in orders.items() for peer in order["peers"]}
    assert {len(order["peers"]) for order in orders.values()} == {PEERS}
    assert pairs == {(two, one) for one, two in pairs}


def test_the_vni_is_one_that_no_node_has() -> None:
    nodes, cluster = members("ab")
    nodes["b"]["interfaces"] = [{"kind": "vxlan", "info": {"id": number}} for number in (1, (1 << 24) - 1)] + [
        {"kind": "vxlan", "info": {"external": True}},
        {"kind": "", "info": {}},
    ]
    assert {order["vni"] for order in plan_round(nodes, cluster, {}, 0.0, "r", forks=25).values()} == {(1 << 24) - 2}


# --- what it says -----------------------------------------------------------------------------------------------------


def test_all_passes(underlay_reports: Reports) -> None:
    underlay = evaluate(underlay_reports(NODES), {})
    assert len(underlay["pairs"]) == 6
    assert set(underlay["by_pair"]) == {"a>b", "a>c", "b>c"}
    assert passing(underlay["overlays"]) == [
        "VXLAN on UDP 8472 (Flannel) (MTU 1400)", "VXLAN on UDP 4789 (Calico) (MTU 1400)", "IPIP (MTU 1430)",
        "WireGuard (MTU 1390)",
    ]  # fmt: skip
    assert json.loads(json.dumps(underlay)) == underlay


def test_one_pair_stands_for_all(underlay_reports: Reports) -> None:
    reports = underlay_reports(NODES)
    reports["b"]["heard"]["a"]["kinds"]["ipip"] = {"arrived": 0, "accepted": 0}
    reports["c"]["heard"]["a"]["kinds"]["ipip"]["accepted"] = 0
    reports["c"]["heard"]["a"]["sizes"] = {"1400": 2}
    underlay = evaluate(reports, {})
    assert {pair: overlays["ipip"]["verdict"] for pair, overlays in underlay["by_pair"].items()} == {
        "a>b": "no", "a>c": "host", "b>c": "works",
    }  # fmt: skip
    assert underlay["overlays"]["ipip"]["verdict"] == "no"
    assert len(underlay["overlays"]["ipip"]["why"]) == 1
    assert underlay["overlays"]["vxlan-8472"] == {"verdict": "works", "mtu": 1350, "why": []}
    assert underlay["pairs"]["a>c"]["larger"] == "vanish"


def test_a_few_lost_packets_are_no_fault_and_many_are_no_proof(underlay_reports: Reports) -> None:
    reports = underlay_reports(NODES)
    reports["b"]["heard"]["a"]["kinds"]["ipip"] = {"arrived": 4, "accepted": 4}
    reports["b"]["heard"]["c"]["kinds"]["ipip"] = {"arrived": 2, "accepted": 2}
    underlay = evaluate(reports, {})
    assert underlay["pairs"]["a>b"]["kinds"]["ipip"]["verdict"] == "passes"
    assert underlay["pairs"]["c>b"]["kinds"]["ipip"]["verdict"] == "lossy"
    assert underlay["overlays"]["ipip"]["verdict"] == "unknown"
    assert underlay["overlays"]["ipip"]["why"] == ["c>b: 2 of 5 IP protocol 4 packets arrived at b's enp7s0."]


def silent(reports: dict[str, Any], sender: str, receiver: str) -> None:
    heard = reports[receiver]["heard"][sender]
    heard.update(rounds=[], sizes={}, device="")
    heard["kinds"] = {kind: {"arrived": 0, "accepted": 0} for kind in heard["kinds"]}


def test_silence_says_something_only_if_the_other_listened(underlay_reports: Reports) -> None:
    def verdict(error: float) -> str:
        found = evaluate(reports, {"a": Clock(0.0, error), "b": Clock(0.0, 0.0)})
        return found["pairs"]["a>b"]["kinds"]["udp-8472"]["verdict"]

    reports = underlay_reports(NODES)
    silent(reports, "a", "b")
    assert verdict(0.5) == "fabric"
    assert verdict(1.2) == "unknown"
    reports["b"]["overflow"] = 1
    assert verdict(0.5) == "unknown"
    reports["b"]["overflow"] = 0
    reports["a"]["sent"] = [101.0, 101.9]
    assert verdict(0.0) == "unknown"


def test_what_was_heard_from_begin_to_end_needs_no_clocks(underlay_reports: Reports) -> None:
    reports = underlay_reports(NODES)
    reports["b"]["heard"]["a"]["kinds"]["udp-8472"] = {"arrived": 0, "accepted": 0}
    underlay = evaluate(reports, {"a": Clock(0.0, 60.0)})
    assert underlay["pairs"]["a>b"]["kinds"]["udp-8472"]["verdict"] == "fabric"


@pytest.mark.parametrize("missing", [True, False])
def test_a_node_that_did_not_take_part_is_unknown_and_the_rest_is_not(underlay_reports: Reports, missing: bool) -> None:
    reports = underlay_reports(NODES)
    if missing:
        del reports["b"]
    else:
        reports["b"].update(
            errors=["cannot listen at 10.0.0.2: Operation not permitted"], listened=[0.0, 0.0], to={}, heard={}
        )
    silent(reports, "b", "a")
    reports["a"]["to"]["b"]["kinds"]["tcp-10250"]["told"] = {"SYN-ACK": 5}
    underlay = evaluate(reports, {}, expected=NODES)
    said = "no report" if missing else "cannot listen at 10.0.0.2: Operation not permitted"
    assert underlay["unknown"] == {"b": said}
    kinds = underlay["pairs"]["a>b"]["kinds"]
    assert (kinds["udp-8472"]["verdict"], kinds["tcp-10250"]["verdict"]) == ("unknown", "passes")
    assert underlay["pairs"]["a>c"]["kinds"]["udp-8472"]["verdict"] == "passes"
    assert underlay["overlays"]["vxlan-8472"]["verdict"] == "unknown"
    assert underlay["by_pair"]["a>c"]["vxlan-8472"]["verdict"] == "works"
    assert passing(underlay["overlays"]) == []


def test_no_reports_say_nothing() -> None:
    underlay = evaluate({}, {}, expected=["a"])
    assert {overlay["verdict"] for overlay in underlay["overlays"].values()} == {"unknown"}


def moved(spec: str, packets: int, index: int = 1, chain: str = "INPUT") -> dict[str, Any]:
    return {"backend": "nft", "table": "filter", "chain": chain, "index": index, "spec": spec, "packets": packets}


def test_which_of_the_rules_that_dropped_may_have_dropped_it(underlay_reports: Reports) -> None:
    reports = underlay_reports(NODES)
    reports["b"]["heard"]["a"]["kinds"]["udp-8472"]["accepted"] = 0
    reports["b"]["heard"]["a"]["kinds"]["ipip"]["accepted"] = 0
    reports["b"]["moved"] = [
        moved("-p udp -m udp --dport 8472 -j DROP", 5),
        moved("-p udp -m multiport --dports 53,8000:9000 -j DROP", 4, index=2),
        moved("-p tcp -m tcp --dport 8472 -j DROP", 50, index=3),
        moved("-p ipencap -j DROP", 9, index=4),
        moved("-P DROP", 9, index=0, chain="FORWARD"),
        moved("-s 10.0.0.1/32 -j DROP", 10, index=5),
    ]
    kinds = evaluate(reports, {})["pairs"]["a>b"]["kinds"]
    assert kinds["udp-8472"]["rules"] == [
        "nft filter INPUT rule 1: -p udp -m udp --dport 8472 -j DROP",
        "nft filter INPUT rule 5: -s 10.0.0.1/32 -j DROP",
    ]
    assert kinds["ipip"]["rules"] == [
        "nft filter INPUT rule 4: -p ipencap -j DROP", "nft filter INPUT rule 5: -s 10.0.0.1/32 -j DROP",
    ]  # fmt: skip
