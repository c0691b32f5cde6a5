"""A cluster in memory: controllers, scheduler, kubelet and endpoints do at once what they would do in a while."""

from __future__ import annotations

import copy
import json
import threading
from itertools import count
from typing import Any

from ansible.module_utils.netmend.pod_replacement import CONTROLLERS, PATHS

Object = dict[str, Any]
OLD, NEW = "10.42.0.{}", "10.42.128.{}"


class Cluster:
    """Objects as the API has them. ``lost`` holds what no test of a good run may see."""

    def __init__(self, nodes: int = 3) -> None:
        self.objects: dict[str, dict[str, Object]] = {what: {} for what in PATHS}
        self.log: list[tuple[int, str, Object]] = []  # (resourceVersion, what, event)
        self.changed = threading.Condition(threading.RLock())
        self.addresses = OLD  # of new pods
        self.sick: set[str] = set()  # controllers whose new pods do not become Ready
        self.ended: list[str] = []  # pods, in the order in which they were deleted
        self.lost: list[str] = []
        self._serial, self._version = count(2), count(1)
        self.nodes = [f"n{number}" for number in range(nodes)]
        for name in self.nodes:
            self.put("nodes", {"metadata": {"name": name}, "spec": {}, "status": {"conditions": [_ready(True)]}})

    def state(self) -> dict[str, list[Object]]:
        return {what: [copy.deepcopy(item) for item in items.values()] for what, items in self.objects.items()}

    def put(self, what: str, item: Object) -> Object:
        with self.changed:
            meta = item["metadata"]
            meta.setdefault("uid", f"uid-{next(self._serial)}")
            meta["resourceVersion"] = str(next(self._version))
            kind = "MODIFIED" if meta["uid"] in self.objects[what] else "ADDED"
            self.objects[what][meta["uid"]] = item
            self._tell(what, kind, item)
            return item

    def named(self, what: str, name: str) -> Object | None:
        """``name``: "namespace/name"."""
        return next((item for item in self.objects[what].values() if _key(item) == name), None)

    def service(self, name: str, selector: dict[str, str], **spec: Any) -> None:
        self.put("services", {"metadata": _meta(name), "spec": {"selector": selector, **spec}})

    def budget(self, name: str, **spec: Any) -> None:
        self.put(
            "poddisruptionbudgets",
            {"metadata": _meta(name), "spec": {"selector": {"matchLabels": {"app": "web"}}, **spec}},
        )

    def deployment(self, name: str, replicas: int, strategy: Object | None = None, **pod: Any) -> None:
        self.put("deployments", {"metadata": _meta(name), "spec": {"strategy": strategy or {}}})
        labels = {"app": name, "pod-template-hash": "5d9f"}
        owner = {"kind": "Deployment", "name": name, "controller": True}
        meta = _meta(f"{name}-5d9f", ownerReferences=[owner])
        self._controller("replicasets", meta, labels, pod, replicas=replicas)

    def daemonset(self, name: str, **pod: Any) -> None:
        self._controller("daemonsets", _meta(name), {"app": name}, pod)

    def statefulset(self, name: str, replicas: int) -> None:
        self._controller("statefulsets", _meta(name), {"app": name}, {}, replicas=replicas)

    def pod(self, name: str, labels: dict[str, str], owner: str = "", node: str = "n0", **spec: Any) -> Object:
        kind, _, of = owner.partition("/")
        meta = _meta(name, labels=labels)
        if owner:
            meta["ownerReferences"] = [{"kind": kind, "name": of, "controller": True}]
        serial = next(self._serial)
        status = {"phase": "Running", "podIP": self.addresses.format(serial)}
        status["conditions"] = [_ready(f"{kind}/{of}" not in self.sick)]
        spec = {"nodeName": node, "containers": [{"name": "main"}], **spec}
        return self.put("pods", {"metadata": meta, "spec": spec, "status": status})

    def settle(self) -> None:
        """Lets controllers act until nothing changes."""
        with self.changed:
            self._release_and_adopt()
            for kind, what in CONTROLLERS.items():
                for controller in list(self.objects[what].values()):
                    self._reconcile(kind, controller)
            self._slice()

    def patch(self, name: str, content: Object) -> int:
        with self.changed:
            pod = self.named("pods", name)
            if not pod:
                return 404
            if content["metadata"]["uid"] != pod["metadata"]["uid"]:
                return 409
            pod = copy.deepcopy(pod)
            for field in ("labels", "annotations"):
                merged = {**pod["metadata"].get(field, {}), **content["metadata"][field]}
                pod["metadata"][field] = {key: value for key, value in merged.items() if value is not None}
            self.put("pods", pod)
            return 200

    def tell(self, name: str, content: Object) -> int:
        """A node's patch of a pod's status; conditions are merged by type."""
        with self.changed:
            pod = self.named("pods", name)
            if not pod or content["metadata"]["uid"] != pod["metadata"]["uid"]:
                return 409 if pod else 404
            pod = copy.deepcopy(pod)
            given = content["status"]["conditions"]
            kept = [each for each in pod["status"]["conditions"] if each["type"] not in {new["type"] for new in given}]
            pod["status"]["conditions"] = [*kept, *given]
            self.put("pods", pod)
            return 200

    def delete(self, name: str, uid: str) -> int:
        with self.changed:
            pod = self.named("pods", name)
            if not pod or pod["metadata"]["uid"] != uid:
                return 409 if pod else 404
            if self._is_endpoint(pod):
                self.lost.append(f"{name} ended while it was an endpoint")
            self._end(pod)
            return 200

    def evict(self, name: str, uid: str) -> int:
        with self.changed:
            pod = self.named("pods", name)
            if not pod or pod["metadata"]["uid"] != uid:
                return 409 if pod else 404
            for item in self.objects["poddisruptionbudgets"].values():
                like = [each for each in self.objects["pods"].values() if _selected(item, each)]
                if pod in like and sum(map(is_ready, like)) <= item["spec"]["minAvailable"]:
                    return 429
            self._end(pod)
            return 201

    def _controller(self, what: str, meta: Object, labels: dict[str, str], pod: Object, **spec: Any) -> None:
        spec = {**spec, "selector": {"matchLabels": labels}, "template": pod}
        status = {} if "replicas" in spec else {"desiredNumberScheduled": len(self.nodes)}
        self.put(what, {"metadata": meta, "spec": spec, "status": status})
        self.settle()

    def _release_and_adopt(self) -> None:
        controllers = {
            (kind, item["metadata"]["name"]): item
            for kind, what in CONTROLLERS.items()
            for item in self.objects[what].values()
        }
        for pod in list(self.objects["pods"].values()):
            owners = [(owner["kind"], owner["name"]) for owner in pod["metadata"].get("ownerReferences", [])]
            kept = [owner for owner in owners if owner not in controllers or _selected(controllers[owner], pod)]
            taken = kept or [owner for owner, item in controllers.items() if _selected(item, pod)]
            if taken != owners:
                changed = copy.deepcopy(pod)
                references = [{"kind": kind, "name": name, "controller": True} for kind, name in taken]
                changed["metadata"]["ownerReferences"] = references
                self.put("pods", changed)

    def _reconcile(self, kind: str, controller: Object) -> None:
        name, spec = controller["metadata"]["name"], controller["spec"]
        mine = {"kind": kind, "name": name, "controller": True}
        pods = [pod for pod in self.objects["pods"].values() if mine in pod["metadata"].get("ownerReferences", [])]

        def make(pod: str, node: str) -> None:
            self.pod(pod, dict(spec["selector"]["matchLabels"]), f"{kind}/{name}", node, **spec["template"])

        if kind == "DaemonSet":
            for node in self.nodes:
                here = [pod for pod in pods if pod["spec"]["nodeName"] == node]
                for pod in here[1:]:
                    self._remove(pod)
                if not here and not ("hostPort" in json.dumps(spec["template"]) and self._port_taken(node)):
                    make(f"{name}-{next(self._serial)}", node)
        elif kind == "StatefulSet":
            for ordinal in range(spec["replicas"]):
                if not self.named("pods", f"default/{name}-{ordinal}"):
                    make(f"{name}-{ordinal}", self.nodes[ordinal % len(self.nodes)])
        else:
            for number in range(spec["replicas"] - len(pods)):
                make(f"{name}-{next(self._serial)}", self.nodes[number % len(self.nodes)])
            for pod in sorted(pods, key=is_ready)[: max(0, len(pods) - spec["replicas"])]:
                self._remove(pod)

    def _port_taken(self, node: str) -> bool:
        pods = [pod for pod in self.objects["pods"].values() if pod["spec"]["nodeName"] == node]
        return any("hostPort" in json.dumps(pod) for pod in pods)

    def _slice(self) -> None:
        for service in list(self.objects["services"].values()):
            name = service["metadata"]["name"]
            chosen = service["spec"]["selector"].items()
            pods = [pod for pod in self.objects["pods"].values() if chosen <= pod["metadata"]["labels"].items()]
            endpoints = [
                {
                    "addresses": [pod["status"]["podIP"]],
                    "conditions": {"ready": is_ready(pod)},
                    "targetRef": {"kind": "Pod", "uid": pod["metadata"]["uid"]},
                }
                for pod in pods
            ]
            before = self.named("endpointslices", f"default/{name}")
            if not any(endpoint["conditions"]["ready"] for endpoint in endpoints):
                self.lost.append(f"{name} has no endpoint")
            if not before or before["endpoints"] != endpoints:
                meta = _meta(name, labels={"kubernetes.io/service-name": name})
                if before:
                    meta["uid"] = before["metadata"]["uid"]
                self.put("endpointslices", {"metadata": meta, "endpoints": endpoints})

    def _is_endpoint(self, pod: Object) -> bool:
        return pod["metadata"]["uid"] in json.dumps(list(self.objects["endpointslices"].values()))

    def _end(self, pod: Object) -> None:
        self.ended.append(_key(pod))
        self._remove(pod)

    def _remove(self, pod: Object) -> None:
        gone = copy.deepcopy(self.objects["pods"].pop(pod["metadata"]["uid"]))
        gone["metadata"]["resourceVersion"] = str(next(self._version))
        self._tell("pods", "DELETED", gone)

    def _tell(self, what: str, kind: str, item: Object) -> None:
        version = int(item["metadata"]["resourceVersion"])
        self.log.append((version, what, {"type": kind, "object": copy.deepcopy(item)}))
        self.changed.notify_all()


def is_ready(pod: Object) -> bool:
    return pod["status"]["conditions"][0]["status"] == "True"


def _ready(ready: bool) -> dict[str, str]:
    return {"type": "Ready", "status": str(ready), "reason": "" if ready else "ContainersNotReady"}


def _selected(item: Object, pod: Object) -> bool:
    return item["spec"]["selector"]["matchLabels"].items() <= pod["metadata"]["labels"].items()


def _meta(name: str, **more: Any) -> Object:
    return {"namespace": "default", "name": name, **more}


def _key(item: Object) -> str:
    return f"{item['metadata'].get('namespace', '')}/{item['metadata']['name']}"
