"""What mends Calico's faults: the smallest change, only where it is known to help, and never against its operator."""

from __future__ import annotations

import pytest
from ansible.module_utils.netmend.diagnose import diagnose

NODES = ("server0", "agent0", "agent1")
PUBLIC = {"server0": "203.0.113.100", "agent0": "203.0.113.110", "agent1": "203.0.113.111"}
ALL_PAIRS = [(here, there) for here in NODES for there in NODES if here != there]
RIGHT_METHOD = "kubernetes-internal-ip"


@pytest.fixture
def swapped(calico):
    """On Calico alone, as its manifests bring it, with calico-node's pods and flannel-backend none."""
    calico.run_calico(backend="none", felix="Enabled")
    for node in NODES:
        calico.pods.append(
            {**calico.pods[0], "namespace": "kube-system", "name": f"calico-node-{node}", "uid": f"agent-{node}",
             "node": node, "ip": calico.member(node)["internal_ip"], "host_network": True,
             "owner": "DaemonSet/calico-node", "meant_for": node}
        )  # fmt: skip
    return calico


def remedy(bench, fault, place=0):
    found = diagnose(bench.run)
    assert found[place]["fault"] == fault, [each["fault"] for each in found]
    return found[place]["remedy"]


def settings(found):
    """What role calico_settings is given, by the last word of the variable's name."""
    assert (found["role"], found["nodes"]) == ("calico_settings", ["server0"])
    return {name.rpartition("_")[2]: value for name, value in found["vars"].items()}


# --- a node that does not exist any more ---


def stale(bench, version):
    gone = dict(bench.members[1], name="gone", internal_ip="10.0.0.119", ready=False, reason="?", version=version)
    gone["annotations"] = {"projectcalico.org/IPv4Address": "10.0.0.119/32"}
    bench.members.append(gone)
    waiting = {**bench.pods[0], "name": "web-waits", "uid": "waits", "node": "", "ip": "", "meant_for": "gone"}
    bench.pods.append({**waiting, "ready": False, "phase": "Pending"})
    bench.plan()
    bench.fail(lambda probe: probe.get("target_node") == "gone")


def test_a_node_that_no_kubelet_ever_was_on_is_deleted_with_what_waits_for_it(swapped):
    stale(swapped, version="")
    asked = settings(remedy(swapped, "calico-stale-node"))
    named = [(each["kind"], each["metadata"]["name"]) for each in asked["absent"]]
    assert named == [("Node", "gone"), ("Pod", "web-waits")]


def test_a_machine_that_may_come_back_stays_until_it_is_named_as_gone(swapped):
    stale(swapped, version="v1.36.3+k3s1")
    found = remedy(swapped, "calico-stale-node")
    assert (found["role"], found["command"]) == ("", "kubectl delete node gone")
    assert "netmend_gone_nodes" in found["text"]
    swapped.run["gone_nodes"] = ["gone"]
    assert settings(remedy(swapped, "calico-stale-node"))["absent"]


# --- addresses ---


def test_the_method_is_changed_where_it_leads_elsewhere(swapped, measured):
    swapped.address(**PUBLIC)
    swapped.run["cluster"]["calico"]["node"]["autodetection"] = "first-found"
    measured(swapped)
    found = remedy(swapped, "calico-wrong-address")
    (patch,) = settings(found)["patches"]
    (container,) = patch["spec"]["template"]["spec"]["containers"]
    assert container == {"name": "calico-node", "env": [{"name": "IP_AUTODETECTION_METHOD", "value": RIGHT_METHOD}]}
    assert f"IP_AUTODETECTION_METHOD={RIGHT_METHOD}" in found["command"]


