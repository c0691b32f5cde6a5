"""What forbids a swap: each gate violated alone, on a cluster that otherwise may be swapped."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any, Callable

import pytest
from ansible.module_utils.netmend import overlays
from ansible.module_utils.netmend.calico_manifest import Options
from ansible.module_utils.netmend.swap.gates import (
    GATES,
    GATES_BACK,
    Wanted,
    flannel_passes,
    gates,
    gates_back,
    notes,
    notes_back,
    options,
    pool,
    typha,
)

from .conftest import DROP_IN, NODES, STARTED, STATES, Captured

CALICO = Wanted(version="v3.32.1")
Change = Callable[[Captured], None]


def refusals(cluster: Captured, wanted: Wanted = CALICO, ask: Any = gates) -> list[tuple[str, str]]:
    found = ask(cluster.nodes, cluster.cluster, cluster.underlay, wanted)
    return [(refusal["gate"], refusal["message"]) for refusal in found]


def only(cluster: Captured, gate: str, wanted: Wanted = CALICO, ask: Any = gates) -> str:
    """The message of the one gate that refuses, once."""
    found = refusals(cluster, wanted, ask)
    assert [name for name, _ in found] == [gate], found
    return found[0][1]


def three_servers(cluster: Captured) -> None:
    cluster.join("server1", 101)
    cluster.join("server2", 102)


# --- what may be swapped ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("state", STATES)
@pytest.mark.parametrize("backend", ["felix", "bird", "vxlan"])
def test_every_captured_cluster_may_be_swapped_or_is(
    captured: Callable[[str], Captured], state: str, backend: str
) -> None:
    cluster = captured(state)
    for each in cluster.cluster["calico"].get("ippools", []) if backend == "vxlan" else []:
        each.update(ipipMode="Never", vxlanMode="Always")
    assert refusals(cluster, replace(CALICO, backend=backend)) == []


def test_three_servers_may_be_swapped(flannel: Captured) -> None:
    three_servers(flannel)
    assert refusals(flannel) == []
    assert notes(flannel.nodes, flannel.cluster, flannel.underlay, CALICO) == []


def test_one_server_alone_is_a_note(flannel: Captured) -> None:
    (note,) = notes(flannel.nodes, flannel.cluster, flannel.underlay, CALICO)
    assert note.startswith("server0 is the only server: the API is away while it restarts")


def of_nodes(cluster: Captured, count: int) -> Any:
    first = cluster.cluster["nodes"][0]
    return {**cluster.cluster, "nodes": [{**first, "name": f"node{number}"} for number in range(count)]}


@pytest.mark.parametrize(("nodes", "replicas"), [(3, 0), (49, 0), (50, 3), (600, 3), (601, 4), (5000, 20)])
def test_many_nodes_have_typha(flannel: Captured, nodes: int, replicas: int) -> None:
    assert typha(CALICO, of_nodes(flannel, nodes)) == replicas
    assert typha(replace(CALICO, typha=0), of_nodes(flannel, nodes)) == 0
    assert typha(replace(CALICO, typha=2), of_nodes(flannel, nodes)) == 2


def test_typha_that_is_there_stays(flannel: Captured) -> None:
    there: Any = {"namespace": "kube-system", "name": "calico-typha"}
    few = {**flannel.cluster, "services": [*flannel.cluster["services"], there]}
    assert typha(CALICO, few) == 3
    assert options(CALICO, few, flannel.underlay).typha == 3


def test_typha_is_a_note(flannel: Captured) -> None:
    wanted = replace(CALICO, typha=2)
    said = "Typha stands between Calico and the API, on 2 of 3 nodes."
    assert said in notes(flannel.nodes, flannel.cluster, flannel.underlay, wanted)
    assert not any("Typha" in note for note in notes(flannel.nodes, flannel.cluster, flannel.underlay, CALICO))


def test_typhas_port_has_to_pass_where_it_is_wanted(flannel: Captured) -> None:
    flannel.measure(lost("tcp-5473"))
    assert refusals(flannel) == []
    message = only(flannel, "underlay", replace(CALICO, typha=1))
    assert message.startswith("TCP 5473 packets do not pass. ")
    assert message.endswith("or set typha to 0: each node asks the API by itself then.")


def test_typha_that_ufw_drops_felix_does_not_accept(flannel: Captured) -> None:
    flannel.measure(dropped("tcp-5473", rule("filter", "ufw-before-input")))
    assert only(flannel, "underlay", replace(CALICO, typha=1)).startswith("TCP 5473 packets do not pass. ")


def test_a_cluster_whose_vxlan_is_lost_may_be_swapped(flannel: Captured) -> None:
    flannel.measure(lost("udp-8472"))
    for pod in flannel.cluster["pods"]:
        pod.update(ready=False, phase="Running")
    flannel.cluster["disruption_budgets"].append(budget(desired=2, expected=3))
    assert flannel.underlay["overlays"]["vxlan-8472"]["verdict"] == "no"
    assert refusals(flannel) == []


@pytest.mark.parametrize("flipped", [(), ("server0",), ("server0", "server1", "server2", "agent0")])
def test_a_swap_that_was_interrupted_may_go_on(both: Captured, flipped: tuple[str, ...]) -> None:
    three_servers(both)
    both.drop_in("server0", changed=STARTED + 1 if not flipped else STARTED - 1)
    for name in flipped:
        both.flip(name)
        if name.startswith("server"):
            both.drop_in(name)
    assert refusals(both) == []


def test_a_swap_that_was_interrupted_at_its_canary_may_go_on(both: Captured) -> None:
    canary_with(both, "calico")
    assert refusals(both) == []


def test_every_gate_of_the_cluster_is_violated_below() -> None:
    assert {gate for _, gate, *_ in VIOLATIONS} == set(GATES) - {"addresses", "measured", "underlay", "mtu"}


# --- the cluster ------------------------------------------------------------------------------------------------------


def budget(desired: int, expected: int, selector: Any = None) -> dict[str, Any]:
    return {
        **{"namespace": "default", "name": "web", "selector": {} if selector is None else selector},
        **{"desired": desired, "expected": expected},
    }


def old_k3s(cluster: Captured) -> None:
    cluster.member("agent1")["version"] = "v1.30.14+k3s1"


def unknown_k3s(cluster: Captured) -> None:
    cluster.member("agent1")["version"] = "v1.99.0+k3s1"


def node_not_ready(cluster: Captured) -> None:
    cluster.member("agent1").update(ready=False, reason="NodeStatusUnknown")


def node_without_facts(cluster: Captured) -> None:
    del cluster.nodes["agent1"]


def node_that_is_no_member(cluster: Captured) -> None:
    cluster.nodes["agent9"] = {**cluster.nodes["agent1"], "name": "agent9"}


def unreadable_configuration(cluster: Captured) -> None:
    cluster.nodes["agent1"]["errors"].append({"what": "cni", "message": "config.toml: permission denied"})


def two_members(cluster: Captured) -> None:
    cluster.join("server1", 101)


def one_that_does_not_vote(cluster: Captured) -> None:
    three_servers(cluster)
    cluster.member("server2")["etcd"] = "learner"


def etcd_unwell(cluster: Captured) -> None:
    cluster.cluster["api"]["etcd"] = "failed"


def servers_that_disagree(cluster: Captured) -> None:
    three_servers(cluster)
    cluster.configure("server2", "ExecStart", cluster_domain="other.local")


def mixed_backends(cluster: Captured) -> None:
    three_servers(cluster)
    cluster.configure("server2", "/etc/rancher/k3s/config.yaml", flannel_backend="host-gw")


def swap_back(cluster: Captured) -> None:
    cluster.cluster["calico"]["ippools"] = [{"name": "p", "cidr": "10.42.128.0/17", "ipipMode": "Always"}]
    pod = next(each for each in cluster.cluster["pods"] if each["node"] == "agent0")
    pod["ip"] = "10.42.130.5"


def foreign_daemonset(cluster: Captured) -> None:
    cluster.cluster["daemonsets"].append({"namespace": "kube-system", "name": "cilium"})


def foreign_network(cluster: Captured) -> None:
    cluster.nodes["agent1"]["cni"]["unread"]["/etc/cni/net.d/05-weave.conflist"] = {"plugins": [{"type": "weave-net"}]}


def flannel_as_a_daemonset(cluster: Captured) -> None:
    network = next(iter(cluster.nodes["agent1"]["cni"]["networks"].values()))
    cluster.nodes["agent1"]["cni"]["unread"]["/etc/cni/net.d/10-flannel.conflist"] = network


def foreign_device(cluster: Captured) -> None:
    cluster.nodes["agent1"]["interfaces"].append({**cluster.nodes["agent1"]["interfaces"][0], "name": "cilium_host"})


def other_calico(cluster: Captured) -> None:
    cluster.run_calico(version="v3.31.7")


def operators_calico(cluster: Captured) -> None:
    cluster.run_calico(namespace="calico-system")


def other_pool(cluster: Captured) -> None:
    cluster.cluster["calico"]["ippools"] = [{"name": "site", "cidr": "10.42.192.0/18", "ipipMode": "Always"}]


def podcidr_in_the_pool(cluster: Captured) -> None:
    cluster.member("agent1")["pod_cidr"] = "10.42.150.0/24"


def dual_stack(cluster: Captured) -> None:
    cluster.nodes["server0"]["k3s"]["config"]["cluster-cidr"] = ["10.42.0.0/16", "fd00:42::/56"]


def flag_in_the_unit(cluster: Captured) -> None:
    cluster.configure("server0", "ExecStart", flannel_backend="vxlan")


def later_file(cluster: Captured) -> None:
    cluster.configure("server0", "/etc/rancher/k3s/config.yaml.d/99-site.yaml", disable_network_policy=False)


def canary_with(cluster: Captured, plugin: str) -> None:
    """Where an agent tries Calico, K3s has put Calico's configuration where Flannel's was."""
    cluster.nodes["agent1"]["k3s"]["config"]["flannel-cni-conf"] = "/etc/cni/net.d/10-calico.conflist"
    cluster.nodes["agent1"]["cni"]["networks"] = {"10-flannel.conflist": {"plugins": [{"type": plugin}]}}


def canary_of_another_network(cluster: Captured) -> None:
    canary_with(cluster, "weave-net")


def drop_in_on_an_agent(cluster: Captured) -> None:
    cluster.nodes["agent1"]["k3s"]["files"][DROP_IN] = 1000.0


def full_disk(cluster: Captured) -> None:
    # 5 % are the kubelet's: 1 GiB is left of 3.
    cluster.nodes["agent1"]["disk"]["/var/lib/rancher/k3s"].update(size=40 << 30, free=3 << 30)


def no_room_for_plugins(cluster: Captured) -> None:
    cluster.nodes["agent1"]["disk"]["/opt/cni/bin"].update(size=1 << 30, free=100 << 20)


def unknown_room(cluster: Captured) -> None:
    del cluster.nodes["agent1"]["disk"]["/opt/cni/bin"]


def budget_of_all_replicas(cluster: Captured) -> None:
    cluster.cluster["disruption_budgets"].append(budget(desired=3, expected=3))


VIOLATIONS: list[tuple[Change, str, str]] = [
    (old_k3s, "versions", "agent1 runs K3s v1.30.14+k3s1: upgrade it to v1.31 or newer first."),
    (unknown_k3s, "versions", "agent1 runs K3s v1.99.0+k3s1, and v1.36 is the newest known"),
    (node_not_ready, "nodes", "agent1 is not Ready (NodeStatusUnknown): mend it"),
    (node_without_facts, "nodes", "agent1 could not be asked for its facts: make it reachable by SSH"),
    (node_that_is_no_member, "nodes", "agent9 is in the inventory, and no node of the cluster"),
    (unreadable_configuration, "nodes", "agent1: cni cannot be read (config.toml: permission denied)"),
    (two_members, "etcd", "etcd has 2 voting members, 2 on Ready nodes (server0, server1)"),
    (one_that_does_not_vote, "etcd", "etcd has 2 voting members, 2 on Ready nodes (server0, server1)"),
    (etcd_unwell, "etcd", "The API says of etcd: failed; mend etcd first."),
    (servers_that_disagree, "servers", "The servers disagree on cluster-domain (server0 has cluster.local"),
    (mixed_backends, "servers", "The servers disagree on flannel-backend (server0 has vxlan (K3s's default); server1"),
    (swap_back, "direction", "A swap back to Flannel seems to be under way, as agent0 runs Flannel, and has 1 pods"),
    (foreign_daemonset, "foreign", "The DaemonSet kube-system/cilium is of another network of pods"),
    (foreign_network, "foreign", "agent1: /etc/cni/net.d/05-weave.conflist is of the network plugin weave-net"),
    (
        canary_of_another_network,
        "foreign",
        "agent1: /var/lib/rancher/k3s/agent/etc/cni/net.d/10-flannel.conflist is of",
    ),
    (flannel_as_a_daemonset, "foreign", "agent1: /etc/cni/net.d/10-flannel.conflist is of the network plugin flannel"),
    (foreign_device, "foreign", "agent1: the device cilium_host is of another network of pods"),
    (other_calico, "calico", "Calico v3.31.7 runs, and v3.32.1 is wanted"),
    (operators_calico, "calico", "Calico runs in calico-system, and not by its own manifest"),
    (other_pool, "calico", "Calico's pool site has cidr 10.42.192.0/18, and 10.42.128.0/17 is wanted"),
    (podcidr_in_the_pool, "pool", "The pool 10.42.128.0/17 does not lie above the podCIDR 10.42.150.0/24 of agent1"),
    (dual_stack, "pool", "The cluster gives IPv6 addresses to pods"),
    (
        flag_in_the_unit,
        "overridden",
        "server0: flannel-backend is vxlan in k3s.service, which overrides 90-netmend-cni",
    ),
    (later_file, "overridden", "server0: disable-network-policy is false in /etc/rancher/k3s/config.yaml.d/99-site"),
    (drop_in_on_an_agent, "overridden", f"{DROP_IN} is on the agent agent1, which would not start with it"),
    (full_disk, "disk", "agent1: 1024 MiB are free for /var/lib/rancher/k3s before the kubelet evicts pods, and 2048"),
    (no_room_for_plugins, "disk", "agent1: 48 MiB are free for /opt/cni/bin before the kubelet evicts pods, and 300"),
    (unknown_room, "disk", "agent1: the room on the disk of /opt/cni/bin is not known"),
    (budget_of_all_replicas, "budgets", "The PodDisruptionBudget default/web wants 3 of 3 pods healthy"),
]


@pytest.mark.parametrize(("change", "gate", "said"), VIOLATIONS, ids=[each[0].__name__ for each in VIOLATIONS])
def test_a_gate_that_is_violated_alone(flannel: Captured, change: Change, gate: str, said: str) -> None:
    change(flannel)
    message = only(flannel, gate)
    assert message.startswith(said)
    assert message.endswith(".")


@pytest.mark.parametrize(
    ("wanted", "gate", "said"),
    [
        ({"version": "v3.27.0"}, "versions", "Calico v3.27.0 is wanted, and v3.31.x and v3.32.x are known"),
        ({"version": "v3.32"}, "versions", "Calico v3.32 is wanted"),
        ({"backend": "ipip"}, "wanted", "backend must be one of felix, bird, vxlan, and is 'ipip'."),
        ({"block_size": 8}, "wanted", "block_size must be from 20 to 32 and within the pool"),
        ({"pool": "10.42.128.1/17"}, "wanted", "pool must be an IPv4 network"),
        ({"private_cidr": "10.0.0.0/99"}, "wanted", "private_cidr must be an IPv4 network"),
        ({"flannel": "udp"}, "wanted", "flannel must be one of vxlan, wireguard-native, host-gw, and is 'udp'."),
        ({"batch": 0}, "wanted", "batch must be 1 or more, and is 0."),
        ({"typha": 4}, "wanted", "typha must be no more than there are nodes (3), and is 4."),
        ({"canary": "server0"}, "wanted", "canary must be an agent of the cluster, and is 'server0'."),
        ({"mtu": 1450}, "mtu", "mtu 1450 is wanted, and 1430 is the most that passes between all nodes"),
        ({"mtu": 1430, "backend": "vxlan"}, "mtu", "mtu 1430 is wanted, and 1400 is the most"),
        (
            {"pool": "192.168.0.0/16"},
            "pool",
            "The pool 192.168.0.0/16 is not inside cluster-cidr 10.42.0.0/16: pool 10.",
        ),
        (
            {"pool": "10.42.0.0/17"},
            "pool",
            "The pool 10.42.0.0/17 does not lie above the podCIDR 10.42.1.0/24 of agent0",
        ),
        ({"pool": "10.42.255.128/25"}, "pool", "The pool 10.42.255.128/25 has 2 blocks of /26, and each of 3 nodes"),
    ],
)
def test_what_cannot_be_asked_for(flannel: Captured, wanted: dict[str, Any], gate: str, said: str) -> None:
    message = only(flannel, gate, replace(CALICO, **wanted))
    assert message.startswith(said)
    assert message.endswith(".")


@pytest.mark.parametrize(
    ("highest", "would_do"),
    [("10.42.150.0/24", "10.42.192.0/18"), ("10.42.255.0/24", ""), ("10.42.254.0/24", "255.0/24")],
)
def test_a_pool_that_would_do_is_named(flannel: Captured, highest: str, would_do: str) -> None:
    flannel.member("agent1")["pod_cidr"] = highest
    message = only(flannel, "pool")
    assert (f"{would_do} would do." in message) if would_do else "no part of 10.42.0.0/16" in message
    if would_do.startswith("10."):
        assert refusals(flannel, replace(CALICO, pool=would_do)) == []


def test_podcidrs_mean_nothing_where_flannel_does_not_run(leftovers: Captured) -> None:
    podcidr_in_the_pool(leftovers)
    assert refusals(leftovers) == []


def test_a_budget_that_concerns_no_pod_that_is_replaced_forbids_nothing(flannel: Captured) -> None:
    labels = flannel.cluster["pods"][0]["labels"]
    key, value = next(iter(labels.items()))
    concerned: list[dict[str, Any]] = [
        {"matchLabels": {key: value}},
        {"matchExpressions": [{"key": key, "operator": "In", "values": [value]}]},
        {"matchExpressions": [{"key": key, "operator": "Exists"}, {"key": "x", "operator": "DoesNotExist"}]},
    ]
    others: list[dict[str, Any]] = [
        {"matchLabels": {key: "other"}},
        {"matchExpressions": [{"key": key, "operator": "NotIn", "values": [value]}]},
        {"matchLabels": {key: value}, "matchExpressions": [{"key": "x", "operator": "Exists"}]},
    ]
    flannel.cluster["disruption_budgets"] = [budget(3, 3, selector) for selector in others]
    flannel.cluster["disruption_budgets"].append({**budget(3, 3), "selector": None})
    flannel.cluster["disruption_budgets"].append({**budget(3, 3), "namespace": "elsewhere"})
    flannel.cluster["disruption_budgets"].append(budget(0, 0))
    assert refusals(flannel) == []
    flannel.cluster["disruption_budgets"] = [budget(3, 3, selector) for selector in concerned]
    assert [gate for gate, _ in refusals(flannel)] == ["budgets"] * len(concerned)
    for pod in flannel.cluster["pods"]:
        pod["host_network"] = True
    assert refusals(flannel) == []


def test_calicos_images_need_no_room_where_it_runs(both: Captured) -> None:
    full_disk(both)
    assert only(both, "disk")
    both.run_calico()
    assert refusals(both) == []


# --- the network between the nodes ------------------------------------------------------------------------------------


def lost(*kinds: str) -> Callable[[dict[str, Any]], None]:
    """These kinds get lost on their way from agent0 to agent1, and nowhere else."""

    def change(reports: dict[str, Any]) -> None:
        for kind in kinds:
            reports["agent1"]["heard"]["agent0"]["kinds"][kind] = {"arrived": 0, "accepted": 0}

    return change


def dropped(kind: str, rule: dict[str, Any]) -> Callable[[dict[str, Any]], None]:
    """agent1's own firewall drops this kind, from everybody, by this rule."""

    def change(reports: dict[str, Any]) -> None:
        for heard in reports["agent1"]["heard"].values():
            heard["kinds"][kind]["accepted"] = 0
        reports["agent1"]["moved"].append(rule)

    return change


