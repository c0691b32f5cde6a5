"""The way from the internet to the applications: balancer, node, ingress controller, Service, pod. Pure.

What there is of it is read from the cluster's facts and the declared balancers; and who is asked, from where, so that
each part of the way answers for itself. Applications are asked with GET, with the Host of their Ingress.
"""

from __future__ import annotations

from itertools import islice
from operator import itemgetter
from typing import Any, Dict, Iterable, Iterator, List, Mapping, NamedTuple, Optional, Sequence, Tuple, cast

from . import declared
from .declared import Field, each, fields
from .model import CONTROLLER, Balancer, BalancerService, ClusterFacts, Controller, NodeFacts, Pod, Probe, Service
from .parse.cluster import CONTROLLERS, INGRESS_NGINX, ingress_controller
from .plan import TIMEOUT, answers_on

PATIENCE = 20.0  # seconds; an ingress gives up connecting after 15 (three tries of 5), and says so
SCHEMES = {80: "http", 443: "https", "http": "http", "https": "https", "web": "http", "websecure": "https"}

_REQUESTS = 10  # by a balancer: some of them meet each node
_DOOR_REQUESTS = 3
_DOORS = 8  # that a site is asked at; other sites are asked at other ones
_STARTS, _PODS = 4, 3  # from so many nodes so many pods of a backend
# What an ingress answers in place of an application: for a broken PROXY header, and for a host that it does not know.
_OF_THE_INGRESS = [400, 404]


# --- what is declared -------------------------------------------------------------------------------------------------


def read_balancers(given: Any, where: str = "netmend_balancers") -> List[Balancer]:
    """The variable, with defaults. ValueError names what is wrong."""
    return cast(List[Balancer], each(fields(_BALANCER), itemgetter("name"))(given or [], where))


def read_patience(given: Any, where: str = "netmend_patience") -> float:
    """Seconds. ValueError where it is no such number."""
    try:
        seconds = float(given)
    except (TypeError, ValueError):
        seconds = 0.0
    if not 1 <= seconds <= 300:
        raise ValueError(f"{where}: {given!r} is no number of seconds from 1 to 300")
    return seconds


def _status(given: Any, where: str) -> Dict[str, str]:
    if not isinstance(given, Mapping):
        raise ValueError(f"{where}: {given!r} is no mapping")
    said = declared.one_of("healthy", "unhealthy", "unknown")
    return {str(port): said(state, f"{where}.{port}") for port, state in given.items()}


_PORT, _PROTOCOL = declared.number(65535), declared.one_of("http", "https", "tcp")
_HEALTH = {
    "protocol": Field(_PROTOCOL, "tcp"),
    "port": Field(_PORT, needed=True),
    "path": Field(declared.path, "/"),
    "codes": Field(each(declared.number(599)), [200]),
}
_SERVICE = {
    "protocol": Field(_PROTOCOL, "tcp"),
    "listen_port": Field(_PORT, needed=True),
    "destination_port": Field(_PORT, 0),
    "proxy_protocol": Field(declared.switch),
    "health": Field(fields(_HEALTH)),
}
_TARGET = {"address": Field(declared.address, needed=True), "status": Field(_status, {})}
_BALANCER = {
    "name": Field(declared.word, needed=True),
    "address": Field(declared.address, needed=True),
    "services": Field(each(fields(_SERVICE), itemgetter("listen_port")), []),
    "targets": Field(each(fields(_TARGET), itemgetter("address")), []),
    "private": Field(declared.switch, False),
}


# --- what there is ----------------------------------------------------------------------------------------------------


