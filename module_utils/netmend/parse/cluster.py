"""Reduces objects of the Kubernetes API to the shapes of ClusterFacts: what bears on the network, and nothing else."""

from __future__ import annotations

import calendar
import re
import time
from typing import Any, Dict, Iterable, List

from ..model import Node, Pod, Service
from .k3s import redact

Object = Dict[str, Any]

INGRESS_NGINX = "k8s.io/ingress-nginx"
# An IngressClass's controller -> the label app.kubernetes.io/name of its pods.
CONTROLLERS = {INGRESS_NGINX: "ingress-nginx", "traefik.io/ingress-controller": "traefik"}
NAME_LABEL = "app.kubernetes.io/name"

_ANNOTATIONS = ("flannel.alpha.coreos.com/", "projectcalico.org/", "k3s.io/")
# Command lines and environments of K3s: long, and not of the network.
_LEFT_OUT = ("k3s.io/node-args", "k3s.io/node-env", "k3s.io/node-config-hash")
_ETCD_LABEL = "node-role.kubernetes.io/etcd"
_SERVER_LABELS = ("node-role.kubernetes.io/control-plane", "node-role.kubernetes.io/master")


def node(item: Object) -> Node:
    meta, spec, status = item["metadata"], item["spec"], item.get("status", {})
    addresses = {entry["type"]: entry["address"] for entry in reversed(status.get("addresses", []))}
    ready = condition(status)
    labels = meta.get("labels", {})
    return Node(
        name=meta["name"],
        role="server" if any(label in labels for label in _SERVER_LABELS) else "agent",
        etcd=_etcd(labels, status),
        internal_ip=addresses.get("InternalIP", ""),
        external_ip=addresses.get("ExternalIP", ""),
        pod_cidr=spec.get("podCIDR", ""),
        ready=ready.get("status") == "True",
        reason=ready.get("reason", "no condition"),
        network=condition(status, "NetworkUnavailable").get("reason", ""),
        annotations={
            name: redact(name, value)
            for name, value in meta.get("annotations", {}).items()
            if name.startswith(_ANNOTATIONS) and name not in _LEFT_OUT
        },
        labels=labels,
        version=status.get("nodeInfo", {}).get("kubeletVersion", ""),
    )


def pod(item: Object) -> Pod:
    meta, spec, status = item["metadata"], item["spec"], item.get("status", {})
    ready = condition(status)
    return Pod(
        namespace=meta["namespace"],
        name=meta["name"],
        uid=meta["uid"],
        node=spec.get("nodeName", ""),
        ip=status.get("podIP", ""),
        host_network=spec.get("hostNetwork", False),
        ready=ready.get("status") == "True",
        phase=status.get("phase", ""),
        reason=_waiting(status) or status.get("reason", "") or ready.get("reason", ""),
        owner=_owner(meta),
        labels=meta.get("labels", {}),
        ports=_ports(spec),
        readiness=_readiness(spec),
        unscheduled=_unscheduled(status),
        meant_for=_meant_for(spec),
    )


def services(items: Iterable[Object], slices: Iterable[Object]) -> List[Service]:
    """Services with the endpoints of their EndpointSlices."""
    endpoints: Dict[Any, List[Dict[str, Any]]] = {}
    for item in slices:
        meta = item["metadata"]
        service = (meta["namespace"], meta.get("labels", {}).get("kubernetes.io/service-name", ""))
        endpoints.setdefault(service, []).extend(_endpoints(item))
    return [_service(item, endpoints) for item in items]


def ingress(item: Object) -> Dict[str, Any]:
    """``paths`` has one entry for each host and path; a default backend has neither."""
    spec = item["spec"]
    paths = [
        {"host": rule.get("host", ""), "path": path.get("path", "/"), **_backend(path["backend"])}
        for rule in spec.get("rules", [])
        for path in rule.get("http", {}).get("paths", [])
    ]
    if "defaultBackend" in spec:
        paths.append({"host": "", "path": "", **_backend(spec["defaultBackend"])})
    return {
        **_named(item),
        "class": spec.get("ingressClassName")
        or item["metadata"].get("annotations", {}).get("kubernetes.io/ingress.class", ""),
        "paths": paths,
        # What an ingress-nginx speaks to the pods: HTTP unless it is told otherwise.
        "protocol": item["metadata"]
        .get("annotations", {})
        .get("nginx.ingress.kubernetes.io/backend-protocol", "HTTP")
        .upper(),
        "tls": [{"hosts": tls.get("hosts", []), "secret": tls.get("secretName", "")} for tls in spec.get("tls", [])],
        "addresses": [
            entry.get("ip") or entry.get("hostname", "")
            for entry in item.get("status", {}).get("loadBalancer", {}).get("ingress", [])
        ],
    }