def rule(table: str, chain: str, backend: str = "nft") -> dict[str, Any]:
    return {"backend": backend, "table": table, "chain": chain, "index": 3, "spec": "-j DROP", "packets": 20}


def test_ipip_that_is_lost_is_named_with_what_passes(flannel: Captured) -> None:
    flannel.measure(lost("ipip"))
    message = only(flannel, "underlay")
    assert message.startswith("IP protocol 4 packets do not pass. agent0>agent1: 0 of 5 IP protocol 4 packets arrived")
    assert message.endswith("Choose backend vxlan: VXLAN on UDP 4789 (Calico) passes, with MTU 1400.")
    assert refusals(flannel, replace(CALICO, backend="vxlan")) == []


def test_what_a_node_may_have_missed_is_not_taken_for_lost(flannel: Captured) -> None:
    def began_late(reports: dict[str, Any]) -> None:
        heard = reports["agent1"]["heard"]["agent0"]
        lost(*heard["kinds"])(reports)
        heard.update(sizes={}, rounds=[])
        reports["agent1"]["listened"] = [100.95, 101.7]

    flannel.measure(began_late)
    said = dict(refusals(flannel))
    assert said["underlay"].startswith("Whether IP protocol 4 packets pass is not known. agent0>agent1: 0 of 5")
    assert said["underlay"].endswith("Measure again.")
    assert overlays.is_unknown(flannel.underlay)


