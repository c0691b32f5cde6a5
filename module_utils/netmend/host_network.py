"""A Deployment's way onto its hosts' network and back: what stands against it, and what the objects become. Pure.

There, a companion runs the same template on the hosts' network. Its pods have all labels that the Services ask for, and
ON_HOST besides. Once they serve, the Services ask for that label, too, until the Deployment's pods have drained and it
has no replicas left; Kubernetes then leaves its HorizontalPodAutoscalers alone until it has some again ("Implicit
maintenance-mode deactivation" in its documentation). Back, the Deployment gets its replicas again, and the companion
goes when they serve; its pods drain by themselves. All that has to be known for that stands on the objects.
"""

from __future__ import annotations

import copy
from functools import reduce
from typing import Any, Dict, Iterable, Iterator, List, Mapping, NamedTuple, Optional, Set, Tuple

from .apply import Change, named
from .rollout import PARKED, State, pods_of
from .rollout import services_of as services_that_ask_for

Object = Dict[str, Any]
Patch = Dict[str, Any]  # a merge patch (RFC 7386)

ON_HOST = "netmend/host-network"  # label of a companion, of its pods, and of the Services' selectors in between
FORMER_TYPE = "netmend/type"  # annotation of a Service: its type before
HOSTNAME = "kubernetes.io/hostname"
GRACE = 30  # seconds, Kubernetes' own
_MARK = {ON_HOST: "true"}


class Wish(NamedTuple):
    namespace: str
    name: str  # of the Deployment
    kind: str  # of its companion: DaemonSet, or Deployment with as many replicas, one a node at most
    node_ports: Mapping[int, int]  # Service's port -> NodePort
    drain: int  # seconds

    @property
    def companion(self) -> str:
        return companion_name(self.name, self.kind)


def companion_name(name: str, kind: str) -> str:
    return name if kind == "DaemonSet" else f"{name}-host-network"


# --- what the objects become ------------------------------------------------------------------------------------------


def companion(deployment: Object, wish: Wish) -> Object:
    """The object that runs a Deployment's template on the hosts' network."""
    selector = copy.deepcopy(deployment["spec"]["selector"])
    selector["matchLabels"] = {**(selector.get("matchLabels") or {}), **_MARK}
    metadata = {"name": wish.companion, "namespace": wish.namespace, "labels": _MARK}
    spec: Object = {"selector": selector, "template": _template(deployment, wish, selector)}
    # The next pod needs the port of the one before.
    strategy = {"type": "RollingUpdate", "rollingUpdate": {"maxUnavailable": 1, "maxSurge": 0}}
    if wish.kind == "DaemonSet":
        spec["updateStrategy"] = strategy
    else:
        spec.update(strategy=strategy, replicas=replicas(deployment))
    return {"apiVersion": "apps/v1", "kind": wish.kind, "metadata": metadata, "spec": spec}


def _template(deployment: Object, wish: Wish, selector: Object) -> Object:
    given = deployment["spec"]["template"]
    pod: Object = copy.deepcopy(given["spec"])
    pod["hostNetwork"] = True
    if pod.get("dnsPolicy", "ClusterFirst") == "ClusterFirst":
        pod["dnsPolicy"] = "ClusterFirstWithHostNet"
    pod["terminationGracePeriodSeconds"] = pod.get("terminationGracePeriodSeconds", GRACE) + wish.drain
    for container in pod["containers"]:
        for port in container.get("ports") or []:
            port["hostPort"] = port["containerPort"]
        if wish.drain:
            container.setdefault("lifecycle", {}).setdefault("preStop", {"sleep": {"seconds": wish.drain}})
    if wish.kind == "Deployment":
        apart = pod.setdefault("affinity", {}).setdefault("podAntiAffinity", {})
        apart.setdefault("requiredDuringSchedulingIgnoredDuringExecution", []).append(
            {"labelSelector": {"matchLabels": selector["matchLabels"]}, "topologyKey": HOSTNAME}
        )
    metadata = {"labels": {**given["metadata"].get("labels", {}), **_MARK}}
    notes = given["metadata"].get("annotations")
    return {"metadata": {**metadata, **({"annotations": notes} if notes else {})}, "spec": pod}