@pytest.mark.parametrize("method", [RIGHT_METHOD, "cidr=10.0.0.0/16", "cidr=192.168.0.0/16, 10.0.0.0/16"])
def test_where_the_method_is_right_that_nodes_agent_looks_again(swapped, measured, method):
    swapped.address(agent1=PUBLIC["agent1"])
    swapped.run["cluster"]["calico"]["node"]["autodetection"] = method
    swapped.fail(swapped.crosses("agent1"))
    measured(swapped)
    asked = settings(remedy(swapped, "calico-wrong-address"))
    assert [each["metadata"]["name"] for each in asked["absent"]] == ["calico-node-agent1"]
    assert "patches" not in asked


def test_a_method_that_leads_to_both_is_no_right_one(swapped, measured):
    swapped.address(agent1=PUBLIC["agent1"])
    swapped.run["cluster"]["calico"]["node"]["autodetection"] = "cidr=10.0.0.0/16,203.0.113.0/24"
    swapped.fail(swapped.crosses("agent1"))
    measured(swapped)
    assert set(settings(remedy(swapped, "calico-wrong-address"))) == {"patches"}


def test_addresses_stay_where_the_tunnel_is_not_known_to_pass_between_the_others(swapped, measured):
    swapped.address(**PUBLIC)
    assert remedy(swapped, "calico-wrong-address")["role"] == ""
    measured(swapped, lost=[("server0", "agent0", "ipip")])
    assert remedy(swapped, "calico-wrong-address")["role"] == ""
    # Felix lets in what comes from the addresses that it knows.
    measured(swapped, host=[("server0", "agent0", "ipip")])
    assert remedy(swapped, "calico-wrong-address")["role"] == "calico_settings"


def test_what_calicos_operator_keeps_is_left_to_it(swapped, measured):
    swapped.address(**PUBLIC)
    swapped.run["cluster"]["calico"]["node"]["namespace"] = "calico-system"
    measured(swapped)
    found = remedy(swapped, "calico-wrong-address")
    assert (found["role"], found.get("pods", {})) == ("", {})
    assert "kubectl -n calico-system" in found["command"]


# --- another encapsulation ---


def say_mtu(bench, mtu):
    """In the configuration of Calico's plugin; 0: Felix finds it."""
    for node in NODES:
        for network in bench.node(node)["cni"]["networks"].values():
            network["plugins"][0]["mtu"] = mtu


def dropped(bench, measured, *kinds, pairs=ALL_PAIRS):
    bench.fail(bench.crosses(*NODES))
    measured(bench, lost=[(*pair, kind) for pair in pairs for kind in kinds])


def test_where_ipip_passes_nowhere_and_vxlan_everywhere_pools_change(swapped, measured):
    say_mtu(swapped, 0)
    dropped(swapped, measured, "ipip")
    (patch,) = settings(remedy(swapped, "ipip-dropped-by-fabric"))["patches"]
    assert patch["spec"] == {"ipipMode": "Never", "vxlanMode": "Always"}
    assert patch["kind"] == "IPPool"


def test_an_mtu_that_calico_was_told_gives_way_to_vxlans(swapped, measured):
    say_mtu(swapped, 1430)
    dropped(swapped, measured, "ipip")
    config, started, pool = settings(remedy(swapped, "ipip-dropped-by-fabric"))["patches"]
    assert config["data"] == {"veth_mtu": "1400"}
    assert "restartedAt" in str(started)
    assert pool["kind"] == "IPPool"


@pytest.mark.parametrize(
    ("kinds", "pairs"), [(("ipip", "udp-4789"), ALL_PAIRS), (("ipip",), ALL_PAIRS[:2])], ids=["neither", "some pairs"]
)
def test_otherwise_it_is_left(swapped, measured, kinds, pairs):
    dropped(swapped, measured, *kinds, pairs=pairs)
    assert remedy(swapped, "ipip-dropped-by-fabric")["role"] == ""


# --- pools ---


