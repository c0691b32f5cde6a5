"""The edge: what is odd and well there, what looks alike, and what fails before what is broken behind it."""

from __future__ import annotations

import copy

import pytest
from ansible.module_utils.netmend.diagnose import diagnose

from .conftest import is_about
from .test_faults import external_traffic_policy_local, host_port_conflict


@pytest.fixture
def edge(flannel):
    flannel.with_edge()
    return flannel


def named(bench):
    return [finding["fault"] for finding in diagnose(bench.run)]


def fails_itself(edge, name):
    edge.fail_rows(name, "edge-pod", "edge-self", outcome="http", status=500, detail="status 500", rtt_ms=9.0)
    edge.fail_sites(name, 500)


# --- healthy, however odd ---


def as_it_is(bench):
    pass


def an_application_without_an_answer_at_its_root(bench):
    """Without a readinessProbe nobody knows a path that it has."""
    for pod in bench.pods_of("keybuzz-front"):
        pod["readiness"] = {}
    bench.plan()
    bench.fail(
        lambda probe: is_about(probe, "keybuzz-front") and probe.get("path"), "ok", status=404, detail="status 404"
    )


def an_ingress_without_a_class_that_is_served(bench):
    bench.run["cluster"]["ingresses"][1]["class"] = ""
    bench.plan()


def a_class_whose_application_says_404_itself(bench):
    an_ingress_without_a_class_that_is_served(bench)
    an_application_without_an_answer_at_its_root(bench)


def a_default_certificate_for_all_hosts(bench):
    bench.run["cluster"]["secrets"]["keybuzz/keybuzz-api-tls"] = ""
    shown = {"subject": "", "issuer": "R11", "names": ["*.keybuzz.io"], "not_after": 2e9}
    bench.fail(lambda probe: probe["protocol"] == "https", "ok", certificate=shown)


def a_local_service_whose_balancer_checks_tell_where_it_is(bench):
    service = bench.application("ingress-nginx-controller")
    service.update(external_traffic_policy="Local", health_check_node_port=32111)
    service["endpoints"][:] = [end for end in service["endpoints"] if end["node"] != "agent1"]
    for balancer in bench.run["balancers"]:
        balancer["targets"] = copy.deepcopy(balancer["targets"])
        balancer["targets"][1]["status"] = {"80": "unhealthy", "443": "unhealthy"}
    bench.plan()


def a_firewall_that_lets_the_balancers_in(bench):
    for node in ("agent0", "agent1"):
        bench.enable_ufw(node)
        bench.drop_by_policy(node, "INPUT")
        bench.insert(node, "INPUT", "-s 10.0.0.0/24 -p tcp -m multiport --dports 80,443 -j ACCEPT")


def hairpin_off_where_no_pod_asks_itself(bench):
    for interface in bench.node("agent1")["interfaces"]:
        interface["hairpin"] = False if interface["kind"] == "veth" else interface["hairpin"]


def a_pod_that_finds_no_memory(bench):
    message = "0/3 nodes are available: 3 Insufficient memory."
    bench.pod("agent1", "keybuzz", "big", {}, ports={"http": 80}).update(
        node="", ip="", ready=False, phase="Pending", unscheduled=message
    )


def a_policy_that_lets_the_nodes_in(bench):
    rule = {"from": [{"ipBlock": {"cidr": "10.0.0.0/16"}}]}
    bench.run["cluster"]["network_policies"].append(
        {"namespace": "keybuzz", "name": "x", "pod_selector": {}, "types": ["Ingress"], "ingress": [rule], "egress": []}
    )
    bench.plan()


def nodes_that_do_not_reach_the_internet(bench):
    bench.fail(lambda probe: probe["row"] == "edge-outside", "timeout")


def a_pod_that_is_not_ready_beside_one_that_is(bench):
    pod = bench.pods_of("keybuzz-api")[0]
    pod.update(ready=False, reason="ContainersNotReady")
    bench.application("keybuzz-api")["endpoints"][0]["ready"] = False
    bench.plan()
    bench.fail(lambda probe: probe["row"] == "edge-self" and probe.get("expect") == "any", "refused")


@pytest.mark.parametrize(
    "oddity",
    [
        as_it_is,
        an_application_without_an_answer_at_its_root,
        an_ingress_without_a_class_that_is_served,
        a_class_whose_application_says_404_itself,
        a_default_certificate_for_all_hosts,
        a_local_service_whose_balancer_checks_tell_where_it_is,
        a_firewall_that_lets_the_balancers_in,
        hairpin_off_where_no_pod_asks_itself,
        a_pod_that_finds_no_memory,
        a_policy_that_lets_the_nodes_in,
        nodes_that_do_not_reach_the_internet,
        a_pod_that_is_not_ready_beside_one_that_is,
    ],
)
def test_odd_but_healthy(edge, oddity):
    oddity(edge)
    assert named(edge) == []


