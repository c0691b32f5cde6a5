"""Hetzner's load balancers beside what the cluster serves: what is wrong in their settings, and what sets it right.

Pure. Load balancers and servers are as load_balancer_info and server_info of the collection hetzner.hcloud return them.
What health checks say is believed: settings that nothing but the checks depends on are right where all targets are
healthy.
"""

from __future__ import annotations

import copy
from fnmatch import fnmatchcase
from typing import Any, Dict, Iterable, Iterator, List, Mapping, NamedTuple, Optional, Sequence, Set, Tuple, TypedDict

from .model import Balancer, BalancerService, BalancerTarget, ClusterFacts, HealthCheck, NodeFacts, Service
from .parse.cluster import is_ingress_nginx
from .walk import Packet, Verdict, judge

Object = Dict[str, Any]

ANSWERS = ("hcloud_load_balancer_info", "hcloud_server_info")  # the keys of what was read
HEALTHZ = "/healthz"  # what ingress-nginx's default server answers with 200; it answers 404 to all else
WELL = ["2??", "3??"]  # Hetzner's default
SCHEMES = {80: "http", 443: "https"}
METRICS = 10254  # ingress-nginx's own port, with HEALTHZ too


class Fault(TypedDict):
    fault: str  # a name from docs/balancers.md
    balancer: str
    where: str  # "port 80", or the targets
    evidence: str
    remedy: str
    mended: bool  # whether a change of the comparison is its remedy


class ServiceChange(TypedDict):
    """Arguments of load_balancer_service."""

    load_balancer: str
    listen_port: int
    protocol: str
    destination_port: int
    proxyprotocol: bool
    health_check: Optional[Object]  # None: stays
    differences: List[str]  # "destination_port: 30999 -> 31695"


class TargetChange(TypedDict):
    """Arguments of load_balancer_target, and use_private_ip before and after; None: it is no target."""

    load_balancer: str
    type: str
    server: Optional[str]
    label_selector: Optional[str]
    ip: Optional[str]
    before: Optional[bool]
    after: Optional[bool]


class Comparison(TypedDict):
    faults: List[Fault]
    services: List[ServiceChange]
    targets: List[TargetChange]


class Project(NamedTuple):
    """What was read of a project at Hetzner."""

    balancers: List[Object]
    servers: List[Object]
    selected: Mapping[str, Sequence[str]]  # label selector -> names of the servers that it selects


class _End(NamedTuple):
    """A machine that a target leads to."""

    name: str  # the server's
    node: str  # "" for none of the cluster's
    public: str  # its addresses; "" for none
    private: str


class _Target(NamedTuple):
    arguments: Object  # type, and server, label_selector or ip
    private: bool
    status: Dict[int, str]  # listen port -> healthy, unhealthy, unknown
    ends: List[_End]

    def is_healthy(self, listen_port: int) -> bool:
        return self.status.get(listen_port) == "healthy"


class _Entrance(NamedTuple):
    """A port of nodes that leads to pods."""

    port: int
    owner: str
    scheme: str  # that ingress-nginx speaks there: http or https; "" for another's
    is_node_port: bool
    local: Dict[str, Set[int]]  # node -> the ports on its own network that it leads to


class _Wrong(NamedTuple):
    fault: str
    evidence: str
    remedy: str
    service: Optional[Object] = None  # with that set right; None where it is not known how, or of targets


# --- what was read ----------------------------------------------------------------------------------------------------


def problem(answer: Mapping[str, Any]) -> str:
    """What a person has to know of a module of hetzner.hcloud that failed."""
    said = str(answer.get("msg", "no message")).strip().splitlines()[0]
    if (answer.get("failure") or {}).get("code") == "unauthorized":
        return f"Hetzner's API does not accept the token of balancers_token (HCLOUD_TOKEN): {said}"
    return f"Hetzner's API cannot be asked: {said}"


