"""The matrix: which probes, from where, to where. Pure; nothing is invented that the facts do not hold."""

from __future__ import annotations

from itertools import count
from typing import Any, Callable, Dict, Iterable, Iterator, List, NamedTuple, Optional, Set, Tuple, cast

from . import sample
from .loss import Tally, wilson
from .model import (
    Check,
    ClusterFacts,
    Coverage,
    Line,
    Loss,
    Matrix,
    Node,
    NodeFacts,
    Observation,
    Outcome,
    Pod,
    Probe,
    ProbeResult,
    Row,
    Service,
    met,
)

TIMEOUT = 2.0  # seconds; two SYNs
# Rows that edge.py plans.
EDGE = ("edge-balancer", "edge-health", "edge-node", "edge-service", "edge-pod", "edge-self", "edge-outside")
KUBELET, API_SERVER, DNS = 10250, 6443, 53
ETCD_CLIENT, ETCD_PEER = 2379, 2380

_API = "default/kubernetes"  # its Service
_APPLICATIONS = 3  # Services beside the API and DNS, each of another namespace
_NODE_PORTS = 2  # as many as an ingress has
_DNS_PODS = 2  # asked by their own addresses; K3s has one
_PAIRS = 5  # of DNS queries at once: what two packets race for is lost at times
_ATTEMPTS_PER_NODE = 6  # kube-proxy picks an endpoint at random: so that a node's own is missed once in e^6 times
_ATTEMPTS = 32
# A node's address in the overlay; Calico's first, because Flannel's devices stay behind after a swap.
_OVERLAY_DEVICES = ("tunl0", "vxlan.calico", "flannel.1", "cni0")


def plan_matrix(
    nodes: Dict[str, NodeFacts],
    cluster: ClusterFacts,
    rows: Optional[Iterable[str]] = None,
    *,
    all_pairs: bool = False,
) -> List[Probe]:
    """All probes of a run, of all rows or of some.

    ``nodes`` are the facts by the node's name in the cluster. Every node with facts is a source, and probes itself and
    all other nodes of the cluster; in a large cluster a sample of them, unless ``all_pairs`` are wanted. A cell for
    which the facts name no pod, process or Service is absent.
    """
    view = _View(nodes, cluster, all_pairs)
    wanted = set(ROWS if rows is None else rows)
    return [
        Probe(id=_identifier(row, probe), row=row, timeout=TIMEOUT, expect="ok", **probe)
        for row, planned in ROWS.items()
        if row in wanted
        for probe in planned(view)
    ]


def plan_canary(
    nodes: Dict[str, NodeFacts], cluster: ClusterFacts, canary: str, *, others_reached: bool = True
) -> List[Probe]:
    """The probes that tell whether one pod, "namespace/name", is well connected: what pods ask, asked from it alone,
    and pings to it from every node and from a pod of each.

    Where the other pods' overlay does not reach from node to node, neither they nor what they serve is asked, but the
    API, which servers serve themselves, and pings come from the nodes alone.

    Raises LookupError where it does not run on a node with facts.
    """
    pod = next((pod for pod in cluster["pods"] if _name(pod) == canary), None)
    if not pod or not pod["ip"] or pod["node"] not in nodes:
        raise LookupError(f"no pod {canary} runs on a node that was read")
    alone = [each for each in cluster["pods"] if each is pod or each["node"] != pod["node"]]
    rows = ("pod-pod", "pod-clusterip", "pod-dns")
    own = {pod["node"]: nodes[pod["node"]]}
    asked = plan_matrix(own, cast(ClusterFacts, {**cluster, "pods": alone}), rows, all_pairs=True)
    others = [each for each in cluster["pods"] if each is not pod]
    view = _View(nodes, cast(ClusterFacts, {**cluster, "pods": others}), all_pairs=True)
    starts = [("host-pod", Probe(source_node=name)) for name in view.sources]
    if others_reached:
        starts += [("pod-pod", start) for start in _from_pods(view)]
    else:
        asked = [probe for probe in asked if probe.get("target_service") == _API]
    end = Probe(target_node=pod["node"], target_pod=canary, address=pod["ip"], protocol="icmp")
    pings = [(row, cast(Probe, {**start, **end})) for row, start in starts]
    return asked + [Probe(id=_identifier(row, p), row=row, timeout=TIMEOUT, expect="ok", **p) for row, p in pings]