def test_calicos_vxlan_that_is_lost_is_named_with_what_passes(flannel: Captured) -> None:
    flannel.measure(lost("udp-4789"))
    message = only(flannel, "underlay", replace(CALICO, backend="vxlan"))
    assert message.startswith("UDP 4789 packets do not pass. agent0>agent1: 0 of 5")
    assert message.endswith("Choose backend felix: IPIP passes, with MTU 1430.")
    assert refusals(flannel) == []


def test_without_either_another_overlay_is_named_or_host_network(flannel: Captured) -> None:
    flannel.measure(lost("ipip", "udp-4789", "udp-8472"))
    assert only(flannel, "underlay").endswith("Another overlay passes: WireGuard (MTU 1390).")
    flannel.measure(lost("ipip", "udp-4789", "udp-8472", "udp-51820"))
    message = only(flannel, "underlay")
    assert message.endswith("keep the applications up on the nodes' own network with host_network.")


def test_bgp_is_needed_for_bird_alone(flannel: Captured) -> None:
    flannel.measure(lost("tcp-179"))
    message = only(flannel, "underlay", replace(CALICO, backend="bird"))
    assert message.startswith("TCP 179 packets do not pass.")
    assert message.endswith("Choose backend felix: IPIP passes, with MTU 1430.")
    assert refusals(flannel) == []


