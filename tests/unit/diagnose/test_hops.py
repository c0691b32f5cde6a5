"""A failing probe's packet, walked through captured facts with faults put in: where it ends, and whether that fits."""

from __future__ import annotations

import pytest
from ansible.module_utils.netmend.diagnose import diagnose
from ansible.module_utils.netmend.diagnose.hops import MOST, walks
from ansible.module_utils.netmend.overlays import evaluate

from tests.unit.diagnose.test_faults import CASES, prepared

# Faults of which the facts alone tell the hop that ends the first packet: node, place, and what is said there.
ENDS = {
    "vxlan-dropped-by-host": ("agent1", "firewall", "INPUT: nft filter INPUT policy DROP"),
    "stale-vxlan-peer": ("agent1", "tunnel", "is in no FDB entry on flannel.1, where server0 announces 10.0.0.100"),
    "ip-forward-off": ("agent0", "kernel", "net.ipv4.ip_forward is 0"),
    "bridge-nf-off": ("agent0", "kernel", "net.bridge.bridge-nf-call-iptables is 0"),
    "conntrack-full": ("agent0", "kernel", "connection tracking is full: 4096 of 4096"),
    "forward-drop-without-accept": ("agent0", "firewall", "FORWARD: nft filter FORWARD policy DROP"),
    "reject-before-accept": ("agent0", "firewall", "FORWARD: nft filter FORWARD rule 1"),
    "nft-and-legacy-mixed": ("agent0", "firewall", "FORWARD: legacy filter FORWARD rule 1"),
    "kube-services-jump-missing": ("agent0", "nat", "no rule that"),
    "kubelet-dropped-by-host": ("agent1", "firewall", "INPUT: nft filter INPUT policy DROP"),
    "no-cluster-routes": ("agent0", "route", "into no tunnel, and not to"),
}


def walked(bench):
    return walks(bench.run, diagnose(bench.run))


def failing(captured, name):
    case = CASES[name]
    bench = prepared(captured(case.state), case)
    case.put_in(bench)
    return bench


@pytest.mark.parametrize("name", ENDS)
def test_the_hop_that_ends_it_is_the_faults(captured, name):
    node, place, said = ENDS[name]
    found = walked(failing(captured, name))
    ends = [walk["hops"][-1] for walk in found if walk["says"] in ("drops", "rejects")]
    assert ends, found
    assert any((hop["node"], hop["place"]) == (node, place) and said in hop["said"] for hop in ends), ends
    assert all(walk["agrees"] for walk in found if walk["says"] in ("drops", "rejects"))


@pytest.mark.parametrize("name", CASES)
def test_only_the_last_hop_ends_a_walk(captured, name):
    for walk in walked(failing(captured, name)):
        *before, last = (hop["verdict"] for hop in walk["hops"])
        assert set(before) <= {"passes", "unknown"}
        assert walk["says"] == (
            last if last in ("drops", "rejects") else "unknown" if "unknown" in (*before, last) else "arrives"
        )


def test_nothing_fails_and_nothing_is_walked(flannel):
    assert walked(flannel) == []


def test_the_whole_way_of_a_pods_packet_to_a_pod_of_another_node(flannel, underlay_reports):
    flannel.run["underlay"] = evaluate(
        underlay_reports({each["name"]: each["internal_ip"] for each in flannel.members}), {}
    )
    flannel.fail(lambda probe: probe["id"].startswith("pod-pod agent0>agent1 tcp"))
    (walk,) = walked(flannel)
    assert (walk["row"], walk["source"], walk["to"], walk["protocol"]) == ("pod-pod", "agent0", "agent1", "tcp")
    assert [(hop["node"], hop["place"]) for hop in walk["hops"]] == [
        ("agent0", "pod"), ("agent0", "route"), ("agent0", "firewall"), ("agent0", "tunnel"), ("agent0", "firewall"),
        ("agent0>agent1", "network"),
        ("agent1", "firewall"), ("agent1", "route"), ("agent1", "firewall"), ("agent1", "pod"), ("agent1", "answer"),
    ]  # fmt: skip
    said = " ".join(hop["said"] for hop in walk["hops"])
    for part in (
        "dev flannel.1 (vxlan)",
        "VXLAN (UDP 8472) to 10.0.0.111, MTU 1400",
        "5 of 5 UDP 8472",
        "cni0 (bridge)",
    ):
        assert part in said