def replicas(deployment: Object) -> int:
    """How many a Deployment has, or had before it was parked."""
    parked = deployment["metadata"].get("annotations", {}).get(PARKED)
    return int(parked) if parked else int(deployment["spec"].get("replicas", 1))


def is_parked(deployment: Object) -> bool:
    return PARKED in deployment["metadata"].get("annotations", {})


def parked(deployment: Object) -> Patch:
    """Without replicas; how many it had is kept."""
    if is_parked(deployment) and not deployment["spec"].get("replicas"):
        return {}
    count = str(deployment["spec"].get("replicas", 1) or replicas(deployment))
    return {"metadata": {"annotations": {PARKED: count}}, "spec": {"replicas": 0}}


def unparked(deployment: Object) -> Patch:
    if not is_parked(deployment):
        return {}
    count = deployment["spec"].get("replicas") or replicas(deployment)
    return {"metadata": {"annotations": {PARKED: None}}, "spec": {"replicas": count}}


def narrowed(service: Object) -> Patch:
    """It leads to the companion alone."""
    return {} if ON_HOST in service["spec"]["selector"] else {"spec": {"selector": _MARK}}


def widened(service: Object) -> Patch:
    return {"spec": {"selector": {ON_HOST: None}}} if ON_HOST in service["spec"]["selector"] else {}


def exposed(service: Object, node_ports: Mapping[int, int]) -> Patch:
    """With these NodePorts, for those of its ports that are named."""
    spec = service["spec"]
    ports = [
        {**port, "nodePort": node_ports[port["port"]]} if port["port"] in node_ports else port for port in spec["ports"]
    ]
    if ports == spec["ports"]:
        return {}
    patch: Patch = {"spec": {"ports": ports}}
    if spec.get("type", "ClusterIP") == "ClusterIP":
        patch["spec"]["type"] = "NodePort"
        patch["metadata"] = {"annotations": {FORMER_TYPE: "ClusterIP"}}
    return patch


def hidden(service: Object) -> Patch:
    """With the type that it had before; the API takes the NodePorts away with the type."""
    former = service["metadata"].get("annotations", {}).get(FORMER_TYPE)
    return {"metadata": {"annotations": {FORMER_TYPE: None}}, "spec": {"type": former}} if former else {}


def merged(item: Any, patch: Any) -> Any:
    """What a merge patch makes of an object."""
    if not isinstance(patch, dict):
        return patch
    left = {key: value for key, value in (item if isinstance(item, dict) else {}).items() if key not in patch}
    changed = {key: merged((item or {}).get(key), value) for key, value in patch.items() if value is not None}
    return {**left, **changed}


def in_the_end(deployment: Object, services: Iterable[Object], wish: Optional[Wish]) -> List[Change]:
    """What becomes of what is there already, on the hosts' network or, with no wish, back."""
    found = [(deployment, [parked(deployment) if wish else unparked(deployment)])]
    for service in services:
        shown = exposed(service, wish.node_ports) if wish else hidden(service)
        found.append((service, [widened(service), shown]))
    return [Change(named(item), item, reduce(merged, patches, item)) for item, patches in found if any(patches)]


# --- who serves -------------------------------------------------------------------------------------------------------


def services_of(state: State, deployment: Object) -> List[Object]:
    """The Services that lead to a Deployment, or have led to it and lead to its companion for now."""
    labels = {**deployment["spec"]["template"]["metadata"].get("labels", {}), **_MARK}
    return services_that_ask_for(state, [{"metadata": {"labels": labels}}])


def companion_pods(state: State, deployment: Object) -> List[Object]:
    """Those of its companion, whatever has become of that."""
    wanted = {**(deployment["spec"]["selector"].get("matchLabels") or {}), **_MARK}.items()
    return [pod for pod in state["pods"] if wanted <= pod["metadata"].get("labels", {}).items()]


