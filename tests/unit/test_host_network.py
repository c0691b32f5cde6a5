"""Deployments move to their hosts' network and back in a cluster in memory: refused or whole, and nobody is cut off."""

from __future__ import annotations

import json
from contextlib import suppress
from typing import Any, Callable

import pytest
from ansible.module_utils.netmend import host_network as rules
from ansible.module_utils.netmend import host_network_apply, rollout_apply
from ansible.module_utils.testing import patch_module_args

from tests.unit.loaded import loaded
from tests.unit.rollout_cluster import APPS, CORE, Clock, Cluster, Mirror

WEB = {"name": "shop/web"}
APART = {**WEB, "kind": "Deployment"}
NAMES = {"DaemonSet": f"{APPS}/daemonsets/web", "Deployment": f"{APPS}/deployments/web-host-network"}
QUIET: dict[str, list[Any]] = {"n0": [], "n1": [], "n2": []}

Run = Callable[..., dict[str, Any]]


@pytest.fixture
def cluster() -> Cluster:
    made = Cluster()
    made.deployment("web", 2)
    made.written.clear()
    return made


@pytest.fixture
def move(cluster: Cluster, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    module = loaded("library/netmend_host_network.py")
    monkeypatch.setattr(module, "k3s_credentials", lambda: None)
    monkeypatch.setattr(module, "Api", lambda *_, **__: cluster)
    monkeypatch.setattr(rollout_apply, "Mirror", Mirror)
    for core in (rollout_apply, host_network_apply):
        monkeypatch.setattr(core, "time", Clock(cluster))

    def run(*applications: dict[str, Any], **arguments: Any) -> dict[str, Any]:
        arguments = {"applications": list(applications), "sockets": QUIET, **arguments}
        with patch_module_args(arguments), pytest.raises(SystemExit):
            module.main()
        return json.loads(capsys.readouterr().out)

    return run


def deployment(cluster: Cluster) -> Any:
    return cluster.stored[f"{APPS}/deployments/web"]


def service(cluster: Cluster) -> Any:
    return cluster.stored[f"{CORE}/services/web"]["spec"]


def on_host(cluster: Cluster) -> list[bool]:
    """Of the pods."""
    return [pod["spec"].get("hostNetwork", False) for pod in cluster.pods()]


@pytest.mark.parametrize(("wanted", "pods"), [(WEB, 3), (APART, 2)], ids=["DaemonSet", "Deployment"])
def test_there_and_back(move: Run, cluster: Cluster, wanted: Any, pods: int) -> None:
    before = json.loads(json.dumps({"deployment": deployment(cluster)["spec"], "service": service(cluster)}))
    checked = move(wanted, _ansible_check_mode=True, _ansible_diff=True)
    assert (checked["changed"], len(checked["diff"]), cluster.written) == (True, 2, [])
    there = move(wanted)
    kind = wanted.get("kind", "DaemonSet")
    companion = NAMES[kind].rpartition("/")[2]
    assert there["applications"][0]["objects"] == [f"{kind} shop/{companion}", "Deployment shop/web"]
    assert on_host(cluster) == [True] * pods
    assert len({pod["spec"]["nodeName"] for pod in cluster.pods()}) == pods
    assert deployment(cluster)["spec"]["replicas"] == 0
    assert service(cluster) == before["service"]
    cluster.written.clear()
    again = move(wanted)
    assert (again["changed"], again["applications"][0]["objects"], cluster.written) == (False, [], [])
    back = move(wanted, state="absent")
    assert back["applications"][0]["objects"] == ["Deployment shop/web", f"{kind} shop/{companion}"]
    assert on_host(cluster) == [False, False]
    assert {"deployment": deployment(cluster)["spec"], "service": service(cluster)} == before
    assert "netmend/replicas" not in deployment(cluster)["metadata"]["annotations"]
    assert move(wanted, state="absent")["changed"] is False
    assert cluster.lost == []


def test_what_a_companion_is(move: Run, cluster: Cluster) -> None:
    move(APART)
    companion = cluster.stored[NAMES["Deployment"]]
    pod = companion["spec"]["template"]["spec"]
    assert (pod["hostNetwork"], pod["dnsPolicy"]) == (True, "ClusterFirstWithHostNet")
    assert pod["containers"][0]["ports"] == [{"containerPort": 8080, "hostPort": 8080}]
    assert pod["containers"][0]["lifecycle"] == {"preStop": {"sleep": {"seconds": 30}}}
    apart = pod["affinity"]["podAntiAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"]
    selector = {"app": "web", "netmend/host-network": "true"}
    assert apart == [{"labelSelector": {"matchLabels": selector}, "topologyKey": "kubernetes.io/hostname"}]
    assert companion["spec"]["selector"] == {"matchLabels": selector}
    assert companion["metadata"]["labels"] == {"netmend/host-network": "true"}


def test_the_services_lead_to_the_companion_alone_before_any_pod_ends(move: Run, cluster: Cluster) -> None:
    seen = []
    end = cluster._end

    def ends(pod: Any) -> None:
        seen.append((service(cluster)["selector"], cluster.now))
        end(pod)

    cluster._end = ends  # type: ignore[method-assign]  # the test's own in its place
    move(WEB, drain_seconds=40)
    assert [selector for selector, _ in seen] == [{"app": "web", "netmend/host-network": "true"}] * 2
    assert min(when for _, when in seen) >= 40


def test_node_ports_come_and_go(move: Run, cluster: Cluster) -> None:
    move({**WEB, "node_ports": {"80": 30080}})
    assert (service(cluster)["type"], service(cluster)["ports"][0]["nodePort"]) == ("NodePort", 30080)
    assert move({**WEB, "node_ports": {"80": 30080}})["changed"] is False
    move(WEB, state="absent")
    assert service(cluster)["type"] == "ClusterIP"
    assert cluster.stored[f"{CORE}/services/web"]["metadata"]["annotations"] == {}


@pytest.mark.parametrize("first", ["present", "absent"])
@pytest.mark.parametrize("then", ["present", "absent"])
@pytest.mark.parametrize("place", range(5))
def test_a_run_that_died_is_finished_either_way(move: Run, cluster: Cluster, first: str, then: str, place: int) -> None:
    if first == "absent":
        move(WEB)
    count = iter(range(99))
    cluster.interrupt = lambda request: next(count) == place
    with suppress(KeyboardInterrupt):
        move(WEB, state=first)
    cluster.interrupt = lambda request: False
    move(WEB, state=then)
    assert set(on_host(cluster)) == {then == "present"}
    assert len(cluster.pods()) == (3 if then == "present" else 2)
    assert service(cluster)["selector"] == {"app": "web"}
    assert cluster.lost == []
    assert move(WEB, state=then)["changed"] is False


def test_a_companion_that_does_not_come_up_is_undone(move: Run, cluster: Cluster) -> None:
    cluster.bad.add("good:1")
    failed = move(WEB, patience=5)
    assert "ImagePullBackOff" in failed["msg"]
    assert failed["msg"].endswith("It was undone: what served before serves on")
    assert NAMES["DaemonSet"] not in cluster.stored
    assert (on_host(cluster), cluster.lost) == ([False, False], [])


def test_a_deployment_that_does_not_come_up_leaves_its_companion(move: Run, cluster: Cluster) -> None:
    move(WEB)
    cluster.bad.add("good:1")
    failed = move(WEB, state="absent", patience=5)
    assert failed["msg"].endswith("It was undone: what served before serves on")
    assert (on_host(cluster), deployment(cluster)["spec"]["replicas"], cluster.lost) == ([True] * 3, 0, [])
    cluster.bad.clear()
    assert move(WEB, state="absent")["changed"] is True
    assert on_host(cluster) == [False, False]


def scaler(least: int) -> dict[str, Any]:
    target = {"kind": "Deployment", "name": "web"}
    return {"metadata": {"name": "hpa"}, "spec": {"minReplicas": least, "scaleTargetRef": target}}


def template(cluster: Cluster) -> Any:
    return deployment(cluster)["spec"]["template"]


def ingress(cluster: Cluster) -> None:
    container = {"name": "controller", "ports": [{"containerPort": 8080, "hostPort": 8080}]}
    meta = {"namespace": "ingress", "name": "controller-1", "labels": {}}
    cluster.put("/api/v1/namespaces/ingress/pods/controller-1",
                {"metadata": meta, "spec": {"nodeName": "n2", "containers": [container]},
                 "status": {"conditions": [{"type": "Ready", "status": "True"}]}})  # fmt: skip


def other(cluster: Cluster) -> None:
    cluster.deployment("blue", 1)
    labels = {"app": "web", "colour": "blue"}
    cluster.put(f"{CORE}/pods/blue", {"metadata": {"name": "blue", "labels": labels}, "spec": {"containers": []},
                                      "status": {"conditions": [{"type": "Ready", "status": "True"}]}})  # fmt: skip


def repels(cluster: Cluster) -> None:
    term = {"labelSelector": {"matchLabels": {"app": "web"}}, "topologyKey": "kubernetes.io/hostname"}
    affinity = {"podAntiAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": [term]}}
    template(cluster)["spec"]["affinity"] = affinity