def selectors(balancers: Iterable[Object]) -> List[str]:
    """The label selectors among the targets."""
    found = (target["label_selector"] for each in balancers for target in each["targets"] if "label_selector" in target)
    return list(dict.fromkeys(found))


def chosen(project: Project, cluster: ClusterFacts, names: Sequence[str]) -> Project:
    """The project with the balancers that are named, or else those that have a node for a target.

    Raises LookupError for a name that no balancer has.
    """
    there = [balancer["name"] for balancer in project.balancers]
    unknown = [name for name in names if name not in there]
    if unknown:
        raise LookupError(
            f"There is no load balancer {', '.join(unknown)} in the project of the token; it has"
            f" {', '.join(sorted(there)) or 'none'}. See balancers_names"
        )
    view = _View(project, {}, cluster)

    def is_meant(balancer: Object) -> bool:
        if names:
            return balancer["name"] in names
        return any(end.node for target in view.targets(balancer) for end in target.ends)

    return project._replace(balancers=[balancer for balancer in project.balancers if is_meant(balancer)])


def declared(project: Project, cluster: ClusterFacts) -> List[Balancer]:
    """The variable netmend_balancers."""
    view = _View(project, {}, cluster)
    return [_declared(balancer, view.targets(balancer)) for balancer in project.balancers]


def _declared(balancer: Object, targets: List[_Target]) -> Balancer:
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
            for service in _services(balancer)
        ],
        targets=[
            BalancerTarget(
                address=end.private if target.private else end.public,
                status={str(port): status for port, status in target.status.items()},
            )
            for target in targets
            for end in target.ends
        ],
        private=all(target.private for target in targets),
    )


def _health(check: Object) -> HealthCheck:
    http = check.get("http") or {}
    codes = [code for code in range(100, 600) if _is_well(code, http.get("status_codes", []))]
    return HealthCheck(protocol=check["protocol"], port=check["port"], path=http.get("path") or "", codes=codes)


def _is_well(code: int, patterns: Iterable[str]) -> bool:
    return any(fnmatchcase(str(code), pattern) for pattern in patterns)


def _services(balancer: Object) -> List[Object]:
    """As load_balancer_service takes them: load_balancer_info calls the statuses of a health check certificates."""
    services: List[Object] = copy.deepcopy(balancer["services"])
    for service in services:
        http = service["health_check"].get("http")
        if http:
            http["status_codes"] = http.pop("status_codes", None) or http.pop("certificates", None) or WELL
    return services


class _View:
    """The cluster and the project, as the checks look at them."""

    def __init__(self, project: Project, nodes: Mapping[str, NodeFacts], cluster: ClusterFacts) -> None:
        self.nodes, self.cluster = nodes, cluster
        self.servers = {server["name"]: server for server in project.servers}
        self.node_of = _nodes_of(project.servers, cluster)
        self.entrances = list(_entrances(cluster))
        self.ingress_nodes = {pod["node"] for pod in cluster["pods"] if pod["ready"] and is_ingress_nginx(pod)}
        self.proxy_protocol: Optional[bool] = cluster["ingress_nginx"].get("proxy_protocol")
        self._selected = project.selected

    def at(self, port: int) -> List[_Entrance]:
        return [entrance for entrance in self.entrances if entrance.port == port]

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

    def targets(self, balancer: Object) -> List[_Target]:
        return [self._target(target) for target in balancer["targets"]]

    def _target(self, target: Object) -> _Target:
        kind = target["type"]
        names = self._selected.get(target[kind], []) if kind == "label_selector" else [target[kind]]
        return _Target(
            arguments={"type": kind, kind: target[kind]},
            private=bool(target["use_private_ip"]),
            status={each["listen_port"]: each["status"] for each in target.get("health_status") or []},
            ends=[self._end(name) for name in names],
        )

    def _end(self, name: str) -> _End:
        """Of a server's name, or of the address of a machine that is no server of the cloud."""
        members = self.cluster["nodes"]
        node = self.node_of.get(name) or next((each["name"] for each in members if name in _of_node(each)), "")
        internal = next((member["internal_ip"] for member in members if member["name"] == node), "")
        addresses = _private(self.servers.get(name, {}))
        private = internal if internal in addresses else next(iter(addresses), internal)
        public = (self.servers[name]["ipv4_address"] or "") if name in self.servers else name
        return _End(name, node, public, private)


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


