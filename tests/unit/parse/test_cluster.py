"""Objects of the API -> what bears on the network."""

from __future__ import annotations

from typing import Any

import pytest
from ansible.module_utils.netmend.parse import cluster


def pod(spec: dict[str, Any], *conditions: dict[str, str]) -> Any:
    item = {"metadata": {"namespace": "shop", "name": "shop-0", "uid": "1"}, "spec": spec}
    return cluster.pod({**item, "status": {"phase": "Pending", "conditions": list(conditions)}})


def test_what_a_pod_is_asked_whether_it_is_ready() -> None:
    containers = [
        {"name": "side", "readinessProbe": {"exec": {"command": ["true"]}}},
        {"name": "app", "ports": [{"name": "http", "containerPort": 8080}],
         "readinessProbe": {"httpGet": {"path": "/health", "port": "http"}}},
    ]  # fmt: skip
    found = pod({"containers": containers})
    assert found["readiness"] == {"path": "/health", "port": "http", "scheme": "HTTP"}
    assert found["ports"] == [{"name": "http", "port": 8080, "protocol": "TCP", "hostPort": 0}]
    assert pod({})["readiness"] == {}


def test_why_and_for_which_node_a_pod_is_not_scheduled() -> None:
    message = "0/3 nodes are available: 1 node(s) didn't have free ports for the requested pod ports."
    fields = [{"key": "metadata.name", "operator": "In", "values": ["agent1"]}]
    terms = {"nodeSelectorTerms": [{"matchFields": fields}]}
    affinity = {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": terms}}
    found = pod({"affinity": affinity}, {"type": "PodScheduled", "status": "False", "message": message})
    assert (found["unscheduled"], found["meant_for"]) == (message, "agent1")
    placed = pod({}, {"type": "PodScheduled", "status": "True", "message": "gone by"})
    assert (placed["unscheduled"], placed["meant_for"]) == ("", "")


@pytest.mark.parametrize(
    ("annotations", "protocol"), [({}, "HTTP"), ({"nginx.ingress.kubernetes.io/backend-protocol": "https"}, "HTTPS")]
)
def test_what_an_ingress_speaks_to_the_pods(annotations: dict[str, str], protocol: str) -> None:
    item = {"metadata": {"namespace": "shop", "name": "shop", "annotations": annotations}, "spec": {}}
    assert cluster.ingress(item)["protocol"] == protocol


def test_a_service_with_the_port_that_tells_where_its_endpoints_are() -> None:
    spec = {"externalTrafficPolicy": "Local", "healthCheckNodePort": 32111, "ports": []}
    (service,) = cluster.services([{"metadata": {"namespace": "shop", "name": "shop"}, "spec": spec}], [])
    assert (service["external_traffic_policy"], service["health_check_node_port"]) == ("Local", 32111)
