"""Where a swap stands, told from what real machines showed."""

from __future__ import annotations

import json
from typing import Any, Callable

import pytest
from ansible.module_utils.netmend.swap.state import State, has_leftovers, left, left_back, read

from .conftest import CHANGED, DROP_IN, NODES, STARTED, STATES, Captured

PHASES = {
    "flannel": "none",
    "flannel-ufw-blocks": "none",
    "both-overlays": "installed",
    "swapped-leftovers": "leftovers",
    "swapped-clean": "leftovers",
}


BACK = {
    "flannel": "done",
    "flannel-ufw-blocks": "done",
    "both-overlays": "calico",
    "swapped-leftovers": "flipping",
    "swapped-clean": "flipping",
}


def state_of(cluster: Captured) -> State:
    return read(cluster.nodes, cluster.cluster)


@pytest.mark.parametrize("state", STATES)
def test_every_captured_cluster(captured: Callable[[str], Captured], state: str) -> None:
    found = state_of(captured(state))
    swapped, with_calico = state.startswith("swapped"), not state.startswith("flannel")
    assert (found["phase"], found["back"]) == (PHASES[state], BACK[state])
    assert json.loads(json.dumps(found)) == found
    assert sorted(found["flipped"]) == (sorted(NODES) if swapped else [])
    assert sorted(found["unflipped"]) == ([] if swapped else sorted(NODES))
    assert {network: len(pods) for network, pods in found["pods"].items()} == {
        "calico": 3 if swapped else 0,
        "flannel": 0 if swapped else 3,
        "other": 0,
    }
    assert len(left(found)) == (0 if swapped else 3)
    assert [pool["cidr"] for pool in found["pools"]] == (["10.42.128.0/17"] if with_calico else [])
    assert found["felix"].get("programClusterRoutes") == ("Enabled" if with_calico else None)
    assert found["backwards"] == []
    for name, node in found["nodes"].items():
        assert node["tunnel"] == ("tunl0" if with_calico else "")
        assert sorted(node["unrouted"]) == ([] if with_calico else sorted(set(NODES) - {name}))
        assert node["settings"]["flannel-backend"]["value"] == ("none" if swapped else "vxlan")
        assert node["settings"]["disable-network-policy"]["value"] == ("true" if swapped else "false")


def test_an_agent_does_what_the_servers_say_and_a_server_what_a_file_says(leftovers: Captured) -> None:
    nodes = state_of(leftovers)["nodes"]
    assert nodes["agent0"]["settings"]["flannel-backend"] == {"value": "none", "source": "the servers"}
    source = nodes["server0"]["settings"]["flannel-backend"]["source"]
    assert source == "/etc/rancher/k3s/config.yaml.d/90-cni.yaml"


def test_what_is_left_of_flannel_and_of_the_policy_controller(leftovers: Captured) -> None:
    found = state_of(leftovers)["nodes"]["agent1"]["leftovers"]
    assert found["devices"] == ["flannel.1", "cni0"]
    assert found["attached"] == []
    assert [route for route in found["routes"] if ":" not in route] == [
        "10.42.0.0/24 via 10.42.0.0 dev flannel.1",
        "10.42.1.0/24 via 10.42.1.0 dev flannel.1",
        "10.42.3.0/24 dev cni0",
    ]
    assert {entry.rpartition(" ")[2] for entry in found["fdb"]} == {"10.0.0.100", "10.0.0.110"}
    chains = {chain.rpartition("-")[0] for chain in found["chains"]["nft filter"]}
    assert chains == {"FLANNEL", "KUBE-NWPLCY", "KUBE-POD-FW", "KUBE-ROUTER"}
    assert found["chains"]["nft nat"] == ["FLANNEL-POSTRTG"]
    assert len(found["rules"]["nft filter"]) == 7
    assert found["rules"]["nft nat"] == ['-A POSTROUTING -m comment --comment "flanneld masq" -j FLANNEL-POSTRTG']
    assert found["files"][1:] == ["/run/flannel/subnet.env"]
    assert "flannel.alpha.coreos.com/backend-data" in found["annotations"]


def test_the_policy_controllers_chains_are_no_leftovers_while_it_is_on(leftovers: Captured) -> None:
    leftovers.nodes["agent1"]["ipsets"]["KUBE-SRC-ABC"] = []
    assert state_of(leftovers)["nodes"]["agent1"]["leftovers"]["ipsets"] == ["KUBE-SRC-ABC"]
    leftovers.configure("server0", disable_network_policy=False)
    found = state_of(leftovers)["nodes"]["agent1"]["leftovers"]
    assert found["chains"] == {"nft filter": ["FLANNEL-FWD"], "nft nat": ["FLANNEL-POSTRTG"]}
    assert found["ipsets"] == []


