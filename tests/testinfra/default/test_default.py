"""A cluster that the main job has mended, whatever runs on it: units, sockets, rules, routes, and real requests."""

from __future__ import annotations

import json
import re
from ipaddress import ip_address, ip_network
from typing import Any, NamedTuple

import pytest
from testinfra.host import Host

# On a node, with what is to be reached as ADDRESS:PORT each: prints those that refuse or keep silent.
REACH = """
import socket, sys
from concurrent.futures import ThreadPoolExecutor
def fails(end):
    address, port = end.rsplit(":", 1)
    try:
        socket.create_connection((address, int(port)), timeout=5).close()
    except OSError as error:
        return f"{end}: {error}"
with ThreadPoolExecutor(32) as pool:
    print("\\n".join(filter(None, pool.map(fails, sys.argv[1:]))))
"""


class Cluster(NamedTuple):
    nodes: dict[str, str]  # InternalIP -> name
    servers: set[str]  # their names
    pods: list[dict[str, Any]]  # Ready, on a network of their own
    services: list[dict[str, Any]]
    slices: list[dict[str, Any]]


@pytest.fixture(scope="session")
def cluster(server: Host) -> Cluster:
    def items(what: str) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = json.loads(server.check_output("k3s kubectl get %s -A -o json", what))["items"]
        return found

    def is_ready(pod: dict[str, Any]) -> bool:
        return any(c["type"] == "Ready" and c["status"] == "True" for c in pod["status"].get("conditions", []))

    nodes = items("nodes")
    addresses = {a["address"]: n["metadata"]["name"] for n in nodes for a in n["status"]["addresses"]
                 if a["type"] == "InternalIP"}  # fmt: skip
    labels = {node["metadata"]["name"]: node["metadata"]["labels"] for node in nodes}
    servers = {name for name, given in labels.items() if "node-role.kubernetes.io/control-plane" in given}
    # Where a NetworkPolicy is, silence may be meant.
    held = {policy["metadata"]["namespace"] for policy in items("networkpolicies")}
    pods = [
        pod
        for pod in items("pods")
        if is_ready(pod) and not pod["spec"].get("hostNetwork") and pod["metadata"]["namespace"] not in held
    ]
    services = [service for service in items("services") if service["metadata"]["namespace"] not in held]
    return Cluster(addresses, servers, pods, services, items("endpointslices"))


@pytest.fixture
def here(host: Host, cluster: Cluster) -> str:
    """The node's name in the cluster."""
    own = host.check_output("hostname --all-ip-addresses").split()
    return next(name for address, name in cluster.nodes.items() if address in own)


def unreached(host: Host, ends: set[str]) -> str:
    assert ends
    return host.check_output(f"python3 -c %s {' '.join(sorted(ends))}", REACH)


def has_endpoints(cluster: Cluster, service: dict[str, Any]) -> bool:
    name, namespace = service["metadata"]["name"], service["metadata"]["namespace"]
    own = [
        each
        for each in cluster.slices
        if each["metadata"]["namespace"] == namespace
        and each["metadata"]["labels"].get("kubernetes.io/service-name") == name
    ]
    return any(end["conditions"].get("ready") for each in own for end in each["endpoints"] or [])


def ports(service: dict[str, Any], key: str) -> list[int]:
    return [port[key] for port in service["spec"].get("ports", []) if port["protocol"] == "TCP" and port.get(key)]


def test_every_node_is_ready(server: Host, cluster: Cluster) -> None:
    said = server.check_output("k3s kubectl wait --for=condition=Ready node --all --timeout=120s")
    assert said.count("condition met") == len(cluster.nodes)


def test_k3s_runs_and_starts_with_the_node(host: Host, here: str, cluster: Cluster) -> None:
    unit = host.service("k3s" if here in cluster.servers else "k3s-agent")
    assert unit.is_running
    assert unit.is_enabled


def test_the_kubelet_listens_and_on_servers_the_api(host: Host, here: str, cluster: Cluster) -> None:
    assert host.socket("tcp://10250").is_listening
    assert host.socket("tcp://6443").is_listening == (here in cluster.servers)


def test_services_are_translated_where_packets_come_in_and_go_out(host: Host) -> None:
    rules = host.check_output("iptables -w -t nat -S").splitlines()
    for chain in ("PREROUTING", "OUTPUT"):
        jumps = [rule for rule in rules if rule.startswith(f"-A {chain} ")]
        assert [rule for rule in jumps if rule.endswith("-j KUBE-SERVICES")], jumps


def test_netmends_accepts_are_behind_policies_and_before_every_rule_that_stops_all(host: Host) -> None:
    rules = [rule for rule in host.check_output("iptables -w -S FORWARD").splitlines() if rule.startswith("-A")]
    own = [place for place, rule in enumerate(rules) if "netmend:" in rule]
    policies = [place for place, rule in enumerate(rules) if "KUBE-ROUTER-FORWARD" in rule or "cali-FORWARD" in rule]
    stops = [place for place, rule in enumerate(rules) if rule in ("-A FORWARD -j DROP", "-A FORWARD -j REJECT")]
    assert policies + own + stops == sorted(policies + own + stops)


def test_forward_drops_nothing_of_pods(host: Host, cluster: Cluster) -> None:
    pods = [ip_address(pod["status"]["podIP"]) for pod in cluster.pods]
    drops = [rule for rule in host.check_output("iptables -w -S FORWARD").splitlines() if "-j DROP" in rule]
    networks = {rule: map(ip_network, re.findall(r" -[sd] (\S+)", rule)) for rule in drops}
    assert not [rule for rule, named in networks.items() if any(pod in each for each in named for pod in pods)]


def test_other_nodes_pods_are_behind_an_overlay_or_the_nodes_own_network(
    host: Host, here: str, cluster: Cluster
) -> None:
    away = [pod["status"]["podIP"] for pod in cluster.pods if pod["spec"]["nodeName"] != here]
    for address in away:
        (route,) = json.loads(host.check_output("ip -json route get %s", address))
        assert not route["dev"].startswith(("lo", "cni", "cali", "veth")), (address, route)


def test_every_pod_answers_every_node(host: Host, cluster: Cluster) -> None:
    ends = {
        f"{pod['status']['podIP']}:{port['containerPort']}"
        for pod in cluster.pods
        for container in pod["spec"]["containers"]
        for port in container.get("ports", [])
        if port.get("protocol", "TCP") == "TCP"
    }
    assert unreached(host, ends) == ""


def test_every_service_answers_every_node(host: Host, cluster: Cluster) -> None:
    ends = {
        f"{service['spec']['clusterIP']}:{port}"
        for service in cluster.services
        if service["spec"].get("clusterIP", "None") != "None" and has_endpoints(cluster, service)
        for port in ports(service, "port")
    }
    assert unreached(host, ends) == ""


def test_every_node_port_answers_every_node_on_every_node(host: Host, cluster: Cluster) -> None:
    ends = {
        f"{address}:{port}"
        for service in cluster.services
        if service["spec"].get("externalTrafficPolicy") == "Cluster" and has_endpoints(cluster, service)
        for port in ports(service, "nodePort")
        for address in cluster.nodes
    }
    if not ends:
        pytest.skip("no Service has a NodePort")
    assert unreached(host, ends) == ""
