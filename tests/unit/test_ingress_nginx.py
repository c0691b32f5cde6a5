"""Where an ingress controller goes, what of another one it takes over, and what forbids it."""

from __future__ import annotations

from typing import Any

import pytest
from ansible.module_utils.netmend.ingress_nginx import LABELS, OWN, Plan, Wanted, plan

NAMESPACE, NAME = "ingress-nginx", "ingress-nginx-controller"
WANTED = Wanted(NAMESPACE, NAME, [], {"ingress-nginx": "true"}, "nginx", "k8s.io/ingress-nginx", [31695, 32720], False)
COUNTS = ("desiredNumberScheduled", "updatedNumberScheduled", "numberAvailable")
HELM = {**LABELS, "app.kubernetes.io/instance": "edge"}


class Cluster:
    """A server and two agents, with nothing on their ports."""

    def __init__(self) -> None:
        roles = {"server0": "server", "agent0": "agent", "agent1": "agent"}
        self.members = {name: {"name": name, "role": role, "labels": {}} for name, role in roles.items()}
        self.pods: list[dict[str, Any]] = []
        self.services: list[dict[str, Any]] = []
        self.classes: list[dict[str, Any]] = []
        self.sockets: dict[str, list[dict[str, Any]]] = {name: [] for name in roles}
        self.live: list[dict[str, Any]] = []

    def pod(self, owner: str, node: str, host_ports: list[int], namespace: str = NAMESPACE, **more: Any) -> None:
        ports = [{"port": port, "protocol": "TCP", "hostPort": port} for port in host_ports]
        pod = {"namespace": namespace, "name": f"p{len(self.pods)}", "owner": owner, "node": node, "ports": ports}
        self.pods.append({**pod, "host_network": False, "phase": "Running", "labels": {}, **more})

    def has(self, kind: str, name: str, labels: dict[str, str], selector: dict[str, str]) -> None:
        spec = {"selector": {"matchLabels": selector}, "template": {"metadata": {"labels": labels}}}
        status = {"observedGeneration": 1, **dict.fromkeys(COUNTS, 2)}
        self.live.append({"kind": kind, "metadata": {"name": name, "generation": 1}, "spec": spec, "status": status})

    def listens(self, node: str, port: int, process: str) -> None:
        self.sockets[node].append({"protocol": "tcp", "address": "0.0.0.0", "port": port, "process": process})

    def plan(self, **changes: Any) -> Plan:
        cluster = {
            "nodes": list(self.members.values()), "pods": self.pods, "services": self.services,
            "ingress_classes": self.classes,
        }  # fmt: skip
        nodes = {name: {"sockets": sockets} for name, sockets in self.sockets.items()}
        return plan(cluster, nodes, self.live, WANTED._replace(**changes))


@pytest.fixture
def cluster() -> Cluster:
    return Cluster()


def refusal(cluster: Cluster, **changes: Any) -> str:
    (only,) = cluster.plan(**changes).refusals
    return only


def test_a_cluster_without_one_gets_it_on_the_agents(cluster: Cluster) -> None:
    seen = cluster.plan()
    assert (seen.refusals, seen.nodes, seen.room, seen.replaces) == ([], ["agent0", "agent1"], 2, [])
    assert seen.labels == seen.selector == seen.service_selector == {**LABELS, **OWN}


def test_labelled_nodes_count_before_the_agents_and_named_ones_before_these(cluster: Cluster) -> None:
    cluster.members["server0"]["labels"] = {"ingress-nginx": "true", "other": "label"}
    assert cluster.plan().nodes == ["server0"]
    named = cluster.plan(nodes=["agent1"])
    assert (named.nodes, named.leaves) == (["agent1"], ["server0"])


def test_nodes_that_are_not_there_are_named(cluster: Cluster) -> None:
    assert refusal(cluster, nodes=["agent7"]).startswith("ingress_nginx_nodes has agent7, which is no node")
    del cluster.members["agent0"], cluster.members["agent1"]
    assert "the cluster has no agents, and no node has the labels ingress-nginx=true" in refusal(cluster)


def test_a_deployments_pods_and_the_new_ones_are_behind_the_same_service_until_only_these_are(cluster: Cluster) -> None:
    cluster.has("Deployment", "edge-controller", {**HELM, "more": "x"}, HELM)
    cluster.live.append({"kind": "Service", "metadata": {"name": NAME}, "spec": {"selector": HELM}})
    seen = cluster.plan()
    assert seen.refusals == []
    assert [item["metadata"] for item in seen.replaces] == [{"namespace": NAMESPACE, "name": "edge-controller"}]
    assert HELM.items() <= seen.labels.items()
    assert seen.selector.items() <= seen.labels.items()
    # What only the new ones have: neither the selector of the DaemonSet nor the Service's meets the Deployment's pods.
    for selector in (seen.selector, seen.service_selector):
        assert not selector.items() <= {**HELM, "more": "x"}.items()
    # Carried out, the plan is the same but for the Deployment: no pod is started anew for another label.
    cluster.live.clear()
    cluster.has("DaemonSet", NAME, seen.labels, seen.selector)
    cluster.live.append({"kind": "Service", "metadata": {"name": NAME}, "spec": {"selector": seen.service_selector}})
    assert cluster.plan() == seen._replace(replaces=[])