def by_node(probes: Iterable[Probe]) -> Dict[str, List[Probe]]:
    """The probes that each source node is to run."""
    nodes: Dict[str, List[Probe]] = {}
    for probe in probes:
        nodes.setdefault(probe["source_node"], []).append(probe)
    return nodes


def coverage(probes: Iterable[Probe], cluster: ClusterFacts) -> Coverage:
    """Of how many other nodes every node probed at least so many."""
    probed: Dict[str, Set[str]] = {}
    for probe in probes:
        if probe["row"] == "host-host":
            probed.setdefault(probe["source_node"], set()).add(probe["target_node"])
    others = sum(bool(node["internal_ip"]) for node in cluster["nodes"]) - 1
    peers = min((len(targets - {source}) for source, targets in probed.items()), default=0)
    return Coverage(peers=peers, others=others)


def summarise(probes: Iterable[Probe], results: Dict[str, ProbeResult]) -> Matrix:
    """The matrix that a report shows; a probe that was not run (its node did not answer) is an "error"."""
    observations = {
        observation["id"]: observation for result in results.values() for observation in result["observations"]
    }
    outcomes: Dict[Tuple[str, str, bool], int] = {}
    rows: Dict[str, _RowSoFar] = {}
    for probe in probes:
        observation = observations.get(probe["id"], _NOTHING)
        key = observation["outcome"], _detail(observation), met(probe, observation)
        seen = outcomes.setdefault(key, len(outcomes))
        rows.setdefault(probe["row"], _RowSoFar()).add(probe, seen, observation, key[2])
    finished = {name: row.finished() for name, row in rows.items()}
    return Matrix(
        ok=sum(row["ok"] for row in finished.values()),
        total=sum(row["total"] for row in finished.values()),
        outcomes=[Outcome(outcome=outcome, detail=detail, met=is_met) for outcome, detail, is_met in outcomes],
        rows=finished,
    )


def destination(probe: Probe) -> str:
    """What a report calls the other end: a node, a Service, a site of the edge and the way to it, or an address."""
    if probe.get("row") in EDGE:
        by = probe.get("balancer") or probe.get("target_pod") or probe.get("target_node") or probe["address"]
        site = probe.get("name") or probe.get("backend")
        return f"{site} by {by}" if site else by
    return probe.get("target_node") or probe.get("target_service") or probe["address"]


_NOTHING = Observation(outcome="error", detail="nothing came back from the node")


class _RowSoFar:
    """A row while its probes come in, in any order."""

    def __init__(self) -> None:
        self._checks: Dict[Tuple[Any, ...], int] = {}
        self._pods: Dict[str, str] = {}
        self._cells: Dict[str, Dict[int, Tuple[int, Optional[float]]]] = {}
        self._lossy: List[Tuple[str, int, Tally]] = []
        self._ok = 0

    def add(self, probe: Probe, seen: int, observation: Observation, is_met: bool) -> None:
        rtt_ms, tally = observation.get("rtt_ms"), Tally(observation.get("attempts", 0), observation.get("failed", 0))
        source = probe["source_node"]
        self._pods.setdefault(source, probe.get("source_pod", ""))
        cells = self._cells.setdefault(source, {})
        check = (destination(probe), *(probe.get(key) or default for key, default in _CHECK.items()))
        places = (self._checks.setdefault((*check, again), len(self._checks)) for again in count())
        place = next(place for place in places if place not in cells)
        cells[place] = seen, None if rtt_ms is None else round(rtt_ms, 2)
        if 0 < tally.failed < tally.attempts:
            self._lossy.append((source, place, tally))
        self._ok += is_met

    def finished(self) -> Row:
        """The nodes that are sources come first among the destinations, and in the same order."""
        names = ("to", "protocol", "address", "port", "pod", "service", "expect")
        ranks = {name: rank for rank, name in enumerate([*self._cells, *(check[0] for check in self._checks)][::-1])}
        ordered = sorted(self._checks.items(), key=lambda item: -ranks[item[0][0]])
        lines = {}
        for source, cells in self._cells.items():
            line = [cells.get(place, (None, None)) for _, place in ordered]
            lines[source] = Line(
                pod=self._pods[source], seen=[seen for seen, _ in line], rtt_ms=[rtt_ms for _, rtt_ms in line]
            )
        checks: List[Check] = [dict(zip(names, check)) for check, _ in ordered]  # type: ignore[misc]  # zip keeps no keys
        moved = {place: rank for rank, (_, place) in enumerate(ordered)}
        losses = [_loss(source, moved[place], tally) for source, place, tally in self._lossy]
        total = sum(map(len, self._cells.values()))
        return Row(ok=self._ok, total=total, checks=checks, sources=lines, losses=losses)


