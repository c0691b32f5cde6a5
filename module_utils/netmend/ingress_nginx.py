"""How an ingress controller comes onto the nodes' own network: where, beside what is there, and what forbids it."""

from __future__ import annotations

from typing import Dict, Iterator, List, Mapping, NamedTuple, Sequence, Set, Tuple

from . import k3s_disable
from .apply import OWN, Object
from .model import ClusterFacts, NodeFacts, Pod

Labels = Dict[str, str]

LABELS = {"app.kubernetes.io/name": "ingress-nginx", "app.kubernetes.io/component": "controller"}
CONTROLLERS = ("DaemonSet", "Deployment")
# What it listens on, on the nodes' own network: clients, and the probe of its health.
PORTS = (80, 443, 10254)
WEBHOOK_PORT = 8443


class Wanted(NamedTuple):
    """What is asked for."""

    namespace: str
    name: str  # of the DaemonSet and of its Service
    nodes: Sequence[str]  # empty: those with the selector's labels, else the agents
    node_selector: Labels
    ingress_class: str
    controller_class: str
    node_ports: Sequence[int]
    webhook: bool


class Plan(NamedTuple):
    """What the objects are made of."""

    refusals: List[str]  # what stands against it, each with what to do; empty: nothing
    nodes: List[str]
    leaves: List[str]  # nodes that have the labels and are not to have the controller
    selector: Labels  # the DaemonSet's, which cannot be changed once it is there
    # Its pods', with all that Services which serve the Deployments ask for: such a Service serves both kinds of pods,
    # which OWN tells apart.
    labels: Labels
    service_selector: Labels  # the DaemonSet's pods alone
    replaces: List[Object]  # Deployments of the controller, which go when the DaemonSet serves
    webhooks: List[Object]  # configurations by which the API server asks a controller that will not answer
    settled: bool  # whether each node has the DaemonSet's pod of now
    room: int  # nodes on which its pods can start before these have gone


