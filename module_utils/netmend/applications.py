"""Applications as their operators declare them, the objects of Kubernetes that they are, and how they are asked.

Pure. All objects carry OWN, so that what is declared no more is found by it.
"""

from __future__ import annotations

from typing import Any, Dict, Iterable, List, Mapping, Optional, TypedDict, cast

from .apply import OWN, Object
from .declared import Field, each, fields, host, label, number, path, switch, word
from .model import Probe
from .rollout import is_ready

NAME = "netmend/application"  # label: the application's name, on each of its objects
SELECTED_BY = "app.kubernetes.io/name"  # label of the pods, where no workload of the name has others already
KINDS = ("Deployment", "DaemonSet")
PORTS = {"http": 80, "https": 443}  # of an ingress
GRACE = 30  # seconds from SIGTERM to SIGKILL
TIMEOUT = 5.0  # seconds, of a probe


class Application(TypedDict):
    """What is "" or 0 is not asked for."""

    name: str
    namespace: str
    image: str
    port: int  # that the container listens on, and the Service
    replicas: int  # 0 with daemonset: one on each node
    daemonset: bool
    health: str  # path that is answered with 200, where it is well
    host: str  # an Ingress leads there
    ingress_class: str  # "": the cluster's default
    tls_secret: str
    node_port: int
    host_network: bool
    resources: Dict[str, Dict[str, str]]  # requests and limits
    env: Dict[str, str]
    env_from_secret: List[str]


def read(given: Any, where: str = "netmend_applications") -> List[Application]:
    """The variable, with defaults. ValueError names what is wrong."""
    applications = cast(List[Application], each(fields(_APPLICATION), called)(given or [], where))
    for place, one in enumerate(applications):
        for other in applications[:place]:
            _refuse_both(one, other, f"{where}[{place}]")
        _refuse_contradictions(one, given[place], f"{where}[{place}]")
    return [{**one, "replicas": 0 if one["daemonset"] else one["replicas"]} for one in applications]


def called(application: Application) -> str:
    return f"{application['namespace']}/{application['name']}"


def kind(application: Application) -> str:
    return KINDS[application["daemonset"]]


def objects(application: Application, selector: Optional[Mapping[str, str]] = None, drain: int = 30) -> List[Object]:
    """What it is made of: the workload, its Service, and an Ingress where it has a host.

    ``selector``: the labels of pods that there are already, as no workload's selector can be changed. ``drain``:
    seconds that a pod still serves when it has left its Service.
    """
    labels = dict(selector or {SELECTED_BY: application["name"]})
    return [
        _workload(application, labels, drain),
        _service(application, labels),
        *([_ingress(application)] if application["host"] else []),
    ]


def selector(workloads: Iterable[Optional[Object]]) -> Optional[Dict[str, str]]:
    """The labels by which one that is there knows its pods; None where none is there.

    ValueError where that cannot be said by labels alone.
    """
    for item in workloads:
        if item:
            asked = item["spec"]["selector"]
            if asked.get("matchExpressions") or not asked.get("matchLabels"):
                name = f"{item['metadata']['namespace']}/{item['metadata']['name']}"
                raise ValueError(f"{name} knows its pods by more than labels (matchExpressions): delete it first")
            return dict(asked["matchLabels"])
    return None


def probes(application: Application, live: Mapping[str, List[Object]], nodes: Mapping[str, str]) -> List[Probe]:
    """How it is asked from one node: each of its Ready pods, its Service, its NodePort on all nodes, its Ingress.

    ``live``: its "pods", "services" and "ingresses" as the API has them; what is not there is not asked. ``nodes``:
    name -> address.
    """
    ready = [pod for pod in live["pods"] if pod.get("status", {}).get("podIP") and is_ready(pod)]
    found = [
        _asked(application, f"its pod on {pod['spec']['nodeName']}", pod["status"]["podIP"], application["port"])
        for pod in ready
    ]
    for service in live["services"]:
        address = service["spec"]["clusterIP"]
        found.append(_asked(application, f"its Service at {address}", address, application["port"]))
        for port in service["spec"]["ports"]:
            if "nodePort" in port:
                found += [
                    _asked(application, f"NodePort {port['nodePort']} of {name}", address, port["nodePort"])
                    for name, address in nodes.items()
                ]
    protocol = "https" if application["tls_secret"] else "http"
    for ingress in live["ingresses"]:
        for entry in ingress.get("status", {}).get("loadBalancer", {}).get("ingress") or []:
            if "ip" in entry:
                probe = _asked(application, f"its Ingress at {entry['ip']}", entry["ip"], PORTS[protocol])
                found.append(Probe(**{**probe, "protocol": protocol, "name": application["host"], "verify": False}))
    return found


def _asked(application: Application, title: str, address: str, port: int) -> Probe:
    return Probe(
        id=title,
        protocol="http",
        address=address,
        port=port,
        path=application["health"],
        status=200,
        timeout=TIMEOUT,
        expect="ok",
    )


# --- objects ----------------------------------------------------------------------------------------------------------


