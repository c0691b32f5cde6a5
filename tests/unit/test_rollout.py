"""When a rollout is done, as kubectl sees it, and what is said of pods that will not come up."""

from __future__ import annotations

from typing import Any

import pytest
from ansible.module_utils.netmend import rollout

READY = [{"type": "Ready", "status": "True"}]


def deployment(status: dict[str, Any], generation: int = 2, replicas: int | None = 2) -> dict[str, Any]:
    meta = {"name": "web", "generation": generation, "annotations": {rollout.REVISION: "2"}}
    return {"metadata": meta, "spec": {} if replicas is None else {"replicas": replicas}, "status": status}


def daemonset(status: dict[str, Any], generation: int = 2) -> dict[str, Any]:
    meta = {"name": "web", "generation": generation, "annotations": {rollout.GENERATION: "2"}}
    return {"metadata": meta, "spec": {}, "status": status}


def pod(name: str, owner: str, labels: dict[str, str] | None = None, **status: Any) -> dict[str, Any]:
    kind, _, of = owner.partition("/")
    reference = {"kind": kind, "name": of, "controller": True}
    meta = {"name": name, "uid": name, "labels": {"app": "web", **(labels or {})}, "ownerReferences": [reference]}
    return {"metadata": meta, "spec": {"nodeName": "a", "containers": [{"name": "main"}]}, "status": status}


def state(**more: Any) -> dict[str, list[Any]]:
    return {**{what: [] for what in rollout.paths("shop")}, **more}


def replicasets(*revisions: int) -> list[Any]:
    owner = {"kind": "Deployment", "name": "web", "controller": True}
    return [
        {"metadata": {"name": f"web-{each}", "ownerReferences": [owner], "annotations": {rollout.REVISION: str(each)}}}
        for each in revisions
    ]


UP = {"observedGeneration": 2, "replicas": 2, "updatedReplicas": 2, "availableReplicas": 2}
SPREAD = {"observedGeneration": 2, "desiredNumberScheduled": 3, "updatedNumberScheduled": 3, "numberAvailable": 3}


@pytest.mark.parametrize(
    ("item", "said"),
    [
        (deployment(UP), ""),
        (deployment({**UP, "observedGeneration": 1}), "its controller has not seen its change yet"),
        (deployment({}, generation=1), "its controller has not seen its change yet"),
        (deployment({**UP, "updatedReplicas": 1}), "1 of 2 new pods are there"),
        (deployment({**UP, "replicas": 3}), "1 old pods are still there"),
        (deployment({**UP, "availableReplicas": 1}), "1 of 2 new pods are available"),
        (deployment({**UP, "updatedReplicas": 0}, replicas=None), "0 of 1 new pods are there"),
        (deployment({"observedGeneration": 2}, replicas=0), ""),
    ],
)
def test_a_deployment_is_done(item: Any, said: str) -> None:
    found = rollout.lacks(state(deployments=[item]), "Deployment", "web")
    assert found == (f"Deployment web: {said}" if said else "")


@pytest.mark.parametrize(
    ("item", "said"),
    [
        (daemonset(SPREAD), ""),
        (daemonset({**SPREAD, "observedGeneration": 1}), "its controller has not seen its change yet"),
        (daemonset({**SPREAD, "updatedNumberScheduled": 2}), "2 of 3 new pods are there"),
        (daemonset({**SPREAD, "numberAvailable": 2}), "2 of 3 new pods are available"),
    ],
)
def test_a_daemonset_is_done(item: Any, said: str) -> None:
    found = rollout.lacks(state(daemonsets=[item]), "DaemonSet", "web")
    assert found == (f"DaemonSet web: {said}" if said else "")


def test_one_that_is_on_its_way_out_is_none() -> None:
    item = deployment(UP)
    item["metadata"]["deletionTimestamp"] = "now"
    assert rollout.lacks(state(deployments=[item]), "Deployment", "web") == "there is no Deployment web"