def _entrances(cluster: ClusterFacts) -> Iterator[_Entrance]:
    ingress = {f"{pod['namespace']}/{pod['name']}" for pod in cluster["pods"] if is_ingress_nginx(pod)}
    for service in cluster["services"]:
        is_ingress = any(end["pod"] in ingress for end in service["endpoints"])
        for port in service["ports"]:
            if port["nodePort"] and port["protocol"] == "TCP":
                owner = f"Service {service['namespace']}/{service['name']}"
                scheme = SCHEMES.get(port["port"], "") if is_ingress else ""
                yield _Entrance(port["nodePort"], owner, scheme, True, _local(service, cluster))
    for pod in cluster["pods"]:
        for port in pod["ports"]:
            number = port["hostPort"] or (port["port"] if pod["host_network"] else 0)
            if number and port["protocol"] == "TCP":
                is_ingress = f"{pod['namespace']}/{pod['name']}" in ingress
                scheme = {**SCHEMES, METRICS: "http"}.get(port["port"], "") if is_ingress else ""
                local = {pod["node"]: {number}} if pod["host_network"] else {}
                yield _Entrance(number, pod["owner"] or f"pod {pod['namespace']}/{pod['name']}", scheme, False, local)


def _local(service: Service, cluster: ClusterFacts) -> Dict[str, Set[int]]:
    found: Dict[str, Set[int]] = {}
    addresses = {node["internal_ip"] for node in cluster["nodes"]}
    for end in service["endpoints"]:
        if end["ip"] in addresses:
            found.setdefault(end["node"], set()).add(end["port"])
    return found


# --- what is wrong ----------------------------------------------------------------------------------------------------


def compare(
    project: Project, nodes: Mapping[str, NodeFacts], cluster: ClusterFacts, remove_foreign: bool = False
) -> Comparison:
    """Faults of the project's balancers, and the changes that mend them; applied, the next comparison has none.

    Targets that are none of the cluster's nodes may be somebody's: they are removed only if that is asked for.
    """
    view = _View(project, nodes, cluster)
    whole = Comparison(faults=[], services=[], targets=[])
    for balancer in project.balancers:
        targets = view.targets(balancer)
        services = []
        for service in _services(balancer):
            wrongs, wanted = _compare_service(view, service, targets)
            where = f"port {service['listen_port']}"
            whole["faults"] += [_fault(balancer, where, wrong, wrong.service is not None) for wrong in wrongs]
            whole["services"] += [_service_change(balancer, service, wanted)] if wanted != service else []
            services.append(wanted)
        mended = {**balancer, "services": services}
        for fault, changes in (
            *_missing(view, mended, targets),
            *_foreign(mended, targets, remove_foreign),
            *_on_public_addresses(view, mended, targets),
        ):
            whole["faults"].append(fault)
            whole["targets"] += changes
    return whole


def _compare_service(view: _View, service: Object, targets: List[_Target]) -> Tuple[List[_Wrong], Object]:
    """What is wrong with a service, and the service with all of it set right that can be."""
    is_healthy = bool(targets) and all(target.is_healthy(service["listen_port"]) for target in targets)
    found: List[_Wrong] = []
    for check in (_destination, _proxy_protocol, *(() if is_healthy else (_check_port, _check_protocol, _check_path))):
        wrong = check(view, service)
        if wrong:
            found.append(wrong)
            if wrong.service is None:  # the others depend on it
                break
            service = wrong.service
    return found, service


