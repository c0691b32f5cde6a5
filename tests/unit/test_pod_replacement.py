"""Pods are replaced in an order that loses no request, whatever controls them; a second plan is empty."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from ansible.module_utils.netmend.pod_replacement import (
    PATHS,
    RELEASED,
    Replacement,
    Step,
    Wish,
    due,
    networks,
    plan,
    shows,
    with_labels,
    without_labels,
)

from tests.unit.pod_cluster import NEW, OLD, Cluster, Object

WISH = Wish(networks(["10.42.128.0/17"]))
BACK = Wish(networks(["10.42.0.0/24", "10.42.1.0/24"]))


class Stuck(Exception):
    """Carries what is waited for, in a cluster where nothing more will happen."""


def cluster(**controllers: Any) -> Cluster:
    """Has a pod at an old address for all that is asked for, and gives new ones new addresses."""
    made = Cluster()
    for kind, arguments in controllers.items():
        getattr(made, kind)(**arguments)
    made.addresses = NEW
    return made


def replace(made: Cluster, wish: Wish = WISH, until: int = 100) -> list[str]:
    """Does what is due, up to so many steps, and says what it did: "label default/web-2 app"."""
    done: list[str] = []
    touched: set[str] = set()
    while len(done) < until:
        _, steps, waits = due(made.state(), wish, touched)
        if not steps and not waits:
            break
        if not steps:
            raise Stuck(waits)
        for step in steps[: until - len(done)]:
            do(made, step)
            touched.add(step.replacement.owner)
            done.append(" ".join([step.action, step.replacement.pod, *step.labels]))
    return done


def do(made: Cluster, step: Step) -> None:
    pod, uid = step.replacement.pod, step.replacement.uid
    if step.action == "label":
        item = made.objects["pods"][uid]
        assert made.patch(pod, without_labels(item, step.replacement.owner, step.labels)) == 200
    else:
        assert {"delete": made.delete, "evict": made.evict}[step.action](pod, uid) in (200, 201)
    assert not shows({"pods": [{"metadata": {"uid": uid, "labels": dict.fromkeys(step.labels, "")}}]}, step)
    assert shows(made.state(), step)
    made.settle()


def ways(made: Cluster, wish: Wish = WISH) -> dict[str, tuple[str, str]]:
    return {each.pod.split("/")[1]: (each.way, each.why) for each in plan(made.state(), wish)}


def only(made: Cluster, wish: Wish = WISH) -> Replacement:
    found = plan(made.state(), wish)
    assert len({(each.owner, each.way, each.why) for each in found}) == 1
    return found[0]


def served(made: Cluster) -> Cluster:
    made.service("web", {"app": "web"})
    made.settle()
    return made


def test_a_single_replica_of_a_deployment_goes_on_until_another_serves() -> None:
    made = served(cluster(deployment={"name": "web", "replicas": 1}))
    (pod,) = (f"default/{name}" for name in ways(made))
    assert replace(made) == [f"label {pod} pod-template-hash", f"label {pod} app", f"delete {pod}"]
    assert made.lost == []
    assert plan(made.state(), WISH) == []


def test_a_deployments_pods_go_several_at_once() -> None:
    made = served(cluster(deployment={"name": "web", "replicas": 4}))
    assert len(due(made.state(), WISH._replace(parallel=3)).steps) == 3
    done = replace(made, WISH._replace(parallel=3))
    assert [step.split()[0] for step in done[:3]] == ["label"] * 3
    assert [step.split()[2] for step in done[:3]] == ["pod-template-hash"] * 3
    assert len(made.ended) == 4
    assert (made.lost, plan(made.state(), WISH)) == ([], [])


def test_no_more_go_than_are_allowed_at_once() -> None:
    made = served(cluster(deployment={"name": "web", "replicas": 4}))
    made.sick.add("ReplicaSet/web-5d9f")
    with pytest.raises(Stuck):
        replace(made, WISH._replace(parallel=3))
    assert [each.way for each in plan(made.state(), WISH)] == ["under way"] * 3 + ["surge"]


def actions(made: Cluster, wish: Wish) -> list[str]:
    return [step.action for step in due(made.state(), wish).steps]


def test_the_next_start_while_others_drain() -> None:
    made = served(cluster(deployment={"name": "web", "replicas": 3}))
    one = WISH._replace(parallel=1)
    assert actions(made, one) == ["label"]
    replace(made, one, until=2)
    assert actions(made, one) == ["delete", "label"]
    assert made.ended == []


def test_those_of_which_one_goes_at_a_time_begin_first() -> None:
    made = served(cluster(deployment={"name": "api", "replicas": 3}, daemonset={"name": "web"}))
    first = [step.replacement.way for step in due(made.state(), WISH._replace(parallel=2)).steps]
    assert first == ["release", "surge"]


def test_of_these_the_one_with_most_left_begins_first() -> None:
    made = Cluster()
    for name in ("agent", "web"):
        made.daemonset(name)
        made.service(name, {"app": name})
    made.settle()
    made.addresses = NEW
    done = replace(made, WISH._replace(parallel=1))
    begun = [pod.partition("-")[0] for action, pod, *_ in map(str.split, done) if action == "label"]
    assert begun == ["default/agent", "default/web"] * 3


def test_one_that_does_not_start_leaves_no_room_for_others() -> None:
    made = served(cluster(deployment={"name": "web", "replicas": 2}, daemonset={"name": "log"}))
    made.sick.add("DaemonSet/log")
    replace(made, WISH._replace(parallel=1), until=1)
    assert actions(made, WISH._replace(parallel=1)) == []
    assert actions(made, WISH._replace(parallel=2)) == ["label"]


def test_pods_are_evicted_while_others_drain() -> None:
    made = served(cluster(deployment={"name": "web", "replicas": 1}, statefulset={"name": "db", "replicas": 2}))
    assert actions(made, WISH) == ["label"]
    replace(made, until=2)
    assert actions(made, WISH) == ["delete", "evict"]


def test_those_that_were_told_to_end_are_waited_for_at_last() -> None:
    made = cluster(deployment={"name": "web", "replicas": 1})
    (pod,) = made.objects["pods"].values()
    pod["metadata"]["deletionTimestamp"] = "2026-11-21T08:34:28Z"
    name = f"default/{pod['metadata']['name']}"
    assert due(made.state(), WISH) == ([], [], {name: f"{name} has not ended"})
    pod["status"]["phase"] = "Succeeded"
    assert due(made.state(), WISH) == ([], [], {})
    pod["status"]["phase"] = "Running"
    made.named("nodes", "/n0")["status"]["conditions"][0]["status"] = "Unknown"
    assert due(made.state(), WISH) == ([], [], {})


def test_a_replacement_that_is_not_made_yet_is_waited_for() -> None:
    made = served(cluster(deployment={"name": "web", "replicas": 2}))
    (step, *_) = due(made.state(), WISH).steps
    item = made.objects["pods"][step.replacement.uid]
    made.patch(step.replacement.pod, without_labels(item, step.replacement.owner, step.labels))
    _, steps, waits = due(made.state(), WISH._replace(parallel=1))
    assert steps == []
    assert waits == {"default/ReplicaSet/web-5d9f": "default/ReplicaSet/web-5d9f has 1 of its 2 pods"}


def test_the_last_that_was_evicted_is_waited_for() -> None:
    made = cluster(statefulset={"name": "db", "replicas": 1})
    made.sick.add("StatefulSet/db")
    with pytest.raises(Stuck, match="default/db-0 on n0 is not Ready"):
        replace(made, WISH._replace(recreate=True))


def test_without_a_service_the_templates_hash_alone_is_taken() -> None:
    made = cluster(deployment={"name": "web", "replicas": 1})
    (pod,) = (f"default/{name}" for name in ways(made))
    assert replace(made) == [f"label {pod} pod-template-hash", f"delete {pod}"]


def test_of_a_daemonset_one_pod_goes_at_a_time_while_others_serve() -> None:
    made = served(cluster(daemonset={"name": "web"}))
    assert only(made).way == "release"
    first = replace(made, until=1)
    assert {step.action for step in due(made.state(), WISH).steps} == {"delete", "label"}
    assert first[0].endswith(" app")
    replace(made)
    assert len(made.ended) == 3
    assert (made.lost, plan(made.state(), WISH)) == ([], [])


def test_the_next_of_a_daemonset_waits_for_the_replacement() -> None:
    made = served(cluster(daemonset={"name": "web"}))
    made.sick.add("DaemonSet/web")
    with pytest.raises(Stuck, match=r"default/web-\d+ on n\d is not Ready \(ContainersNotReady\)"):
        replace(made)
    assert (made.ended, made.lost) == ([], [])


def test_nothing_goes_before_the_endpointslices_have_the_replacement() -> None:
    made = served(cluster(deployment={"name": "web", "replicas": 1}))
    replace(made, until=1)
    old, new = made.objects["pods"].values()
    made.named("endpointslices", "default/web")["endpoints"].pop()
    _, steps, waits = due(made.state(), WISH)
    assert steps == []
    name = f"default/{new['metadata']['name']}"
    assert list(waits.values()) == [f"{name} is not yet in the EndpointSlices of the Service default/web"]
    made.settle()
    assert [step.replacement.uid for step in due(made.state(), WISH).steps] == [old["metadata"]["uid"]]


def test_nothing_is_deleted_that_an_endpointslice_still_has() -> None:
    made = served(cluster(deployment={"name": "web", "replicas": 1}))
    replace(made, until=1)
    held = made.named("endpointslices", "default/web")["endpoints"]
    replace(made, until=1)
    made.named("endpointslices", "default/web")["endpoints"] = held
    _, steps, waits = due(made.state(), WISH)
    assert steps == []
    assert "is still in an EndpointSlice" in next(iter(waits.values()))


@pytest.mark.parametrize("steps", range(1, 10))
@pytest.mark.parametrize("kind", ["deployment", "daemonset"])
def test_what_was_interrupted_is_finished(kind: str, steps: int) -> None:
    arguments = {"name": "web", "replicas": 3} if kind == "deployment" else {"name": "web"}
    made = served(cluster(**{kind: arguments}))
    replace(made, until=steps)
    replace(made)
    assert len(set(made.ended)) == 3
    assert (made.lost, plan(made.state(), WISH)) == ([], [])
    assert RELEASED not in str(made.state()["pods"])


def test_the_way_back_finishes_what_the_way_there_began() -> None:
    made = served(cluster(deployment={"name": "web", "replicas": 2}))
    replace(made, until=3)
    made.addresses = OLD
    replace(made, BACK)
    assert {pod["status"]["podIP"].rpartition(".")[0] for pod in made.state()["pods"]} == {"10.42.0"}
    assert len(made.state()["pods"]) == 2
    assert (made.lost, plan(made.state(), BACK)) == ([], [])


@pytest.mark.parametrize("kind", ["deployment", "daemonset"])
def test_a_pod_whose_replacement_does_not_come_up_is_taken_back(kind: str) -> None:
    made = served(cluster(**{kind: {"name": "web", "replicas": 2} if kind == "deployment" else {"name": "web"}}))
    before = {uid: pod["metadata"]["labels"] for uid, pod in made.objects["pods"].items()}
    made.sick.update(["ReplicaSet/web-5d9f", "DaemonSet/web"])
    with pytest.raises(Stuck):
        replace(made)
    for each in plan(made.state(), WISH):
        if each.way == "under way":
            made.patch(each.pod, with_labels(made.objects["pods"][each.uid]))
    made.settle()
    assert {uid: pod["metadata"]["labels"] for uid, pod in made.objects["pods"].items()} == before
    assert all(pod["metadata"]["ownerReferences"] for pod in made.state()["pods"])
    assert made.lost == []


def test_a_statefulset_goes_from_the_last_to_the_first() -> None:
    made = cluster(statefulset={"name": "db", "replicas": 11})
    assert replace(made) == [f"evict default/db-{ordinal}" for ordinal in reversed(range(11))]
    assert plan(made.state(), WISH) == []


def test_the_next_of_a_statefulset_waits_until_the_last_is_ready() -> None:
    made = cluster(statefulset={"name": "db", "replicas": 3})
    made.sick.add("StatefulSet/db")
    with pytest.raises(Stuck, match=r"default/db-2 on n2 is not Ready"):
        replace(made)
    assert made.ended == ["default/db-2"]


HOST_PORT = {"containers": [{"name": "main", "ports": [{"containerPort": 80, "hostPort": 80}]}]}
ANTIAFFINITY = {
    "affinity": {
        "podAntiAffinity": {
            "requiredDuringSchedulingIgnoredDuringExecution": [
                {"labelSelector": {"matchExpressions": [{"key": "app", "operator": "In", "values": ["web"]}]}}
            ]
        }
    }
}
WRITER = {
    "volumes": [{"name": "sockets", "hostPath": {"path": "/run"}}],
    "containers": [{"name": "main", "volumeMounts": [{"name": "sockets"}]}],
}


@pytest.mark.parametrize(
    ("controllers", "why"),
    [
        ({"daemonset": {"name": "web", **HOST_PORT}}, "its replacement needs its port 80 of the host"),
        ({"daemonset": {"name": "web", **WRITER}}, "it writes to folders of its host"),
        ({"deployment": {"name": "web", "replicas": 2, **ANTIAFFINITY}}, "its podAntiAffinity keeps its like away"),
        ({"deployment": {"name": "web", "replicas": 2, "strategy": {"type": "Recreate"}}}, "strategy is Recreate"),
        (
            {"deployment": {"name": "web", "replicas": 2, "strategy": {"rollingUpdate": {"maxSurge": 0}}}},
            "its Deployment's maxSurge is 0",
        ),
    ],
    ids=["port of the host", "folder of the host", "antiaffinity", "Recreate", "maxSurge 0"],
)
def test_what_cannot_run_beside_its_replacement_is_evicted_one_by_one(controllers: Any, why: str) -> None:
    made = served(cluster(**controllers))
    assert only(made).way == "evict"
    assert why in only(made).why
    before = [each.pod for each in plan(made.state(), WISH)]
    assert replace(made) == [f"evict {pod}" for pod in before]
    assert plan(made.state(), WISH) == []


@pytest.mark.parametrize(
    ("controllers", "why"),
    [
        ({"statefulset": {"name": "web", "replicas": 1}}, "the only Ready pod of its StatefulSet, and its replacement"),
        (
            {"deployment": {"name": "web", "replicas": 1, "strategy": {"type": "Recreate"}}},
            "the only Ready pod of its ReplicaSet, and its Deployment's strategy is Recreate",
        ),
    ],
)
def test_a_pod_that_nothing_stands_in_for_is_the_operators_choice(controllers: Any, why: str) -> None:
    made = served(cluster(**controllers))
    assert only(made).way == ""
    assert why in only(made).why
    assert replace(made) == []
    assert "requests fail until it is back" in only(made, WISH._replace(recreate=True)).why
    assert len(replace(made, WISH._replace(recreate=True))) == 1
    assert plan(made.state(), WISH) == []


def test_the_only_pod_of_a_daemonset_is_one_too() -> None:
    made = Cluster(nodes=1)
    made.daemonset("web")
    made.addresses = NEW
    assert only(served(made)).why == "it is the only Ready pod of its DaemonSet, whose labels its Services ask for, too"


def test_what_nothing_here_can_make_again_is_left() -> None:
    made = cluster()
    made.addresses = OLD
    made.pod("bare", {})
    made.pod("job", {}, "Job/import")
    static = made.pod("static", {}, "Node/n0")
    static["metadata"]["annotations"] = {"kubernetes.io/config.mirror": "x"}
    every = WISH._replace(recreate=True)
    assert ways(made, every) == {
        "job": (
            "evict",
            "whether another pod stands in for it, only its Job knows: requests fail until it is back",
        ),
        "bare": ("", "no controller makes it again: delete it, and make it from its manifest"),
        "static": (
            "",
            "a static pod, which only its kubelet makes again: move its manifest out of the folder of static pods"
            " on n0, and back when the pod is gone",
        ),
    }
    assert replace(made, every) == ["evict default/job"]
    assert ways(made)["bare"] == ways(made, every)["bare"]


def test_other_pods_are_no_ones_business() -> None:
    made = cluster()
    made.addresses = OLD
    made.pod("host", {}, hostNetwork=True)
    made.pod("ended", {})["status"]["phase"] = "Succeeded"
    made.pod("ending", {})["metadata"]["deletionTimestamp"] = "2026-11-21T08:34:28Z"
    made.pod("unborn", {})["status"]["podIP"] = ""
    made.pod("six", {})["status"].update(podIP="10.42.128.9", podIPs=[{"ip": "10.42.128.9"}, {"ip": "2001:db8::9"}])
    assert plan(made.state(), WISH) == []
    assert list(ways(made, Wish(networks(["10.42.0.0/16", "2001:db8:1::/64"])))) == ["six"]


def test_excluded_namespaces_and_nodes_that_are_down_are_left() -> None:
    made = cluster(deployment={"name": "web", "replicas": 1})
    assert only(made, WISH._replace(excluded=frozenset(["default"]))).why == "its namespace is excluded"
    made.named("nodes", "/n0")["status"]["conditions"][0]["status"] = "Unknown"
    assert only(made).why == "its node n0 is not Ready: run this again when it is"


def test_an_ill_pod_is_evicted_behind_others_and_holds_nobody_up() -> None:
    made = served(cluster(deployment={"name": "web", "replicas": 3}))
    ill = next(iter(made.objects["pods"].values()))
    ill["status"]["conditions"] = [{"type": "Ready", "status": "False", "reason": "ContainersNotReady"}]
    assert [each.way for each in plan(made.state(), WISH)] == ["surge", "surge", "evict"]
    done = replace(made)
    at = done.index(f"evict default/{ill['metadata']['name']}")
    assert not any(step.endswith("pod-template-hash") for step in done[at:])
    assert (made.lost, plan(made.state(), WISH)) == ([], [])


@pytest.mark.parametrize("spec", [{"minAvailable": 3}, {"minAvailable": "90%"}, {"maxUnavailable": 0}])
def test_a_budget_that_lets_none_go_is_named(spec: Any) -> None:
    made = served(cluster(daemonset={"name": "web"}, budget={"name": "all", **spec}))
    assert only(made) == only(made)._replace(
        way="", why="the PodDisruptionBudget default/all never lets one of its pods go"
    )
    made = served(cluster(deployment={"name": "web", "replicas": 3}, budget={"name": "all", **spec}))
    assert only(made).way == "surge"


@pytest.mark.parametrize("spec", [{"minAvailable": 2}, {"minAvailable": "50%"}, {"maxUnavailable": "10%"}])
def test_a_budget_that_is_spent_is_waited_for(spec: Any) -> None:
    made = served(cluster(daemonset={"name": "web"}, budget={"name": "some", **spec}))
    replace(made, until=1)
    new = list(made.objects["pods"].values())[-1]
    conditions = new["status"]["conditions"]
    new["status"]["conditions"] = [{"type": "Ready", "status": "False"}]
    _, steps, waits = due(made.state(), WISH)
    assert steps == []
    assert len(waits) == 1
    new["status"]["conditions"] = conditions
    replace(made)
    assert plan(made.state(), WISH) == []


def test_a_budget_that_an_ill_pod_spends_lets_the_ill_one_go_first() -> None:
    made = served(cluster(daemonset={"name": "web"}, budget={"name": "some", "minAvailable": 2}))
    ill = next(iter(made.objects["pods"].values()))
    ready = ill["status"]["conditions"]
    ill["status"]["conditions"] = [{"type": "Ready", "status": "False", "reason": "ContainersNotReady"}]
    assert [(step.action, step.replacement.uid) for step in due(made.state(), WISH).steps] == [
        ("evict", ill["metadata"]["uid"])
    ]
    ill["spec"]["nodeName"] = "gone"
    assert next(iter(due(made.state(), WISH).waits.values())).startswith(
        "the PodDisruptionBudget default/some does not let default/web-"
    )
    ill["status"]["conditions"] = ready
    assert due(made.state(), WISH).steps[0].action == "label"


def test_a_pod_of_two_budgets_cannot_be_evicted() -> None:
    made = cluster(daemonset={"name": "web", **HOST_PORT})
    made.budget("one", minAvailable=1)
    made.budget("two", minAvailable=1)
    assert only(made).why == (
        "the API evicts no pod that has several PodDisruptionBudgets: default/one and default/two"
    )


def test_services_that_stay_on_the_node_are_named() -> None:
    made = cluster(daemonset={"name": "web"})
    made.service("edge", {"app": "web"}, externalTrafficPolicy="Local")
    made.settle()
    assert only(made).way == "release"
    assert only(made).why.startswith("default/edge sends what comes in at a node to its pods there alone")


@pytest.mark.parametrize(
    ("captured", "cidr", "way"),
    [
        ("flannel", "10.42.128.0/17", ["release"] * 3),
        ("swapped-clean", "10.42.128.0/17", []),
        ("swapped-clean", "10.42.0.0/17", ["release"] * 3),
    ],
)
def test_captured_clusters(fixtures: Path, captured: str, cidr: str, way: list[str]) -> None:
    state: dict[str, list[Object]] = {}
    for what in PATHS:
        file = fixtures / "k3s-1.36.3" / captured / "server0" / f"k8s-{what}.json"
        state[what] = json.loads(file.read_text())["items"] if file.exists() else []
    wish = Wish(networks([cidr]))
    assert [each.way for each in plan(state, wish)] == way
    assert [(step.action, step.labels) for step in due(state, wish).steps] == [("label", ("app",))] * bool(way)


def test_no_more_labels_are_taken_than_selectors_need() -> None:
    made = served(cluster(deployment={"name": "web", "replicas": 1}))
    uid, pod = next(iter(made.objects["pods"].items()))
    pod["metadata"]["labels"].update(tier="front", zone="a")
    made.service("front", {"app": "web", "tier": "front"})
    made.service("zone", {"zone": "a"})
    made.pod("other", {"app": "web", "tier": "front", "zone": "a"})
    made.settle()
    replace(made, until=2)
    assert made.objects["pods"][uid]["metadata"]["labels"] == {"tier": "front"}


def test_a_service_that_no_replacement_joins_keeps_its_pod() -> None:
    made = served(cluster(deployment={"name": "web", "replicas": 1}))
    next(iter(made.objects["pods"].values()))["metadata"]["labels"]["role"] = "leader"
    made.service("leader", {"role": "leader"})
    made.settle()
    with pytest.raises(Stuck, match=r"the Service default/leader has no other endpoint than default/web-\d+"):
        replace(made)
    assert made.lost == []


@pytest.mark.parametrize("cidr", ["10.42.128.0/16", "pods"])
def test_what_is_no_network_is_named(cidr: str) -> None:
    with pytest.raises(ValueError, match=cidr):
        networks([cidr])


def test_a_namesake_is_not_touched() -> None:
    made = cluster(deployment={"name": "web", "replicas": 1})
    pod: Object = next(iter(made.objects["pods"].values()))
    content = without_labels(pod, "default/ReplicaSet/web-5d9f", ["app"])
    name = f"default/{pod['metadata']['name']}"
    assert made.patch(name, {"metadata": {**content["metadata"], "uid": "other"}}) == 409
    assert made.delete(name, "other") == 409
