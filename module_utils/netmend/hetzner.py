"""What a project at Hetzner has of load balancers, beside the ports at which a cluster can be reached.

Pure. Load balancers and servers are as load_balancer_info and server_info of the collection hetzner.hcloud return them.
"""

from __future__ import annotations

import copy
from fnmatch import fnmatchcase
from typing import Any, Dict, FrozenSet, Iterable, Iterator, List, Mapping, NamedTuple, Optional, Sequence, Set

from .edge import SCHEMES, host_port
from .model import Balancer, BalancerService, BalancerTarget, ClusterFacts, HealthCheck, NodeFacts, Pod, Service
from .parse.cluster import INGRESS_NGINX, ingress_controller
from .plan import answers_on

Object = Dict[str, Any]

ANSWERS = ("hcloud_load_balancer_info", "hcloud_server_info")  # the keys of what was read
WELL = ["2??", "3??"]  # Hetzner's default
METRICS = 10254  # ingress-nginx's own port, where it speaks HTTP


class Project(NamedTuple):
    """What was read of a project at Hetzner."""

    balancers: List[Object]
    servers: List[Object]
    selected: Mapping[str, Sequence[str]]  # label selector -> names of the servers that it selects


class End(NamedTuple):
    """A machine that a target leads to."""

    name: str  # the server's
    node: str  # "" for none of the cluster's
    public: str  # its addresses; "" for none
    private: str


class Target(NamedTuple):
    arguments: Object  # type, and server, label_selector or ip
    private: bool
    status: Dict[int, str]  # listen port -> healthy, unhealthy, unknown
    ends: List[End]

    def is_healthy(self, listen_port: int) -> bool:
        return self.status.get(listen_port) == "healthy"


class Entrance(NamedTuple):
    """A port of nodes that leads to pods."""

    port: int
    owner: str
    scheme: str  # that ingress-nginx speaks there: http or https; "" for another's
    is_node_port: bool
    local: Dict[str, Set[int]]  # node -> the ports on its own network that it leads to
    silent: FrozenSet[str] = frozenset()  # nodes that drop what comes there, and rightly so


def problem(answer: Mapping[str, Any]) -> str:
    """What a person has to know of a module of hetzner.hcloud that failed; one that crashed left no message."""
    said = str(answer.get("msg") or "it cannot be reached from here, or is none").strip().splitlines()[0]
    if (answer.get("failure") or {}).get("code") == "unauthorized":
        return f"Hetzner's API does not accept the token of balancers_token (HCLOUD_TOKEN): {said}"
    return f"Hetzner's API does not answer: {said}"


def unknown(balancers: Iterable[Object], names: Iterable[str]) -> str:
    """Which of the names no balancer has, and which there are; "" where all are known."""
    there = sorted(balancer["name"] for balancer in balancers)
    lacking = ", ".join(name for name in names if name not in there)
    if not lacking:
        return ""
    return f"balancers_names: the project of the token has no load balancer {lacking}, but {', '.join(there) or 'none'}"


def selectors(balancers: Iterable[Object]) -> List[str]:
    """The label selectors among the targets."""
    found = (target["label_selector"] for each in balancers for target in each["targets"] if "label_selector" in target)
    return list(dict.fromkeys(found))


def chosen(project: Project, cluster: ClusterFacts, names: Sequence[str]) -> Project:
    """The project with the balancers that are named, or without names those that have a node for a target."""
    view = View(project, {}, cluster)

    def is_meant(balancer: Object) -> bool:
        if names:
            return balancer["name"] in names
        return any(end.node for target in view.targets(balancer) for end in target.ends)

    return project._replace(balancers=[balancer for balancer in project.balancers if is_meant(balancer)])


def declared(project: Project, cluster: ClusterFacts) -> List[Balancer]:
    """The variable netmend_balancers."""
    view = View(project, {}, cluster)
    return [_declared(balancer, view.targets(balancer)) for balancer in project.balancers]


def _declared(balancer: Object, targets: List[Target]) -> Balancer:
    return Balancer(
        name=balancer["name"],
        address=balancer["ipv4_address"],
        services=[
            BalancerService(
                protocol=service["protocol"],
                listen_port=service["listen_port"],
                destination_port=service["destination_port"],
                proxy_protocol=service["proxyprotocol"],
                health=_health(service["health_check"]),
            )
            for service in services_of(balancer)
        ],
        targets=[
            BalancerTarget(address=address, status={str(port): status for port, status in target.status.items()})
            for target in targets
            for end in target.ends
            for address in [end.private if target.private else end.public]
            if address
        ],
        private=all(target.private for target in targets),
    )


def _health(check: Object) -> HealthCheck:
    http = check.get("http") or {}
    codes = [code for code in range(100, 600) if is_well(code, http.get("status_codes", []))]
    return HealthCheck(protocol=check["protocol"], port=check["port"], path=http.get("path") or "/", codes=codes)


def is_well(code: int, patterns: Iterable[str]) -> bool:
    return any(fnmatchcase(str(code), pattern) for pattern in patterns)


def services_of(balancer: Object) -> List[Object]:
    """As load_balancer_service takes them: load_balancer_info calls the statuses of a health check certificates."""
    services: List[Object] = copy.deepcopy(balancer["services"])
    for service in services:
        http = service["health_check"].get("http")
        if http:
            http["status_codes"] = http.pop("status_codes", None) or http.pop("certificates", None) or WELL
    return services