@pytest.mark.parametrize(
    ("broken", "arguments", "said"),
    [
        (None, {"sockets": {**QUIET, "n1": [{"protocol": "tcp", "port": 8080, "process": "nginx"}]}},
         "shop/web: TCP/8080 on n1 is nginx's"),
        (None, {"sockets": {"n0": [], "n1": []}}, "shop/web: what listens on n2 is not known"),
        (ingress, {}, "shop/web: TCP/8080 on n2 is ingress/controller-1's"),
        (other, {}, "shop/web: the Service web leads to blue, too, which is no pod of it"),
        (repels, {}, "shop/web: its podAntiAffinity keeps its companion off its nodes"),
        (lambda c: template(c)["spec"].update(hostNetwork=True), {}, "shop/web: its own template has hostNetwork"),
        (lambda c: template(c)["spec"].update(nodeSelector={"disk": "fast"}), {}, "shop/web: there is no node that"),
        (lambda c: deployment(c)["spec"].update(replicas=0), {}, "shop/web: it has no replicas"),
        (lambda c: c.put("/apis/autoscaling/v2/namespaces/shop/horizontalpodautoscalers/hpa", scaler(0)), {},
         "shop/web: the HorizontalPodAutoscaler hpa has minReplicas 0"),
        (None, {"applications": [{**WEB, "node_ports": {"81": 30080}}]}, "none of its Services has the port 81"),
        (None, {"applications": [{"name": "shop/none"}]}, "there is no Deployment shop/none"),
        (lambda c: c.deployment("api", 1), {"applications": [WEB, {"name": "shop/api"}]},
         "shop/api and shop/web both need TCP/8080 of the hosts"),
        (lambda c: deployment(c)["spec"].update(replicas=4), {"applications": [APART]},
         "shop/web: it has 4 replicas, and there are 3 nodes for one each"),
    ],
)  # fmt: skip
def test_what_stands_against_it_is_said_and_nothing_is_changed(
    move: Run, cluster: Cluster, broken: Any, arguments: Any, said: str
) -> None:
    if broken:
        broken(cluster)
    failed = move(WEB, **arguments)
    assert failed["failed"] is True
    assert failed["msg"].startswith("Nothing was changed. ")
    assert said in failed["msg"]
    assert cluster.written == []