# --- look-alikes ---


def test_what_a_broken_overlay_does_to_the_sites_is_said_with_it(edge):
    behind = edge.fail(edge.crosses("agent0"))
    before = edge.fail_sites("keybuzz-api", 504, 15)
    (finding,) = diagnose(edge.run)
    assert finding["fault"] == "vxlan-dropped-by-fabric"
    assert set(finding["explains"]) == {*behind, *before}
    assert any("status 504 after 15 s" in sentence and "lb1" in sentence for sentence in finding["evidence"])


def test_a_port_that_a_nodes_firewall_closes_accounts_for_what_balancers_get_that_send_there(edge):
    edge.insert("agent1", "INPUT", "-i vec0 -p tcp -m tcp --dport 80 -j DROP", packets=5)
    for balancer in edge.run["balancers"]:
        balancer["services"][0].update(destination_port=80)
    edge.plan()
    doors = edge.fail(
        lambda probe: probe["row"] == "edge-node" and (probe["target_node"], probe["port"]) == ("agent1", 80)
    )
    some = {"attempts": 30, "failed": 3, "status": 504, "detail": "3 of 30 attempts: status 504"}
    by_balancers = edge.fail(
        lambda probe: probe["row"] == "edge-balancer" and probe["protocol"] == "http", "http", **some
    )
    findings = diagnose(edge.run)
    assert {finding["fault"] for finding in findings} == {"port-dropped-by-host", "node-port-blocked-for-balancer"}
    assert set(doors + by_balancers) == {probe for finding in findings for probe in finding["explains"]}
    assert any("9 of 90 requests fail by lb1" in sentence for finding in findings for sentence in finding["evidence"])


def test_an_ingress_that_fails_for_no_known_reason_is_not_called_well(edge):
    edge.fail_sites("keybuzz-api", 502)
    (finding,) = diagnose(edge.run)
    assert (finding["fault"], finding["confidence"]) == ("unexplained", 1.0)


def test_a_block_that_no_policy_asks_for_is_not_put_on_one(edge):
    a_policy_that_lets_the_nodes_in(edge)
    edge.fail_rows("keybuzz-api", "edge-pod")
    assert "policy-denies-ingress" not in named(edge)


def test_an_application_that_fails_itself_is_told_from_the_network(edge):
    fails_itself(edge, "keybuzz-api")
    finding = diagnose(edge.run)[0]
    assert (finding["fault"], finding["remedy"]["role"]) == ("slow-application", "")
    assert "no change of the network" in finding["remedy"]["text"]


def test_a_pod_that_listens_on_its_loopback_alone_is_said_to(edge):
    pods = edge.pods_of("keybuzz-front")
    for facts in edge.run["nodes"].values():
        for process in facts["pods"]:
            if process["uid"] in [pod["uid"] for pod in pods]:
                process["listens"] = ["127.0.0.1:3000", "[::1]:3000"]
    edge.fail_rows("keybuzz-front", "edge-pod", "edge-self", "edge-service")
    edge.fail_sites("keybuzz-front", 502)
    (finding,) = diagnose(edge.run)
    assert finding["fault"] == "target-port-mismatch"
    assert "not on its loopback alone" in finding["remedy"]["text"]


def test_without_the_balancers_own_addresses_their_block_is_less_sure_and_no_role_runs(edge):
    edge.run["balancer_sources"] = []
    for node in ("agent0", "agent1"):
        edge.enable_ufw(node)
        edge.drop_by_policy(node, "INPUT")
        for source in ("10.0.0.0/16", "10.42.0.0/16"):
            edge.insert(node, "INPUT", f"-s {source} -j ACCEPT")
    edge.fail(lambda probe: probe["row"] == "edge-balancer", "http", status=503, detail="status 503")
    finding = diagnose(edge.run)[0]
    assert (finding["fault"], finding["remedy"]["role"]) == ("node-port-blocked-for-balancer", "")
    assert finding["confidence"] < 0.9
    assert "ufw_balancers" in finding["remedy"]["text"]


# --- who has the nodes' ports ---

CONTROLLER = "ingress-nginx/ingress-nginx-controller-agent1"


