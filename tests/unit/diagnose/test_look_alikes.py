"""What resembles a fault of DNS, of Flannel or of packet sizes, and is another one or none."""

from __future__ import annotations

import pytest
from ansible.module_utils.netmend.diagnose import diagnose

BLACK_HOLE = "path-mtu-black-hole"


def names(bench):
    return [finding["fault"] for finding in diagnose(bench.run)]


@pytest.fixture
def with_dns(flannel):
    flannel.with_dns()
    return flannel


def sweeps(*pair):
    return lambda probe: probe["protocol"] == "mtu" and {probe["source_node"], probe["target_node"]} == set(pair)


def test_dns_behind_a_broken_path_is_explained_by_what_breaks_the_path(with_dns):
    with_dns.insert("server0", "PREROUTING", "-p udp -m udp --dport 8472 -j DROP", table="raw")
    failed = with_dns.fail(with_dns.crosses("server0"))
    (finding,) = diagnose(with_dns.run)
    assert finding["fault"] == "vxlan-dropped-by-host"
    assert set(finding["explains"]) == set(failed)
    assert any(probe.startswith("pod-dns") for probe in failed)


def test_dns_that_answers_nobody_is_not_called_unreachable_from_some(with_dns):
    with_dns.fail(lambda probe: probe["protocol"].startswith("dns-"))
    assert names(with_dns) == ["unexplained"]


def test_a_single_answer_that_is_lost_is_no_fault_of_the_way_to_coredns(with_dns):
    with_dns.fail(lambda probe: probe["source_node"] == "agent1" and probe["protocol"] == "dns-tcp")
    assert names(with_dns) == ["unexplained"]


def test_dns_is_not_accused_where_the_node_fails_otherwise_too(with_dns):
    pod_of = {"pod-dns", "pod-pod"}
    with_dns.fail(lambda probe: probe["source_node"] == "agent1" and probe["row"] in pod_of, "error")
    assert names(with_dns) == ["unexplained"]


def test_where_only_the_services_address_fails_kube_proxy_and_conntrack_are_looked_at(with_dns):
    with_dns.fail(lambda probe: probe["source_node"] == "agent1" and probe["address"] == "10.43.0.10")
    (finding,) = diagnose(with_dns.run)
    assert (finding["fault"], finding["where"]) == ("coredns-unreachable", ["agent1"])
    assert finding["remedy"]["text"].startswith("Only the Service's address fails")


def lose_pairs(bench, protocol="dns-pair", attempts=15, failed=7):
    """Of agent1's pairs of queries so many lose one."""
    lost = {"detail": "no answer to AAAA", "attempts": attempts, "failed": failed}
    return bench.fail(lambda probe: probe["source_node"] == "agent1" and probe["protocol"] == protocol, **lost)


def test_pairs_of_queries_that_race_are_said_with_what_the_kernel_counted(with_dns):
    lose_pairs(with_dns)
    with_dns.lose("agent1", "conntrack.insert_failed", 9)
    (finding,) = diagnose(with_dns.run)
    assert (finding["fault"], finding["confidence"]) == ("dns-conntrack-race", 0.9)
    assert "7 of 15 from one socket lost one, and 0 of 1 from two sockets" in finding["evidence"][0]
    assert "dropped 9 packets" in finding["evidence"][0]
    assert "4 of 4 other probes of DNS passed from agent1" in finding["ruled_out"][0]
    assert "340 of 131072" in finding["ruled_out"][2]
    assert "single-request-reopen" in finding["remedy"]["text"]


@pytest.mark.parametrize("counted", [0, 3])
def test_pairs_that_lose_more_than_the_kernel_counted_lose_it_otherwise(with_dns, counted):
    lose_pairs(with_dns)
    with_dns.lose("agent1", "conntrack.insert_failed", counted)
    (finding,) = diagnose(with_dns.run)
    assert finding["fault"] == "fails-at-times"
    assert ("insert_failed rose by 3" in " ".join(finding["evidence"])) == bool(counted)


