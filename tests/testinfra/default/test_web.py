"""The lab's application, by its pods, its Service and its NodePort."""

from __future__ import annotations

import pytest
from testinfra.host import Host


@pytest.fixture(scope="session")
def cluster_ip(server: Host) -> str:
    """The address of the Service `web`."""
    return server.check_output("k3s kubectl get service web -o jsonpath={.spec.clusterIP}")


def test_every_pod_answers_on_every_node(get, pods: list[dict]) -> None:
    for pod in pods:
        assert get(f"{pod['status']['podIP']}:8080")["node"] == pod["spec"]["nodeName"]


def test_the_service_reaches_every_pod(get, cluster_ip: str, pods: list[dict]) -> None:
    # kube-proxy chooses at random: with 10 tries a pod, one of three is missed once in 200,000 runs.
    seen = {get(cluster_ip)["node"] for _ in range(10 * len(pods))}
    assert seen == {pod["spec"]["nodeName"] for pod in pods}


def test_the_nodeport_answers_on_every_node(get, pods: list[dict]) -> None:
    for pod in pods:
        assert get(f"{pod['status']['hostIP']}:31695")["node"]