def test_what_ufw_drops_felix_is_going_to_accept(flannel: Captured) -> None:
    flannel.measure(dropped("ipip", rule("filter", "ufw-before-input")))
    assert refusals(flannel) == []
    assert "agent1's own firewall drops IP protocol 4 packets now; Felix is going to accept them before it." in notes(
        flannel.nodes, flannel.cluster, flannel.underlay, CALICO
    )


@pytest.mark.parametrize("where", [("raw", "PREROUTING", "nft"), ("filter", "INPUT", "legacy")])
def test_what_felix_does_not_accept_has_to_go(flannel: Captured, where: tuple[str, str, str]) -> None:
    flannel.measure(dropped("ipip", rule(*where)))
    message = only(flannel, "underlay")
    assert f"{where[2]} {where[0]} {where[1]} rule 3: -j DROP" in message
    assert "Take away the rules that drop them" in message


def test_where_felix_runs_already_it_would_have_accepted(both: Captured) -> None:
    both.measure(dropped("ipip", rule("filter", "ufw-before-input")))
    assert refusals(both) == []
    both.run_calico()
    assert "nft filter ufw-before-input rule 3" in only(both, "underlay")


def test_bgp_that_ufw_drops_felix_does_not_accept(flannel: Captured) -> None:
    flannel.measure(dropped("tcp-179", rule("filter", "ufw-before-input")))
    assert "Take away the rules" in only(flannel, "underlay", replace(CALICO, backend="bird"))