class Site(NamedTuple):
    """A host of an Ingress, and what it leads to there."""

    ingress: str  # "namespace/name"
    host: str  # "" for all that have none of their own
    path: str
    known: bool  # whether the application is known to answer there with less than 400
    scheme: str  # http; https where the Ingress has a certificate for the host
    secret: str  # "namespace/name" of the certificate's; "" for none, or the controller's own
    controller: str  # of the Ingress's class; "" where nothing claims it
    namespace: str
    service: str
    port: Any  # number or name
    protocol: str  # http, https, tcp: what the pods speak

    @property
    def backend(self) -> str:
        return f"{self.namespace}/{self.service}:{self.port}"

    @property
    def upstream(self) -> str:
        """As ingress-nginx calls the backend (internal/ingress/controller/util.go, upstreamName)."""
        return f"{self.namespace}-{self.service}-{self.port}"

    @property
    def name(self) -> str:
        """As a client asks for it; a wildcard's any."""
        return self.host.replace("*", "netmend")


class Door(NamedTuple):
    """Where a node takes requests for an ingress controller."""

    node: str
    address: str
    port: int
    scheme: str
    service: str  # "namespace/name" whose NodePort it is; "" for a port of the host
    open: bool  # other nodes may ask there, and not only balancers
    controller: str