# --- what stands against it -------------------------------------------------------------------------------------------


class Cluster(NamedTuple):
    """What is asked before anything is changed."""

    state: State  # of the Deployment's namespace
    nodes: List[Object]
    pods: List[Object]  # of all namespaces
    autoscalers: List[Object]  # of the Deployment's namespace
    sockets: Mapping[str, List[Mapping[str, Any]]]  # node -> what listens there, as NodeFacts has it


def refusals(cluster: Cluster, deployment: Object, wish: Wish) -> List[str]:
    """Why a Deployment cannot be run on its hosts' network, each with what to do."""
    return list(_refusals(cluster, deployment, wish))


def contested(deployments: Iterable[Tuple[str, Object]]) -> List[str]:
    """Ports of the hosts that several of the applications need."""
    owners: Dict[Tuple[str, int], str] = {}
    found = []
    for name, deployment in deployments:
        for port in sorted(_ports(deployment, [])):
            other = owners.setdefault(port, name)
            if other != name:
                found.append(f"{name} and {other} both need {port[0]}/{port[1]} of the hosts: give one of them another")
    return found


def _refusals(cluster: Cluster, deployment: Object, wish: Wish) -> Iterator[str]:
    state, pod = cluster.state, deployment["spec"]["template"]["spec"]
    services = services_of(state, deployment)
    if pod.get("hostNetwork"):
        yield "its own template has hostNetwork: there is nothing to do"
        return
    if not replicas(deployment):
        yield "it has no replicas, so there is nothing that serves"
    if any(port.get("hostPort") for container in pod["containers"] for port in container.get("ports") or []):
        yield "its own template has hostPorts, which its companion could not have beside it: take them out first"
    if _repels_itself(deployment) and not is_parked(deployment):
        yield "its podAntiAffinity keeps its companion off its nodes: make that preferred in the place of required"
    for kind in ("DaemonSet", "Deployment"):
        there = _find(state, kind, companion_name(wish.name, kind))
        if there and there["metadata"].get("labels", {}).get(ON_HOST) != "true":
            yield f"there is a {kind} {companion_name(wish.name, kind)} of somebody else: delete or rename it first"
        elif there and kind != wish.kind:
            yield f"it runs on the hosts' network as a {kind}: take it back first"
    for item in cluster.autoscalers:
        target = item["spec"]["scaleTargetRef"]
        if (target["kind"], target["name"]) == ("Deployment", wish.name) and item["spec"].get("minReplicas", 1) == 0:
            yield f"the HorizontalPodAutoscaler {item['metadata']['name']} has minReplicas 0 and scales it: set it to 1"
    own = {pod["metadata"]["uid"] for pod in pods_of(state, "Deployment", wish.name)}
    own |= {pod["metadata"]["uid"] for pod in companion_pods(state, deployment)}
    for service in services:
        wanted = service["spec"]["selector"].items()
        others = [
            each["metadata"]["name"]
            for each in state["pods"]
            if wanted <= each["metadata"].get("labels", {}).items() and each["metadata"]["uid"] not in own
        ]
        if others:
            yield f"the Service {service['metadata']['name']} leads to {others[0]}, too, which is no pod of it"
    ports = {port["port"] for service in services for port in service["spec"]["ports"]}
    for port in wish.node_ports:
        if port not in ports:
            yield f"node_ports: none of its Services has the port {port}"
    for service in services:
        if service["spec"].get("clusterIP") == "None" and exposed(service, wish.node_ports):
            yield f"node_ports: the Service {service['metadata']['name']} is headless, and cannot have any"
    places = _places(cluster.nodes, pod, wish.kind)
    if not places:
        yield "there is no node that its nodeSelector and its tolerations allow"
    elif wish.kind == "Deployment" and replicas(deployment) > len(places):
        yield f"it has {replicas(deployment)} replicas, and there are {len(places)} nodes for one each"
    yield from _taken(cluster, deployment, services, places)