def ingress_class(item: Object) -> Dict[str, Any]:
    annotations = item["metadata"].get("annotations", {})
    return {
        "name": item["metadata"]["name"],
        "controller": item["spec"].get("controller", ""),
        "default": annotations.get("ingressclass.kubernetes.io/is-default-class") == "true",
    }


def network_policy(item: Object) -> Dict[str, Any]:
    """Selector and rules as they stand in the object."""
    spec = item["spec"]
    return {
        **_named(item),
        "pod_selector": spec.get("podSelector", {}),
        "types": spec.get("policyTypes", ["Ingress"]),
        "ingress": spec.get("ingress", []),
        "egress": spec.get("egress", []),
    }


def disruption_budget(item: Object) -> Dict[str, Any]:
    """How many of the pods that it selects have to be Ready, and how many there are to be."""
    status = item.get("status", {})
    return {
        **_named(item),
        "selector": item["spec"].get("selector"),  # None selects nothing, {} everything
        "desired": status.get("desiredHealthy", 0),
        "expected": status.get("expectedPods", 0),
    }


def daemonset(item: Object) -> Dict[str, Any]:
    template = item["spec"]["template"]["spec"]
    status = item.get("status", {})
    return {
        **_named(item),
        "desired": status.get("desiredNumberScheduled", 0),
        "ready": status.get("numberReady", 0),
        "host_network": template.get("hostNetwork", False),
        "host_ports": [port["hostPort"] for port in _ports(template) if port["hostPort"]],
    }


def calico_node(daemonsets: Iterable[Object]) -> Dict[str, Any]:
    """{"node": ...} of the DaemonSet that has Calico's container calico-node; {} where there is none.

    Of the environment it has what decides on a node's address and on who makes its routes. The backend
    (CALICO_NETWORKING_BACKEND) is mostly kept in a ConfigMap: what the readiness probe asks of BIRD stands for it then.
    Source: manifests/calico.yaml and calico-vxlan.yaml of projectcalico/calico.
    """
    for item in daemonsets:
        for container in item["spec"]["template"]["spec"].get("containers", []):
            if container["name"] != "calico-node":
                continue
            variables = {each["name"]: each.get("value", "") for each in container.get("env", [])}
            probe = container.get("readinessProbe", {}).get("exec", {}).get("command", [])
            status = item.get("status", {})
            node = {
                **_named(item),
                "desired": status.get("desiredNumberScheduled", 0),
                "ready": status.get("numberReady", 0),
                "version": _tag(container.get("image", "")),
                "backend": variables.get("CALICO_NETWORKING_BACKEND") or ("bird" if "-bird-ready" in probe else "none"),
                "autodetection": variables.get("IP_AUTODETECTION_METHOD") or "first-found",
                "program_cluster_routes": variables.get("FELIX_PROGRAMCLUSTERROUTES", ""),
            }
            return {"node": node}
    return {}


def ingress_controller(pod: Pod) -> str:
    """The controller, as an IngressClass names it, that the pod belongs to; "" for none.

    By the labels that its chart and its manifests give it; its admission webhook's jobs are another component.
    """
    labels = pod["labels"]
    named = {label: controller for controller, label in CONTROLLERS.items()}
    is_one = labels.get("app.kubernetes.io/component", "controller") == "controller"
    return named.get(labels.get(NAME_LABEL, ""), "") if is_one else ""


def ingress_nginx(settings: Iterable[Object]) -> Dict[str, Any]:
    """What the ConfigMaps beside ingress-nginx say of what its clients have to send."""
    said = [(item.get("data") or {}).get("use-proxy-protocol", "") for item in settings]
    return {"proxy_protocol": "true" in said}


def custom(item: Object) -> Dict[str, Any]:
    """Name and spec of a custom resource."""
    return {"name": item["metadata"]["name"], **item.get("spec", {})}


def readiness(verbose: str) -> Dict[str, str]:
    """Check -> "ok" or "failed", from the body of /readyz?verbose or /livez?verbose."""
    return {name: state for _, name, state in re.findall(r"^\[([+-])\](\S+) (ok|failed)", verbose, re.M)}


def ready_since(item: Object, when: float) -> bool:
    """Whether the kubelet has reported the node as Ready at that time (seconds since the epoch) or later."""
    ready = condition(item.get("status", {}))
    reported = ready.get("lastHeartbeatTime", "")
    seconds = calendar.timegm(time.strptime(reported, "%Y-%m-%dT%H:%M:%SZ")) if reported else 0
    return ready.get("status") == "True" and seconds >= int(when)


def controller(meta: Object) -> str:
    """ "ReplicaSet/web-5d9f" for what controls the object of that metadata; "" for none."""
    owner = next((entry for entry in meta.get("ownerReferences", []) if entry.get("controller")), None)
    return f"{owner['kind']}/{owner['name']}" if owner else ""


