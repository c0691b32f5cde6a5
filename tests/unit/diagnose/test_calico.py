"""Calico's faults beside what looks like them: the operators' cluster without remote routes, and what is healthy."""

from __future__ import annotations

import pytest
from ansible.module_utils.netmend.diagnose import diagnose

NODES = ("server0", "agent0", "agent1")
PUBLIC = {"server0": "203.0.113.100", "agent0": "203.0.113.110", "agent1": "203.0.113.111"}
NOT_IPIP = "IPIP being dropped: packets to these pods get into no tunnel, as no route of Calico's leads them there."


def names(bench):
    return [finding["fault"] for finding in diagnose(bench.run)]


@pytest.fixture
def operators(captured):
    """Calico from the start, with BGP and other networks: each node has its own pods' routes, and no remote ones."""
    bench = captured("other-networks")
    bench.run_calico(backend="bird", felix="Disabled")
    bench.run["cluster"]["calico"]["node"]["ready"] = 0
    for node in NODES:
        bench.unroute(node, *(peer for peer in NODES if peer != node))
    bench.failed = bench.fail(bench.crosses(*NODES))
    return bench


def routes_of(bench, node):
    return [route for route in bench.node(node)["routes"] if route["destination"].startswith("10.233.")]


def test_the_operators_routes_are_as_they_saw_them(operators):
    for node in NODES:
        routes = [route for route in routes_of(operators, node) if route["table"] == "main"]
        assert {route["type"] for route in routes} == {"unicast", "blackhole"}
        assert all(route["scope"] == "link" for route in routes if route["device"].startswith("cali"))
        assert not [route for route in routes if route["device"] == "tunl0"]


def test_their_firewall_drops_bgp_and_not_ipip(operators):
    for node in NODES:
        operators.drop_by_policy(node, "INPUT", packets=60)
        operators.enable_ufw(node)
        operators.insert(node, "INPUT", "-s 10.0.0.0/16 -p tcp -m tcp ! --dport 179 -j ACCEPT")
        operators.insert(node, "INPUT", "-p icmp -j ACCEPT")
    (finding,) = diagnose(operators.run)
    assert (finding["fault"], finding["number"]) == ("bgp-dropped-by-host", 8)
    # Of two nodes, the one with the higher address dials.
    assert finding["where"] == ["agent0", "server0"]
    assert finding["evidence"][0] == (
        "agent0 stops BGP (TCP 179) from agent1: nft filter INPUT policy DROP, 60 packets. agent0 has the routes of 1 "
        "pods of its own, and none to 10.233.137.64/26 of agent1, 10.233.147.192/26 of server0. calico-node: 0 of 3 "
        "Ready. 4 of 4 node pings came out as expected."
    )
    assert NOT_IPIP in finding["ruled_out"]
    assert (finding["remedy"]["role"], finding["remedy"]["nodes"]) == ("ufw", ["agent0", "server0"])
    assert set(finding["explains"]) == set(operators.failed)


def test_their_fabric_drops_bgp(operators):
    addresses = {node["name"]: node["internal_ip"] for node in operators.members}
    for node, peers in (("agent0", ["server0"]), ("agent1", ["server0", "agent0"])):
        operators.node(node)["bgp"] = [
            {"own": addresses[node], "peer": addresses[peer], "state": "SYN-SENT"} for peer in peers
        ]
    (finding,) = diagnose(operators.run)
    assert (finding["fault"], finding["remedy"]["role"]) == ("bgp-dropped-by-fabric", "")
    assert finding["where"] == ["agent0>server0", "agent1>agent0", "agent1>server0"]
    assert NOT_IPIP in finding["ruled_out"]
    assert set(finding["explains"]) == set(operators.failed)


def test_their_calico_took_the_public_addresses(operators):
    operators.address(**PUBLIC)
    (finding,) = diagnose(operators.run)
    assert (finding["fault"], sorted(finding["where"])) == ("calico-wrong-address", sorted(NODES))
    assert "IP_AUTODETECTION_METHOD=kubernetes-internal-ip" in finding["remedy"]["command"]
    assert set(finding["explains"]) == set(operators.failed)


@pytest.mark.parametrize(
    ("version", "backend", "felix", "bird"),
    [
        ("v3.31.7", "none", "Disabled", ""),
        ("v3.32.1", "none", "Disabled", "Enabled"),
        ("v3.32.1", "bird", "Disabled", "Disabled"),
        ("v3.33.0", "bird", "Disabled", "EnabledNoEncapOnly"),
        ("v3.33.0", "bird", "EnabledNoEncapOnly", ""),
    ],
)
def test_nobody_is_to_make_their_routes(operators, version, backend, felix, bird):
    operators.run_calico(backend, version, felix=felix, bird=bird)
    (finding,) = diagnose(operators.run)
    assert finding["fault"] == "no-cluster-routes"
    assert '"programClusterRoutes": "Enabled"' in finding["remedy"]["command"]
    assert NOT_IPIP in finding["ruled_out"]
    assert set(finding["explains"]) == set(operators.failed)


def test_what_is_not_known_to_be_off_is_not_said_to_be(operators):
    """Calico's version decides on what holds where nothing is set."""
    operators.run_calico(version="", felix="Disabled")
    assert names(operators) == ["calico-routes-missing"]