def test_pods_have_to_be_in_the_slices_of_all_services_that_ask_for_them() -> None:
    there = state(
        daemonsets=[daemonset(SPREAD)],
        pods=[pod("web-1", "DaemonSet/web", {rollout.TEMPLATE_GENERATION: "2"}, conditions=READY)],
        services=[
            {"metadata": {"name": name}, "spec": {"selector": {"app": app}}} for name, app in (("s", "web"), ("o", "x"))
        ],
    )
    assert rollout.lacks(there, "DaemonSet", "web") == "web-1 is not yet in the EndpointSlices of s"
    meta = {"labels": {"kubernetes.io/service-name": "s"}}
    there["endpointslices"] = [{"metadata": meta, "endpoints": [{"targetRef": {"uid": "web-1"}}]}]
    assert rollout.lacks(there, "DaemonSet", "web") == ""
    there["endpointslices"][0]["endpoints"][0]["conditions"] = {"ready": False}
    assert rollout.lacks(there, "DaemonSet", "web") != ""


def waits(why: str, said: str = "", restarts: int = 0, **last: Any) -> dict[str, Any]:
    waiting = {"reason": why, "message": said}
    status = {"name": "main", "restartCount": restarts, "state": {"waiting": waiting} if why else {"running": {}}}
    return {"containerStatuses": [{**status, **({"lastState": {"terminated": last}} if last else {})}]}


@pytest.mark.parametrize(
    ("status", "said"),
    [
        (waits("ContainerCreating"), ""),
        (waits("ImagePullBackOff", "no such image"), "web-1 on a, container main: ImagePullBackOff: no such image"),
        (waits("CrashLoopBackOff", "back-off", 1, exitCode=3, reason="Error", message="no database\n"),
         "web-1 on a, container main: CrashLoopBackOff: it ended with 3 (Error): no database"),
        (waits("", restarts=2, exitCode=137, reason="OOMKilled"),
         "web-1 on a, container main: restarted 2 times: it ended with 137 (OOMKilled)"),
        (waits("", restarts=1, exitCode=1, reason="Error"), ""),
        ({**waits("", restarts=7, exitCode=1, reason="Error"), "conditions": READY}, ""),
    ],
)  # fmt: skip
def test_what_will_not_come_up(status: Any, said: str) -> None:
    there = state(
        deployments=[deployment(UP)],
        replicasets=replicasets(1, 2),
        pods=[pod("web-1", "ReplicaSet/web-2", **status), pod("old", "ReplicaSet/web-1", **waits("CrashLoopBackOff"))],
    )
    assert rollout.hopeless(there, "Deployment", "web") == ({"web-1": said} if said else {})


def test_a_log_is_never_shown() -> None:
    crashed = pod("web-1", "ReplicaSet/web-2", **waits("CrashLoopBackOff", exitCode=1, reason="Error", message="key=x"))
    crashed["spec"]["containers"][0]["terminationMessagePolicy"] = "FallbackToLogsOnError"
    there = state(deployments=[deployment(UP)], replicasets=replicasets(2), pods=[crashed])
    (said,) = rollout.hopeless(there, "Deployment", "web").values()
    assert said.endswith("CrashLoopBackOff: it ended with 1 (Error)")


def test_nothing_is_said_before_the_controller_has_seen_the_change() -> None:
    late = deployment({**UP, "observedGeneration": 1, "conditions": [{"reason": "ProgressDeadlineExceeded"}]})
    sick = [pod("web-1", "ReplicaSet/web-2", **waits("ErrImagePull"))]
    there = state(deployments=[late], replicasets=replicasets(2), pods=sick)
    assert rollout.hopeless(there, "Deployment", "web") == {}
    late["status"]["observedGeneration"] = 2
    assert set(rollout.hopeless(there, "Deployment", "web")) == {"web", "web-1"}


def test_a_pod_that_fits_nowhere_is_said() -> None:
    pending = pod("web-1", "ReplicaSet/web-2", conditions=[
        {"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": "0/3 nodes are available"},
    ])  # fmt: skip
    there = state(deployments=[deployment(UP)], replicasets=replicasets(2), pods=[pending])
    assert rollout.unplaced(there, "Deployment", "web") == "web-1: Unschedulable: 0/3 nodes are available"