def _destination(view: _View, service: Object) -> Optional[_Wrong]:
    port, given = service["destination_port"], _given(service)
    spoken = {entrance.scheme for entrance in view.at(port)} - {""}
    if spoken and given and given not in spoken:
        evidence = f"It leads {given.upper()} to port {port}, where ingress-nginx speaks {min(spoken).upper()}."
    elif not view.at(port) and not view.listens(port):
        evidence = f"It leads to port {port}, which is no NodePort and no pod's, and where no node listens."
    else:
        return None
    fault, candidates = "balancer-wrong-destination", view.ingress(given)
    if len(candidates) != 1:
        said = ", ".join(map(str, candidates)) or "none"
        return _Wrong(fault, evidence, f"Say which port is meant; ingress-nginx has {said} for it.")
    there = {**service, "destination_port": candidates[0]}
    return _Wrong(fault, evidence, f"Lead it to port {candidates[0]}, ingress-nginx's.", there)


def _given(service: Object) -> str:
    """What arrives at the destination: the protocol https ends at the balancer. "" where it cannot be told."""
    if service["protocol"] in ("http", "https"):
        return "http"
    return SCHEMES.get(service["listen_port"], "")


def _proxy_protocol(view: _View, service: Object) -> Optional[_Wrong]:
    is_ingress = any(entrance.scheme for entrance in view.at(service["destination_port"]))
    expected = view.proxy_protocol
    if not is_ingress or expected is None or service["proxyprotocol"] == expected:
        return None
    sends, expects = ("does not send", "expects") if expected else ("sends", "does not expect")
    return _Wrong(
        "proxy-protocol-mismatch",
        f"It {sends} the PROXY header, and ingress-nginx {expects} it (use-proxy-protocol): 400, broken header.",
        f"Switch the PROXY protocol {'on' if expected else 'off'} at the balancer.",
        {**service, "proxyprotocol": expected},
    )


def _check_port(view: _View, service: Object) -> Optional[_Wrong]:
    check, destination = service["health_check"], service["destination_port"]
    port, asked = check["port"], view.at(check["port"])
    if port == destination or (not asked and view.listens(port)):
        return None
    owners = {_asked(entrance) for entrance in asked}
    if not asked:
        evidence = f"Its health check asks port {port}, which is no NodePort and no pod's, and where no node listens."
    elif not owners & {_asked(entrance) for entrance in view.at(destination)}:
        evidence = f"Its health check asks port {port}, {min(owners)}, and requests go to port {destination}."
    else:
        return None
    there = {**service, "health_check": {**check, "port": destination}}
    return _Wrong("balancer-checks-wrong-port", evidence, f"Check port {destination}, to which requests go.", there)


def _asked(entrance: _Entrance) -> str:
    return "ingress-nginx" if entrance.scheme else entrance.owner


def _check_protocol(view: _View, service: Object) -> Optional[_Wrong]:
    check = service["health_check"]
    spoken = {entrance.scheme for entrance in view.at(check["port"])} - {""}
    if check["protocol"] == "tcp" or not spoken or check["protocol"] in spoken:
        return None
    asks, right = check["protocol"].upper(), min(spoken)
    return _Wrong(
        "balancer-checks-wrong-protocol",
        f"Its health check speaks {asks} to port {check['port']}, where ingress-nginx speaks {right.upper()}.",
        f"Check by {right.upper()}.",
        {**service, "health_check": {**check, "protocol": right}},
    )


def _check_path(view: _View, service: Object) -> Optional[_Wrong]:
    """Only of what ingress-nginx answers by itself: what a host's pods say to a path is their own affair."""
    check = service["health_check"]
    hosts = {path["host"] for ingress in view.cluster["ingresses"] for path in ingress["paths"]}
    is_ingress = any(entrance.scheme for entrance in view.at(check["port"]))
    if check["protocol"] == "tcp" or not is_ingress or "" in hosts or (check["http"].get("domain") or "") in hosts:
        return None
    path, well = check["http"]["path"], check["http"]["status_codes"]
    answer = 200 if path == HEALTHZ else 404
    if _is_well(answer, well):
        return None
    right = {**check["http"], "path": HEALTHZ, "status_codes": well if _is_well(200, well) else WELL}
    return _Wrong(
        "balancer-checks-wrong-path",
        f"Its health check asks for {path}, which ingress-nginx answers with {answer}; well is {', '.join(well)}.",
        f"Check {HEALTHZ}, which ingress-nginx answers with 200.",
        {**service, "health_check": {**check, "http": right}},
    )