def test_a_webhook_that_nobody_will_answer_goes(cluster: Cluster) -> None:
    def webhook(name: str, **client: Any) -> dict[str, Any]:
        calls = [{"clientConfig": client}]
        return {"kind": "ValidatingWebhookConfiguration", "metadata": {"name": name}, "webhooks": calls}

    ours = webhook("ingress-nginx-admission", service={"namespace": NAMESPACE, "name": "controller-admission"})
    cluster.live += [
        ours,
        webhook("other", service={"namespace": "other"}),
        webhook("outside", url="https://example.org"),
    ]
    assert cluster.plan().webhooks == [ours]
    assert cluster.plan(webhook=True).webhooks == []


def test_a_daemonset_that_is_there_keeps_its_selector(cluster: Cluster) -> None:
    cluster.has("DaemonSet", NAME, HELM, HELM)
    cluster.pod(f"DaemonSet/{NAME}", "agent0", [80, 443], host_network=True)
    cluster.listens("agent0", 80, "nginx")
    seen = cluster.plan()
    assert (seen.refusals, seen.selector) == ([], HELM)
    assert seen.labels == {**HELM, **OWN}
    assert seen.service_selector == {**HELM, **OWN}
    cluster.live[0]["spec"]["template"]["metadata"]["labels"] = seen.labels
    assert cluster.plan() == seen


@pytest.mark.parametrize("count", ["observedGeneration", "updatedNumberScheduled", "numberAvailable"])
def test_a_daemonset_that_is_still_being_updated_is_waited_for(cluster: Cluster, count: str) -> None:
    assert cluster.plan().settled
    cluster.has("DaemonSet", NAME, HELM, HELM)
    assert cluster.plan().settled
    del cluster.live[0]["status"][count]
    assert not cluster.plan().settled


def test_deployments_of_something_else_stay(cluster: Cluster) -> None:
    cluster.has("Deployment", "defaultbackend", {**HELM, "app.kubernetes.io/component": "default-backend"}, {})
    cluster.has("Deployment", "unlabelled", {}, {})
    assert cluster.plan().replaces == []


def test_a_deployment_on_the_nodes_network_leaves_room_or_is_in_the_way(cluster: Cluster) -> None:
    cluster.has("Deployment", "old", HELM, HELM)
    cluster.pod("Deployment/old", "agent0", [80, 443], host_network=True)
    cluster.listens("agent0", 80, "nginx")
    seen = cluster.plan()
    assert (seen.refusals, seen.room) == ([], 1)
    cluster.pod("Deployment/old", "agent1", [80, 443], host_network=True)
    assert refusal(cluster).startswith("Deployment old has pods on the network of every one of the nodes agent0, ")


def test_servicelb_is_named_with_the_service_that_it_works_for(cluster: Cluster) -> None:
    labels = {"svccontroller.k3s.cattle.io/svcname": "traefik"}
    for node in ("server0", "agent0", "agent1"):
        cluster.pod("DaemonSet/svclb-traefik-1", node, [80, 443], "kube-system", labels=labels)
    seen = refusal(cluster)
    assert "svclb-traefik-1 in namespace kube-system has the host ports 80 and 443 on agent0, agent1." in seen
    assert "`disable+: [servicelb, traefik]`" in seen


@pytest.mark.parametrize(
    "pod",
    [
        {"host_ports": [8080]},
        {"host_ports": [80], "phase": "Succeeded"},
        {"host_ports": [80], "node": "server0"},
        {"host_ports": [80], "node": ""},
    ],
)
def test_pods_that_are_not_in_the_way(cluster: Cluster, pod: dict[str, Any]) -> None:
    cluster.pod(**{"owner": "ReplicaSet/other", "node": "agent0", "namespace": "default", **pod})
    assert cluster.plan().refusals == []


def test_a_process_on_a_port_is_named(cluster: Cluster) -> None:
    cluster.listens("agent1", 443, "apache2")
    cluster.listens("server0", 80, "apache2")
    cluster.listens("agent1", 8080, "java")
    assert refusal(cluster) == "apache2 listens on 0.0.0.0:443 of agent1: end it, or leave the node out."


def test_a_node_port_of_another_service_is_named(cluster: Cluster) -> None:
    own = {"namespace": NAMESPACE, "name": NAME, "ports": [{"nodePort": 31695}, {"nodePort": 32720}]}
    cluster.services.append(own)
    assert cluster.plan().refusals == []
    cluster.services.append({"namespace": "default", "name": "web", "ports": [{"nodePort": 31695}, {"nodePort": 0}]})
    assert refusal(cluster).startswith("Service default/web has the NodePort 31695")


def test_a_class_of_another_controller_is_named(cluster: Cluster) -> None:
    cluster.classes.append({"name": "nginx", "controller": "k8s.io/ingress-nginx"})
    assert cluster.plan().refusals == []
    cluster.classes[0]["controller"] = "nginx.org/ingress-controller"
    assert refusal(cluster).startswith("IngressClass nginx belongs to nginx.org/ingress-controller")