def test_loss_that_queries_from_two_sockets_have_as_well_is_no_race(with_dns):
    lose_pairs(with_dns)
    lose_pairs(with_dns, "dns-apart", failed=5)
    with_dns.lose("agent1", "conntrack.insert_failed", 9)
    assert names(with_dns) == ["fails-at-times"]


def test_clashes_that_the_kernel_counts_and_resolves_are_no_fault(with_dns):
    with_dns.lose("agent1", "conntrack.insert_failed", 9)
    assert names(with_dns) == []


def test_an_endpoint_of_dns_that_fails_is_named_whatever_becomes_of_pairs(with_dns):
    """Which endpoint the queries of two sockets were led to is not told, and so is nothing of where they fail."""
    dead = with_dns.pod("agent0", "kube-system", "coredns-2", {"k8s-app": "kube-dns"}, ports={"dns": 53})
    (service,) = [each for each in with_dns.run["cluster"]["services"] if each["name"] == "kube-dns"]
    service["endpoints"] += [
        {**end, "ip": dead["ip"], "node": "agent0", "pod": "kube-system/coredns-2"} for end in service["endpoints"]
    ]
    with_dns.plan()
    lose_pairs(with_dns)
    lose_pairs(with_dns, "dns-apart", failed=11)
    tallies = {service["endpoints"][0]["ip"]: [14, 0], dead["ip"]: [10, 10]}
    by_udp = lambda probe: probe["source_node"] == "agent1" and probe["id"].endswith("kube-dns dns-udp")  # noqa: E731
    with_dns.fail(by_udp, attempts=24, failed=10, endpoints=tallies)
    (finding,) = diagnose(with_dns.run)
    assert (finding["fault"], finding["where"]) == ("endpoint-fails", ["kube-system/kube-dns"])


@pytest.mark.parametrize(
    ("reason", "words"),
    [("CrashLoopBackOff", "not ready, CrashLoopBackOff"), ("", "not ready, Running")],
)
def test_a_coredns_that_is_there_and_not_ready_is_said_with_its_reason(with_dns, reason, words):
    with_dns.pods[-1].update(ready=False, reason=reason)
    for end in with_dns.run["cluster"]["services"][-1]["endpoints"]:
        end["ready"] = False
    with_dns.fail(lambda probe: probe["address"] == "10.43.0.10", "refused")
    finding = diagnose(with_dns.run)[0]
    assert finding["fault"] == "coredns-down"
    assert f"coredns-1 on server0: {words}" in finding["evidence"][0]
    assert "describe pods -l k8s-app=kube-dns" in finding["remedy"]["command"]


def test_a_cluster_without_any_dns_is_told_so(flannel):
    flannel.run["cluster"]["dns_ip"] = "10.43.0.10"
    flannel.plan()
    flannel.fail(lambda probe: probe["row"] == "pod-dns")
    (finding,) = diagnose(flannel.run)
    assert (finding["fault"], finding["remedy"].get("command")) == ("coredns-down", None)
    assert "No Service has the address 10.43.0.10" in finding["evidence"][0]


def announce(bench, address, **config):
    bench.member("agent1")["annotations"]["flannel.alpha.coreos.com/public-ip"] = address
    for facts in bench.run["nodes"].values():
        facts["k3s"]["config"].update(config)
        for entry in facts["fdb"]:
            entry["destination"] = address if entry["destination"] == "10.0.0.111" else entry["destination"]


def test_another_private_card_that_works_is_meant(flannel):
    announce(flannel, "192.168.7.111")
    assert names(flannel) == []


def test_vxlan_over_public_addresses_is_said_though_it_works(flannel):
    announce(flannel, "203.0.113.111")
    (finding,) = diagnose(flannel.run)
    assert (finding["fault"], finding["explains"]) == ("flannel-on-wrong-nic", [])


def test_the_wrong_cards_mtu_is_no_fault_of_its_own(flannel):
    announce(flannel, "203.0.113.111")
    next(each for each in flannel.node("agent1")["interfaces"] if each["name"] == "flannel.1")["mtu"] = 1450
    assert names(flannel) == ["flannel-on-wrong-nic"]


