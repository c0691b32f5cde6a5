"""What there is of a cluster's edge, and who is asked about it."""

from __future__ import annotations

from typing import Any

import pytest
from ansible.module_utils.netmend.edge import PATIENCE, Edge, plan_controllers, plan_edge
from ansible.module_utils.netmend.model import CONTROLLER, Balancer, ClusterFacts, NodeFacts, Probe

NODES = {"server0": "10.0.0.100", "agent0": "10.0.0.110", "agent1": "10.0.0.111"}
LABELS = {"app.kubernetes.io/name": "ingress-nginx", "app.kubernetes.io/component": "controller"}
BALANCER: Balancer = {
    "name": "lb1", "address": "203.0.113.201", "private": True, "targets": [{"address": "10.0.0.110", "status": {}}],
    "services": [
        {
            "protocol": "tcp", "listen_port": 443, "destination_port": 32720, "proxy_protocol": True,
            "health": {"protocol": "http", "port": 31695, "path": "/healthz", "codes": [200]},
        }
    ],
}  # fmt: skip


def pod(name: str, node: str, ip: str, ports: dict[str, int], **more: Any) -> dict[str, Any]:
    return {
        "namespace": "shop", "name": name, "uid": f"uid-{name}", "node": node, "ip": ip, "host_network": False,
        "ready": True, "labels": {"app": "shop"}, "readiness": {},
        "ports": [{"name": key, "port": port, "protocol": "TCP", "hostPort": 0} for key, port in ports.items()], **more,
    }  # fmt: skip


def cluster(**more: Any) -> ClusterFacts:
    controllers = [
        pod(f"ingress-{node}", node, NODES[node], {"http": 80, "https": 443}, namespace="ingress-nginx", labels=LABELS,
            host_network=True)
        for node in ("agent0", "agent1")
    ]  # fmt: skip
    health = {"path": "/health", "port": "http", "scheme": "HTTP"}
    pods = [
        pod("shop-0", "agent0", "10.42.1.5", {"http": 8080}, readiness=health),
        pod("shop-1", "agent1", "10.42.2.5", {"http": 8080}, readiness=health),
    ]
    ends = [{"ip": p["ip"], "node": p["node"], "port": 8080, "protocol": "TCP", "ready": True,
             "pod": f"shop/{p['name']}"} for p in pods]  # fmt: skip
    shop = {
        "namespace": "shop", "name": "shop", "cluster_ip": "10.43.0.7", "selector": {"app": "shop"}, "endpoints": ends,
        "external_traffic_policy": "",
        "ports": [{"name": "web", "port": 80, "targetPort": "http", "nodePort": 0, "protocol": "TCP"}],
    }  # fmt: skip
    doors = [{"ip": p["ip"], "node": p["node"], "port": port, "protocol": "TCP", "ready": True,
              "pod": f"ingress-nginx/{p['name']}"} for p in controllers for port in (80, 443)]  # fmt: skip
    ingress_service = {
        "namespace": "ingress-nginx", "name": "controller", "cluster_ip": "10.43.0.8", "selector": LABELS,
        "endpoints": doors, "external_traffic_policy": "Cluster",
        "ports": [{"name": key, "port": port, "targetPort": key, "nodePort": node_port, "protocol": "TCP"}
                  for key, port, node_port in (("http", 80, 31695), ("https", 443, 32720))],
    }  # fmt: skip
    ingress = {
        "namespace": "shop", "name": "shop", "class": "nginx", "tls": [], "protocol": "HTTP", "addresses": [],
        "paths": [{"host": "shop.example", "path": "/", "service": "shop", "port": "web"}],
    }  # fmt: skip
    return {  # type: ignore[return-value]  # a plain dict for a TypedDict
        "nodes": [{"name": name, "internal_ip": address} for name, address in NODES.items()],
        "pods": [*controllers, *pods], "services": [shop, ingress_service], "ingresses": [ingress],
        "ingress_classes": [{"name": "nginx", "controller": "k8s.io/ingress-nginx", "default": False}],
        "network_policies": [], **more,
    }  # fmt: skip


