"""Applications: what is refused, which objects they are, and how they are asked."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from ansible.module_utils.netmend import applications
from ansible.module_utils.netmend.probe import problem

ROOT = Path(__file__).parents[2]
WEB: dict[str, Any] = {"name": "web", "namespace": "shop", "image": "web:1", "port": 8080}
NODES = {"a": "10.0.0.1", "b": "10.0.0.2"}


def objects(**more: Any) -> dict[str, Any]:
    """By kind."""
    (application,) = applications.read([{**WEB, **more}])
    return {item["kind"]: item for item in applications.objects(application)}


def test_nothing_is_declared() -> None:
    assert applications.read(None) == applications.read([]) == []


@pytest.mark.parametrize("name", ["docs/applications.md", "inventory/example/group_vars/k3s_cluster.yml"])
def test_what_is_documented_can_be_declared(name: str) -> None:
    """The operators' own; in the inventory as comments."""
    text = re.sub(r"(?m)^# ?", "", (ROOT / name).read_text())
    example = re.search(r"(?m)^netmend_applications:\n((?: .*\n)+)", text)
    assert example
    declared = applications.read(yaml.safe_load(example[0])["netmend_applications"])
    ports = {each["name"]: (each["port"], each["node_port"]) for each in declared}
    assert ports["keybuzz-api"] == (8080, 30080)
    assert ports["keybuzz-front"] == (3000, 30000)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("web", "netmend_applications: 'web' is no list"),
        (["web"], "netmend_applications[0]: 'web' is no mapping"),
        ([{**WEB, "ports": 80}], "netmend_applications[0].ports: there is only name, namespace, image, port"),
        ([{"name": "web"}], "netmend_applications[0].image is missing"),
        ([{**WEB, "name": "Web"}], "netmend_applications[0].name: 'Web' is no name of lower-case letters"),
        ([{**WEB, "image": "a b"}], "netmend_applications[0].image: 'a b' is no text without spaces"),
        ([{**WEB, "port": 0}], "netmend_applications[0].port: 0 is no number from 1 to 65535"),
        ([{**WEB, "node_port": 8080}], "netmend_applications[0].node_port: 8080 is none of the NodePorts"),
        ([{**WEB, "health": "health"}], "netmend_applications[0].health: 'health': path 'health' is not an absolute"),
        ([{**WEB, "host": "a b"}], "netmend_applications[0].host: 'a b': name 'a b' is not a domain name"),
        ([{**WEB, "env": {"ON": True}}], "netmend_applications[0].env.ON is no text: put it into quotes"),
        ([{**WEB, "daemonset": True, "replicas": 2}], "netmend_applications[0].replicas: a DaemonSet has a pod on"),
        ([{**WEB, "tls_secret": "x"}], "netmend_applications[0].tls_secret is of use with a host only"),
        ([{**WEB, "resources": {"cpu": 1}}], "netmend_applications[0].resources.cpu: there is only requests, limits"),
        ([WEB, WEB], "netmend_applications[1]: 'shop/web' stands in the list already"),
        ([{**WEB, "node_port": 30080}, {**WEB, "name": "api", "node_port": 30080}],
         "netmend_applications[1].node_port: 30080 is shop/web's already"),
        ([{**WEB, "host": "x.example"}, {**WEB, "name": "api", "host": "x.example"}],
         "netmend_applications[1].host: x.example is shop/web's already"),
        ([{**WEB, "host_network": True}, {**WEB, "name": "api", "host_network": True}],
         "netmend_applications[1].port: 8080 of the hosts is shop/web's already"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_named(given: Any, said: str) -> None:
    with pytest.raises(ValueError, match=re.escape(said)):
        applications.read(given)


def test_what_may_be_a_secret_is_not_shown() -> None:
    with pytest.raises(ValueError, match="PASSWORD") as error:
        applications.read([{**WEB, "env": {"PASSWORD": ["hunter2"]}}])
    assert "hunter2" not in str(error.value)


def test_a_deployment_serves_before_it_replaces() -> None:
    made = objects(replicas=3, health="/health")
    assert set(made) == {"Deployment", "Service"}
    spec = made["Deployment"]["spec"]
    assert spec["replicas"] == 3
    assert spec["strategy"]["rollingUpdate"] == {"maxUnavailable": 0, "maxSurge": 1}
    pod = spec["template"]["spec"]
    assert pod["containers"][0]["readinessProbe"]["httpGet"] == {"path": "/health", "port": 8080}
    assert pod["containers"][0]["lifecycle"] == {"preStop": {"sleep": {"seconds": 30}}}
    assert pod["terminationGracePeriodSeconds"] == 60
    assert made["Service"]["spec"]["type"] == "ClusterIP"


def test_a_port_of_the_host_is_left_before_it_is_taken() -> None:
    made = objects(daemonset=True, host_network=True)["DaemonSet"]["spec"]
    assert "replicas" not in made
    assert made["updateStrategy"]["rollingUpdate"] == {"maxUnavailable": 1, "maxSurge": 0}
    pod = made["template"]["spec"]
    assert (pod["hostNetwork"], pod["dnsPolicy"]) == (True, "ClusterFirstWithHostNet")
    assert pod["containers"][0]["ports"][0]["hostPort"] == 8080


def test_all_that_can_be_declared() -> None:
    made = objects(
        host="shop.example", ingress_class="nginx", tls_secret="shop-tls", node_port=30080, env={"A": 1},
        env_from_secret=["keys"], resources={"limits": {"memory": "64Mi"}},
    )  # fmt: skip
    container = made["Deployment"]["spec"]["template"]["spec"]["containers"][0]
    assert container["env"] == [{"name": "A", "value": "1"}]
    assert container["envFrom"] == [{"secretRef": {"name": "keys"}}]
    assert container["resources"]["limits"] == {"memory": "64Mi"}
    assert made["Service"]["spec"]["ports"][0]["nodePort"] == 30080
    assert made["Ingress"]["spec"] == {
        "ingressClassName": "nginx",
        "tls": [{"hosts": ["shop.example"], "secretName": "shop-tls"}],
        "rules": [{"host": "shop.example", "http": {"paths": [
            {"path": "/", "pathType": "Prefix", "backend": {"service": {"name": "web", "port": {"number": 8080}}}},
        ]}}],
    }  # fmt: skip


def test_all_objects_carry_their_own_label() -> None:
    for item in objects(host="shop.example").values():
        assert item["metadata"]["labels"] == {"app.kubernetes.io/managed-by": "netmend", "netmend/application": "web"}


def test_labels_of_pods_that_are_there_are_kept() -> None:
    (application,) = applications.read([WEB])
    live = {"metadata": {"name": "web", "namespace": "shop"}, "spec": {"selector": {"matchLabels": {"app": "web"}}}}
    workload, service = applications.objects(application, applications.selector([None, live]))
    assert workload["spec"]["selector"] == {"matchLabels": {"app": "web"}}
    assert service["spec"]["selector"] == {"app": "web"}
    live["spec"]["selector"]["matchExpressions"] = [{"key": "tier", "operator": "Exists"}]
    with pytest.raises(ValueError, match="shop/web knows its pods by more than labels"):
        applications.selector([live])


def test_it_is_asked_in_all_ways_that_there_are() -> None:
    (application,) = applications.read(
        [{**WEB, "host": "shop.example", "tls_secret": "x", "node_port": 30080, "health": "/health"}]
    )
    status = {"podIP": "10.42.0.7", "conditions": [{"type": "Ready", "status": "True"}]}
    pods = [{"spec": {"nodeName": "a"}, "status": status},
            {"spec": {"nodeName": "b"}, "status": {**status, "conditions": []}}]  # fmt: skip
    live = {
        "pods": pods,
        "services": [{"spec": {"clusterIP": "10.43.0.9", "ports": [{"nodePort": 30080}]}}],
        "ingresses": [{"status": {"loadBalancer": {"ingress": [{"ip": "10.0.0.2"}, {"hostname": "x"}]}}}],
    }
    probes = applications.probes(application, live, NODES)
    assert [(each["id"], each["protocol"], each["address"], each["port"]) for each in probes] == [
        ("its pod on a", "http", "10.42.0.7", 8080),
        ("its Service at 10.43.0.9", "http", "10.43.0.9", 8080),
        ("NodePort 30080 of a", "http", "10.0.0.1", 30080),
        ("NodePort 30080 of b", "http", "10.0.0.2", 30080),
        ("its Ingress at 10.0.0.2", "https", "10.0.0.2", 443),
    ]
    assert {(each["path"], each["status"]) for each in probes} == {("/health", 200)}
    assert probes[-1]["name"] == "shop.example"
    assert [problem(each) for each in probes] == [""] * 5
    assert applications.probes(application, {"pods": [], "services": [], "ingresses": []}, NODES) == []