def _loss(source: str, check: int, tally: Tally) -> Loss:
    low, high = (round(bound, 4) for bound in wilson(tally))
    return Loss(source=source, check=check, attempts=tally.attempts, failed=tally.failed, low=low, high=high)


# What tells one check of a destination from another, and what stands for its absence; in the order of Check.
_CHECK = {"protocol": "", "address": "", "port": 0, "target_pod": "", "target_service": "", "expect": "ok"}


def _detail(observation: Observation) -> str:
    detail = observation.get("detail", "")
    return detail or (f"{observation['mtu']} bytes pass" if observation.get("mtu") else "")


# --- what there is to probe from and to -----------------------------------------------------------------------------


class _Listener(NamedTuple):
    """A pod and a TCP port of it."""

    pod: Pod
    port: int


class _Inside(NamedTuple):
    """A pod and a process in its network namespace."""

    pod: Pod
    pid: int


class _View:
    """The facts, looked up and ranked once."""

    def __init__(self, nodes: Dict[str, NodeFacts], cluster: ClusterFacts, all_pairs: bool) -> None:
        self.nodes = nodes
        self.sources = sorted(nodes)
        self._members = {node["name"]: node for node in cluster["nodes"] if node["internal_ip"]}
        self._peers = sample.peers(sample.zones(self._members.values()), all_pairs)
        self.dns_ip = cluster["dns_ip"]
        self.domain = _cluster_domain(nodes)
        # A policy may forbid what a probe asks, rightly so: pods of namespaces without any tell more of the network.
        self._restricted: Set[str] = {policy["namespace"] for policy in cluster["network_policies"]}
        self.services = sorted(cluster["services"], key=self._service_rank)
        self.listeners = {node["name"]: self._listeners(node["name"], cluster["pods"]) for node in cluster["nodes"]}
        self.inside = {name: self._inside(name, cluster["pods"]) for name in self.sources}

    def restricted(self, pod: Pod) -> bool:
        return pod["namespace"] in self._restricted

    def targets(self, source: str) -> Iterator[Node]:
        """The node itself, if it is of the cluster, and those that it is to probe: servers each other in any case."""
        wanted = {source, *self._peers.get(source, ())}
        for name, node in self._members.items():
            if name in wanted or node["role"] == self._role(source) == "server":
                yield node

    def _role(self, node: str) -> str:
        return self._members[node]["role"] if node in self._members else ""

    def listener(self, node: str, other_than: Optional[Pod] = None) -> Optional[_Listener]:
        """The pod that stands for a node, the same in every run."""
        return next((listener for listener in self.listeners[node] if listener.pod is not other_than), None)

    def keeps_etcd(self, node: str) -> bool:
        """Whether a member of etcd listens there for its peers, whichever process it is in."""
        sockets = self.nodes[node]["sockets"] if node in self.nodes else []
        return any((each["protocol"], each["port"]) == ("tcp", ETCD_PEER) for each in sockets)

    def service_of(self, address: str) -> Optional[Service]:
        return next((service for service in self.services if service["cluster_ip"] == address), None)

    def cluster_services(self) -> List[Service]:
        """The API, DNS, and the most widely spread Service of some namespaces."""
        system = [service for service in self.services if _name(service) == _API]
        system += [service for service in self.services if self.dns_ip and service["cluster_ip"] == self.dns_ip]
        applications: Dict[str, Service] = {}
        for service in self.services:
            if service not in system and _has_cluster_ip(service) and _tcp_ports(service) and _ready(service):
                applications.setdefault(service["namespace"], service)
        return system + list(applications.values())[:_APPLICATIONS]

    def _service_rank(self, service: Service) -> Any:
        spread = len({endpoint["node"] for endpoint in _ready(service)})
        return service["namespace"] in self._restricted, -spread, service["namespace"], service["name"]

    def _listeners(self, node: str, pods: List[Pod]) -> List[_Listener]:
        """Pods of a node that listen, those first that the most widely spread Service selects."""
        ranked = []
        for pod in pods:
            if pod["node"] != node or not pod["ready"] or pod["host_network"] or not pod["ip"]:
                continue
            declared = [port["port"] for port in pod["ports"] if port["protocol"] == "TCP"]
            rank, served = self._served_by(pod)
            # A port in both listens for certain: a declaration binds nobody, and a targetPort may err.
            ports = [port for port in declared if port in served] or declared or served
            if ports:
                # Pods that hold a hostPort only forward what comes to it (K3s's service load balancer).
                holds = any(port.get("hostPort") for port in pod["ports"])
                key = (pod["namespace"] in self._restricted, rank, holds, pod["namespace"], pod["name"])
                ranked.append((key, _Listener(pod, ports[0])))
        return [listener for _, listener in sorted(ranked, key=lambda item: item[0])]

    def _served_by(self, pod: Pod) -> Any:
        """Rank of the first Service with this pod as an endpoint, and that endpoint's TCP ports."""
        for rank, service in enumerate(self.services):
            ports = [endpoint["port"] for endpoint in _ready(service) if endpoint["ip"] == pod["ip"]]
            if ports:
                return rank, ports
        return len(self.services), []

    def _inside(self, node: str, pods: List[Pod]) -> Optional[_Inside]:
        """The pod that a node's probes start in: not the one that stands for the node, if there is another."""
        pids = {process["uid"]: process["pid"] for process in self.nodes[node]["pods"]}
        stands = self.listener(node) if node in self.listeners else None
        candidates = [pod for pod in pods if pod["node"] == node and not pod["host_network"] and pids.get(pod["uid"])]

        def rank(pod: Pod) -> Any:
            restricted = pod["namespace"] in self._restricted
            return restricted, not pod["ready"], bool(stands and pod is stands.pod), pod["namespace"], pod["name"]

        chosen = min(candidates, key=rank, default=None)
        return _Inside(chosen, pids[chosen["uid"]]) if chosen else None