class Edge:
    """Sites, doors and balancers of a cluster."""

    def __init__(
        self,
        cluster: ClusterFacts,
        balancers: Sequence[Balancer] = (),
        applications: Iterable[Mapping[str, Any]] = (),
    ) -> None:
        self.cluster = cluster
        self.balancers = balancers
        self._health = {one["host"]: one["health"] for one in applications if one.get("host") and one.get("health")}
        self._nodes = {node["name"]: node["internal_ip"] for node in cluster["nodes"] if node["internal_ip"]}
        self._services = {_name(service): service for service in cluster["services"]}
        self._pods = {_name(pod): pod for pod in cluster["pods"]}
        self._classes = {one["name"]: one["controller"] for one in cluster["ingress_classes"]}
        self._default = next((one["controller"] for one in cluster["ingress_classes"] if one["default"]), "")
        self.controllers = [pod for pod in cluster["pods"] if pod["ready"] and ingress_controller(pod)]
        self.sites = list(self._sites())
        self.doors = list(dict.fromkeys([*self._host_doors(), *self._node_port_doors()]))

    def service(self, site: Site) -> Optional[Service]:
        return self._services.get(f"{site.namespace}/{site.service}")

    def port(self, site: Site) -> Optional[Dict[str, Any]]:
        """Of the Service; None where it has no such port."""
        service = self.service(site)
        found = (port for port in (service["ports"] if service else []) if site.port in (port["port"], port["name"]))
        return next((port for port in found if site.port), None)

    def endpoints(self, site: Site) -> List[Dict[str, Any]]:
        """Of the site's port, ready or not."""
        service, port = self.service(site), self.port(site)
        if not service or not port:
            return []
        numbers = {number_of(pod, port["targetPort"]) for pod in self.selected(service)}
        found = [end for end in service["endpoints"] if end["protocol"] == port["protocol"]]
        return [end for end in found if end["port"] in numbers or len(service["ports"]) == 1]

    def selected(self, service: Service) -> List[Pod]:
        """Pods that the Service's selector matches, with an address or without."""
        wanted = service["selector"].items()
        return [
            pod
            for pod in self.cluster["pods"]
            if wanted and pod["namespace"] == service["namespace"] and wanted <= pod["labels"].items()
        ]

    def doors_of(self, site: Site, scheme: str = "") -> List[Door]:
        """Where the site is to be asked for: where nobody claims it, at every controller's."""
        wanted = {site.controller} if site.controller else set(CONTROLLERS)
        return [door for door in self.doors if door.controller in wanted and door.scheme == (scheme or site.scheme)]

    def proxy(self, port: int) -> str:
        """Whether balancers send the PROXY header to a port of the nodes, as Probe has it."""
        said = {
            service["proxy_protocol"]
            for balancer in self.balancers
            for service in services_of(balancer)
            if service["destination_port"] == port
        } - {None}
        return "unknown" if len(said) != 1 else "sent" if said.pop() else "none"

    def targets(self, balancer: Balancer) -> Dict[str, Dict[str, str]]:
        """Node -> its status by listening port; all nodes with a door where the balancer's targets are not known."""
        nodes = {address: name for name, address in self._nodes.items()}
        known = {nodes[one["address"]]: one["status"] for one in balancer["targets"] if one["address"] in nodes}
        return known if balancer["targets"] else {door.node: {} for door in self.doors if not door.service}

    def address(self, node: str) -> str:
        return self._nodes.get(node, "")

    def pod(self, name: str) -> Optional[Pod]:
        return self._pods.get(name)

    # --- what there is ---

    def _sites(self) -> Iterator[Site]:
        seen = set()
        for ingress in self.cluster["ingresses"]:
            named = ingress["class"]
            controller = self._classes.get(named, "") if named else self._default
            certificates = {host: tls["secret"] for tls in ingress["tls"] for host in tls["hosts"]}
            for path in ingress["paths"]:
                key = (path["host"], ingress["namespace"], path["service"], path["port"])
                if not path["service"] or key in seen:
                    continue
                seen.add(key)
                asked, known = self._path(ingress, path)
                secret = certificates.get(path["host"], "")
                protocol = ingress.get("protocol", "HTTP").lower()
                yield Site(
                    ingress=_name(ingress),
                    host=path["host"],
                    path=asked,
                    known=known,
                    scheme="https" if path["host"] in certificates else "http",
                    secret=f"{ingress['namespace']}/{secret}" if secret else "",
                    controller=controller if controller in CONTROLLERS else "",
                    namespace=ingress["namespace"],
                    service=path["service"],
                    port=path["port"],
                    protocol=protocol if protocol in ("http", "https") else "tcp",
                )

    def _path(self, ingress: Mapping[str, Any], path: Mapping[str, Any]) -> Tuple[str, bool]:
        """Where the application answers with less than 400, as is declared or kubelets see; else the Ingress's path."""
        below = path["path"] if path["path"].startswith("/") else "/"
        service = self._services.get(f"{ingress['namespace']}/{path['service']}")
        ready = [pod for pod in self.selected(service) if pod["ready"]] if service else []
        probes = [pod["readiness"] for pod in ready if pod["readiness"]]
        healthy = [self._health[path["host"]]] if path["host"] in self._health else []
        for known in [*healthy, *(probe["path"] for probe in probes)]:
            if known.startswith(below):
                return known, True
        return below, False

    def _host_doors(self) -> Iterator[Door]:
        for pod in self.controllers:
            for port in pod["ports"]:
                number, scheme = host_port(pod, port), _scheme(port)
                if number and scheme and pod["node"] in self._nodes:
                    served = any(_serves(service, pod, port["port"]) for service in self.cluster["services"])
                    yield Door(
                        pod["node"], self._nodes[pod["node"]], number, scheme, "", served, ingress_controller(pod)
                    )

    def _node_port_doors(self) -> Iterator[Door]:
        behind = {_name(pod): ingress_controller(pod) for pod in self.controllers}
        for service in self.cluster["services"]:
            controller = next((behind[end["pod"]] for end in service["endpoints"] if end["pod"] in behind), "")
            for port in service["ports"] if controller else []:
                scheme = _scheme(port)
                if port["nodePort"] and scheme:
                    for node in self.cluster["nodes"]:
                        if node["internal_ip"] and answers_on(service, node):
                            name, address = node["name"], node["internal_ip"]
                            yield Door(name, address, port["nodePort"], scheme, _name(service), True, controller)


def number_of(pod: Pod, port: Any) -> int:
    """Of a port by number or name; 0 where the pod declares none of that name."""
    if isinstance(port, int):
        return port
    return next((int(each["port"]) for each in pod["ports"] if each["name"] == port), 0)


def host_port(pod: Pod, port: Mapping[str, Any]) -> int:
    """Of the node, that one of the pod's ports takes; 0 for none."""
    return int(port["hostPort"] or (port["port"] if pod["host_network"] else 0))


def _scheme(port: Mapping[str, Any]) -> str:
    """What an ingress controller speaks at a port of its own, or of its Service; "" where that is not known."""
    return SCHEMES.get(port["name"]) or SCHEMES.get(port["port"], "")


