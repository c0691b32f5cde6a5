"""An API server in memory, with server-side apply, and controllers that act at once on what is written to it.

Its answers are those that the core's Api gives, so that it is given in the place of one.
"""

from __future__ import annotations

import copy
import hashlib
import json
import threading
from functools import wraps
from itertools import count
from typing import Any, Callable
from urllib.parse import parse_qs, urlsplit

from ansible.module_utils.netmend.host_network import merged
from ansible.module_utils.netmend.kube import Api
from ansible.module_utils.netmend.rollout import GENERATION, REVISION, TEMPLATE_GENERATION

Object = dict[str, Any]

KINDS = {
    "/api/v1": {"Namespace": ("namespaces", False), "Service": ("services", True), "Secret": ("secrets", True)},
    "/apis/apps/v1": {"Deployment": ("deployments", True), "DaemonSet": ("daemonsets", True)},
    "/apis/networking.k8s.io/v1": {"Ingress": ("ingresses", True)},
}
APPS = "/apis/apps/v1/namespaces/shop"
CORE = "/api/v1/namespaces/shop"
LABEL = "kubernetes.io/service-name"


def alone(method: Callable[..., Any]) -> Callable[..., Any]:
    """The module asks from several threads."""

    @wraps(method)
    def locked(self: Cluster, *arguments: Any, **more: Any) -> Any:
        with self.lock:
            return method(self, *arguments, **more)

    return locked


