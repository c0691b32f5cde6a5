"""What a cluster is to be besides reachable, as its operators declare it: nodes, applications, NodePorts, names, URLs.

Pure: the declaration is read, its probes are planned, and these and the cluster's facts become points. NodePorts are
asked from the nodes; names and URLs from the controller, which stands for the internet.
"""

from __future__ import annotations

from operator import itemgetter
from typing import Any, Dict, Iterable, Iterator, List, Mapping, Optional, TypedDict, cast
from urllib.parse import urlsplit

from .declared import Field, address, asked, each, fields, host, number, object_name, path, switch
from .model import CONTROLLER, ClusterFacts, NodeFacts, Observation, Pod, Point, Probe, Service, met
from .plan import answers_on, destination

KINDS = ("DaemonSet", "Deployment", "StatefulSet")
PORTS = {"http": 80, "https": 443}
STATUS = 200
TIMEOUT = 5.0  # seconds
SHOWN = 3  # probes that failed, in a point

_NOTHING = Observation(outcome="error", detail="nothing came back")


class Application(TypedDict):
    """A DaemonSet, Deployment or StatefulSet; what is None, 0 or "" is not asked for."""

    name: str  # "namespace/name"
    pods: int  # that are Ready, at least
    host_network: Optional[bool]
    node_port: int  # by which a Service leads to its pods
    host: str  # for which an Ingress leads to its pods


class NodePort(TypedDict):
    port: int
    path: str


class Checklist(TypedDict):
    nodes: int  # that are Ready, at least; all that are known are to be
    applications: List[Application]
    node_ports: List[NodePort]
    urls: List[str]
    balancers: List[str]  # addresses that the URLs' names lead to
    resolver: str  # address of the DNS server that is asked for the names; "": none is
    requests: int  # for each URL to each balancer


# --- what is declared -------------------------------------------------------------------------------------------------


def read(given: Any) -> Optional[Checklist]:
    """The variable netmend_checklist, with defaults; None where it asks for nothing.

    Raises ValueError that names what is wrong.
    """
    if not given:
        return None
    checklist = cast(Checklist, fields(_CHECKLIST)(given, "netmend_checklist"))
    if checklist["urls"] and not checklist["balancers"]:
        raise ValueError("netmend_checklist.balancers: urls need the addresses that their names are to lead to")
    for key in ("balancers", "resolver", "requests"):
        if key in given and not checklist["urls"]:
            raise ValueError(f"netmend_checklist.{key} is of use for urls only, and there are none")
    return checklist


def _url(given: Any, where: str) -> str:
    if "@" in str(given):
        raise ValueError(f"{where}: there are credentials in it, or an @ that is not written %40")
    try:
        request = _request(str(given))
    except ValueError as error:
        raise ValueError(f"{where}: {given!r}: {error}") from None
    if request["protocol"] not in PORTS or not request["name"]:
        raise ValueError(f"{where}: {given!r} is not http(s)://name[:port][/path]")
    return asked(Probe(**request, address="0.0.0.0"), given, where)


_MANY = 10_000
_APPLICATION = {
    "name": Field(object_name, needed=True),
    "pods": Field(number(_MANY), 1),
    "host_network": Field(switch),
    "node_port": Field(number(65535), 0),
    "host": Field(host, ""),
}
_NODE_PORT = {"port": Field(number(65535), needed=True), "path": Field(path, "/healthz")}
_CHECKLIST = {
    "nodes": Field(number(_MANY), 1),
    "applications": Field(each(fields(_APPLICATION), itemgetter("name")), []),
    "node_ports": Field(each(fields(_NODE_PORT), itemgetter("port")), []),
    "urls": Field(each(_url), []),
    "balancers": Field(each(address), []),
    "resolver": Field(address, ""),
    "requests": Field(number(100), 10),
}


