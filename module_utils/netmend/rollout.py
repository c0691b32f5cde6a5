"""Whether a Deployment or a DaemonSet is rolled out, what it lacks, and which of its new pods will not come up. Pure.

What a status says counts from when its controller has seen the object's generation, as `kubectl rollout status` has it
(pkg/polymorphichelpers/rollout_status.go of kubernetes/kubectl). A pod counts when it is in the EndpointSlices, too.
"""

from __future__ import annotations

from typing import Any, Dict, Iterable, List, Mapping, Set

Object = Dict[str, Any]
State = Mapping[str, List[Object]]  # the API's objects of one namespace, by what paths() calls them

_APPS = "/apis/apps/v1/namespaces/{}"
_CORE = "/api/v1/namespaces/{}"
_PATHS = {
    "deployments": f"{_APPS}/deployments",
    "replicasets": f"{_APPS}/replicasets",
    "daemonsets": f"{_APPS}/daemonsets",
    "pods": f"{_CORE}/pods",
    "services": f"{_CORE}/services",
    "endpointslices": "/apis/discovery.k8s.io/v1/namespaces/{}/endpointslices",
}
WORKLOADS = {"Deployment": "deployments", "DaemonSet": "daemonsets"}
REVISION = "deployment.kubernetes.io/revision"  # annotation of Deployments and of their ReplicaSets
GENERATION = "deprecated.daemonset.template.generation"  # annotation of DaemonSets
PARKED = "netmend/replicas"  # annotation of a Deployment without replicas: how many it had (host_network.py)
TEMPLATE_GENERATION = "pod-template-generation"  # the same as a label of their pods
# Why a container waits that does not get better by waiting.
HOPELESS = (
    "CrashLoopBackOff",
    "CreateContainerConfigError",
    "CreateContainerError",
    "ErrImageNeverPull",
    "ErrImagePull",
    "ImagePullBackOff",
    "InvalidImageName",
    "RunContainerError",
)
RESTARTS = 2  # between two of them, a container that crashes looks as if it ran
SAID = 300  # characters of a message


def paths(namespace: str) -> Dict[str, str]:
    return {what: path.format(namespace) for what, path in _PATHS.items()}


def find(state: State, what: str, name: str) -> Object:
    """{} where there is none, or it is on its way out."""
    found = (item for item in state[what] if item["metadata"]["name"] == name)
    return next((item for item in found if "deletionTimestamp" not in item["metadata"]), {})


def lacks(state: State, kind: str, name: str) -> str:
    """What a workload lacks to be rolled out and served; "" for nothing."""
    item = find(state, WORKLOADS[kind], name)
    if not item:
        return f"there is no {kind} {name}"
    said = _DONE[kind](item) if _is_seen(item) else "its controller has not seen its change yet"
    return f"{kind} {name}: {said}" if said else unserved(state, current(state, kind, item))


def unserved(state: State, pods: Iterable[Object]) -> str:
    """The first of these pods that a Service does not lead to yet, though it asks for its labels; "" for none."""
    for pod in pods:
        for service in services_of(state, [pod]):
            if is_ready(pod) and pod["metadata"]["uid"] not in served_by(state, service["metadata"]["name"]):
                return f"{pod['metadata']['name']} is not yet in the EndpointSlices of {service['metadata']['name']}"
    return ""


def services_of(state: State, pods: Iterable[Object]) -> List[Object]:
    """The Services that ask for labels of any of these pods."""
    labels = [pod["metadata"].get("labels", {}).items() for pod in pods]
    selectors = ((item, (item["spec"].get("selector") or {}).items()) for item in state["services"])
    return [item for item, selector in selectors if selector and any(selector <= each for each in labels)]


def served_by(state: State, service: str) -> Set[str]:
    """The uids of the pods that get a Service's new requests."""
    slices = (
        item
        for item in state["endpointslices"]
        if item["metadata"].get("labels", {}).get("kubernetes.io/service-name") == service
    )
    return {
        (endpoint.get("targetRef") or {}).get("uid", "")
        for item in slices
        for endpoint in item.get("endpoints") or []
        if endpoint.get("conditions", {}).get("ready") is not False
    }


def pods_of(state: State, kind: str, name: str) -> List[Object]:
    """All pods of a workload, those of former templates and those that are ending, too."""
    owners = {("DaemonSet", name)}
    if kind == "Deployment":
        owned = (item for item in state["replicasets"] if (kind, name) == _owner(item))
        owners = {("ReplicaSet", item["metadata"]["name"]) for item in owned}
    return [pod for pod in state["pods"] if _owner(pod) in owners]