def test_external_addresses_that_are_configured_are_meant(flannel):
    announce(flannel, "203.0.113.111", **{"flannel-external-ip": True})
    assert names(flannel) == []


def test_the_wrong_card_is_named_by_file_and_key(flannel):
    announce(flannel, "203.0.113.111")
    k3s = flannel.node("agent1")["k3s"]
    k3s["config"]["flannel-iface"] = "eth0"
    k3s["sources"]["flannel-iface"] = "/etc/rancher/k3s/config.yaml.d/90-nic.yaml"
    (finding,) = diagnose(flannel.run)
    assert "flannel-iface is eth0, by /etc/rancher/k3s/config.yaml.d/90-nic.yaml." in finding["evidence"][0]
    assert finding["remedy"]["command"] == (
        "sed -i 's/^flannel-iface:.*/flannel-iface: vec0/' /etc/rancher/k3s/config.yaml.d/90-nic.yaml "
        "&& systemctl restart k3s-agent.service"
    )


def test_a_wrong_neighbour_is_as_stale_as_a_wrong_fdb_entry(flannel):
    for entry in flannel.node("agent0")["neighbours"]:
        if entry["address"] == "10.42.3.0":
            entry["mac"] = "02:00:00:00:00:01"
    flannel.fail(lambda probe: {("agent0", "agent1"), ("agent1", "agent0")} & flannel.crossings(probe))
    (finding,) = diagnose(flannel.run)
    assert (finding["fault"], finding["where"]) == ("stale-vxlan-peer", ["agent0>agent1"])
    assert "is at 02:00:00:00:00:01 on flannel.1" in finding["evidence"][0]


def dropped_as_invalid(bench, chain, packets):
    rule = {"backend": "nft", "table": "filter", "chain": chain, "index": 4, "packets": packets}
    bench.run["results"]["agent1"]["moved"] = [{**rule, "spec": "-m conntrack --ctstate INVALID -j DROP"}]


def test_bad_checksums_that_a_firewall_takes_for_invalid_are_counted_by_its_rule(flannel):
    dropped_as_invalid(flannel, "ufw-before-input", 40)
    flannel.fail(flannel.crosses("agent1"))
    (finding,) = diagnose(flannel.run)
    assert (finding["fault"], finding["where"], finding["confidence"]) == ("vxlan-bad-checksum", ["agent1"], 0.7)
    assert (
        "the rule `-A ufw-before-input -m conntrack --ctstate INVALID -j DROP` dropped 40 packets"
        in (finding["evidence"][0])
    )


@pytest.mark.parametrize(("chain", "packets"), [("ufw-before-input", 2), ("KUBE-FORWARD", 40)])
def test_few_invalid_packets_or_forwarded_ones_are_no_bad_checksums(flannel, chain, packets):
    dropped_as_invalid(flannel, chain, packets)
    flannel.fail(flannel.crosses("agent1"))
    assert "vxlan-bad-checksum" not in names(flannel)


def test_a_stray_bad_checksum_is_no_fault(flannel):
    flannel.run["results"]["agent1"]["risen"] = {"Udp.InCsumErrors": 1}
    assert names(flannel) == []
    flannel.fail(flannel.crosses("agent1"))
    assert names(flannel) == ["vxlan-dropped-by-fabric"]


def test_without_bad_checksums_the_same_loss_is_the_fabrics(flannel):
    flannel.fail(flannel.crosses("agent1"))
    assert names(flannel) == ["vxlan-dropped-by-fabric"]


def test_a_node_that_drops_frag_needed_itself_is_told_by_its_rule(flannel):
    flannel.insert("agent0", "INPUT", "-p icmp -m icmp --icmp-type 3/4 -j DROP")
    flannel.fail(sweeps("agent0", "agent1"), mtu=1300)
    findings = diagnose(flannel.run)
    assert [finding["fault"] for finding in findings] == [
        BLACK_HOLE,
        BLACK_HOLE,
    ]  # one rule, and a hop that is not seen
    commands = {finding["where"][0]: finding["remedy"]["command"] for finding in findings}
    assert commands == {
        "agent0>agent1": "iptables-nft -w -I INPUT 1 -p icmp --icmp-type fragmentation-needed "
        "-m conntrack --ctstate RELATED -j ACCEPT",
        "agent1>agent0": " && ".join(clamps({"flannel.1": 1210, "vec0": 1260})),
    }
    assert {finding["where"][0]: finding["remedy"]["role"] for finding in findings} == {
        "agent0>agent1": "path_mtu",
        "agent1>agent0": "path_mtu",
    }