def _cluster_domain(nodes: Dict[str, NodeFacts]) -> str:
    configured = (facts["k3s"]["config"].get("cluster-domain") for facts in nodes.values())
    return next((str(domain) for domain in configured if domain), "cluster.local")


def _ready(service: Service) -> List[Dict[str, Any]]:
    return [endpoint for endpoint in service["endpoints"] if endpoint["ready"] and endpoint["protocol"] == "TCP"]


def _tcp_ports(service: Service) -> List[Dict[str, Any]]:
    return [port for port in service["ports"] if port["protocol"] == "TCP"]


def _has_cluster_ip(service: Service) -> bool:
    return service["cluster_ip"] not in ("", "None")


def _attempts(service: Optional[Service]) -> int:
    nodes = len({endpoint["node"] for endpoint in _ready(service)}) if service else 1
    return 1 if nodes <= 1 else min(_ATTEMPTS, _ATTEMPTS_PER_NODE * nodes)


def _name(thing: Any) -> str:
    return f"{thing['namespace']}/{thing['name']}"


def _overlay_address(facts: NodeFacts) -> str:
    addresses = {interface["name"]: interface["addresses"] for interface in facts["interfaces"]}
    found = (address for device in _OVERLAY_DEVICES for address in addresses.get(device, []) if ":" not in address)
    return next(found, "").partition("/")[0]


def _identifier(row: str, probe: Probe) -> str:
    """Readable, and unique because a row asks one port or protocol of a destination once."""
    port = f"/{probe['port']}" if probe["protocol"] == "tcp" else ""
    return f"{row} {probe['source_node']}>{destination(probe)} {probe['protocol']}{port}"


# --- rows -------------------------------------------------------------------------------------------------------------


def _host_host(view: _View) -> Iterator[Probe]:
    for source in view.sources:
        for node in view.targets(source):
            probe = Probe(source_node=source, target_node=node["name"], address=node["internal_ip"])
            if node["name"] != source:
                yield Probe(**probe, protocol="icmp")
                yield Probe(**probe, protocol="mtu")
            yield Probe(**probe, protocol="tcp", port=KUBELET)
            if node["role"] == "server":
                yield Probe(**probe, protocol="tcp", port=API_SERVER)
            if node["name"] != source and view.keeps_etcd(source) and view.keeps_etcd(node["name"]):
                yield Probe(**probe, protocol="tcp", port=ETCD_CLIENT)
                yield Probe(**probe, protocol="tcp", port=ETCD_PEER)


def _host_pod(view: _View) -> Iterator[Probe]:
    for source in view.sources:
        for node in view.targets(source):
            listener = view.listener(node["name"])
            if listener:
                yield _to_pod(Probe(source_node=source), node, listener)
            elif node["name"] != source and node["name"] in view.nodes:
                address = _overlay_address(view.nodes[node["name"]])
                if address:
                    yield Probe(source_node=source, target_node=node["name"], address=address, protocol="icmp")