def node_facts(facts: ClusterFacts) -> dict[str, NodeFacts]:
    inside = [each for each in facts["pods"] if not each["host_network"]]
    return {  # type: ignore[return-value]  # a plain dict for a TypedDict
        name: {"pods": [{"uid": each["uid"], "pid": 7} for each in inside if each["node"] == name]} for name in NODES
    }


def planned(row: str, facts: ClusterFacts, *balancers: Balancer) -> list[Probe]:
    return [probe for probe in plan_edge(node_facts(facts), Edge(facts, balancers)) if probe["row"] == row]


def test_ids_are_unique_and_only_answers_are_waited_for() -> None:
    probes = plan_edge(node_facts(cluster()), Edge(cluster(), [BALANCER]))
    assert len({probe["id"] for probe in probes}) == len(probes) == 19
    assert {probe["protocol"] for probe in probes if "patience" in probe} == {"http"}
    assert all(probe["patience"] == PATIENCE > probe["timeout"] for probe in probes if probe["protocol"] == "http")


def test_balancers_alone_get_time_to_see_what_was_mended() -> None:
    bare: Any = {**BALANCER, "services": []}
    probes = plan_edge(node_facts(cluster()), Edge(cluster(), [bare]), settle=60.0)
    assert {probe["row"] for probe in probes if probe.get("settle") == 60.0} == {"edge-balancer"}
    assert not any("settle" in probe for probe in plan_edge(node_facts(cluster()), Edge(cluster(), [bare])))


def test_nothing_is_asked_where_there_is_no_ingress_and_no_balancer() -> None:
    facts = cluster(ingresses=[])
    assert plan_edge(node_facts(facts), Edge(facts)) == []


def test_each_port_of_the_controller_is_asked_by_another_node_for_what_kubelets_know_to_answer() -> None:
    probes = planned("edge-node", cluster())
    assert {(probe["target_node"], probe["port"]) for probe in probes} == {
        ("agent0", 80), ("agent1", 80), *((node, 31695) for node in NODES),
    }  # fmt: skip
    assert all(probe["source_node"] != probe["target_node"] for probe in probes)
    assert {(probe["name"], probe["path"], tuple(probe["unwanted"])) for probe in probes} == {
        ("shop.example", "/health", (400, 404))
    }


def test_a_port_that_no_service_leads_to_is_asked_by_its_own_node() -> None:
    facts = cluster()
    facts["services"] = facts["services"][:1]
    assert {(probe["source_node"], probe["target_node"]) for probe in planned("edge-node", facts)} == {
        ("agent0", "agent0"), ("agent1", "agent1"),
    }  # fmt: skip


def test_without_a_readiness_probe_an_applications_own_404_is_well() -> None:
    facts = cluster()
    for each in facts["pods"]:
        each["readiness"] = {}
    assert all(probe["path"] == "/" and "unwanted" not in probe for probe in planned("edge-node", facts))


def test_pods_and_service_are_asked_from_where_the_controller_is() -> None:
    pods = planned("edge-pod", cluster())
    assert {(probe["source_node"], probe["target_pod"]) for probe in pods} == {
        (node, name) for node in ("agent0", "agent1") for name in ("shop/shop-0", "shop/shop-1")
    }
    (service,) = planned("edge-service", cluster())
    assert (service["address"], service["port"], service["backend"]) == ("10.43.0.7", 80, "shop/shop:web")


def test_a_pod_asks_itself_and_its_own_service_unless_a_policy_may_forbid_the_latter() -> None:
    asked = planned("edge-self", cluster())
    assert [(probe["source_pod"], probe["address"]) for probe in asked] == [
        ("shop/shop-0", "10.42.1.5"), ("shop/shop-0", "10.43.0.7"),
        ("shop/shop-1", "10.42.2.5"), ("shop/shop-1", "10.43.0.7"),
    ]  # fmt: skip
    held = cluster(network_policies=[{"namespace": "shop"}])
    assert {probe["address"] for probe in planned("edge-self", held)} == {"10.42.1.5", "10.42.2.5"}


def test_a_pod_that_is_not_ready_is_asked_as_its_kubelet_does_and_nothing_is_expected_of_it() -> None:
    facts = cluster()
    facts["pods"][2]["ready"] = facts["services"][0]["endpoints"][0]["ready"] = False
    facts["pods"][2]["readiness"] = {"path": "/never", "port": 9, "scheme": "HTTPS"}
    first = planned("edge-self", facts)[0]
    assert [first[key] for key in ("protocol", "port", "path", "expect")] == ["https", 9, "/never", "any"]  # type: ignore[literal-required]  # a TypedDict's keys in a loop