def _workload(application: Application, labels: Mapping[str, str], drain: int) -> Object:
    spec: Object = {
        "selector": {"matchLabels": dict(labels)},
        "template": {"metadata": {"labels": {**labels, **_labels(application)}}, "spec": _pod(application, drain)},
    }
    # A port of the host is free only when the pod before has ended; else the next one serves first.
    fewer = int(application["host_network"])
    strategy = {"type": "RollingUpdate", "rollingUpdate": {"maxUnavailable": fewer, "maxSurge": 1 - fewer}}
    if application["daemonset"]:
        spec["updateStrategy"] = strategy
    else:
        spec.update(strategy=strategy, replicas=application["replicas"])
    return {"apiVersion": "apps/v1", "kind": kind(application), "metadata": _metadata(application), "spec": spec}


def _pod(application: Application, drain: int) -> Object:
    container: Object = {
        "name": application["name"],
        "image": application["image"],
        "ports": [{"name": "http", "containerPort": application["port"], "protocol": "TCP"}],
        "readinessProbe": {
            "httpGet": {"path": application["health"], "port": application["port"]},
            "periodSeconds": 2,
            "timeoutSeconds": 5,
        },
    }
    if drain:
        container["lifecycle"] = {"preStop": {"sleep": {"seconds": drain}}}
    if application["resources"]:
        container["resources"] = application["resources"]
    if application["env"]:
        container["env"] = [{"name": name, "value": value} for name, value in application["env"].items()]
    if application["env_from_secret"]:
        container["envFrom"] = [{"secretRef": {"name": name}} for name in application["env_from_secret"]]
    pod: Object = {"containers": [container], "terminationGracePeriodSeconds": drain + GRACE}
    if application["host_network"]:
        pod.update(hostNetwork=True, dnsPolicy="ClusterFirstWithHostNet")
        container["ports"][0]["hostPort"] = application["port"]
    return pod


def _service(application: Application, labels: Mapping[str, str]) -> Object:
    port: Object = {"name": "http", "port": application["port"], "targetPort": application["port"], "protocol": "TCP"}
    if application["node_port"]:
        port["nodePort"] = application["node_port"]
    spec = {
        "type": "NodePort" if application["node_port"] else "ClusterIP",
        "selector": dict(labels),
        "ports": [port],
    }
    return {"apiVersion": "v1", "kind": "Service", "metadata": _metadata(application), "spec": spec}


def _ingress(application: Application) -> Object:
    backend = {"service": {"name": application["name"], "port": {"number": application["port"]}}}
    rule = {
        "host": application["host"],
        "http": {"paths": [{"path": "/", "pathType": "Prefix", "backend": backend}]},
    }
    spec: Object = {"rules": [rule]}
    if application["ingress_class"]:
        spec["ingressClassName"] = application["ingress_class"]
    if application["tls_secret"]:
        spec["tls"] = [{"hosts": [application["host"]], "secretName": application["tls_secret"]}]
    return {
        "apiVersion": "networking.k8s.io/v1",
        "kind": "Ingress",
        "metadata": _metadata(application),
        "spec": spec,
    }


def _metadata(application: Application) -> Object:
    return {"name": application["name"], "namespace": application["namespace"], "labels": _labels(application)}


def _labels(application: Application) -> Dict[str, str]:
    return {**OWN, NAME: application["name"]}


# --- what is declared -------------------------------------------------------------------------------------------------


def _refuse_both(one: Application, other: Application, where: str) -> None:
    if one["node_port"] and one["node_port"] == other["node_port"]:
        raise ValueError(f"{where}.node_port: {one['node_port']} is {called(other)}'s already")
    if one["host"] and one["host"] == other["host"]:
        raise ValueError(f"{where}.host: {one['host']} is {called(other)}'s already")
    if one["host_network"] and other["host_network"] and one["port"] == other["port"]:
        raise ValueError(f"{where}.port: {one['port']} of the hosts is {called(other)}'s already")


def _refuse_contradictions(one: Application, given: Mapping[str, Any], where: str) -> None:
    if one["daemonset"] and "replicas" in given:
        raise ValueError(f"{where}.replicas: a DaemonSet has a pod on each node, and no number of them")
    for key in ("ingress_class", "tls_secret"):
        if given.get(key) and not one["host"]:
            raise ValueError(f"{where}.{key} is of use with a host only, and there is none")


def _texts(given: Any, where: str) -> Dict[str, str]:
    if not isinstance(given, Mapping):
        raise ValueError(f"{where}: {given!r} is no mapping")
    for name, value in given.items():
        if isinstance(value, bool) or not isinstance(value, (str, int)):
            # The value may be a secret, though it should not stand there.
            raise ValueError(f"{where}.{name} is no text: put it into quotes")
    return {str(name): str(value) for name, value in given.items()}


def _node_port(given: Any, where: str) -> int:
    if number(65535)(given, where) not in range(30000, 32768):
        raise ValueError(f"{where}: {given!r} is none of the NodePorts, from 30000 to 32767")
    return int(given)


_APPLICATION = {
    "name": Field(label, needed=True),
    "namespace": Field(label, "default"),
    "image": Field(word, needed=True),
    "port": Field(number(65535), needed=True),
    "replicas": Field(number(10_000), 1),
    "daemonset": Field(switch, False),
    "health": Field(path, "/"),
    "host": Field(host, ""),
    "ingress_class": Field(word, ""),
    "tls_secret": Field(word, ""),
    "node_port": Field(_node_port, 0),
    "host_network": Field(switch, False),
    "resources": Field(fields({"requests": Field(_texts, {}), "limits": Field(_texts, {})}), {}),
    "env": Field(_texts, {}),
    "env_from_secret": Field(each(word), []),
}
