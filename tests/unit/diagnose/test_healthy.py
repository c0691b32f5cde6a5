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


def ipvs_with_its_device(bench):
    ipvs(bench)
    for node, facts in bench.run["nodes"].items():
        rules = bench.chain(node, "KUBE-SERVICES", "nat")["rules"]
        rules[:] = [rule for rule in rules if not (rule["target"] or "").startswith("KUBE-SVC-")]
        facts["interfaces"].append(dummy(facts, "kube-ipvs0"))


def node_local_dns(bench):
    for facts in bench.run["nodes"].values():
        facts["interfaces"].append(dummy(facts, "nodelocaldns"))


def dummy(facts, name):
    addresses = [f"{service}/32" for service in ("10.43.0.1", "10.43.0.10")]
    return {**facts["interfaces"][0], "name": name, "kind": "dummy", "addresses": addresses}


def strict_filter_with_symmetric_routes(bench):
    for node, facts in bench.run["nodes"].items():
        facts["sysctls"]["net.ipv4.conf.all.rp_filter"] = "1"
        bench.lose(node, "TcpExt.IPReversePathFilter", 2)  # what comes in by the public NIC from anywhere


def asymmetric_route_with_a_loose_filter(bench):
    facts = bench.node("agent0")
    route = next(route for route in facts["routes"] if route["destination"] == "default")
    facts["routes"].append({**route, "destination": "10.0.0.111/32", "device": "eth0"})
    facts["sysctls"]["net.ipv4.conf.vec0.rp_filter"] = "2"
    bench.lose("agent0", "TcpExt.IPReversePathFilter", 2)


def busy_connection_table(bench):
    bench.node("agent0")["conntrack"] = {"count": 100000, "max": 131072, "drop": 12}
    bench.lose("agent0", "conntrack.insert_failed", 3)


def host_port_with_its_rule(bench):
    pod = next(pod for pod in bench.pods if pod["node"] == "agent0" and not pod["host_network"])
    pod["ports"] = [{"port": port, "protocol": "TCP", "hostPort": port} for port in (80, 443)]
    jump = "-m addrtype --dst-type LOCAL -j CNI-HOSTPORT-DNAT"
    bench.insert("agent0", "PREROUTING", jump, table="nat")
    rule = "-p tcp -m multiport --dports 80,443 -j CNI-DN-6bae1a05fb1a34a8b3e67"
    bench.insert("agent0", "CNI-HOSTPORT-DNAT", rule, table="nat")


def host_port_in_nftables(bench):
    pod = next(pod for pod in bench.pods if pod["node"] == "agent0" and not pod["host_network"])
    pod["ports"] = [{"port": 80, "protocol": "TCP", "hostPort": 80}]
    bench.node("agent0")["cni"]["networks"] = {"10-x.conflist": {"plugins": [{"type": "portmap"}]}}
    bench.node("agent0")["nft_tables"] = [{"family": "inet", "name": "cni_hostport", "chains": {}}]


def policy_chains_for_pods_that_are_gone(bench):
    bench.node("server0")["k3s"]["config"].update({"flannel-backend": "none", "disable-network-policy": True})


def policy_chains_in_force(bench):
    bench.node("server0")["k3s"]["config"]["disable-network-policy"] = False


def servers_that_say_the_same_in_other_words(bench):
    bench.node("agent1")["k3s"]["role"] = "server"
    config = {**bench.node("server0")["k3s"]["config"], "flannel-backend": "vxlan", "cluster-dns": ["10.43.0.10"]}
    bench.node("agent1")["k3s"]["config"] = {**config, "secrets-encryption": "false", "node-ip": ["10.0.0.111"]}


def a_server_whose_configuration_cannot_be_read(bench):
    bench.node("server0")["k3s"]["config"]["flannel-backend"] = "host-gw"
    bench.node("agent1")["k3s"]["role"] = "server"
    bench.node("agent1")["errors"].append({"what": "k3s config", "message": "line 3: a tab"})


def clocks_as_slow_gathering_shows_them(bench):
    bench.node("agent0")["time"] += 25
    bench.node("agent1")["time"] += 50


def a_certificate_that_k3s_will_renew(bench):
    facts = bench.node("agent0")
    dates = {"not_before": facts["time"] - 300 * 86400, "not_after": facts["time"] + 30 * 86400}
    facts["certificates"].append({"file": "agent/client-kubelet.crt", "subject": "agent0", **dates})


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
        ("flannel", ipvs_with_its_device),
        ("flannel", node_local_dns),
        ("flannel", strict_filter_with_symmetric_routes),
        ("flannel", asymmetric_route_with_a_loose_filter),
        ("flannel", busy_connection_table),
        ("flannel", host_port_with_its_rule),
        ("flannel", host_port_in_nftables),
        ("swapped-clean", policy_chains_for_pods_that_are_gone),
        ("flannel", policy_chains_in_force),
        ("flannel", servers_that_say_the_same_in_other_words),
        ("flannel", a_server_whose_configuration_cannot_be_read),
        ("flannel", clocks_as_slow_gathering_shows_them),
        ("flannel", a_certificate_that_k3s_will_renew),
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


def test_a_full_table_that_lost_nothing_yet_is_said_before_it_bites(flannel):
    flannel.node("agent0")["conntrack"] = {"count": 4000, "max": 4096}
    (finding,) = diagnose(flannel.run)
    assert (finding["fault"], finding["explains"]) == ("conntrack-full", [])
    assert finding["confidence"] < 0.8


def test_what_the_reverse_path_filter_took_is_said_where_no_route_accounts_for_it(flannel):
    flannel.lose("agent0", "TcpExt.IPReversePathFilter", 9)
    flannel.fail(lambda probe: probe["id"] == "host-pod server0>agent0 tcp/8080")
    (finding,) = diagnose(flannel.run)
    assert finding["fault"] == "unexplained"
    counted = "agent0: the kernel's counter TcpExt.IPReversePathFilter rose by 9 while it was probing."
    assert counted in finding["evidence"]


def test_of_two_clocks_that_differ_neither_is_believed(flannel):
    del flannel.run["nodes"]["agent1"]
    flannel.run["expected_nodes"].remove("agent1")
    flannel.node("agent0")["time"] += 600
    (finding,) = diagnose(flannel.run)
    assert (finding["fault"], finding["where"]) == ("clock-skew", ["agent0", "server0"])
    assert finding["confidence"] < 0.8
    assert "If it was ahead, restart K3s on the servers then" in finding["remedy"]["text"]


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