def plan(cluster: ClusterFacts, nodes: Mapping[str, NodeFacts], live: Sequence[Object], wanted: Wanted) -> Plan:
    """`live` are the namespace's DaemonSets, Deployments and Services as the API has them, and all webhooks."""
    replaced = [item["metadata"]["name"] for item in live if item["kind"] == "Deployment" and _is_controller(item)]
    owners = {f"DaemonSet/{wanted.name}", *(f"Deployment/{name}" for name in replaced)}
    own = [pod for pod in cluster["pods"] if pod["namespace"] == wanted.namespace and pod["owner"] in owners]
    places = _places(cluster, wanted)
    taken = {pod["node"] for pod in own if pod["host_network"] and pod["owner"].startswith("Deployment/")}
    ports = (*PORTS, WEBHOOK_PORT) if wanted.webhook else PORTS
    daemonset = _daemonset(live, wanted)
    selector = dict(daemonset["spec"]["selector"]["matchLabels"]) if daemonset else {**LABELS, **OWN}
    labels = {**LABELS, **_labels(daemonset), **_asked_for(live), **OWN, **selector}
    return Plan(
        refusals=[
            *_unknown(cluster, places, wanted),
            *_host_ports(cluster, places, own, ports),
            *_listening(nodes, places, own, ports),
            *_node_ports(cluster, wanted),
            *_other_class(cluster, wanted),
            *_no_room(places, taken, replaced),
        ],
        nodes=places,
        leaves=sorted(set(_labelled(cluster, wanted)) - set(places)),
        selector=selector,
        labels=labels,
        service_selector={**selector, **{key: labels[key] for key in OWN}},
        replaces=[
            {"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"namespace": wanted.namespace, "name": name}}
            for name in replaced
        ],
        webhooks=[] if wanted.webhook else [item for item in live if _asks(item, wanted)],
        settled=all(_is_settled(item) for item in live if item["kind"] == "DaemonSet"),
        room=len(set(places) - taken),
    )


def _is_controller(item: Object) -> bool:
    labels = _labels(item)
    return all(labels.get(key, value) == value for key, value in LABELS.items()) and "app.kubernetes.io/name" in labels


def _is_settled(daemonset: Object) -> bool:
    status = daemonset["status"]
    counts = {status.get(key, 0) for key in ("desiredNumberScheduled", "updatedNumberScheduled", "numberAvailable")}
    return bool(status.get("observedGeneration") == daemonset["metadata"].get("generation")) and len(counts) == 1


def _asks(item: Object, wanted: Wanted) -> bool:
    """Whether it is a webhook configuration of a Service in the namespace."""
    calls = [each["clientConfig"].get("service", {}) for each in item.get("webhooks", [])]
    return any(service.get("namespace") == wanted.namespace for service in calls)


def _daemonset(live: Sequence[Object], wanted: Wanted) -> Object:
    """The one that is there; {} for none."""
    own = (item for item in live if item["kind"] == "DaemonSet" and item["metadata"]["name"] == wanted.name)
    return next(own, {})


def _labels(controller: Object) -> Labels:
    """Those of its pods. What a Service asked for before stays: to take it away would start all of them anew."""
    return dict(controller["spec"]["template"]["metadata"].get("labels", {})) if controller else {}


def _asked_for(live: Sequence[Object]) -> Labels:
    """What Services ask of the pods of a controller that is there."""
    pods = [_labels(item) for item in live if item["kind"] in CONTROLLERS]
    found: Labels = {}
    for item in live:
        selector = item["spec"].get("selector") if item["kind"] == "Service" else None
        if selector and any(selector.items() <= labels.items() for labels in pods):
            found.update(selector)
    return found


def _places(cluster: ClusterFacts, wanted: Wanted) -> List[str]:
    if wanted.nodes:
        return sorted(set(wanted.nodes))
    agents = [node["name"] for node in cluster["nodes"] if node["role"] == "agent"]
    return sorted(_labelled(cluster, wanted) or agents)


def _labelled(cluster: ClusterFacts, wanted: Wanted) -> List[str]:
    asked = wanted.node_selector.items()
    return [node["name"] for node in cluster["nodes"] if asked <= node["labels"].items()]


def _unknown(cluster: ClusterFacts, places: Sequence[str], wanted: Wanted) -> Iterator[str]:
    known = [node["name"] for node in cluster["nodes"]]
    if not places:
        yield (
            f"No node is to have the controller: the cluster has no agents, and no node has the labels "
            f"{_text(wanted.node_selector)}. Name nodes in ingress_nginx_nodes."
        )
    for name in places:
        if name not in known:
            yield f"ingress_nginx_nodes has {name}, which is no node of the cluster; there are {', '.join(known)}."


def _host_ports(
    cluster: ClusterFacts, places: Sequence[str], own: Sequence[Pod], ports: Sequence[int]
) -> Iterator[str]:
    """Ports of the nodes that other pods hold; servicelb's are in no list of sockets."""
    held: Dict[Tuple[str, str, str], List[Tuple[str, int]]] = {}
    for pod in cluster["pods"]:
        its = [port["hostPort"] for port in pod["ports"] if port["hostPort"] in ports and port["protocol"] == "TCP"]
        if its and pod["node"] in places and pod not in own and pod["phase"] in ("Pending", "Running"):
            who = pod["namespace"], pod["owner"] or f"Pod/{pod['name']}", pod["labels"].get(k3s_disable.SERVICE, "")
            held.setdefault(who, []).extend((pod["node"], port) for port in its)
    for (namespace, owner, service), found in sorted(held.items()):
        on = ", ".join(sorted({node for node, _ in found}))
        numbers = " and ".join(str(port) for port in sorted({port for _, port in found}))
        yield f"{owner} in namespace {namespace} has the host ports {numbers} on {on}. {_way_out(service)}"


def _way_out(service: str) -> str:
    if not service:
        return "Take it away, or leave its nodes out of ingress_nginx_nodes."
    return (
        f"It is K3s's servicelb, for the Service {service}: put `disable+: [servicelb, traefik]` into a "
        "file of config.yaml.d on every server and restart K3s there, or "
        "make that Service another type than LoadBalancer."
    )


def _listening(
    nodes: Mapping[str, NodeFacts], places: Sequence[str], own: Sequence[Pod], ports: Sequence[int]
) -> Iterator[str]:
    """Processes on the ports; on a node with the controller they are its own."""
    served = {pod["node"] for pod in own if pod["host_network"]}
    for name in places:
        sockets = nodes[name]["sockets"] if name in nodes and name not in served else []
        for socket in sockets:
            if socket["protocol"] == "tcp" and socket["port"] in ports:
                who = socket["process"] or "a process"
                yield f"{who} listens on {socket['address']}:{socket['port']} of {name}: end it, or leave the node out."


def _node_ports(cluster: ClusterFacts, wanted: Wanted) -> Iterator[str]:
    for service in cluster["services"]:
        if (service["namespace"], service["name"]) != (wanted.namespace, wanted.name):
            for port in service["ports"]:
                if port["nodePort"] in wanted.node_ports:
                    yield (
                        f"Service {service['namespace']}/{service['name']} has the NodePort {port['nodePort']}: set "
                        "ingress_nginx_http_node_port and ingress_nginx_https_node_port to free ones, or 0."
                    )


def _other_class(cluster: ClusterFacts, wanted: Wanted) -> Iterator[str]:
    for each in cluster["ingress_classes"]:
        if each["name"] == wanted.ingress_class and each["controller"] != wanted.controller_class:
            yield (
                f"IngressClass {each['name']} belongs to {each['controller']}, which cannot be changed: "
                "set ingress_nginx_class to another name."
            )


def _no_room(places: Sequence[str], taken: Set[str], replaced: Sequence[str]) -> Iterator[str]:
    if places and taken >= set(places):
        yield (
            f"Deployment {', '.join(replaced)} has pods on the network of every one of the nodes {', '.join(places)}: "
            "its ports are free nowhere. Scale it down until they are on one, or name one more in ingress_nginx_nodes."
        )


def _text(labels: Labels) -> str:
    return ", ".join(f"{key}={value}" for key, value in sorted(labels.items()))