@pytest.mark.parametrize(
    ("made", "twice"),
    [
        (("bird", "v3.31.7", "Enabled", ""), True),
        (("bird", "v3.32.1", "Enabled", ""), True),
        (("bird", "v3.32.1", "Enabled", "Disabled"), False),
        (("none", "v3.32.1", "Enabled", ""), False),
        (("bird", "v3.33.0", "", ""), False),
        (("bird", "v3.33.0", "", "EnabledIPIPOnly"), True),
    ],
)
def test_two_make_the_routes(calico, made, twice):
    backend, version, felix, bird = made
    calico.run_calico(backend, version, felix=felix, bird=bird)
    assert names(calico) == (["cluster-routes-twice"] if twice else [])


def test_bgp_that_established_without_routes_is_not_called_dropped(operators):
    for node in NODES:
        operators.node(node)["bgp"] = [
            {"own": each["internal_ip"], "peer": peer["internal_ip"], "state": "ESTAB"}
            for each in operators.members
            for peer in operators.members
            if each["name"] == node != peer["name"]
        ]
    (finding,) = diagnose(operators.run)
    assert finding["fault"] == "calico-routes-missing"
    assert any("ESTAB" in sentence for sentence in finding["evidence"])


# --- healthy ----------------------------------------------------------------------------------------------------------


def with_bird(bench):
    bench.run_calico(backend="bird", felix="Disabled")


def another_private_network(bench):
    """A network of its own for the overlay, on a card of its own."""
    bench.address(server0="192.168.7.100", agent0="192.168.7.110", agent1="192.168.7.111")
    for node, last in (("server0", 100), ("agent0", 110), ("agent1", 111)):
        bench.node(node)["interfaces"][1]["addresses"].append(f"192.168.7.{last}/24")


def public_nodes(bench):
    """Machines that have public addresses and no others."""
    bench.address(**PUBLIC)
    for member in bench.members:
        member["internal_ip"] = PUBLIC[member["name"]]
    bench.plan()


def pools_of_no_pods(bench):
    bench.run["cluster"]["calico"]["ippools"] += [
        {"name": "balancers", "cidr": "192.0.2.0/24", "allowedUses": ["LoadBalancer"]},
        {"name": "old", "cidr": "192.168.0.0/16", "disabled": True},
        {"name": "ipv6", "cidr": "fd00::/48"},
    ]


def bgp_of_others(bench):
    """Routes that a router of the site has: nodes need none of their own, as long as pods are reached."""
    for node in NODES:
        bench.unroute(node, *(peer for peer in NODES if peer != node))


def pool_over_podcidrs_without_flannel(bench):
    bench.run["cluster"]["calico"]["ippools"][0]["cidr"] = "10.42.0.0/16"


def conf_dir_of_the_operators_own(bench):
    bench.node("agent0")["cni"]["conf_dir"] = "/opt/site/cni"


@pytest.mark.parametrize(
    ("state", "oddity"),
    [
        ("swapped-clean", conf_dir_of_the_operators_own),
        ("swapped-clean", with_bird),
        ("other-networks", with_bird),
        ("swapped-clean", another_private_network),
        ("swapped-clean", public_nodes),
        ("swapped-clean", pools_of_no_pods),
        ("swapped-clean", bgp_of_others),
        ("swapped-leftovers", pool_over_podcidrs_without_flannel),
    ],
)
def test_odd_but_healthy(captured, state, oddity):
    bench = captured(state)
    oddity(bench)
    assert names(bench) == []


def test_harmless_leftovers_are_not_blamed_for_what_else_fails(captured):
    bench = captured("swapped-leftovers")
    bench.node("agent0")["sysctls"]["net.ipv4.ip_forward"] = "0"
    bench.fail(bench.forwarded_at("agent0"))
    assert names(bench) == ["ip-forward-off"]


def test_public_addresses_are_a_finding_before_anything_fails(calico):
    calico.address(**PUBLIC)
    (finding,) = diagnose(calico.run)
    assert (finding["fault"], finding["explains"]) == ("calico-wrong-address", [])


def test_a_node_of_the_inventory_that_is_off_is_not_stale(calico):
    calico.run["expected_nodes"].append("agent2")
    gone = dict(calico.members[1], name="agent2", internal_ip="10.0.0.112", ready=False, reason="NodeStatusUnknown")
    calico.members.append(gone)
    calico.plan()
    calico.fail(lambda probe: probe.get("target_node") == "agent2")
    assert names(calico) == ["node-unreachable", "node-not-ready"]


def test_a_pool_is_not_outside_of_what_is_only_deduced(calico):
    calico.run["cluster"]["cluster_cidr"] = "10.99.0.0/16"
    calico.run["cluster"]["errors"] = [{"what": "cluster_cidr", "message": "deduced to be 10.99.0.0/16"}]
    assert names(calico) == []


def test_another_networks_file_before_calicos(calico):
    networks = calico.node("agent1")["cni"]["networks"]
    calico.node("agent1")["cni"]["networks"] = {"05-bridge.conf": {"name": "site", "type": "bridge"}, **networks}
    (finding,) = diagnose(calico.run)
    assert (finding["fault"], finding["where"]) == ("cni-config-not-read", ["agent1"])
    assert "05-bridge.conf" in finding["evidence"][0]


def test_an_overlap_is_said_before_two_pods_have_one_address(captured):
    bench = captured("both-overlays")
    bench.run["cluster"]["calico"]["ippools"][0]["cidr"] = "10.42.0.0/16"
    (finding,) = diagnose(bench.run)
    assert (finding["fault"], finding["explains"]) == ("two-ipams-overlap", [])
    assert finding["confidence"] < 0.8