def current(state: State, kind: str, item: Object) -> List[Object]:
    """The pods of a workload that its present template has made, and that are not ending."""
    name = item["metadata"]["name"]
    notes = item["metadata"].get("annotations", {})
    pods = [pod for pod in pods_of(state, kind, name) if "deletionTimestamp" not in pod["metadata"]]
    if kind == "DaemonSet":
        wanted = notes.get(GENERATION)
        return [pod for pod in pods if pod["metadata"].get("labels", {}).get(TEMPLATE_GENERATION) == wanted]
    newest = {
        ("ReplicaSet", each["metadata"]["name"])
        for each in state["replicasets"]
        if each["metadata"].get("annotations", {}).get(REVISION) == notes.get(REVISION)
    }
    return [pod for pod in pods if _owner(pod) in newest]


def hopeless(state: State, kind: str, name: str) -> Dict[str, str]:
    """Which of a workload's new pods will not come up, and why, by pod; the workload's own name for its deadline."""
    item = find(state, WORKLOADS[kind], name)
    if not item or not _is_seen(item):
        return {}
    found = {pod["metadata"]["name"]: _trouble(pod) for pod in current(state, kind, item)}
    conditions = item.get("status", {}).get("conditions") or []
    if any(each.get("reason") == "ProgressDeadlineExceeded" for each in conditions):
        found[name] = f"{kind} {name} has exceeded its progressDeadlineSeconds"
    return {who: why for who, why in found.items() if why}


def unplaced(state: State, kind: str, name: str) -> str:
    """Why the scheduler places one of its new pods nowhere; "" where it does."""
    item = find(state, WORKLOADS[kind], name)
    for pod in current(state, kind, item) if item else []:
        for each in pod.get("status", {}).get("conditions") or []:
            if (each["type"], each["status"]) == ("PodScheduled", "False"):
                return f"{pod['metadata']['name']}: {each.get('reason', '')}: {each.get('message', '')}"[:SAID]
    return ""


def is_ready(pod: Object) -> bool:
    conditions = pod.get("status", {}).get("conditions") or []
    return any(each["type"] == "Ready" and each["status"] == "True" for each in conditions)


def _owner(item: Object) -> Any:
    references = item["metadata"].get("ownerReferences", [])
    return next(((each["kind"], each["name"]) for each in references if each.get("controller")), None)


def _is_seen(item: Object) -> bool:
    return bool(item["metadata"].get("generation", 0) <= item.get("status", {}).get("observedGeneration", 0))


def _deployment(item: Object) -> str:
    status, wanted = item.get("status", {}), item["spec"].get("replicas", 1)
    updated, there = status.get("updatedReplicas", 0), status.get("replicas", 0)
    available = status.get("availableReplicas", 0)
    if updated < wanted:
        return f"{updated} of {wanted} new pods are there"
    if there > updated:
        return f"{there - updated} old pods are still there"
    return f"{available} of {updated} new pods are available" if available < updated else ""


def _daemonset(item: Object) -> str:
    status = item.get("status", {})
    wanted, updated = status.get("desiredNumberScheduled", 0), status.get("updatedNumberScheduled", 0)
    available = status.get("numberAvailable", 0)
    if updated < wanted:
        return f"{updated} of {wanted} new pods are there"
    return f"{available} of {wanted} new pods are available" if available < wanted else ""


_DONE = {"Deployment": _deployment, "DaemonSet": _daemonset}


def _trouble(pod: Object) -> str:
    """Why a pod will not come up; "" for one that may."""
    if is_ready(pod):
        return ""
    specs = [each for what in ("containers", "initContainers") for each in pod["spec"].get(what) or []]
    logs = {each["name"] for each in specs if each.get("terminationMessagePolicy") == "FallbackToLogsOnError"}
    status = pod.get("status", {})
    for each in [*(status.get("initContainerStatuses") or []), *(status.get("containerStatuses") or [])]:
        waiting = each.get("state", {}).get("waiting", {})
        if waiting.get("reason") in HOPELESS or each.get("restartCount", 0) >= RESTARTS:
            place = f"{pod['metadata']['name']} on {pod['spec'].get('nodeName', 'no node')}, container {each['name']}"
            reason = waiting.get("reason") or f"restarted {each['restartCount']} times"
            return ": ".join(word for word in (place, reason, _last_words(each, each["name"] in logs)) if word)
    return ""


def _last_words(container: Object, logged: bool) -> str:
    """What is known of a container's end, or of why it does not begin; never its log, as secrets may be in it."""
    ended = container.get("lastState", {}).get("terminated") or container.get("state", {}).get("terminated")
    if not ended:
        return str(container.get("state", {}).get("waiting", {}).get("message", ""))[:SAID]
    message = "" if logged else ended.get("message", "").strip()[:SAID]
    end = f"it ended with {ended.get('exitCode')} ({ended.get('reason', 'no reason given')})"
    return f"{end}: {message}" if message else end