def test_many_pairs_are_told_by_a_few(flannel: Captured) -> None:
    def nothing(reports: dict[str, Any]) -> None:
        for report in reports.values():
            for heard in report["heard"].values():
                heard["kinds"]["ipip"] = {"arrived": 0, "accepted": 0}

    flannel.measure(nothing)
    message = only(flannel, "underlay")
    assert message.count("0 of 5") == 3
    assert "3 more pairs are like that." in message


def test_a_network_that_was_not_measured(flannel: Captured) -> None:
    flannel.underlay = None
    assert only(flannel, "measured").startswith("The network between the nodes was not measured")


def test_a_node_that_could_not_take_part(flannel: Captured) -> None:
    flannel.measure(lambda reports: reports["agent1"].update(listened=[0.0, 0.0], errors=["no packet socket"]))
    found = [message for gate, message in refusals(flannel) if gate == "measured"]
    assert [message.partition(":")[0] for message in found] == ["Nothing was measured of agent1 (no packet socket)"]


def test_a_pair_that_was_not_measured(flannel: Captured) -> None:
    del flannel.underlay["pairs"]["agent0>agent1"]
    assert only(flannel, "measured") == "agent0>agent1 was not measured: measure again."


def test_a_node_alone_has_nothing_to_measure(flannel: Captured) -> None:
    for name in ("agent0", "agent1"):
        del flannel.nodes[name]
    flannel.cluster["nodes"] = [flannel.member("server0")]
    flannel.underlay = None
    assert refusals(flannel) == []


