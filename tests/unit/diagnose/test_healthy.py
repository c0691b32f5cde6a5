"""Clusters that are well, however odd: no finding. And what is not well is never called so."""

from __future__ import annotations

import pytest
from ansible.module_utils.netmend.diagnose import diagnose


@pytest.mark.parametrize("state", ["flannel", "both-overlays", "swapped-leftovers", "swapped-clean"])
def test_captured_clusters_that_work(captured, state):
    assert diagnose(captured(state).run) == []


def ufw_with_working_accepts(bench):
    for node in ("agent0", "agent1"):
        bench.insert(node, "ufw-user-input", "-s 10.0.0.0/16 -p udp -m udp --dport 8472 -j ACCEPT")


def reverse_path_filter_loose(bench):
    for facts in bench.run["nodes"].values():
        facts["sysctls"]["net.ipv4.conf.all.rp_filter"] = "2"


def ipvs(bench):
    """kube-proxy's other mode: no chain of a Service, no canary, not the same jumps."""
    for facts in bench.run["nodes"].values():
        tables = facts["iptables"]["nft"]
        del tables["mangle"]["KUBE-PROXY-CANARY"]
        for chain in [name for name in tables["nat"] if name.startswith(("KUBE-SVC-", "KUBE-SEP-", "KUBE-EXT-"))]:
            del tables["nat"][chain]
        for hook in ("INPUT", "OUTPUT", "FORWARD"):
            rules = tables["filter"][hook]["rules"]
            rules[:] = [rule for rule in rules if rule["target"] not in ("KUBE-SERVICES", "KUBE-EXTERNAL-SERVICES")]


def host_mtu_1450(bench):
    for facts in bench.run["nodes"].values():
        for interface in facts["interfaces"]:
            room = {"vxlan": 50, "bridge": 50, "veth": 50}.get(interface["kind"], 0)
            interface["mtu"] = 1450 - room


def rules_of_the_operator(bench):
    bench.enable_ufw("agent0")
    bench.insert("agent0", "INPUT", "-s 198.51.100.0/24 -p tcp -m tcp --dport 22 -j ACCEPT")
    bench.insert("agent0", "FORWARD", "-i docker0 ! -o docker0 -j ACCEPT")
    bench.insert("agent1", "FORWARD", "-m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT")


def bridge_switch_without_a_bridge(bench):
    bench.node("agent0")["sysctls"]["net.bridge.bridge-nf-call-iptables"] = "0"


def single_node(bench):
    run = bench.run
    run["expected_nodes"] = ["server0"]
    run["nodes"] = {"server0": run["nodes"]["server0"]}
    cluster = run["cluster"]
    cluster["nodes"] = [node for node in cluster["nodes"] if node["name"] == "server0"]
    cluster["pods"] = [pod for pod in cluster["pods"] if pod["node"] == "server0"]
    for service in cluster["services"]:
        service["endpoints"] = [end for end in service["endpoints"] if end["node"] in ("server0", "")]
    bench.plan()


@pytest.mark.parametrize(
    ("state", "oddity"),
    [
        ("flannel-ufw-blocks", ufw_with_working_accepts),
        ("flannel", reverse_path_filter_loose),
        ("flannel", ipvs),
        ("flannel", host_mtu_1450),
        ("flannel", rules_of_the_operator),
        ("swapped-clean", bridge_switch_without_a_bridge),
        ("flannel", single_node),
    ],
)
def test_odd_but_healthy(captured, state, oddity):
    bench = captured(state)
    oddity(bench)
    assert diagnose(bench.run) == []


def test_ufw_set_to_flush_is_said_before_it_bites_and_only_if_ufw_is_on(flannel):
    flannel.node("agent0")["ufw"]["manage_builtins"] = True
    assert diagnose(flannel.run) == []
    flannel.enable_ufw("agent0")
    (finding,) = diagnose(flannel.run)
    assert (finding["fault"], finding["explains"], finding["remedy"]["role"]) == ("firewall-flush", [], "ufw")
    assert finding["confidence"] < 0.7


def test_a_walk_that_a_probe_contradicts_is_not_believed(captured):
    bench = captured("flannel-ufw-blocks")
    bench.fail(lambda probe: probe["id"] == "host-clusterip agent0>default/web tcp/80")
    (finding,) = diagnose(bench.run)
    assert finding["fault"] == "unexplained"


def test_a_policys_refusal_is_no_fault_of_the_firewall_but_is_said(flannel):
    chain = "KUBE-POD-FW-33KCQI252C7LCMNY"
    flannel.insert("agent1", chain, "-d 10.42.3.2/32 -j REJECT --reject-with icmp-port-unreachable")
    at_pod = [probe["id"] for probe in flannel.run["probes"] if probe.get("target_pod") == "default/web-qlhjn"]
    flannel.fail(lambda probe: probe["id"] in at_pod and probe["source_node"] != "agent1", "refused")
    (finding,) = diagnose(flannel.run)
    assert finding["fault"] == "unexplained"
    assert any(chain in sentence for sentence in finding["evidence"])


def test_a_lost_packet_is_not_the_fabrics_fault_where_the_senders_fdb_is_wrong(flannel):
    for entry in flannel.node("agent0")["fdb"]:
        entry["destination"] = "10.0.0.9"
    flannel.fail(flannel.crosses("agent0"))
    assert [finding["fault"] for finding in diagnose(flannel.run)] == ["stale-vxlan-peer"]


def test_a_probe_that_brought_nothing_back_is_not_healthy(flannel):
    flannel.run["results"]["agent0"]["observations"] = []
    (finding,) = diagnose(flannel.run)
    assert (finding["fault"], finding["where"]) == ("unexplained", ["agent0"])
    assert "missing" in finding["evidence"][0]