@pytest.mark.parametrize(
    ("applications", "said"),
    [
        ([{"name": "web"}], "applications[0].name: 'web' is no namespace/name"),
        ([WEB, WEB], "applications[1]: shop/web stands in the list already"),
        ([{**WEB, "node_ports": {"80": 70000}}], "applications[0].node_ports.80: 70000 is no number from 1 to 65535"),
        ([{**WEB, "node_ports": {"http": 30080}}], "applications[0].node_ports: 'http' is no number from 1 to 65535"),
    ],
)
def test_bad_input_is_named(move: Run, cluster: Cluster, applications: Any, said: str) -> None:
    assert move(*applications)["msg"] == said
    assert cluster.written == []


def test_an_autoscaler_goes_on_where_it_was(move: Run, cluster: Cluster) -> None:
    path = "/apis/autoscaling/v2/namespaces/shop/horizontalpodautoscalers/hpa"
    cluster.put(path, scaler(2))
    before = cluster.stored[path]
    move(WEB)
    move(WEB, state="absent")
    assert cluster.stored[path] == before
    assert deployment(cluster)["spec"]["replicas"] == 2


def test_a_merge_patch() -> None:
    """RFC 7386, its own examples among them."""
    for item, patch, after in (
        ({"a": "b"}, {"a": None}, {}),
        ({"a": {"b": "c"}}, {"a": {"b": "d", "c": None}}, {"a": {"b": "d"}}),
        ({"a": ["b"]}, {"a": "c"}, {"a": "c"}),
        ({}, {"a": {"bb": {"ccc": None}}}, {"a": {"bb": {}}}),
    ):
        assert rules.merged(item, patch) == after