def test_a_disagreement_is_said(flannel, underlay_reports):
    flannel.run["underlay"] = evaluate(
        underlay_reports({each["name"]: each["internal_ip"] for each in flannel.members}), {}
    )
    flannel.fail(lambda probe: probe["id"].startswith("pod-pod agent0>agent1 tcp"))
    (walk,) = walked(flannel)
    assert (walk["says"], walk["saw"], walk["agrees"]) == ("arrives", "timeout", False)


def test_what_the_network_drops_ends_between_the_nodes(flannel, underlay_reports):
    reports = underlay_reports({each["name"]: each["internal_ip"] for each in flannel.members})
    reports["agent1"]["heard"]["agent0"]["kinds"]["udp-8472"] = {"arrived": 0, "accepted": 0}
    flannel.run["underlay"] = evaluate(reports, {})
    flannel.fail(flannel.between("agent0", "agent1"))
    walk = next(each for each in walked(flannel) if (each["source"], each["to"]) == ("agent0", "agent1"))
    end = walk["hops"][-1]
    assert (end["node"], end["place"], end["verdict"], walk["agrees"]) == ("agent0>agent1", "network", "drops", True)
    assert "0 of 5 UDP 8472 packets arrived at agent1's enp7s0" in end["said"]


def test_where_the_network_was_not_measured_the_walk_does_not_tell(flannel):
    flannel.fail(flannel.between("agent0", "agent1"))
    assert {(walk["says"], walk["agrees"]) for walk in walked(flannel)} == {("unknown", None)}


def test_a_refusal_where_the_facts_know_of_no_rejection_is_a_disagreement(flannel):
    flannel.fail(lambda probe: probe["id"] == "host-host agent0>agent0 tcp/10250", "refused")
    (walk,) = walked(flannel)
    assert walk["hops"][-1]["said"].endswith("listens on tcp/10250")
    assert (walk["says"], walk["agrees"]) == ("arrives", False)


def test_nobody_listens(flannel):
    sockets = flannel.node("agent0")["sockets"]
    sockets[:] = [each for each in sockets if each["port"] != 10250]
    flannel.fail(lambda probe: probe["id"] == "host-host agent0>agent0 tcp/10250", "refused")
    (walk,) = walked(flannel)
    assert walk["hops"][-1]["said"] == "nobody listens on tcp/10250"
    assert (walk["says"], walk["agrees"]) == ("rejects", True)


def test_an_http_answer_agrees_with_a_packet_that_arrives(flannel):
    flannel.fail(lambda probe: probe["id"] == "host-host agent0>agent0 tcp/10250", "http")
    (walk,) = walked(flannel)
    assert (walk["says"], walk["agrees"]) == ("arrives", True)


@pytest.mark.parametrize(
    ("rule", "place", "verdict"),
    [
        ({"priority": 100, "src": "all", "dst": "10.42.3.0", "dstlen": 24, "table": "7"}, "route", "drops"),
        ({"priority": 100, "src": "10.99.0.0", "srclen": 16, "table": "7"}, "tunnel", "passes"),
        ({"priority": 100, "src": "all", "fwmark": "0x1", "table": "7"}, "route", "unknown"),
        ({"priority": 100, "src": "all", "fwmark": "0x1", "table": "8"}, "tunnel", "passes"),
        ({"priority": 40000, "src": "all", "table": "7"}, "tunnel", "passes"),
    ],
)
def test_policy_routing_is_followed_as_far_as_it_can_be_judged(flannel, rule, place, verdict):
    agent0 = flannel.node("agent0")
    kernels = [{"priority": 0, "src": "all", "table": "local"}, {"priority": 32766, "src": "all", "table": "main"}]
    agent0["routing_rules"] = [*kernels, rule]
    main = next(route for route in agent0["routes"] if route["destination"] == "10.42.3.0/24")
    agent0["routes"].append({**main, "table": "7", "type": "blackhole", "device": "", "gateway": ""})
    flannel.fail(lambda probe: probe["id"].startswith("pod-pod agent0>agent1 tcp"))
    (walk,) = walked(flannel)
    assert (place, verdict) in [(hop["place"], hop["verdict"]) for hop in walk["hops"]]


def test_each_finding_has_a_walk_first_and_there_are_not_too_many(flannel):
    flannel.fail(lambda probe: True)
    found = walks(flannel.run, [{"explains": ["pod-pod agent1>agent0 tcp/8080"]}])
    assert (found[0]["row"], found[0]["source"], found[0]["to"]) == ("pod-pod", "agent1", "agent0")
    assert len({(walk["row"], walk["source"], walk["to"]) for walk in found}) == len(found) <= MOST