_Found = Iterator[Tuple[Fault, List[TargetChange]]]


def _missing(view: _View, balancer: Object, targets: List[_Target]) -> _Found:
    """Nodes that ingress-nginx runs on, where the balancer leads to ingress-nginx."""
    leads_there = any(each.scheme for service in balancer["services"] for each in view.at(service["destination_port"]))
    nodes = sorted(view.ingress_nodes - {end.node for target in targets for end in target.ends})
    if not leads_there or not nodes:
        return
    servers = {node: server for server, node in view.node_of.items()}
    known = [servers[node] for node in nodes if node in servers]
    private = any(target.private for target in targets) or (not targets and bool(balancer["private_ipv4_address"]))
    by_label = [target.arguments["label_selector"] for target in targets if "label_selector" in target.arguments]
    changes: List[TargetChange] = []
    if by_label:
        remedy = f"Label their servers so that {by_label[0]} selects them."
    elif len(known) < len(nodes):
        remedy = "Make them targets: not all of their servers are in the project of the token."
    else:
        remedy = f"Make {', '.join(known)} targets, by their {_addresses(private)}."
        changes = [
            _target_change(balancer, {"type": "server", "server": server}, before=None, after=private)
            for server in known
        ]
    where = ", ".join(nodes)
    evidence = f"ingress-nginx is ready there, and {balancer['name']} has no such target."
    yield _fault(balancer, where, _Wrong("balancer-target-missing", evidence, remedy), bool(changes)), changes


def _foreign(balancer: Object, targets: List[_Target], remove: bool) -> _Found:
    for target in targets:
        where = ", ".join(end.name for end in target.ends if not end.node)
        if not where:
            continue
        changes: List[TargetChange] = []
        if "label_selector" in target.arguments:
            remedy = f"Take what {target.arguments['label_selector']} selects it by off its labels."
        else:
            remedy = "Take it from the targets, if it is nobody's: with balancers_remove_foreign_targets."
            changes = [_target_change(balancer, target.arguments, before=target.private, after=None)] if remove else []
        evidence = "Requests go there, and it is none of the cluster's nodes."
        yield _fault(balancer, where, _Wrong("balancer-target-foreign", evidence, remedy), bool(changes)), changes


def _on_public_addresses(view: _View, balancer: Object, targets: List[_Target]) -> _Found:
    for target in targets:
        stopped = [said for said in (_stopped(view, balancer, target, end) for end in target.ends) if said]
        if stopped:
            where = ", ".join(end.name for end in target.ends)
            remedy = "Let the balancer use the private address (use_private_ip)."
            wrong = _Wrong("balancer-on-public-addresses", stopped[0], remedy)
            change = _target_change(balancer, target.arguments, before=False, after=True)
            yield _fault(balancer, where, wrong, mended=True), [change]


def _stopped(view: _View, balancer: Object, target: _Target, end: _End) -> str:
    """How a node's firewall stops what comes from the balancer's public address alone; "" where it does not.

    That is so where the pod is on the node's own network. What goes to other pods passes by kube-proxy's mark.
    """
    facts, private = view.nodes.get(end.node), balancer["private_ipv4_address"]
    if target.private or target.arguments["type"] == "ip" or not (facts and private and end.private and end.public):
        return ""

    def arriving(source: str, own: str, port: int, is_translated: bool) -> Verdict:
        states = ("NEW", "DNAT") if is_translated else ("NEW",)
        packet = Packet(source, own, "tcp", port, states=states, interface_in=_device(facts, own), to_local=True)
        return judge(facts["iptables"], "INPUT", packet, facts["ipsets"])

    for service in balancer["services"]:
        if target.is_healthy(service["listen_port"]):
            continue
        for entrance in view.at(service["destination_port"]):
            for port in sorted(entrance.local.get(end.node, ())):
                outside = arriving(balancer["ipv4_address"], end.public, port, port != entrance.port)
                inside = arriving(private, end.private, port, port != entrance.port)
                if outside.blocked and not inside.blocked:
                    return (
                        f"{end.node} stops TCP to port {port} from {balancer['ipv4_address']}, the balancer's public"
                        f" address ({outside}), and lets in {private}, its private one."
                    )
    return ""