def _taken(cluster: Cluster, deployment: Object, services: List[Object], places: List[str]) -> Iterator[str]:
    """Ports that it needs of its hosts, and somebody else has there."""
    own = companion_pods(cluster.state, deployment)
    uids, at_home = {pod["metadata"]["uid"] for pod in own}, {pod["spec"].get("nodeName") for pod in own}
    others = [pod for pod in cluster.pods if pod["metadata"]["uid"] not in uids and _runs(pod)]
    needed = _ports(deployment, services)
    for node in places:
        if node not in cluster.sockets:
            yield f"what listens on {node} is not known: it is in no inventory, or could not be asked"
        for pod in others:
            if pod["spec"].get("nodeName") == node:
                for protocol, port in sorted(needed & _host_ports(pod)):
                    name = f"{pod['metadata']['namespace']}/{pod['metadata']['name']}"
                    yield f"{protocol}/{port} on {node} is {name}'s"
        # Its own pods listen there once they run.
        for socket in cluster.sockets.get(node, []) if node not in at_home else []:
            if (socket["protocol"].upper(), socket["port"]) in needed:
                process = socket.get("process") or "a process of an unknown name"
                yield f"{socket['protocol'].upper()}/{socket['port']} on {node} is {process}'s"


def _ports(deployment: Object, services: Iterable[Object]) -> Set[Tuple[str, int]]:
    """What its containers listen on, as far as they or the Services say so."""
    containers = deployment["spec"]["template"]["spec"]["containers"]
    declared = {
        (port.get("protocol", "TCP"), port["containerPort"])
        for container in containers
        for port in container.get("ports") or []
    }
    return declared | {
        (port.get("protocol", "TCP"), port["targetPort"])
        for service in services
        for port in service["spec"]["ports"]
        if isinstance(port.get("targetPort"), int)
    }


def _host_ports(pod: Object) -> Set[Tuple[str, int]]:
    ports = [port for container in pod["spec"]["containers"] for port in container.get("ports") or []]
    return {(port.get("protocol", "TCP"), port["hostPort"]) for port in ports if port.get("hostPort")}


def _runs(pod: Object) -> bool:
    return pod.get("status", {}).get("phase") not in ("Succeeded", "Failed")


def _repels_itself(deployment: Object) -> bool:
    template = deployment["spec"]["template"]
    labels = template["metadata"].get("labels", {})
    apart = (template["spec"].get("affinity") or {}).get("podAntiAffinity") or {}
    terms = apart.get("requiredDuringSchedulingIgnoredDuringExecution") or []
    selectors = [(term.get("labelSelector") or {}).get("matchLabels") or {} for term in terms]
    return any(selector.items() <= labels.items() for selector in selectors if selector)


def _places(nodes: Iterable[Object], pod: Object, kind: str) -> List[str]:
    """The nodes that its nodeSelector and its tolerations allow; affinities are not looked at."""
    wanted = (pod.get("nodeSelector") or {}).items()
    tolerations = pod.get("tolerations") or []
    found = []
    for node in nodes:
        spec = node["spec"]
        taints = [taint for taint in spec.get("taints") or [] if taint["effect"] in ("NoSchedule", "NoExecute")]
        if kind == "DaemonSet":
            taints = [taint for taint in taints if not taint["key"].startswith("node.kubernetes.io/")]
        fits = all(any(_tolerates(each, taint) for each in tolerations) for taint in taints)
        if fits and wanted <= node["metadata"].get("labels", {}).items():
            found.append(node["metadata"]["name"])
    return found


def _tolerates(toleration: Object, taint: Object) -> bool:
    if toleration.get("effect") not in (None, "", taint["effect"]):
        return False
    if toleration.get("operator", "Equal") == "Exists":
        return toleration.get("key") in (None, "", taint["key"])
    return (toleration.get("key"), toleration.get("value", "")) == (taint["key"], taint.get("value", ""))


def _find(state: State, kind: str, name: str) -> Object:
    what = "daemonsets" if kind == "DaemonSet" else "deployments"
    return next((item for item in state[what] if item["metadata"]["name"] == name), {})
