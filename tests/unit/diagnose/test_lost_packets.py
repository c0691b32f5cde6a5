"""With the underlay measured from both ends, what is lost between nodes is certain, and so is what is not."""

from __future__ import annotations

import pytest
from ansible.module_utils.netmend.diagnose import diagnose

PORT = {"flannel": "udp-8472", "swapped-clean": "ipip"}
NODES = ("server0", "agent0", "agent1")


@pytest.mark.parametrize(("state", "kind"), PORT.items())
def test_what_is_measured_to_be_lost_is_certain_and_says_what_would_pass(captured, measured, state, kind):
    bench = captured(state)
    failed = bench.fail(bench.crosses("agent0"))
    measured(bench, lost=[(here, there, kind) for here, there in bench_pairs("agent0")])
    (finding,) = diagnose(bench.run)
    assert finding["fault"] == ("vxlan" if state == "flannel" else "ipip") + "-dropped-by-fabric"
    assert finding["confidence"] == 0.98
    assert set(finding["explains"]) == set(failed)
    packets = "UDP 8472" if state == "flannel" else "IP protocol 4"
    assert finding["evidence"][0].startswith(
        f"agent0>agent1: 0 of 5 {packets} packets arrived at agent1's enp7s0, where "
    )
    assert "TCP 10250" in finding["evidence"][0]
    remedy = finding["remedy"]["text"]
    assert "WireGuard (MTU 1390)" in remedy
    assert ("IPIP (MTU 1430)" in remedy) == (state == "flannel")
    assert ("UDP 8472" in remedy) == (state != "flannel")
    assert "host-gw" not in remedy
    assert ("swap_cni.yml" in finding["remedy"].get("command", "")) == (state == "flannel")


def bench_pairs(node):
    return [pair for other in NODES if other != node for pair in ((node, other), (other, node))]


def test_what_is_lost_one_way_is_enough(flannel, measured):
    flannel.fail(flannel.crosses("agent0"))
    measured(flannel, lost=[("agent1", "agent0", "udp-8472")])
    (finding, rest) = diagnose(flannel.run)
    assert (finding["fault"], finding["where"]) == ("vxlan-dropped-by-fabric", ["agent0>agent1", "agent1>agent0"])
    assert rest["fault"] == "unexplained"


@pytest.mark.parametrize("state", PORT)
def test_what_arrives_is_not_lost_between_the_nodes(captured, measured, state):
    bench = captured(state)
    bench.fail(bench.crosses("agent0"))
    measured(bench)
    assert [finding["fault"] for finding in diagnose(bench.run)] == ["unexplained"]


def test_where_nothing_passes_or_not_all_is_known_no_overlay_is_proposed(flannel, measured):
    flannel.fail(flannel.crosses("agent0"))
    kinds = ("udp-8472", "udp-4789", "udp-51820", "ipip")
    measured(flannel, lost=[(*pair, kind) for pair in bench_pairs("agent0") for kind in kinds])
    (finding,) = diagnose(flannel.run)
    assert finding["remedy"]["text"].startswith("Another network card: here no overlay passes between all nodes.")
    assert "command" not in finding["remedy"]
    measured(flannel, lost=[(*pair, "udp-8472") for pair in bench_pairs("agent0")])
    for overlay in flannel.run["underlay"]["overlays"].values():
        overlay["verdict"] = "unknown"
    (finding,) = diagnose(flannel.run)
    assert "of not all nodes is it known which ones pass here" in finding["remedy"]["text"]


def test_what_a_node_drops_by_no_rule_that_is_known_is_said_of_what_is_unexplained(flannel, measured):
    flannel.fail(flannel.crosses("agent0"))
    measured(flannel, host=[("agent1", "agent0", "udp-8472")])
    (finding,) = diagnose(flannel.run)
    assert finding["fault"] == "unexplained"
    assert finding["evidence"][1] == (
        "agent1>agent0: 5 of 5 UDP 8472 packets arrived at agent0's enp7s0, "
        "and 0 got past its own firewall, by no iptables rule that counted them."
    )