def test_routes_of_host_gw_are_flannels_too(leftovers: Captured) -> None:
    route = next(each for each in leftovers.nodes["agent0"]["routes"] if each["destination"] == "10.42.3.0/24")
    route.update(gateway="10.0.0.111", device="vec0")
    assert "10.42.3.0/24 via 10.0.0.111 dev vec0" in state_of(leftovers)["nodes"]["agent0"]["leftovers"]["routes"]


def test_phases_from_the_first_drop_in_to_the_end(both: Captured, leftovers: Captured) -> None:
    def phase() -> str:
        return state_of(both)["phase"]

    both.drop_in("server0", changed=STARTED + 1)
    found = state_of(both)
    assert (found["phase"], found["nodes"]["server0"]["drop_in"], found["flipped"]) == ("flipping", "waits", [])
    both.drop_in("server0", changed=CHANGED)
    both.flip("server0")
    both.flip("agent1")
    found = state_of(both)
    assert (found["phase"], found["nodes"]["server0"]["drop_in"]) == ("flipping", "in force")
    assert (sorted(found["flipped"]), found["unflipped"], found["backwards"]) == (["agent1", "server0"], ["agent0"], [])
    both.flip("agent0")
    assert phase() == "pods"
    both.cluster["pods"] = leftovers.cluster["pods"]
    assert phase() == "leftovers"
    for node in both.cluster["nodes"]:
        node["annotations"] = {}
    for facts in both.nodes.values():
        facts.update(interfaces=[], routes=[], fdb=[], flannel=[])
        facts["iptables"]["nft"] = {}
    assert phase() == "done"


def test_a_drop_in_that_something_overrides_is_not_in_force(both: Captured) -> None:
    both.drop_in("server0")
    both.configure("server0", "ExecStart", flannel_backend="host-gw")
    assert state_of(both)["nodes"]["server0"]["drop_in"] == "overridden"


def test_a_drop_in_on_an_agent_is_none(both: Captured) -> None:
    both.nodes["agent0"]["k3s"]["files"][DROP_IN] = CHANGED
    found = state_of(both)
    assert (found["phase"], found["nodes"]["agent0"]["drop_in"]) == ("installed", "")


def test_a_node_that_told_nothing_is_not_flipped(leftovers: Captured) -> None:
    del leftovers.nodes["agent0"]
    found = state_of(leftovers)
    assert (found["phase"], found["unflipped"]) == ("flipping", ["agent0"])


def test_calico_is_ready_where_its_pod_is(both: Captured) -> None:
    both.run_calico()
    both.cluster["pods"][-1]["ready"] = False
    last = both.cluster["pods"][-1]["node"]
    ready = {name for name, node in state_of(both)["nodes"].items() if node["calico_ready"]}
    assert ready == set(NODES) - {last}


def test_a_route_that_calico_lacks(both: Captured) -> None:
    routes = both.nodes["agent0"]["routes"]
    block = next(each["cidr"] for each in both.cluster["calico"]["blockaffinities"] if each["node"] == "server0")
    routes[:] = [route for route in routes if route["destination"] != block]
    assert state_of(both)["nodes"]["agent0"]["unrouted"] == ["server0"]


def back_on_flannel(cluster: Captured) -> None:
    cluster.configure("server0", flannel_backend="vxlan", disable_network_policy=False)
    cluster.flip("server0", back=True)


def without_drop_in(cluster: Captured) -> None:
    cluster.configure("server0", flannel_backend="vxlan")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (without_drop_in, ["server0 runs without Flannel, and flannel-backend is vxlan"]),
        (
            back_on_flannel,
            [
                "the agent agent0 runs without Flannel, and the server server0 with it",
                "the agent agent1 runs without Flannel, and the server server0 with it",
                "server0 runs Flannel, and has 1 pods with addresses of Calico's",
            ],
        ),
    ],
    ids=["before the first restart", "after it"],
)
def test_a_swap_back_is_known(leftovers: Captured, change: Callable[[Any], None], said: list[str]) -> None:
    change(leftovers)
    found = state_of(leftovers)["backwards"]
    assert len(found) == len(said)
    assert all(sentence.startswith(start) for sentence, start in zip(found, said))


# --- the way back -----------------------------------------------------------------------------------------------------