def _device(facts: NodeFacts, address: str) -> str:
    own = (each["name"] for each in facts["interfaces"] if any(a.split("/")[0] == address for a in each["addresses"]))
    return next(own, "")


def _fault(balancer: Object, where: str, wrong: _Wrong, mended: bool) -> Fault:
    return Fault(
        fault=wrong.fault,
        balancer=balancer["name"],
        where=where,
        evidence=wrong.evidence,
        remedy=wrong.remedy,
        mended=mended,
    )


def _service_change(balancer: Object, before: Object, after: Object) -> ServiceChange:
    return ServiceChange(
        load_balancer=balancer["name"],
        listen_port=after["listen_port"],
        protocol=after["protocol"],
        destination_port=after["destination_port"],
        proxyprotocol=after["proxyprotocol"],
        health_check=after["health_check"] if after["health_check"] != before["health_check"] else None,
        differences=list(_differences(before, after)),
    )


def _target_change(
    balancer: Object, arguments: Object, *, before: Optional[bool], after: Optional[bool]
) -> TargetChange:
    return TargetChange(
        load_balancer=balancer["name"],
        type=arguments["type"],
        server=arguments.get("server"),
        label_selector=arguments.get("label_selector"),
        ip=arguments.get("ip"),
        before=before,
        after=after,
    )


def _differences(before: Object, after: Object, prefix: str = "") -> Iterator[str]:
    for key, value in after.items():
        if isinstance(value, dict):
            yield from _differences(before[key], value, f"{prefix}{key}.")
        elif before[key] != value:
            yield f"{prefix}{key}: {before[key]} -> {value}"


# --- what is said -----------------------------------------------------------------------------------------------------


def render(project: Project, cluster: ClusterFacts, comparison: Comparison) -> str:
    """The balancers, what is wrong with them, and what would be changed, for the terminal."""
    view = _View(project, {}, cluster)
    lines = [_summary(balancer, view.targets(balancer)) for balancer in project.balancers]
    for fault in comparison["faults"]:
        lines += ["", f"{fault['fault']}: {fault['balancer']}, {fault['where']}", f"  {fault['evidence']}"]
        lines += [f"  Remedy: {fault['remedy']}"]
    changes = [
        *(
            f"  {change['load_balancer']}, port {change['listen_port']}, {difference}"
            for change in comparison["services"]
            for difference in change["differences"]
        ),
        *(f"  {change['load_balancer']}, {_said(change)}" for change in comparison["targets"]),
    ]
    return "\n".join([*lines, *(["", "To be changed:", *changes] if changes else [])])


def _summary(balancer: Object, targets: List[_Target]) -> str:
    services = (
        f"{service['protocol']} {service['listen_port']} to {service['destination_port']}"
        f" ({sum(target.is_healthy(service['listen_port']) for target in targets)} of {len(targets)} targets healthy)"
        for service in balancer["services"]
    )
    return f"{balancer['name']}, {balancer['ipv4_address']}: {', '.join(services) or 'no service'}"


def _said(change: TargetChange) -> str:
    def way(private: Optional[bool]) -> str:
        return "no target" if private is None else f"target by its {_addresses(private)}"

    name = change["server"] or change["label_selector"] or change["ip"]
    return f"{name}: {way(change['before'])} -> {way(change['after'])}"


def _addresses(private: bool) -> str:
    return "private address" if private else "public address"