def test_what_nobody_measured_is_as_uncertain_as_before(flannel, measured):
    flannel.fail(flannel.crosses("agent0"))
    measured(flannel)
    del flannel.run["underlay"]["pairs"]["agent0>server0"]
    found = {place: finding for finding in diagnose(flannel.run) for place in finding["where"]}
    assert "agent0>agent1" not in found
    assert found["agent0>server0"]["confidence"] == 0.7


def test_other_addresses_than_the_overlay_s_say_nothing_about_it(flannel, measured):
    flannel.fail(flannel.crosses("agent0"))
    measured(flannel)
    flannel.run["underlay"]["addresses"]["agent0"] = "203.0.113.9"
    assert {finding["confidence"] for finding in diagnose(flannel.run)} == {0.7}


def test_a_firewalls_fault_rules_the_fabric_out_by_what_arrived(captured, measured):
    bench = captured("flannel-ufw-blocks")
    bench.fail(bench.crosses("agent0", "agent1"))
    measured(bench, host=[(peer, node, "udp-8472") for node in ("agent0", "agent1") for peer in NODES if peer != node])
    (finding,) = diagnose(bench.run)
    assert finding["fault"] == "vxlan-dropped-by-host"
    assert finding["ruled_out"][0] == (
        "The fabric: agent1>agent0: 5 of 5 UDP 8472 packets arrived at agent0's enp7s0, "
        "and 0 got past its own firewall, by no iptables rule that counted them."
    )


def test_a_firewall_and_the_fabric_are_both_named_where_both_drop(captured, measured):
    bench = captured("flannel-ufw-blocks")
    bench.fail(bench.crosses("agent0", "agent1"))
    measured(bench, lost=[(*pair, "udp-8472") for node in ("agent0", "agent1") for pair in bench_pairs(node)])
    found = {finding["fault"]: finding for finding in diagnose(bench.run)}
    assert set(found) == {"vxlan-dropped-by-host", "vxlan-dropped-by-fabric"}
    assert found["vxlan-dropped-by-fabric"]["confidence"] == 0.98


def test_a_healthy_cluster_with_a_fabric_that_would_drop_another_overlay(flannel, measured):
    measured(flannel, lost=[(here, there, "ipip") for here, there in bench_pairs("agent0")])
    assert diagnose(flannel.run) == []


@pytest.fixture
def without_bgp(captured):
    """BGP alone is to make the routes, and agent1, which dials agent0, has none to there."""
    bench = captured("swapped-clean")
    bench.run_calico(backend="bird", felix="Disabled")
    bench.unroute("agent1", "agent0")
    bench.failed = bench.fail(bench.between("agent0", "agent1"))
    return bench


def test_syns_that_are_measured_to_be_lost_are_what_bgp_lacks(without_bgp, measured):
    measured(without_bgp, lost=[("agent1", "agent0", "tcp-179")])
    (finding,) = diagnose(without_bgp.run)
    assert (finding["fault"], finding["where"], finding["confidence"]) == (
        "bgp-dropped-by-fabric", ["agent1>agent0"], 0.98,
    )  # fmt: skip
    assert finding["evidence"][0].startswith("agent1>agent0: 0 of 5 TCP 179 packets arrived at agent0's enp7s0, where ")
    assert set(finding["explains"]) == set(without_bgp.failed)


@pytest.mark.parametrize(("answered", "fault"), [(5, "calico-routes-missing"), (0, "bgp-dropped-by-fabric")])
def test_a_port_of_bgp_that_answers_is_not_dropped_whatever_the_connection_says(without_bgp, measured, answered, fault):
    addresses = {node["name"]: node["internal_ip"] for node in without_bgp.members}
    without_bgp.node("agent1")["bgp"] = [{"own": addresses["agent1"], "peer": addresses["agent0"], "state": "SYN-SENT"}]
    measured(without_bgp)
    without_bgp.run["underlay"]["pairs"]["agent1>agent0"]["kinds"]["tcp-179"]["answered"] = answered
    (finding,) = diagnose(without_bgp.run)
    assert finding["fault"] == fault
    assert finding["confidence"] < 0.8