class View:
    """The cluster and the project, as the checks look at them."""

    def __init__(self, project: Project, nodes: Mapping[str, NodeFacts], cluster: ClusterFacts) -> None:
        self.nodes, self.cluster = nodes, cluster
        self.servers = {server["name"]: server for server in project.servers}
        self.node_of = _nodes_of(project.servers, cluster)
        self.entrances = list(_entrances(cluster))
        self.ingress_nodes = {pod["node"] for pod in _ingress_nginx(cluster) if pod["ready"]}
        self.proxy_protocol: Optional[bool] = cluster["ingress_nginx"].get("proxy_protocol")
        self._selected = project.selected

    def at(self, port: int) -> List[Entrance]:
        return [entrance for entrance in self.entrances if entrance.port == port]

    def is_health_check(self, port: int) -> bool:
        """Whether kube-proxy tells there if its node has an endpoint (healthCheckNodePort)."""
        return any(service["health_check_node_port"] == port for service in self.cluster["services"])

    def listens(self, port: int) -> bool:
        """Whether a process of some node does, in Kubernetes or not."""
        return any(
            socket["protocol"] == "tcp" and socket["port"] == port and not socket["address"].startswith(("127.", "::1"))
            for facts in self.nodes.values()
            for socket in facts["sockets"]
        )

    def ingress(self, scheme: str) -> List[int]:
        """Ports at which ingress-nginx speaks it: its NodePorts, or else those on the nodes' own network."""
        speaking = [each for each in self.entrances if each.scheme == scheme and each.port != METRICS]
        node_ports = {entrance.port for entrance in speaking if entrance.is_node_port}
        return sorted(node_ports or {entrance.port for entrance in speaking})

    def targets(self, balancer: Object) -> List[Target]:
        return [self._target(target) for target in balancer["targets"]]

    def _target(self, target: Object) -> Target:
        kind = target["type"]
        names = self._selected.get(target[kind], []) if kind == "label_selector" else [target[kind]]
        return Target(
            arguments={"type": kind, kind: target[kind]},
            private=bool(target["use_private_ip"]),
            status={each["listen_port"]: each["status"] for each in target.get("health_status") or []},
            ends=[self._end(name) for name in names],
        )

    def _end(self, name: str) -> End:
        """Of a server's name, or of the address of a machine that is no server of the cloud."""
        members = self.cluster["nodes"]
        node = self.node_of.get(name) or next((each["name"] for each in members if name in _of_node(each)), "")
        internal = next((member["internal_ip"] for member in members if member["name"] == node), "")
        addresses = _private(self.servers.get(name, {}))
        private = internal if internal in addresses else next(iter(addresses), internal)
        public = (self.servers[name]["ipv4_address"] or "") if name in self.servers else name
        return End(name, node, public, private)


def _nodes_of(servers: Iterable[Object], cluster: ClusterFacts) -> Dict[str, str]:
    """Server -> node, by their addresses; of servers of several networks with one address, that of the node's name."""
    found: Dict[str, str] = {}
    for node in cluster["nodes"]:
        same = [each["name"] for each in servers if _of_node(node) & {each["ipv4_address"], *_private(each)}]
        if same:
            found[node["name"] if node["name"] in same else same[0]] = node["name"]
    return found


def _of_node(node: Any) -> Set[str]:
    return {node["internal_ip"], node["external_ip"]} - {""}


def _private(server: Object) -> List[str]:
    return [network["ip"] for network in server.get("private_networks_info", [])]


def _ingress_nginx(cluster: ClusterFacts) -> List[Pod]:
    return [pod for pod in cluster["pods"] if ingress_controller(pod) == INGRESS_NGINX]


def _entrances(cluster: ClusterFacts) -> Iterator[Entrance]:
    ingress = {f"{pod['namespace']}/{pod['name']}" for pod in _ingress_nginx(cluster)}
    for service in cluster["services"]:
        is_ingress = any(end["pod"] in ingress for end in service["endpoints"])
        for port in service["ports"]:
            if port["nodePort"] and port["protocol"] == "TCP":
                owner = f"Service {service['namespace']}/{service['name']}"
                scheme = SCHEMES.get(port["port"], "") if is_ingress else ""
                silent = frozenset(node["name"] for node in cluster["nodes"] if not answers_on(service, node))
                yield Entrance(port["nodePort"], owner, scheme, True, _local(service, cluster), silent)
    for pod in cluster["pods"]:
        for port in pod["ports"]:
            number = host_port(pod, port)
            if number and port["protocol"] == "TCP":
                is_ingress = f"{pod['namespace']}/{pod['name']}" in ingress
                scheme = {**SCHEMES, METRICS: "http"}.get(port["port"], "") if is_ingress else ""
                local = {pod["node"]: {number}} if pod["host_network"] else {}
                yield Entrance(number, pod["owner"] or f"pod {pod['namespace']}/{pod['name']}", scheme, False, local)


def _local(service: Service, cluster: ClusterFacts) -> Dict[str, Set[int]]:
    found: Dict[str, Set[int]] = {}
    addresses = {node["internal_ip"] for node in cluster["nodes"]}
    for end in service["endpoints"]:
        if end["ip"] in addresses:
            found.setdefault(end["node"], set()).add(end["port"])
    return found