def test_a_pool_outside_gives_way_to_one_inside_and_its_pods_are_made_anew(swapped):
    pool = swapped.run["cluster"]["calico"]["ippools"][0]
    swapped.run["cluster"]["cluster_cidr"] = "10.99.0.0/16"
    found = remedy(swapped, "pool-outside-cluster-cidr")
    asked = settings(found)
    assert [(each["metadata"]["name"], each["spec"]) for each in asked["patches"]] == [
        (pool["name"], {"disabled": True})
    ]
    (made,) = asked["objects"]
    assert made["spec"] == {key: pool[key] for key in pool if key not in ("name", "cidr")} | {"cidr": "10.99.128.0/17"}
    web = {pod["uid"] for pod in swapped.pods if not pod["host_network"]}
    assert set(found["pods"]) == web


def test_one_that_is_there_will_do(swapped):
    swapped.run["cluster"]["calico"]["ippools"].append({"name": "outside", "cidr": "192.168.0.0/16"})
    found = remedy(swapped, "pool-outside-cluster-cidr")
    assert set(settings(found)) == {"patches"}
    assert found["pods"] == {}


def test_without_room_for_another_one_it_is_left(swapped):
    swapped.run["cluster"]["cluster_cidr"] = "10.99.0.0/25"
    swapped.run["cluster"]["calico"]["ippools"][0]["blockSize"] = 24
    assert remedy(swapped, "pool-outside-cluster-cidr")["role"] == ""


# --- MTU ---


def told(bench, mtu):
    """Calico was told this MTU, and has it in its tunnels and in one node's pod."""
    say_mtu(bench, mtu)
    for node in NODES:
        for interface in bench.node(node)["interfaces"]:
            if interface["name"] == "tunl0" or (node == "agent1" and interface["name"].startswith("cali")):
                interface["mtu"] = mtu


def test_an_mtu_that_is_too_high_is_lowered_and_the_pods_that_have_it_are_made_anew(swapped):
    told(swapped, 1480)
    found = remedy(swapped, "pod-mtu-too-high")
    config, started = settings(found)["patches"]
    assert (config["kind"], config["data"]) == ("ConfigMap", {"veth_mtu": "1430"})
    assert started["spec"]["template"]["metadata"]["annotations"] == {
        "kubectl.kubernetes.io/restartedAt": "2026-11-21T08:33:41+00:00"
    }
    assert set(found["pods"]) == {
        pod["uid"] for pod in swapped.pods if (pod["node"], pod["host_network"]) == ("agent1", False)
    }


def test_where_only_old_pods_have_it_calico_is_left(swapped):
    told(swapped, 1480)
    for node in NODES:
        for interface in swapped.node(node)["interfaces"]:
            if interface["name"] == "tunl0":
                interface["mtu"] = 1430
    say_mtu(swapped, 0)
    swapped.fail(
        lambda probe: (probe["row"], probe["protocol"], probe["source_node"]) == ("pod-pod", "mtu", "agent1"), mtu=1400
    )
    found = remedy(swapped, "pod-mtu-too-high")
    assert (found["vars"], len(found["pods"])) == ({}, 1)


# --- another network's configuration, or what it left ---


def without_flannel(bench):
    bench.node("server0")["k3s"]["config"].update({"flannel-backend": "none", "disable-network-policy": True})


def test_pods_that_began_on_flannel_are_made_anew_once_k3s_is_restarted(swapped):
    without_flannel(swapped)
    swapped.node("agent1")["cni"].update(conf_dir="/var/lib/rancher/k3s/agent/etc/cni/net.d")
    swapped.node("agent1")["cni"]["networks"] = {"10-flannel.conflist": {"plugins": [{"type": "flannel"}]}}
    (pod,) = [pod for pod in swapped.pods if (pod["node"], pod["host_network"]) == ("agent1", False)]
    pod["ip"] = "10.42.1.9"
    found = remedy(swapped, "cni-config-not-read")
    assert (found["role"], found["vars"]) == ("k3s_restart", {"k3s_restart_flannel": False})
    assert list(found["pods"]) == [pod["uid"]]