def test_an_mtu_that_is_not_known_can_be_given(flannel: Captured) -> None:
    flannel.measure(lambda reports: reports["agent1"]["heard"]["agent0"]["sizes"].clear())
    assert only(flannel, "mtu").startswith("The MTU that passes is not known between agent0>agent1")
    assert refusals(flannel, replace(CALICO, mtu=1400)) == []


def test_a_network_that_is_too_narrow(flannel: Captured) -> None:
    def narrow(reports: dict[str, Any]) -> None:
        reports["agent1"]["heard"]["agent0"]["sizes"] = {"1290": 2}
        reports["agent0"]["to"]["agent1"]["sizes"] = {"1450": 2, "1290": 2}

    flannel.measure(narrow)
    assert only(flannel, "mtu").startswith("Pods would have an MTU of 1270, and 1280 is the least")


def test_tunnels_are_to_end_where_it_was_measured(flannel: Captured) -> None:
    private = replace(CALICO, private_cidr="10.0.0.0/16")
    assert refusals(flannel, private) == []
    interface = next(each for each in flannel.nodes["agent1"]["interfaces"] if each["name"] == "vec0")
    interface["addresses"].append("10.0.7.7/32")
    assert only(flannel, "addresses", private).startswith(
        "agent1 has 10.0.0.111, 10.0.7.7 in 10.0.0.0/16, and its InternalIP is 10.0.0.111"
    )
    assert len(refusals(flannel, replace(CALICO, private_cidr="192.168.0.0/16"))) == 3