class Cluster:
    """Nodes n0 to n2, and the namespace shop. ``lost`` holds what no test of a good run may see."""

    server = "https://api"
    item = Api.item

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self.stored: dict[str, Object] = {}
        self.written: list[str] = []  # METHOD path, of what was not a dry run
        self.bad: set[str] = set()  # images whose pods do not become Ready
        self.late = 0  # how often controllers are asked before they see what was written
        self.lost: list[str] = []
        self.now = 0.0
        self.interrupt: Callable[[str], bool] = lambda request: False  # before which write the run dies
        self._applied: dict[str, Object] = {}
        self._serial = count(1)
        self._calm = True
        namespace = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "shop"}}
        self.put("/api/v1/namespaces/shop", namespace)
        for number in range(3):
            name = f"n{number}"
            status = {
                "addresses": [{"type": "InternalIP", "address": f"10.0.0.{number}"}],
                "conditions": [{"type": "Ready", "status": "True"}],
            }
            self.put(f"/api/v1/nodes/{name}", {"metadata": {"name": name}, "spec": {}, "status": status})

    # --- what the core asks ---

    @alone
    def get(self, path: str) -> tuple[int, str]:
        if path in self.stored:
            return 200, json.dumps(self.stored[path])
        listed = [
            {"kind": kind, "name": name, "namespaced": inside} for kind, (name, inside) in KINDS.get(path, {}).items()
        ]
        return (200, json.dumps({"resources": listed})) if listed else (404, "")

    @alone
    def items(self, path: str) -> list[Object]:
        root, _, what = path.rpartition("/")
        inside = root if "/namespaces/" in root else f"{root}/"
        found = [item for place, item in self.stored.items() if place.startswith(inside) and f"/{what}/" in place]
        # Items of a list do not say what they are.
        return [{key: value for key, value in copy.deepcopy(item).items() if key not in ("kind",)} for item in found]

    @alone
    def send(self, method: str, path: str, content: Any = None, content_type: str = "") -> tuple[int, str]:
        place, query = urlsplit(path).path, parse_qs(urlsplit(path).query)
        dry = "dryRun" in query
        if not dry:
            request = f"{method} {place}"
            if self.interrupt(request):
                raise KeyboardInterrupt(request)
            self.written.append(request)
        if method == "DELETE":
            return (200, "{}") if self._delete(place) else (404, "")
        live = self.stored.get(place, {})
        if content_type == "application/merge-patch+json":
            after = merged(live, content)
        else:
            after = _applied(live, self._applied.get(place, {}), content)
        if "/services/" in place:
            after["spec"].setdefault("clusterIP", "10.43.0.9")
        if not dry:
            self.put(place, after)
            if content_type != "application/merge-patch+json":
                self._applied[place] = copy.deepcopy(content)
        return 200, json.dumps(after)

    @alone
    def put(self, place: str, item: Object) -> Object:
        live, item = self.stored.get(place, {}), copy.deepcopy(item)
        meta = item["metadata"]
        meta.setdefault("uid", f"uid-{next(self._serial)}")
        if item.get("spec") != live.get("spec"):
            meta["generation"] = meta.get("generation", 0) + 1
        self.stored[place] = item
        if self._calm:
            self.settle()
        return item

    # --- what tests do ---

    def deployment(self, name: str, replicas: int, image: str = "good:1", **pod: Any) -> None:
        """One of somebody else's, with a Service."""
        labels = {"app": name}
        container = {"name": name, "image": image, "ports": [{"containerPort": 8080}]}
        template = {"metadata": {"labels": labels}, "spec": {"containers": [container], **pod}}
        spec = {"replicas": replicas, "selector": {"matchLabels": labels}, "template": template}
        meta = {"name": name, "namespace": "shop"}
        kind = {"apiVersion": "apps/v1", "kind": "Deployment"}
        self.put(f"{APPS}/deployments/{name}", {**kind, "metadata": meta, "spec": spec})
        ports = [{"port": 80, "targetPort": 8080}]
        service = {"type": "ClusterIP", "clusterIP": "10.43.0.9", "selector": labels, "ports": ports}
        kind = {"apiVersion": "v1", "kind": "Service"}
        self.put(f"{CORE}/services/{name}", {**kind, "metadata": meta, "spec": service})

    def pods(self) -> list[Object]:
        return [item for place, item in self.stored.items() if "/pods/" in place]

    def images(self) -> list[str]:
        """Of the pods that are Ready."""
        return sorted(pod["spec"]["containers"][0]["image"] for pod in self.pods() if _ready(pod))

    @alone
    def settle(self) -> None:
        """Lets controllers act until nothing changes."""
        if self.late:
            return
        self._calm = False
        for _ in range(9):
            before = copy.deepcopy(self.stored)
            self._collect()
            for place, item in list(self.stored.items()):
                if "/deployments/" in place:
                    self._deploy(place, item)
                elif "/daemonsets/" in place:
                    self._spread(place, item)
            self._slice()
            if self.stored == before:
                break
        self._calm = True

    # --- controllers ---

    def _deploy(self, place: str, item: Object) -> None:
        spec, name = item["spec"], item["metadata"]["name"]
        digest = hashlib.sha256(json.dumps(spec["template"], sort_keys=True).encode()).hexdigest()[:8]
        sets = {path: each for path, each in self.stored.items() if "/replicasets/" in path and _is_of(each, item)}
        notes = item["metadata"].setdefault("annotations", {})
        newest = f"{APPS}/replicasets/{name}-{digest}"
        revision = max([0, *(int(each["metadata"]["annotations"][REVISION]) for each in sets.values())])
        if newest not in sets or int(sets[newest]["metadata"]["annotations"][REVISION]) < revision:
            meta = {"name": f"{name}-{digest}", "annotations": {REVISION: str(revision + 1)}}
            self.put(newest, {"metadata": {**meta, "ownerReferences": [_owner(item)]}, "spec": {}})
        notes[REVISION] = self.stored[newest]["metadata"]["annotations"][REVISION]
        labels = {**spec["template"]["metadata"]["labels"], "pod-template-hash": digest}
        pods = [pod for each in [*sets.values(), self.stored[newest]] for pod in self._owned(each)]
        pods = list({pod["metadata"]["uid"]: pod for pod in pods}.values())
        new = [pod for pod in pods if pod["metadata"]["labels"]["pod-template-hash"] == digest]
        old = [pod for pod in pods if pod not in new]
        steps = spec.get("strategy", {}).get("rollingUpdate", {"maxSurge": 1, "maxUnavailable": 0})
        wanted = spec.get("replicas", 1)
        while len(new) > wanted:
            self._end(new.pop())
        if len(new) < wanted and len(pods) < wanted + steps["maxSurge"]:
            taken = {pod["spec"]["nodeName"] for pod in pods}
            free = [node for node in self._nodes() if node not in taken] or self._nodes()
            self._run(self.stored[newest], labels, spec["template"], free[0])
        elif old:
            ready = sum(map(_ready, pods))
            sick = [pod for pod in old if not _ready(pod)]
            if sick or ready > wanted - steps["maxUnavailable"]:
                self._end((sick or old)[0])
        item["status"] = {
            "observedGeneration": item["metadata"]["generation"],
            "replicas": len(pods), "updatedReplicas": len(new), "availableReplicas": sum(map(_ready, pods)),
        }  # fmt: skip
        self.stored[place] = item

    def _spread(self, place: str, item: Object) -> None:
        template = item["spec"]["template"]
        digest = hashlib.sha256(json.dumps(template, sort_keys=True).encode()).hexdigest()[:8]
        notes = item["metadata"].setdefault("annotations", {})
        if item.get("digest") != digest:
            item["digest"], notes[GENERATION] = digest, str(int(notes.get(GENERATION, 0)) + 1)
        labels = {**template["metadata"]["labels"], TEMPLATE_GENERATION: notes[GENERATION], "hash": digest}
        pods = {pod["spec"]["nodeName"]: pod for pod in self._owned(item)}
        old = [pod for pod in pods.values() if pod["metadata"]["labels"]["hash"] != digest]
        missing = [node for node in self._nodes() if node not in pods]
        if missing:
            self._run(item, labels, template, missing[0])
        elif old and all(_ready(pod) for pod in pods.values() if pod not in old):
            self._end(old[0])
        elif old and any(not _ready(pod) for pod in old):
            self._end(next(pod for pod in old if not _ready(pod)))
        item["status"] = {
            "observedGeneration": item["metadata"]["generation"], "desiredNumberScheduled": len(self._nodes()),
            "updatedNumberScheduled": len(pods) - len(old), "numberAvailable": sum(map(_ready, pods.values())),
        }  # fmt: skip
        self.stored[place] = item

    def _slice(self) -> None:
        for place, service in list(self.stored.items()):
            if "/services/" not in place:
                continue
            name, wanted = service["metadata"]["name"], service["spec"]["selector"].items()
            chosen = [pod for pod in self.pods() if wanted <= pod["metadata"]["labels"].items() and _ready(pod)]
            path = f"/apis/discovery.k8s.io/v1/namespaces/shop/endpointslices/{name}"
            before = self.stored.get(path, {}).get("endpoints", [])
            if before and not chosen:
                self.lost.append(f"{name} has no endpoint")
            endpoints = [{"targetRef": {"uid": pod["metadata"]["uid"]}} for pod in chosen]
            meta = {"name": name, "uid": name, "labels": {LABEL: name}}
            self.stored[path] = {"metadata": meta, "endpoints": endpoints}

    def _collect(self) -> None:
        for place, item in list(self.stored.items()):
            owners = [each["uid"] for each in item["metadata"].get("ownerReferences", [])]
            if owners and not any(each["metadata"]["uid"] in owners for each in self.stored.values()):
                self._end(item) if "/pods/" in place else self.stored.pop(place)

    def _run(self, owner: Object, labels: Object, template: Object, node: str) -> None:
        name = f"{owner['metadata']['name']}-{next(self._serial)}"
        image = template["spec"]["containers"][0]["image"]
        ready = {"type": "Ready", "status": str(image not in self.bad)}
        status: Object = {"podIP": "10.42.0.7", "conditions": [ready]}
        if image in self.bad:
            waiting = {"reason": "ImagePullBackOff", "message": f'Back-off pulling image "{image}"'}
            status["containerStatuses"] = [{"name": "main", "restartCount": 0, "state": {"waiting": waiting}}]
        meta = {"name": name, "namespace": "shop", "labels": labels, "ownerReferences": [_owner(owner)]}
        spec = {**copy.deepcopy(template["spec"]), "nodeName": node}
        self.put(f"{CORE}/pods/{name}", {"metadata": meta, "spec": spec, "status": status})

    def _end(self, pod: Object) -> None:
        uid = pod["metadata"]["uid"]
        served = any(uid in json.dumps(each) for place, each in self.stored.items() if "/endpointslices/" in place)
        if served and "lifecycle" not in pod["spec"]["containers"][0]:
            self.lost.append(f"{pod['metadata']['name']} ended while it was an endpoint")
        self.stored.pop(f"{CORE}/pods/{pod['metadata']['name']}")

    def _owned(self, owner: Object) -> list[Object]:
        return [pod for pod in self.pods() if _is_of(pod, owner)]

    def _nodes(self) -> list[str]:
        return [item["metadata"]["name"] for place, item in self.stored.items() if "/nodes/" in place]

    def _delete(self, place: str) -> bool:
        self._applied.pop(place, None)
        found = self.stored.pop(place, None)
        self.settle()
        return bool(found)