@pytest.fixture
def ports(edge):
    """servicelb has port 80 of an agent for Traefik, on a cluster whose one server disables neither."""
    host_port_conflict(edge)
    edge.node("server0")["k3s"]["config"]["disable"] = ["metrics-server"]
    return edge


def remedy(bench, *may_go):
    bench.run["k3s_disable"] = list(may_go)
    (finding,) = diagnose(bench.run)
    assert finding["fault"] == "host-port-conflict"
    return finding["remedy"]


@pytest.mark.parametrize("may_go", [("servicelb",), ("traefik",), ("servicelb", "traefik")])
def test_k3ss_own_gives_way_where_that_is_declared(ports, may_go):
    found = remedy(ports, *may_go)
    assert (found["role"], found["nodes"]) == ("k3s_disable", ["server0"])
    assert found["vars"] == {"k3s_disable_components": list(may_go), "k3s_disable_waiting": [CONTROLLER]}


def test_without_a_declaration_it_is_left_with_what_would_declare_it(ports):
    found = remedy(ports)
    assert found["role"] == ""
    assert "'disable+: [servicelb, traefik]'" in found["command"]
    assert "netmend_k3s_disable: [servicelb, traefik]" in found["text"]


def test_for_another_service_than_traefiks_servicelb_alone_gives_way(ports):
    ports.pods[-1]["labels"] = {"svccontroller.k3s.cattle.io/svcname": "mail"}
    assert remedy(ports, "traefik")["role"] == ""
    assert remedy(ports, "servicelb", "traefik")["vars"]["k3s_disable_components"] == ["servicelb"]


def test_a_pod_of_k3ss_that_waits_gives_way_itself(ports):
    waiting, holder = ports.run["cluster"]["pods"][-1], next(pod for pod in ports.pods if pod["unscheduled"])
    for key in ("labels", "namespace"):
        waiting[key], holder[key] = holder[key], waiting[key]
    assert remedy(ports, "servicelb")["role"] == "k3s_disable"


def test_nothing_of_k3ss_gives_way_while_another_has_the_port_as_well(ports):
    ports.pod("agent1", "shop", "proxy", {}, ports={"http": 80}, host_network=True)
    assert remedy(ports, "servicelb", "traefik")["text"].startswith("Let one of the two have the port")


def test_where_not_k3ss_own_has_the_port_there_is_nothing_to_disable(ports):
    ports.pods[-1]["labels"] = {}
    assert remedy(ports, "servicelb", "traefik")["text"].startswith("Let one of the two have the port")


def test_two_nodes_ports_are_one_finding_with_one_remedy(ports):
    first = next(pod for pod in ports.pods if pod["name"] == "ingress-nginx-controller-agent0")
    second = next(pod for pod in ports.pods if pod["unscheduled"])
    changed = ("node", "ip", "ready", "phase", "reason", "unscheduled")
    first.update({key: second[key] for key in changed}, meant_for="agent0")
    holder = copy.deepcopy(ports.pods[-1])
    ports.pods.append({**holder, "name": "svclb-traefik-y", "node": "agent0"})
    ports.run["k3s_disable"] = ["servicelb"]
    (finding,) = (each for each in diagnose(ports.run) if each["fault"] == "host-port-conflict")
    assert finding["where"] == ["agent0", "agent1"]
    assert finding["remedy"]["vars"]["k3s_disable_waiting"] == [f"{CONTROLLER[:-1]}0", CONTROLLER]


def test_all_servers_are_told(ports):
    ports.member("agent0")["role"] = "server"
    ports.node("agent0")["k3s"] = copy.deepcopy(ports.node("server0")["k3s"])
    ports.run["k3s_disable"] = ["servicelb"]
    (finding,) = (each for each in diagnose(ports.run) if each["fault"] == "host-port-conflict")
    assert (finding["remedy"]["role"], sorted(finding["remedy"]["nodes"])) == ("k3s_disable", ["agent0", "server0"])


def test_a_server_that_could_not_be_read_keeps_the_others_from_being_changed(ports):
    ports.node("server0")["errors"].append({"what": "k3s config", "message": "a tab"})
    found = remedy(ports, "servicelb")
    assert found["role"] == ""
    assert found["text"].endswith("and server0 could not be read.")


def test_what_is_disabled_already_is_not_disabled_again(ports):
    ports.node("server0")["k3s"].update(started=2.0, config={"disable": ["servicelb", "traefik"]})
    found = remedy(ports, "servicelb")
    assert found["role"] == ""
    assert found["text"].startswith("All servers do without servicelb already")


# --- the way out ---