# --- what is handed on ------------------------------------------------------------------------------------------------


def test_what_the_manifest_is_patched_with(flannel: Captured) -> None:
    assert options(CALICO, flannel.cluster, flannel.underlay) == Options(pool="10.42.128.0/17", mtu=1430)
    wanted = Wanted("v3.31.7", "vxlan", pool="10.42.192.0/18", block_size=25, mtu=1350, private_cidr="10.0.0.0/16")
    assert options(wanted, flannel.cluster, flannel.underlay) == Options(
        pool="10.42.192.0/18", backend="vxlan", block_size=25, autodetection="cidr=10.0.0.0/16", mtu=1350
    )


@pytest.mark.parametrize(
    ("cluster_cidr", "upper"), [("10.42.0.0/16", "10.42.128.0/17"), ("10.233.0.0/18", "10.233.32.0/19")]
)
def test_the_pool_is_the_upper_half(flannel: Captured, cluster_cidr: str, upper: str) -> None:
    flannel.cluster["cluster_cidr"] = cluster_cidr
    assert pool(CALICO, flannel.cluster) == upper


# --- the way back -----------------------------------------------------------------------------------------------------


refusals_back = partial(refusals, ask=gates_back)
only_back = partial(only, ask=gates_back)


@pytest.mark.parametrize("state", STATES)
def test_from_every_captured_cluster_there_is_a_way_back(captured: Callable[[str], Captured], state: str) -> None:
    cluster = captured(state)
    if state.startswith("swapped"):
        cluster.own_drop_in()
    assert refusals_back(cluster) == []


def test_a_swap_may_be_taken_back_from_its_midst(both: Captured) -> None:
    three_servers(both)
    both.drop_in("server0")
    both.flip("server0")
    assert refusals_back(both) == []
    both.drop_in("server1", changed=STARTED + 1)
    assert refusals_back(both) == []
    canary_with(both, "calico")
    assert refusals_back(both) == []


def test_a_way_back_that_was_interrupted_may_go_on(swapped: Captured) -> None:
    three_servers(swapped)
    swapped.take_drop_in("server0")
    assert refusals_back(swapped) == []
    assert {gate for gate, _ in refusals(swapped)} >= {"direction"}
    swapped.go_back("server0")
    assert refusals_back(swapped) == []
    swapped.go_back("server1", "server2", "agent0", "agent1")
    assert refusals_back(swapped) == []
    swapped.move_pods_back()
    assert refusals_back(swapped) == []
    swapped.end_calico()
    assert refusals_back(swapped) == []


def other_files_none(cluster: Captured) -> None:
    cluster.configure("server0", "/etc/rancher/k3s/config.yaml", flannel_backend="none")


def none_in_the_unit(cluster: Captured) -> None:
    cluster.configure("server0", "ExecStart", flannel_backend="none")


def no_podcidr(cluster: Captured) -> None:
    cluster.member("agent1")["pod_cidr"] = ""


def pool_of_all_pods(cluster: Captured) -> None:
    cluster.cluster["calico"]["ippools"][0]["cidr"] = "10.42.0.0/16"


def pool_outside(cluster: Captured) -> None:
    cluster.cluster["calico"]["ippools"][0]["cidr"] = "10.233.0.0/16"


VIOLATIONS_BACK: list[tuple[Change, str, str]] = [
    (old_k3s, "versions", "agent1 runs K3s v1.30.14+k3s1: upgrade it to v1.31 or newer first."),
    (node_not_ready, "nodes", "agent1 is not Ready (NodeStatusUnknown): mend it"),
    (node_without_facts, "nodes", "agent1 could not be asked for its facts: make it reachable by SSH"),
    (two_members, "etcd", "etcd has 2 voting members, 2 on Ready nodes (server0, server1)"),
    (one_that_does_not_vote, "etcd", "etcd has 2 voting members, 2 on Ready nodes (server0, server1)"),
    (etcd_unwell, "etcd", "The API says of etcd: failed; mend etcd first."),
    (servers_that_disagree, "servers", "The servers disagree on cluster-domain (server0 has cluster.local"),
    (foreign_device, "foreign", "agent1: the device cilium_host is of another network of pods"),
    (other_calico, "calico", "Calico v3.31.7 runs, and v3.32.1 is wanted: ask for the one that runs."),
    (operators_calico, "calico", "Calico runs in calico-system, and not by its own manifest"),
    (no_podcidr, "podcidrs", "agent1 has no podCIDR, from which Flannel would give addresses"),
    (pool_of_all_pods, "podcidrs", "Calico's pool netmend-ipip (10.42.0.0/16) overlaps the podCIDR of "),
    (pool_outside, "podcidrs", "Calico's pool netmend-ipip (10.233.0.0/16) is not inside cluster-cidr"),
    (other_files_none, "overridden", "server0: flannel-backend is none in /etc/rancher/k3s/config.yaml, and not by"),
    (none_in_the_unit, "overridden", "server0: flannel-backend is none in k3s.service, and not by 90-netmend-cni.yaml"),
    (budget_of_all_replicas, "budgets", "The PodDisruptionBudget default/web wants 3 of 3 pods healthy"),
    (lambda cluster: cluster.measure(lost("udp-8472")), "flannel", "UDP 8472 packets do not pass. agent0>agent1: 0 of"),
]


