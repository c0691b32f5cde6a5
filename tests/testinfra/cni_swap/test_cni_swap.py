"""A cluster whose pods have Calico's network, and that has nothing left of Flannel."""

from __future__ import annotations

import json
from ipaddress import ip_address, ip_network
from typing import Any

import pytest
from testinfra.host import Host

POOL = ip_network("10.42.128.0/17")


@pytest.fixture
def blocks(host: Host) -> list[dict[str, Any]]:
    """The routes that lead to other nodes' pods."""
    return json.loads(host.check_output("ip -json route show proto 80"))


def test_every_pod_has_an_address_of_the_pool(server: Host) -> None:
    pods = json.loads(server.check_output("k3s kubectl get pods -A -o json"))["items"]
    addresses = [pod["status"]["podIP"] for pod in pods if not pod["spec"].get("hostNetwork")]
    assert addresses
    assert all(ip_address(address) in POOL for address in addresses), addresses


def test_other_nodes_pods_are_behind_the_tunnel(blocks: list[dict[str, Any]], pods: list[dict]) -> None:
    through = [route for route in blocks if route.get("dev") == "tunl0"]
    assert len(through) >= len(pods) - 1, blocks
    assert all(ip_network(route["dst"]).subnet_of(POOL) for route in through)


def test_every_pod_answers_on_every_node(get, pods: list[dict]) -> None:
    for pod in pods:
        assert get(f"{pod['status']['podIP']}:8080")["node"] == pod["spec"]["nodeName"]


def test_the_nodeport_answers_on_every_node(get, pods: list[dict]) -> None:
    for pod in pods:
        assert get(f"{pod['status']['hostIP']}:31695")["node"]


def test_nothing_is_left_of_flannel(host: Host) -> None:
    found = host.check_output("ip -br link; ip route show table all; iptables-save").lower()
    assert "flannel" not in found
    assert "cni0" not in found