def test_phases_from_the_first_drop_in_that_goes_to_the_end(swapped: Captured) -> None:
    def back() -> str:
        return state_of(swapped)["back"]

    swapped.take_drop_in("server0")
    assert back() == "flipping"
    swapped.go_back("server0", "agent0")
    assert back() == "flipping"
    swapped.go_back("agent1")
    found = state_of(swapped)
    assert (found["back"], sorted(left_back(found))) == ("pods", sorted(found["pods"]["calico"]))
    assert len(left_back(found)) == 3
    swapped.move_pods_back()
    assert (back(), left_back(state_of(swapped))) == ("calico", [])
    swapped.end_calico()
    assert back() == "leftovers"
    for facts in swapped.nodes.values():
        facts.update(interfaces=[], routes=[], ipsets={}, calico=[])
        facts["iptables"]["nft"] = {}
    for node in swapped.cluster["nodes"]:
        node["annotations"] = {}
    assert back() == "leftovers"
    for node in swapped.cluster["nodes"]:
        node["network"] = ""
    assert back() == "done"


@pytest.mark.parametrize("change", ["drop-in", "canary", "no facts"])
def test_what_is_begun_of_a_swap_has_to_be_taken_back(both: Captured, change: str) -> None:
    if change == "drop-in":
        both.drop_in("server0", changed=STARTED + 1)
    elif change == "canary":
        both.nodes["agent0"]["k3s"]["config"]["flannel-cni-conf"] = "/etc/cni/net.d/10-calico.conflist"
    else:
        del both.nodes["agent0"]
    assert state_of(both)["back"] == "flipping"


def test_a_pod_of_an_address_that_is_no_longer_calicos_keeps_what_is_left(returned: Captured) -> None:
    returned.cluster["pods"][0]["ip"] = "10.42.130.5"
    assert state_of(returned)["back"] == "pods"


def test_what_is_left_of_calico(returned: Captured) -> None:
    facts = returned.nodes["agent1"]
    facts["ipsets"]["cali4t0"] = facts["ipsets"]["other"] = []
    facts["calico"] = ["/etc/cni/net.d/10-calico.conflist"]
    found = state_of(returned)["nodes"]["agent1"]["calico"]
    assert (found["devices"], found["attached"], found["fdb"]) == ([], [], [])
    assert found["addresses"] == ["10.42.137.64/32 dev tunl0"]
    assert sorted(found["routes"]) == [
        "10.42.147.192/26 via 10.0.0.100 dev tunl0",
        "10.42.191.192/26 via 10.0.0.110 dev tunl0",
        "blackhole 10.42.137.64/26 proto 80",
    ]
    assert "cali4t0" in found["ipsets"]
    assert "other" not in found["ipsets"]
    assert set(found["chains"]) == {"nft mangle", "nft raw", "nft filter", "nft nat"}
    assert all(chain.startswith("cali-") for chains in found["chains"].values() for chain in chains)
    assert all("cali:" in rule for rules in found["rules"].values() for rule in rules)
    assert any(rule.endswith("-j ACCEPT") for rule in found["rules"]["nft filter"])
    assert found["files"] == ["/etc/cni/net.d/10-calico.conflist"]
    assert "projectcalico.org/IPv4IPIPTunnelAddr" in found["annotations"]
    assert found["conditions"] == ["NetworkUnavailable"]


def test_what_others_have_of_the_same_kind_is_not_calicos(flannel: Captured) -> None:
    facts = flannel.nodes["agent0"]
    other = facts["interfaces"][-1]
    facts["interfaces"].append({**other, "name": "tunl0", "kind": "ipip", "addresses": ["172.16.0.1/30"]})
    facts["interfaces"].append({**other, "name": "calibre0", "kind": "dummy"})
    route = facts["routes"][0]
    facts["routes"].append({**route, "type": "blackhole", "destination": "172.16.8.0/24", "protocol": "bird"})
    facts["routes"].append({**route, "type": "blackhole", "destination": "10.42.9.0/24", "protocol": "static"})
    flannel.member("agent0")["network"] = "RouteCreated"
    found = state_of(flannel)
    assert found["back"] == "done"
    assert not has_leftovers(found["nodes"]["agent0"]["calico"])


def test_of_vxlan_calico_the_device_goes(both: Captured) -> None:
    both.nodes["agent0"]["interfaces"].append({**both.nodes["agent0"]["interfaces"][-1], "name": "vxlan.calico"})
    both.nodes["agent0"]["interfaces"][-1].update(kind="vxlan", addresses=["10.42.191.192/32"])
    assert state_of(both)["nodes"]["agent0"]["calico"]["devices"] == ["vxlan.calico"]