def test_a_rule_that_lets_pods_past_the_masquerading_is_named_and_left(edge):
    edge.insert("agent1", "POSTROUTING", "-s 10.42.0.0/16 -d 203.0.113.0/24 -j RETURN", table="nat", packets=4)
    edge.fail(
        lambda probe: probe["row"] == "edge-outside" and probe["source_node"] == "agent1" and probe.get("source_pod")
    )
    (finding,) = diagnose(edge.run)
    assert (finding["fault"], finding["remedy"]["role"]) == ("egress-masquerade-missing", "")
    assert finding["remedy"]["command"].endswith("-D POSTROUTING -s 10.42.0.0/16 -d 203.0.113.0/24 -j RETURN")


def test_a_missing_endpoint_without_pods_is_no_matter_of_the_selector(edge):
    edge.application("keybuzz-front").update(selector={"app": "other"}, endpoints=[])
    edge.pods[:] = [pod for pod in edge.pods if pod not in edge.pods_of("keybuzz-front")]
    edge.plan()
    edge.fail_sites("keybuzz-front", 503)
    assert named(edge)[0] == "ingress-backend-missing"


# --- what balancers hide ---


def test_a_target_without_an_endpoint_is_seen_where_its_balancer_tries_the_next_one(edge):
    external_traffic_policy_local(edge)
    edge.fail(lambda probe: probe["row"] == "edge-balancer", "ok", attempts=10, failed=0, rtt_ms=5004.2)
    (finding,) = diagnose(edge.run)
    assert finding["fault"] == "external-traffic-policy-local"
    assert "lb1: of 3 probes none fails, and 3 had requests that were answered after 5 s" in finding["evidence"][0]


def test_a_balancer_whose_applications_take_their_time_is_well(edge):
    edge.fail(lambda probe: probe["row"] == "edge-balancer", "ok", rtt_ms=5004.2)
    assert named(edge) == []


# --- what the ingress controller says itself ---


def test_its_log_is_evidence_of_what_it_could_not_reach(edge):
    (said,) = edge.run["controllers"]["agent0"]
    address = said["endpoints"]["keybuzz-keybuzz-api-80"][0]
    silence = "upstream timed out (110: Operation timed out) while connecting to upstream"
    said["log"]["answers"]["keybuzz-keybuzz-api-80"] = {"200": 20, "504": 3}
    said["log"].update(tries={address: 32}, failures={address: {silence: 9}, "10.42.9.9:80": {silence: 1}})
    fails_itself(edge, "keybuzz-api")
    finding = diagnose(edge.run)[0]
    assert (
        "The ingress controller's own log of 5 minutes on agent0: 3 of 43 requests answered 3 with 504; "
        f'9 of 32 tries of {address} ended with "{silence}".'
    ) in finding["evidence"]


def test_a_log_without_an_error_is_no_evidence(edge):
    fails_itself(edge, "keybuzz-api")
    assert not any("own log" in sentence for finding in diagnose(edge.run) for sentence in finding["evidence"])


def stale(edge, endpoints):
    """The controller on agent1 sends requests for an application elsewhere than to its pods."""
    (said,) = edge.run["controllers"]["agent1"]
    said["endpoints"]["keybuzz-keybuzz-front-80"] = endpoints
    edge.fail(lambda probe: probe["row"] == "edge-node" and probe["target_node"] == "agent1"
              and is_about(probe, "keybuzz-front"), "http", status=503, detail="status 503", rtt_ms=3.0)  # fmt: skip
    return said


def test_a_controller_that_knows_of_no_endpoint_is_named_where_others_know_some(edge):
    stale(edge, [])
    finding = diagnose(edge.run)[0]
    assert (finding["fault"], finding["where"]) == ("ingress-endpoints-stale", ["agent1"])
    assert "sends requests for keybuzz/keybuzz-front to nothing and not to" in finding["evidence"][0]


def test_pods_that_were_made_anew_between_two_looks_are_no_stale_list(edge):
    said = stale(edge, ["10.42.1.66:3000"])
    assert "ingress-endpoints-stale" not in named(edge)
    said["log"] = None
    assert "ingress-endpoints-stale" not in named(edge)


def test_a_controller_whose_list_is_not_to_be_had_is_not_judged_by_it(edge):
    stale(edge, [])["endpoints"] = None
    assert "ingress-endpoints-stale" not in named(edge)


def test_an_ingress_that_wants_the_services_address_has_no_stale_list(edge):
    """nginx.ingress.kubernetes.io/service-upstream."""
    stale(edge, [f"{edge.application('keybuzz-front')['cluster_ip']}:80"])
    assert "ingress-endpoints-stale" not in named(edge)