def test_where_several_nodes_are_to_be_restarted_it_is_a_swap_and_left_to_that(captured):
    bench = captured("both-overlays")
    without_flannel(bench)
    bench.node("server0")["cni"]["conf_dir"] = "/etc/cni/net.d"
    found = remedy(bench, "cni-config-not-read")
    assert (found["role"], found["pods"]) == ("", {})


@pytest.mark.parametrize(("kind", "role"), [("bridge", "cni_leftovers"), ("multus", ""), ("cilium-cni", "")])
def test_only_a_file_that_nobody_can_mean_is_set_aside(swapped, kind, role):
    networks = swapped.node("agent1")["cni"]["networks"]
    swapped.node("agent1")["cni"]["networks"] = {"05-other.conf": {"name": "site", "type": kind}, **networks}
    found = remedy(swapped, "cni-config-not-read")
    assert (found["role"], found["vars"]) == (role, {"cni_leftovers_files": ["/etc/cni/net.d/05-other.conf"]})


def test_a_policy_controllers_rules_go_only_where_calico_holds_to_policies(captured):
    for state, role in (("flannel", ""), ("swapped-leftovers", "cni_leftovers")):
        bench = captured(state)
        without_flannel(bench)
        pod = next(pod for pod in bench.pods if pod["node"] == "agent1")
        bench.insert("agent1", "KUBE-ROUTER-FORWARD", f"-d {pod['ip']}/32 -j REJECT")
        bench.insert("agent1", "FORWARD", "-j KUBE-ROUTER-FORWARD")
        found = remedy(bench, "stale-network-policy")
        assert (found["role"], found["vars"]) == (role, {"cni_leftovers_of": ["policy"]})


def test_flannels_leftovers_stay_where_pods_have_its_addresses(captured):
    bench = captured("swapped-leftovers")
    left = next(route for route in bench.node("agent0")["routes"] if route["device"] == "flannel.1")
    (pod,) = [pod for pod in bench.pods if pod["node"] == "agent1"]
    bench.node("agent0")["routes"].append({**left, "destination": pod["ip"]})
    bench.fail(bench.between("agent0", "agent1"))
    assert remedy(bench, "flannel-leftovers")["role"] == "cni_leftovers"
    old = {**pod, "name": "old", "uid": "old", "node": "server0", "ip": "10.42.1.9"}  # reached from agent0 all the same
    bench.pods.append({**old, "phase": "Succeeded"})
    assert remedy(bench, "flannel-leftovers")["role"] == "cni_leftovers"
    bench.pods[-1] = old
    assert remedy(bench, "flannel-leftovers")["role"] == ""


# --- servers ---


def three_servers(bench, **odd):
    for node in NODES:
        config = {**bench.node("server0")["k3s"]["config"], "flannel-backend": "none", "disable-network-policy": True}
        bench.node(node)["k3s"].update(role="server", config=config)
    bench.node("agent1")["k3s"]["config"].update({"flannel-backend": "vxlan", "disable-network-policy": False})
    bench.node("agent1")["k3s"]["sources"].update({key.replace("_", "-"): value for key, value in odd.items()})


def test_a_server_that_would_start_flannel_is_told_what_the_others_are(swapped):
    three_servers(swapped)
    swapped.node("agent1")["k3s"]["sources"] = {}
    found = remedy(swapped, "servers-disagree")
    assert (found["role"], found["nodes"]) == ("k3s_restart", ["agent1"])
    (content,) = found["vars"]["k3s_restart_files"].values()
    assert content == 'flannel-backend: "none"\ndisable-network-policy: true\n'


@pytest.mark.parametrize(
    "source", ["ExecStart", "/etc/rancher/k3s/config.yaml.d/95-later.yaml"], ids=["a flag", "a later file"]
)
def test_what_would_win_over_it_is_left_to_the_operators(swapped, source):
    three_servers(swapped, flannel_backend=source)
    assert remedy(swapped, "servers-disagree")["role"] == ""


def test_servers_on_flannel_are_left_to_the_operators(flannel):
    three_servers(flannel)
    assert remedy(flannel, "servers-disagree")["role"] == ""