def _pod_pod(view: _View) -> Iterator[Probe]:
    for start in _from_pods(view):
        for node in view.targets(start["source_node"]):
            inside = view.inside[start["source_node"]]
            listener = view.listener(node["name"], other_than=inside.pod if inside else None)
            if listener:
                probe = _to_pod(start, node, listener)
                yield probe
                # A policy that lets an application's port in need not let ICMP in.
                if node["name"] != start["source_node"] and not view.restricted(listener.pod):
                    yield _sweep(probe)


def _pod_clusterip(view: _View) -> Iterator[Probe]:
    for start in _from_pods(view):
        yield from _to_services(start, view)


def _host_clusterip(view: _View) -> Iterator[Probe]:
    for source in view.sources:
        yield from _to_services(Probe(source_node=source), view)


def _pod_dns(view: _View) -> Iterator[Probe]:
    if not view.dns_ip:
        return
    service = view.service_of(view.dns_ip)
    for start in _from_pods(view):
        ways = {"dns-udp": _attempts(service), "dns-tcp": _attempts(service), "dns-pair": _PAIRS, "dns-apart": _PAIRS}
        for protocol, attempts in ways.items():
            yield Probe(
                **start,
                target_service=_name(service) if service else "",
                address=view.dns_ip,
                port=DNS,
                protocol=protocol,
                name=f"kubernetes.default.svc.{view.domain}",
                attempts=attempts,
            )
        # By their own addresses, too: that tells the Service from what is behind it.
        for endpoint in _dns_pods(service):
            yield Probe(
                **start,
                target_node=endpoint["node"],
                target_pod=endpoint["pod"],
                address=endpoint["ip"],
                port=endpoint["port"],
                protocol="dns-udp",
                name=f"kubernetes.default.svc.{view.domain}",
            )


def _dns_pods(service: Optional[Service]) -> List[Dict[str, Any]]:
    """One ready endpoint by UDP of each node, of some nodes."""
    ready = [end for end in service["endpoints"] if end["ready"] and end["protocol"] == "UDP"] if service else []
    first = {end["node"]: end for end in sorted(ready, key=lambda end: str(end["ip"]), reverse=True) if end["node"]}
    return [first[node] for node in sorted(first)][:_DNS_PODS]


def _node_nodeport(view: _View) -> Iterator[Probe]:
    ports = [
        (service, port["nodePort"])
        for service in view.services
        for port in _tcp_ports(service)
        if port.get("nodePort") and _ready(service)
    ]
    for source in view.sources:
        for service, port in ports[:_NODE_PORTS]:
            for node in view.targets(source):
                if answers_on(service, node):
                    yield Probe(
                        source_node=source,
                        target_node=node["name"],
                        target_service=_name(service),
                        address=node["internal_ip"],
                        port=port,
                        protocol="tcp",
                    )


def answers_on(service: Service, node: Node) -> bool:
    """With externalTrafficPolicy Local, nodes without an endpoint drop, and rightly so."""
    return service["external_traffic_policy"] != "Local" or any(
        endpoint["node"] == node["name"] for endpoint in _ready(service)
    )


def _from_pods(view: _View) -> Iterator[Probe]:
    for source in view.sources:
        inside = view.inside[source]
        if inside:
            yield Probe(source_node=source, source_pod=_name(inside.pod), source_pid=inside.pid)


def _to_pod(start: Probe, node: Node, listener: _Listener) -> Probe:
    return Probe(
        **start,
        target_node=node["name"],
        target_pod=_name(listener.pod),
        address=listener.pod["ip"],
        port=listener.port,
        protocol="tcp",
    )


def _sweep(probe: Probe) -> Probe:
    """The same way, for the largest packet that passes."""
    return cast(Probe, {**{key: value for key, value in probe.items() if key != "port"}, "protocol": "mtu"})


def _to_services(start: Probe, view: _View) -> Iterator[Probe]:
    for service in view.cluster_services():
        for port in _tcp_ports(service)[:1]:
            yield Probe(
                **start,
                target_service=_name(service),
                address=service["cluster_ip"],
                port=port["port"],
                protocol="tcp",
                attempts=_attempts(service),
            )


ROWS: Dict[str, Callable[[_View], Iterator[Probe]]] = {
    "host-host": _host_host,
    "host-pod": _host_pod,
    "pod-pod": _pod_pod,
    "pod-clusterip": _pod_clusterip,
    "host-clusterip": _host_clusterip,
    "pod-dns": _pod_dns,
    "node-nodeport": _node_nodeport,
}