def _request(url: str) -> Probe:
    """A URL's part of a probe. ValueError where its port is none."""
    parts = urlsplit(url)
    return Probe(
        protocol=parts.scheme,
        name=parts.hostname or "",
        port=parts.port or PORTS.get(parts.scheme, 0),
        path=(parts.path or "/") + (f"?{parts.query}" if parts.query else ""),
        status=STATUS,
    )


# --- what is measured for it ------------------------------------------------------------------------------------------


def probes(checklist: Checklist, nodes: Mapping[str, NodeFacts], cluster: ClusterFacts) -> List[Probe]:
    """All probes; those of the controller have it for their source node."""
    return [probe for asked in _questions(checklist, nodes, cluster).values() for probe in asked]


def points(
    checklist: Checklist,
    nodes: Mapping[str, NodeFacts],
    cluster: ClusterFacts,
    expected: Iterable[str],
    observations: Iterable[Observation],
) -> List[Point]:
    """What came of each thing that is asked for; ``expected`` are the inventory's nodes."""
    seen = {observation["id"]: observation for observation in observations}
    return [
        _nodes_ready(checklist["nodes"], cluster, expected),
        *(point for application in checklist["applications"] for point in _application(application, cluster)),
        *(
            _leads(name, asked[0], seen, checklist["balancers"])
            if asked and asked[0]["protocol"] == "dns-udp"
            else _answers(name, asked, seen)
            for name, asked in _questions(checklist, nodes, cluster).items()
        ),
    ]


def _questions(checklist: Checklist, nodes: Mapping[str, NodeFacts], cluster: ClusterFacts) -> Dict[str, List[Probe]]:
    """The points that take probes, by name."""
    asked = {
        f"NodePort {wanted['port']}: {STATUS} from {wanted['path']} on every node": list(
            _to_node_port(wanted, nodes, cluster)
        )
        for wanted in checklist["node_ports"]
    }
    requests = {url: _request(url) for url in checklist["urls"]}
    if checklist["resolver"]:
        for name in dict.fromkeys(request["name"] for request in requests.values()):
            question = Probe(protocol="dns-udp", address=checklist["resolver"], port=53, name=name)
            asked[f"{name}: leads to the balancers"] = [_by_controller(question, name)]
    for url, request in requests.items():
        for balancer in checklist["balancers"]:
            probe = Probe(**request, address=balancer)
            asked[f"{url}: {STATUS} by {balancer}"] = [
                _by_controller(probe, f"{url} by {balancer}, {number}") for number in range(checklist["requests"])
            ]
    return asked


def _by_controller(probe: Probe, identifier: str) -> Probe:
    return Probe(**probe, id=identifier, source_node=CONTROLLER, timeout=TIMEOUT, expect="ok")


def _to_node_port(wanted: NodePort, nodes: Mapping[str, NodeFacts], cluster: ClusterFacts) -> Iterator[Probe]:
    """Every node that is to answer is asked once, by another one if there is any."""
    service = _by_node_port(wanted["port"], cluster)
    members = [node for node in cluster["nodes"] if node["internal_ip"] and (not service or answers_on(service, node))]
    for place, node in enumerate(members):
        sources = [name for name in sorted(nodes) if name != node["name"]] or sorted(nodes)
        if sources:
            source = sources[place % len(sources)]
            yield Probe(
                id=f"{source}>{node['name']} http/{wanted['port']}{wanted['path']}",
                source_node=source,
                target_node=node["name"],
                protocol="http",
                address=node["internal_ip"],
                port=wanted["port"],
                path=wanted["path"],
                status=STATUS,
                timeout=TIMEOUT,
                expect="ok",
            )


# --- points -----------------------------------------------------------------------------------------------------------


def _nodes_ready(wanted: int, cluster: ClusterFacts, expected: Iterable[str]) -> Point:
    ready = {node["name"]: node["ready"] for node in cluster["nodes"]}
    known = list(dict.fromkeys([*ready, *expected]))
    lacking = [name for name in known if not ready.get(name)]
    count = len(known) - len(lacking)
    seen = f"{count} of {len(known)}" + (f"; not {', '.join(lacking)}" if lacking else "")
    return Point(name=f"at least {wanted} nodes, all Ready", met=not lacking and count >= wanted, seen=seen)