@pytest.mark.parametrize(
    ("change", "gate", "said"),
    VIOLATIONS_BACK,
    ids=[f"{gate}-{index}" for index, (_, gate, _) in enumerate(VIOLATIONS_BACK)],
)
def test_a_gate_back_that_is_violated_alone(swapped: Captured, change: Change, gate: str, said: str) -> None:
    change(swapped)
    message = only_back(swapped, gate)
    assert message.startswith(said)
    assert message.endswith(".")


def test_every_gate_back_is_violated() -> None:
    assert {gate for _, gate, _ in VIOLATIONS_BACK} == set(GATES_BACK)


def test_budgets_hold_for_those_that_are_replaced_on_the_way_back(swapped: Captured) -> None:
    budget_of_all_replicas(swapped)
    assert only_back(swapped, "budgets")
    swapped.go_back(*NODES)
    swapped.move_pods_back()
    assert refusals_back(swapped) == []


def test_who_insists_goes_back_to_what_was_not_seen_to_pass(swapped: Captured) -> None:
    insisted = replace(CALICO, insist=True)
    swapped.measure(lost("udp-8472"))
    assert only_back(swapped, "flannel").endswith("Let them pass first, or set insist where you know that they will.")
    assert refusals_back(swapped, insisted) == []
    said = notes_back(swapped.nodes, swapped.cluster, swapped.underlay, insisted)
    assert any("although: UDP 8472 packets do not pass." in note for note in said)
    swapped.underlay = None
    assert only_back(swapped, "flannel").startswith("The network between the nodes was not measured")
    assert refusals_back(swapped, insisted) == []


def test_flannel_passes_where_its_backends_packets_do(flannel: Captured) -> None:
    def passes() -> bool:
        return flannel_passes(flannel.nodes, flannel.cluster, flannel.underlay)

    assert passes()
    flannel.measure(lost("ipip"))
    assert passes()
    flannel.measure(lost("udp-8472"))
    assert not passes()
    flannel.configure("server0", flannel_backend="wireguard-native")
    assert passes()
    flannel.underlay = None
    assert not passes()


def test_what_a_nodes_own_firewall_drops_flannel_does_not_accept(swapped: Captured) -> None:
    swapped.measure(dropped("udp-8472", rule("filter", "ufw-before-input")))
    assert "nft filter ufw-before-input rule 3" in only_back(swapped, "flannel")


def test_what_has_to_pass_is_what_flannel_is_going_to_use(swapped: Captured) -> None:
    wireguard, routed = replace(CALICO, flannel="wireguard-native"), replace(CALICO, flannel="host-gw")
    swapped.measure(lost("udp-8472"))
    assert refusals_back(swapped, wireguard) == []
    swapped.measure(lost("udp-51820"))
    assert only_back(swapped, "flannel", wireguard).startswith("UDP 51820 packets do not pass.")
    # Between the captured nodes there is a router, which knows nothing of pods.
    assert "3 more pairs are like that." in only_back(swapped, "flannel", routed)


def test_a_server_that_is_back_tells_which_backend_that_is(swapped: Captured) -> None:
    swapped.go_back("server0")
    swapped.configure("server0", "/etc/rancher/k3s/config.yaml", flannel_backend="wireguard-native")
    swapped.measure(lost("udp-8472"))
    assert refusals_back(swapped) == []
    swapped.configure("server0", "/etc/rancher/k3s/config.yaml", flannel_backend="ipsec")
    assert only_back(swapped, "flannel").startswith("flannel-backend is ipsec, and vxlan, wireguard-native")


def test_one_server_alone_is_a_note_on_the_way_back_too(swapped: Captured) -> None:
    (note,) = notes_back(swapped.nodes, swapped.cluster, swapped.underlay, CALICO)
    assert note.startswith("server0 is the only server: the API is away while it restarts")
