"""An ingress controller serves on the labelled nodes' own ports and on every node's NodePorts."""

from __future__ import annotations

import json
from typing import Any

import pytest
from testinfra.host import Host

NAMESPACE, NAME = "ingress-nginx", "ingress-nginx-controller"
STATUS = "curl --silent --output /dev/null --insecure --max-time 5 --write-out %%{http_code} %s"


def item(server: Host, what: str) -> dict[str, Any]:
    return json.loads(server.check_output("k3s kubectl get --namespace %s %s -o json", NAMESPACE, what))


def addresses(host: Host) -> list[str]:
    return host.check_output("hostname --all-ip-addresses").split()


@pytest.fixture(scope="module")
def labelled(server: Host) -> list[str]:
    """Addresses of the nodes that are to have a controller."""
    items = json.loads(server.check_output("k3s kubectl get nodes -l ingress-nginx=true -o json"))["items"]
    assert items
    return [a["address"] for node in items for a in node["status"]["addresses"] if a["type"] == "InternalIP"]


@pytest.fixture(scope="module")
def node_ports(server: Host) -> dict[str, int]:
    return {port["name"]: port["nodePort"] for port in item(server, f"service/{NAME}")["spec"]["ports"]}


def test_every_labelled_node_has_a_controller_on_its_own_network(server: Host, labelled: list[str]) -> None:
    daemonset = item(server, f"daemonset/{NAME}")
    status = daemonset["status"]
    assert status["numberAvailable"] == status["updatedNumberScheduled"] == len(labelled)
    assert daemonset["spec"]["template"]["spec"]["hostNetwork"]
    assert daemonset["spec"]["updateStrategy"]["rollingUpdate"] == {"maxSurge": 0, "maxUnavailable": 1}


def test_it_listens_where_it_is_to_and_nowhere_else(host: Host, labelled: list[str]) -> None:
    here = set(addresses(host)) & set(labelled)
    for port in (80, 443):
        assert host.socket(f"tcp://0.0.0.0:{port}").is_listening == bool(here)


@pytest.mark.parametrize(("scheme", "port"), [("http", 80), ("https", 443)])
def test_the_balancers_health_check_is_answered_on_the_nodes_ports(
    host: Host, labelled: list[str], scheme: str, port: int
) -> None:
    for address in labelled:
        assert host.check_output(STATUS, f"{scheme}://{address}:{port}/healthz") == "200"


@pytest.mark.parametrize("scheme", ["http", "https"])
def test_the_balancers_health_check_is_answered_on_every_nodes_node_port(
    host: Host, node_ports: dict[str, int], scheme: str
) -> None:
    assert host.check_output(STATUS, f"{scheme}://{addresses(host)[0]}:{node_ports[scheme]}/healthz") == "200"


def test_a_host_that_nobody_asked_for_is_not_found(host: Host, labelled: list[str]) -> None:
    assert host.check_output(STATUS, f"http://{labelled[0]}/") == "404"


def test_every_ingress_of_the_class_tells_where_it_is_served(server: Host, labelled: list[str]) -> None:
    found = json.loads(server.check_output("k3s kubectl get ingresses -A -o json"))["items"]
    ours = [ingress["metadata"] for ingress in found if ingress["spec"].get("ingressClassName") == "nginx"]
    assert ours
    for each in ours:
        ingress = f"--namespace={each['namespace']} ingress/{each['name']}"
        for place, address in enumerate(sorted(labelled)):
            served = f"--for=jsonpath={{.status.loadBalancer.ingress[{place}].ip}}={address}"
            # The controller that leads looks once a minute, and first when it is not ready itself.
            assert server.run(f"k3s kubectl wait {ingress} '{served}' --timeout=130s").succeeded
        said = server.check_output(f"k3s kubectl get {ingress} -o jsonpath='{{.status.loadBalancer.ingress[*].ip}}'")
        assert said.split() == sorted(labelled)