def clamps(segments):
    syn = "-p tcp -m tcp --tcp-flags SYN,RST SYN"
    return [
        f"iptables -w -t mangle -A POSTROUTING -o {device} {syn} -j TCPMSS --set-mss {size}"
        for device, size in segments.items()
    ]


def test_segments_are_clamped_once_to_the_least_that_any_peer_takes(flannel):
    """What is left is named with it, and nothing more is done."""
    flannel.fail(sweeps("agent0", "agent1"), mtu=1300)
    flannel.fail(sweeps("agent0", "server0"), mtu=1400)
    (found,) = [each for each in diagnose(flannel.run) if "agent0" in each["remedy"]["nodes"]]
    rules = [each["rule"] for each in found["remedy"]["vars"]["path_mtu_clamps"]]
    assert [f"iptables -w -t mangle -A POSTROUTING {rule}" for rule in rules] == clamps(
        {"flannel.1": 1210, "vec0": 1260}
    )
    for rule in rules:
        flannel.insert("agent0", "POSTROUTING", rule, table="mangle")
    (found,) = [each for each in diagnose(flannel.run) if "agent0" in each["remedy"]["nodes"]]
    assert found["remedy"]["role"] == ""
    assert "clamped on agent0" in found["remedy"]["text"]


def test_a_rule_before_all_others_is_not_overtaken_by_an_accept(flannel):
    flannel.insert("agent0", "PREROUTING", "-p icmp -m icmp --icmp-type 3/4 -j DROP", table="raw")
    flannel.fail(sweeps("agent0", "agent1"), mtu=1300)
    remedies = {finding["where"][0]: finding["remedy"] for finding in diagnose(flannel.run)}
    assert remedies["agent0>agent1"]["role"] == ""
    assert " -t raw -D PREROUTING " in remedies["agent0>agent1"]["command"]


def test_a_rule_against_other_unreachables_is_not_accused(flannel):
    flannel.insert("agent0", "INPUT", "-p icmp -m icmp --icmp-type 3/1 -j DROP")
    flannel.fail(sweeps("agent0", "agent1"), mtu=1300)
    (finding,) = diagnose(flannel.run)
    assert "TCPMSS" in finding["remedy"]["command"]


def test_a_sweep_of_which_nothing_passes_is_no_black_hole(flannel):
    flannel.fail(lambda probe: probe["row"] == "host-host" and probe["protocol"] == "mtu")
    assert BLACK_HOLE not in names(flannel)


def with_large_pods(bench):
    for interface in bench.node("agent0")["interfaces"]:
        if interface["kind"] in ("bridge", "veth"):
            interface["mtu"] = 1500
    return bench


def test_pods_larger_than_their_tunnel_are_well_where_their_node_tells_them(flannel):
    assert names(with_large_pods(flannel)) == []


def test_pods_larger_than_their_tunnel_are_not_what_makes_the_nodes_own_packets_vanish(flannel):
    with_large_pods(flannel).fail(sweeps("agent0", "agent1"), mtu=1300)
    assert set(names(flannel)) == {BLACK_HOLE}


def test_a_tunnel_without_room_for_its_headers_is_said_before_it_bites(flannel, calico):
    for bench, right in ((flannel, 1350), (calico, 1380)):
        next(each for each in bench.node("agent0")["interfaces"] if each["name"] == "vec0")["mtu"] = 1400
        (finding,) = diagnose(bench.run)
        assert (finding["fault"], finding["where"], finding["explains"]) == ("pod-mtu-too-high", ["agent0"], [])
        assert f"which leaves {right}" in finding["evidence"][0]
        assert str(right) in finding["remedy"]["text"]