def services_of(balancer: Balancer) -> List[BalancerService]:
    """What it listens for; where that is not known, the web's ports, with nothing known of what is behind them."""
    return balancer["services"] or [
        BalancerService(protocol=scheme, listen_port=port, destination_port=0, proxy_protocol=None, health=None)
        for port, scheme in ((80, "http"), (443, "https"))
    ]


# --- who is asked -----------------------------------------------------------------------------------------------------


def plan_edge(
    nodes: Mapping[str, NodeFacts], edge: Edge, patience: float = PATIENCE, settle: float = 0.0
) -> List[Probe]:
    """The probes of the edge; without Ingresses and balancers there are none.

    ``patience`` is how long an answer is waited for, in seconds: who answers sooner is not waited for. ``settle`` is
    how long balancers may take to see by their health checks that a target is well again.
    """
    plan = _Plan(nodes, edge)
    rows = {
        "edge-balancer": plan.by_balancers,
        "edge-health": plan.health_checks,
        "edge-node": plan.by_doors,
        "edge-service": plan.by_services,
        "edge-pod": plan.to_pods,
        "edge-self": plan.inside_pods,
        "edge-outside": plan.to_outside,
    }

    def times(row: str, probe: Probe) -> Dict[str, float]:
        for_answers = {"patience": patience} if probe["protocol"] in ("http", "https") else {}
        for_checks = {"settle": settle} if settle and row == "edge-balancer" else {}
        return {"timeout": TIMEOUT, **for_answers, **for_checks}

    asked = [
        cast(Probe, {"id": _identifier(row, probe), "row": row, "expect": "ok", **times(row, probe), **probe})
        for row, planned in rows.items()
        for probe in planned()
    ]
    # Two services of a balancer may check the same port.
    return list({probe["id"]: probe for probe in asked}.values())


def plan_controllers(nodes: Mapping[str, NodeFacts], cluster: ClusterFacts) -> Dict[str, List[Controller]]:
    """Node -> the pods of ingress-nginx there, which are to be asked what they say themselves."""
    asked: Dict[str, List[Controller]] = {}
    for pod in cluster["pods"]:
        if not pod["ready"] or ingress_controller(pod) != INGRESS_NGINX or pod["node"] not in nodes:
            continue
        pids = {each["uid"]: each["pid"] for each in nodes[pod["node"]]["pods"]}
        if pod["host_network"] or pod["uid"] in pids:
            controller = Controller(pod=_name(pod), uid=pod["uid"], pid=pids.get(pod["uid"], 0))
            asked.setdefault(pod["node"], []).append(controller)
    return asked


def _identifier(row: str, probe: Probe) -> str:
    start = probe.get("source_pod") or probe["source_node"]
    end = probe.get("balancer") or probe.get("target_pod") or probe.get("target_node") or probe.get("target_service")
    return f"{row} {start}>{end} {probe['protocol']} {probe['address']}:{probe['port']} {_asked(probe)}".rstrip()


def _asked(probe: Probe) -> str:
    return " ".join(part for part in (probe.get("name", ""), probe.get("path", ""), probe.get("backend", "")) if part)