class Mirror:
    """The core's, of a cluster in memory: to wait is to let its controllers act, and its clock go on."""

    def __init__(self, api: Cluster, paths: dict[str, str]) -> None:
        self._api, self._paths = api, paths

    def state(self) -> dict[str, list[Object]]:
        return {what: self._api.items(path) for what, path in self._paths.items()}

    def wait(self, seconds: float) -> None:
        with self._api.lock:
            self._api.now += seconds
            self._api.late = max(0, self._api.late - 1)
            self._api.settle()


class Clock:
    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster

    def monotonic(self) -> float:
        return self._cluster.now

    def sleep(self, seconds: float) -> None:
        self._cluster.now += seconds


def _applied(live: Any, before: Any, content: Any) -> Any:
    """What server-side apply makes of an object: what was applied before, and is not now, goes."""
    if not isinstance(content, dict):
        return copy.deepcopy(content)
    live, before = (each if isinstance(each, dict) else {} for each in (live, before))
    after = {key: _applied(live.get(key), before.get(key), value) for key, value in content.items()}
    for key, value in live.items():
        if key not in content and isinstance(value, dict) and isinstance(before.get(key), dict):
            left = _applied(value, before[key], {})
            after.update({key: left} if left else {})
        elif key not in content and key not in before:
            after[key] = copy.deepcopy(value)
    return after


def _ready(pod: Object) -> bool:
    return bool(pod["status"]["conditions"][0]["status"] == "True")


def _owner(item: Object) -> Object:
    kind = item.get("kind", "ReplicaSet")
    meta = item["metadata"]
    return {"kind": kind, "name": meta["name"], "uid": meta["uid"], "controller": True}


def _is_of(item: Object, owner: Object) -> bool:
    return owner["metadata"]["uid"] in [each["uid"] for each in item["metadata"].get("ownerReferences", [])]