def test_a_site_that_no_controller_claims_is_asked_for_at_all_of_them() -> None:
    facts = cluster()
    facts["ingresses"][0]["class"] = "ngnix"
    (site,) = Edge(facts).sites
    assert site.controller == ""
    assert len(planned("edge-node", facts)) == 5


def test_balancers_are_asked_from_the_controller_and_checked_as_they_check() -> None:
    facts = cluster()
    facts["ingresses"][0]["tls"] = [{"hosts": ["shop.example"], "secret": "shop-tls"}]
    (asked,) = planned("edge-balancer", facts, BALANCER)
    assert (asked["source_node"], asked["protocol"], asked["port"]) == (CONTROLLER, "https", 443)
    assert (asked["attempts"], asked["balancer"], asked["verify"]) == (10, "lb1", False)
    (check,) = planned("edge-health", facts, BALANCER)
    assert (check["source_node"], check["address"], check["port"]) == ("agent0", "10.0.0.110", 31695)
    assert (check["path"], check["statuses"]) == ("/healthz", [200])
    assert {probe["proxy"] for probe in planned("edge-node", facts, BALANCER) if probe["port"] == 32720} == {"sent"}
    assert {probe["proxy"] for probe in planned("edge-node", facts) if probe["port"] == 32720} == {"unknown"}


def test_a_balancer_of_which_nothing_more_is_known_is_asked_at_the_webs_ports() -> None:
    bare: Balancer = {**BALANCER, "services": [], "targets": []}
    assert [(probe["protocol"], probe["port"]) for probe in planned("edge-balancer", cluster(), bare)] == [("http", 80)]
    assert planned("edge-health", cluster(), bare) == []


def test_what_two_services_of_a_balancer_check_alike_is_asked_once() -> None:
    service = {**BALANCER["services"][0], "listen_port": 80, "destination_port": 31695}
    both: Balancer = {**BALANCER, "services": [BALANCER["services"][0], service]}  # type: ignore[list-item]  # a plain dict for a TypedDict
    assert len(planned("edge-health", cluster(), both)) == 1


def test_pods_and_their_nodes_ask_outside_and_nothing_is_expected_of_it() -> None:
    probes = planned("edge-outside", cluster(), BALANCER)
    assert [(probe["source_node"], probe.get("source_pod", "")) for probe in probes] == [
        ("agent0", ""), ("agent0", "shop/shop-0"), ("agent1", ""), ("agent1", "shop/shop-1"),
    ]  # fmt: skip
    assert {probe["expect"] for probe in probes} == {"any"}


@pytest.mark.parametrize(("label", "doors"), [("controller", 10), ("admission-webhook", 0)])
def test_only_controllers_take_requests(label: str, doors: int) -> None:
    facts = cluster()
    for each in facts["pods"][:2]:
        each["labels"] = {**LABELS, "app.kubernetes.io/component": label}
    assert len(Edge(facts).doors) == doors


# --- what controllers say themselves ---


def test_each_controller_of_ingress_nginx_is_asked_on_its_own_node() -> None:
    facts = cluster()
    nodes = node_facts(facts)
    asked = plan_controllers(nodes, facts)
    assert asked == {
        node: [{"pod": f"ingress-nginx/ingress-{node}", "uid": f"uid-ingress-{node}", "pid": 0}]
        for node in ("agent0", "agent1")
    }
    del nodes["agent1"]  # did not answer
    facts["pods"][0]["host_network"] = False
    nodes["agent0"]["pods"].append({"uid": "uid-ingress-agent0", "pid": 9, "netns": 3, "listens": []})
    assert [each["pid"] for each in plan_controllers(nodes, facts)["agent0"]] == [9]
    nodes["agent0"]["pods"].pop()
    assert plan_controllers(nodes, facts) == {}


def test_other_controllers_are_not_asked() -> None:
    facts = cluster()
    for each in facts["pods"]:
        each["labels"] = {"app.kubernetes.io/name": "traefik"}
    assert plan_controllers(node_facts(facts), facts) == {}