class _Plan:
    def __init__(self, nodes: Mapping[str, NodeFacts], edge: Edge) -> None:
        self.edge = edge
        self.sources = sorted(nodes)
        self.pids = {process["uid"]: process["pid"] for facts in nodes.values() for process in facts["pods"]}
        self.restricted = {policy["namespace"] for policy in edge.cluster["network_policies"]}
        by_node = {pod["node"]: pod for pod in edge.controllers if pod["node"] in nodes}
        self.starts = [self._start(by_node[node]) for node in sorted(by_node)] or [
            Probe(source_node=name) for name in self.sources
        ]
        # One of those that share a backend stands for all, where the host does not matter.
        self.backends = list({site.backend: site for site in reversed(edge.sites)}.values())[::-1]

    def by_balancers(self) -> Iterator[Probe]:
        for balancer in self.edge.balancers:
            for service in services_of(balancer):
                scheme = self._scheme(service)
                for site in self.edge.sites:
                    if scheme in ("http", site.scheme):
                        asked = self._site(site, scheme)
                        yield Probe(
                            **asked,
                            source_node=CONTROLLER,
                            balancer=balancer["name"],
                            address=balancer["address"],
                            port=service["listen_port"],
                            attempts=_REQUESTS,
                        )

    def health_checks(self) -> Iterator[Probe]:
        """As the balancers ask; from the target itself, as its firewall may let in nobody else but them."""
        for balancer in self.edge.balancers:
            for service in services_of(balancer):
                check = service["health"]
                for node in self.edge.targets(balancer) if check else []:
                    if check and node in self.sources:
                        probe = Probe(source_node=node, target_node=node, balancer=balancer["name"])
                        more = Probe(path=check["path"], statuses=check["codes"], verify=False, proxy="unknown")
                        yield Probe(
                            **probe,
                            **(more if check["protocol"] != "tcp" else Probe()),
                            protocol=check["protocol"],
                            address=self.edge.address(node),
                            port=check["port"],
                        )

    def by_doors(self) -> Iterator[Probe]:
        for place, site in enumerate(self.edge.sites):
            for number, door in enumerate(_some(self.edge.doors_of(site), _DOORS, place)):
                source = self._other(door.node, place + number) if door.open else door.node
                if source in self.sources:
                    yield Probe(
                        **self._site(site, door.scheme),
                        source_node=source,
                        target_node=door.node,
                        target_service=door.service,
                        address=door.address,
                        port=door.port,
                        proxy=self.edge.proxy(door.port),
                        attempts=_DOOR_REQUESTS,
                    )

    def by_services(self) -> Iterator[Probe]:
        for place, site in enumerate(self.backends):
            service, port = self.edge.service(site), self.edge.port(site)
            if service and port and service["cluster_ip"] not in ("", "None"):
                for start in _some(self.starts, 1, place):
                    yield Probe(
                        **{**self._backend(site), **start},
                        target_service=_name(service),
                        address=service["cluster_ip"],
                        port=port["port"],
                        attempts=_DOOR_REQUESTS,
                    )

    def to_pods(self) -> Iterator[Probe]:
        for place, site in enumerate(self.backends):
            for number, start in enumerate(_some(self.starts, _STARTS, place)):
                ready = [end for end in self.edge.endpoints(site) if end["ready"] and end["port"]]
                for end in _some(ready, _PODS, number):
                    yield Probe(
                        **{**self._backend(site), **start},
                        target_node=end["node"],
                        target_pod=end["pod"],
                        address=end["ip"],
                        port=end["port"],
                    )

    def inside_pods(self) -> Iterator[Probe]:
        """Over no network at all: the pod's own address. And by its own Service, which may lead back to it."""
        for site in self.backends:
            service, port = self.edge.service(site), self.edge.port(site)
            ends = sorted(self.edge.endpoints(site), key=lambda end: bool(end["ready"]))
            for end in islice((end for end in ends if end["port"] and self._pid(end["pod"])), _PODS):
                start = Probe(source_node=end["node"], source_pod=end["pod"], source_pid=self._pid(end["pod"]))
                probe = Probe(
                    **{**self._backend(site), **start},
                    target_node=end["node"],
                    target_pod=end["pod"],
                    address=end["ip"],
                    port=end["port"],
                )
                yield probe if end["ready"] else self._as_its_kubelet(probe)
                # A policy may forbid a pod to ask, rightly so; its own address is none of the policy's business.
                allowed = end["ready"] and site.namespace not in self.restricted
                if service and port and allowed and service["cluster_ip"] not in ("", "None"):
                    yield Probe(
                        **start,
                        backend=site.backend,
                        target_service=_name(service),
                        protocol="tcp",
                        address=service["cluster_ip"],
                        port=port["port"],
                        attempts=min(32, 6 * sum(bool(end["ready"]) for end in service["endpoints"])),
                    )

    def to_outside(self) -> Iterator[Probe]:
        """From a pod of each node, and from the node: to a balancer, whose address is outside of the cluster.

        Nothing says that nodes are to reach it: what counts is whether their pods do as well as they.
        """
        for balancer in self.edge.balancers[:1]:
            end = Probe(
                protocol="tcp",
                balancer=balancer["name"],
                address=balancer["address"],
                port=services_of(balancer)[0]["listen_port"],
                expect="any",
            )
            for node in self.sources:
                inside = next((pod for pod in self.edge.cluster["pods"] if self._may_ask(pod, node)), None)
                if inside:
                    pod = Probe(source_pod=_name(inside), source_pid=self.pids[inside["uid"]])
                    yield Probe(**end, source_node=node)
                    yield cast(Probe, {**end, "source_node": node, **pod})

    def _as_its_kubelet(self, probe: Probe) -> Probe:
        """Of a pod that is not ready: what its readinessProbe asks, for comparison."""
        pod = self.edge.pod(probe["target_pod"])
        asked = pod["readiness"] if pod else {}
        if not pod or not asked:
            return {**probe, "expect": "any"}
        port = number_of(pod, asked["port"]) or probe["port"]
        return {**probe, "expect": "any", "path": asked["path"], "port": port, "protocol": asked["scheme"].lower()}

    def _may_ask(self, pod: Pod, node: str) -> bool:
        own_network = pod["node"] == node and not pod["host_network"] and bool(self.pids.get(pod["uid"]))
        return own_network and pod["ready"] and pod["namespace"] not in self.restricted

    def _start(self, controller: Pod) -> Probe:
        """Where an ingress controller's requests begin: on its host, or in its pod."""
        start = Probe(source_node=controller["node"])
        pid = 0 if controller["host_network"] else self.pids.get(controller["uid"], 0)
        return Probe(**start, source_pod=_name(controller), source_pid=pid) if pid else start

    def _other(self, node: str, place: int) -> str:
        """Another node than this, if there is any, each in its turn."""
        others = [name for name in self.sources if name != node] or self.sources
        return others[place % len(others)] if others else ""

    def _pid(self, pod: str) -> int:
        found = self.edge.pod(pod)
        return self.pids.get(found["uid"], 0) if found and not found["host_network"] else 0

    def _scheme(self, service: BalancerService) -> str:
        """A balancer that only hands TCP on speaks what is behind it."""
        if service["protocol"] != "tcp":
            return service["protocol"]
        behind = [door.scheme for door in self.edge.doors if door.port == service["destination_port"]]
        return behind[0] if behind else str(SCHEMES.get(service["listen_port"], "http"))

    def _site(self, site: Site, scheme: str) -> Probe:
        """A request for a site, from outside of the applications."""
        probe = Probe(protocol=scheme, name=site.name, path=site.path, backend=site.backend)
        if site.known:
            probe["unwanted"] = _OF_THE_INGRESS
        if scheme == "https":
            probe["verify"] = False
        return probe

    def _backend(self, site: Site) -> Probe:
        """The same request, as the ingress hands it on."""
        if site.protocol == "tcp":
            return Probe(protocol="tcp", backend=site.backend)
        more = Probe(verify=False) if site.protocol == "https" else Probe()
        return Probe(**more, protocol=site.protocol, name=site.name, path=site.path, backend=site.backend)


def _serves(service: Service, pod: Pod, port: int) -> bool:
    """Whether the Service leads to this port of the pod: the cluster's own nodes are let in there then."""
    return any((end["pod"], end["port"]) == (_name(pod), port) for end in service["endpoints"])


def _some(items: Sequence[Any], most: int, start: int) -> List[Any]:
    """So many at most, from a place on, and around."""
    return [items[(start + number) % len(items)] for number in range(min(most, len(items)))]


def _name(thing: Any) -> str:
    return f"{thing['namespace']}/{thing['name']}"