def _application(wanted: Application, cluster: ClusterFacts) -> Iterator[Point]:
    name = wanted["name"]
    namespace, _, short = name.partition("/")
    owners = [f"{kind}/{short}" for kind in KINDS]
    pods = [pod for pod in cluster["pods"] if pod["namespace"] == namespace and pod["owner"] in owners]
    ready = sum(pod["ready"] for pod in pods)
    yield Point(
        name=f"{name}: at least {wanted['pods']} pods Ready",
        met=ready >= wanted["pods"],
        seen=f"{ready} of {len(pods)}" if pods else f"no {', '.join(KINDS)} of this name has a pod",
    )
    if wanted["host_network"] is not None:
        right = sum(pod["host_network"] == wanted["host_network"] for pod in pods)
        yield Point(
            name=f"{name}: {'on' if wanted['host_network'] else 'not on'} the hosts' network",
            met=0 < right == len(pods),
            seen=f"{right} of {len(pods)} pods",
        )
    if wanted["node_port"]:
        service = _by_node_port(wanted["node_port"], cluster)
        yield _led(f"{name}: by NodePort {wanted['node_port']}", [service] if service else [], pods)
    if wanted["host"]:
        yield _led(f"{name}: by Ingress for {wanted['host']}", _by_host(wanted["host"], cluster), pods)


def _led(name: str, services: List[Service], pods: List[Pod]) -> Point:
    """Whether one of the Services has ready endpoints that are among the pods."""
    own = {f"{pod['namespace']}/{pod['name']}" for pod in pods}
    found = {
        f"{service['namespace']}/{service['name']}": len(
            own & {endpoint["pod"] for endpoint in service["endpoints"] if endpoint["ready"]}
        )
        for service in services
    }
    seen = ", ".join(f"Service {service} leads to {count} ready pods of it" for service, count in found.items())
    return Point(name=name, met=any(found.values()), seen=seen or "there is none, or none that leads to a Service")


def _by_node_port(port: int, cluster: ClusterFacts) -> Optional[Service]:
    numbers = ((service, each.get("nodePort")) for service in cluster["services"] for each in service["ports"])
    return next((service for service, number in numbers if number == port), None)


def _by_host(host: str, cluster: ClusterFacts) -> List[Service]:
    """The Services that Ingresses lead to for a host."""
    named = {
        (ingress["namespace"], path["service"])
        for ingress in cluster["ingresses"]
        for path in ingress["paths"]
        if path["host"] == host
    }
    return [service for service in cluster["services"] if (service["namespace"], service["name"]) in named]


def _answers(name: str, asked: List[Probe], seen: Mapping[str, Observation]) -> Point:
    observed = [(probe, seen.get(probe["id"], _NOTHING)) for probe in asked]
    wrong = [
        f"{probe['source_node'] or 'controller'} to {destination(probe)}: {said['outcome']} ({said.get('detail', '')})"
        for probe, said in observed
        if not met(probe, said)
    ]
    right = len(asked) - len(wrong)
    distinct = list(dict.fromkeys(wrong))
    more = [f"and {len(distinct) - SHOWN} more"] if len(distinct) > SHOWN else []
    return Point(
        name=name, met=0 < right == len(asked), seen="; ".join([f"{right} of {len(asked)}", *distinct[:SHOWN], *more])
    )


def _leads(name: str, asked: Probe, seen: Mapping[str, Observation], balancers: List[str]) -> Point:
    said = seen.get(asked["id"], _NOTHING)
    detail = said.get("detail", "")
    is_right = said["outcome"] == "ok" and set(detail.split(", ")) == set(balancers)
    return Point(name=name, met=is_right, seen=detail if said["outcome"] == "ok" else f"{said['outcome']} ({detail})")