def _service(item: Object, endpoints: Dict[Any, List[Dict[str, Any]]]) -> Service:
    meta, spec = item["metadata"], item["spec"]
    return Service(
        namespace=meta["namespace"],
        name=meta["name"],
        type=spec.get("type", "ClusterIP"),
        cluster_ip=spec.get("clusterIP", ""),
        ports=[
            {
                "name": port.get("name", ""),
                "port": port["port"],
                "targetPort": port.get("targetPort", port["port"]),
                "nodePort": port.get("nodePort", 0),
                "protocol": port.get("protocol", "TCP"),
            }
            for port in spec.get("ports", [])
        ],
        selector=spec.get("selector", {}),
        external_traffic_policy=spec.get("externalTrafficPolicy", ""),
        health_check_node_port=spec.get("healthCheckNodePort", 0),
        endpoints=endpoints.get((meta["namespace"], meta["name"]), []),
    )


def _endpoints(item: Object) -> List[Dict[str, Any]]:
    return [
        {
            "ip": address,
            "node": endpoint.get("nodeName", ""),
            "port": port.get("port", 0),
            "protocol": port.get("protocol", "TCP"),
            # The API's own reading: a condition that is not set counts as ready.
            "ready": endpoint.get("conditions", {}).get("ready") is not False,
            "pod": _target(endpoint.get("targetRef") or {}),
        }
        for endpoint in item.get("endpoints") or []
        for address in endpoint["addresses"]
        for port in item.get("ports") or [{}]
    ]


def _target(reference: Object) -> str:
    return f"{reference['namespace']}/{reference['name']}" if reference.get("kind") == "Pod" else ""


def _backend(backend: Object) -> Dict[str, Any]:
    service = backend.get("service", {})
    port = service.get("port", {})
    return {"service": service.get("name", ""), "port": port.get("number") or port.get("name", "")}


def _named(item: Object) -> Dict[str, Any]:
    return {"namespace": item["metadata"]["namespace"], "name": item["metadata"]["name"]}


def _tag(image: str) -> str:
    """ "v3.32.1" of "quay.io/calico/node:v3.32.1@sha256:..."; "" where the image has none."""
    return image.partition("@")[0].rpartition("/")[2].partition(":")[2]


def condition(status: Object, kind: str = "Ready") -> Dict[str, str]:
    return next((entry for entry in status.get("conditions", []) if entry["type"] == kind), {})


def _etcd(labels: Dict[str, str], status: Object) -> str:
    """K3s labels the members, and keeps a condition of whether they vote already."""
    if _ETCD_LABEL not in labels:
        return ""
    return "learner" if condition(status, "EtcdIsVoter").get("status") == "False" else "voter"


def _waiting(status: Object) -> str:
    """Why a container does not run: CrashLoopBackOff, ImagePullBackOff ..."""
    states = (entry.get("state", {}).get("waiting", {}) for entry in status.get("containerStatuses", []))
    return next((str(state["reason"]) for state in states if "reason" in state), "")


def _readiness(spec: Object) -> Dict[str, Any]:
    """Of the first container that is asked by HTTP whether it is ready."""
    for container in spec.get("containers", []):
        asked = container.get("readinessProbe", {}).get("httpGet")
        if asked:
            return {"path": asked.get("path", "/"), "port": asked["port"], "scheme": asked.get("scheme", "HTTP")}
    return {}


def _unscheduled(status: Object) -> str:
    scheduled = condition(status, "PodScheduled")
    return scheduled.get("message", "") if scheduled.get("status") == "False" else ""


def _meant_for(spec: Object) -> str:
    """A DaemonSet's pods are held to their node by its name (Kubernetes: pkg/controller/daemon/util)."""
    terms = (
        spec.get("affinity", {})
        .get("nodeAffinity", {})
        .get("requiredDuringSchedulingIgnoredDuringExecution", {})
        .get("nodeSelectorTerms", [])
    )
    fields = (field for term in terms for field in term.get("matchFields", []) if field["key"] == "metadata.name")
    return next((str(field["values"][0]) for field in fields), "")


def secret(table: Object) -> str:
    """The type of a Secret, from the API's table of it, which has no content."""
    columns = [column["name"] for column in table["columnDefinitions"]]
    return str(table["rows"][0]["cells"][columns.index("Type")])


def _owner(meta: Object) -> str:
    """A pod of a Deployment belongs to a ReplicaSet that carries the Deployment's name and the template's hash."""
    owner = controller(meta)
    kind, _, name = owner.partition("/")
    ending = f"-{meta.get('labels', {}).get('pod-template-hash', '')}"
    if kind == "ReplicaSet" and len(ending) > 1 and name.endswith(ending):
        return f"Deployment/{name[: -len(ending)]}"
    return owner


def _ports(spec: Object) -> List[Dict[str, Any]]:
    return [
        {
            "name": port.get("name", ""),
            "port": port["containerPort"],
            "protocol": port.get("protocol", "TCP"),
            "hostPort": port.get("hostPort", 0),
        }
        for container in spec.get("containers", [])
        for port in container.get("ports", [])
    ]
