"""Hetzner's load balancers beside what the cluster serves: what is wrong in their settings, and what sets it right.

Pure. What health checks say is believed: settings that nothing but the checks depends on are right where all targets
are healthy.
"""

from __future__ import annotations

from functools import partial
from typing import Iterator, List, Mapping, NamedTuple, Optional, Set, Tuple, TypedDict

from .edge import SCHEMES
from .hetzner import WELL, End, Entrance, Object, Project, Target, View, is_well, services_of
from .model import ClusterFacts, NodeFacts
from .walk import Packet, Verdict, judge

HEALTHZ = "/healthz"  # what ingress-nginx's default server answers with 200; it answers 404 to all else
NONE = "No load balancer of the project has a node of the cluster for a target; balancers_names names those meant."


class Fault(TypedDict):
    fault: str  # a name from docs/balancers.md
    balancer: str
    where: str  # "port 80", or the targets
    evidence: str
    remedy: str


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


class _Wrong(NamedTuple):
    fault: str
    evidence: str
    remedy: str
    service: Optional[Object] = None  # with that set right; None where it is not known how, or of targets


def compare(
    project: Project, nodes: Mapping[str, NodeFacts], cluster: ClusterFacts, remove_foreign: bool = False
) -> Comparison:
    """Faults of the project's balancers, and the changes that mend them; applied, the next comparison asks for none.

    Targets that are none of the cluster's nodes may be somebody's: they are removed only if that is asked for.
    """
    view = View(project, nodes, cluster)
    whole = Comparison(faults=[], services=[], targets=[])
    for balancer in project.balancers:
        targets, services, right = view.targets(balancer), [], []
        for service in services_of(balancer):
            wrongs, wanted = _compare_service(view, service, targets)
            whole["faults"] += [_fault(balancer, _port(service), each) for each in wrongs]
            whole["services"] += [_service_change(balancer, service, wanted)] if wanted != service else []
            services.append(wanted)
            right += [] if wrongs else [service]
        mended = {**balancer, "services": services}
        stopped = list(_on_public_addresses(view, mended, targets))
        for fault, changes in (
            *_missing(view, mended, targets),
            *_foreign(mended, targets, remove_foreign),
            *stopped,
            *(() if stopped else _unhealthy(view, {**balancer, "services": right}, targets)),
        ):
            whole["faults"].append(fault)
            whole["targets"] += changes
    return whole


def _compare_service(view: View, service: Object, targets: List[Target]) -> Tuple[List[_Wrong], Object]:
    """What is wrong with a service, and the service with all of it set right that can be."""
    is_healthy = bool(targets) and all(target.is_healthy(service["listen_port"]) for target in targets)
    nodes = {end.node for target in targets for end in target.ends}
    found: List[_Wrong] = []
    for check in (
        *(_destination, _proxy_protocol, partial(_check_tells, nodes)),
        *(() if is_healthy else (_check_port, _check_protocol, _check_path)),
    ):
        wrong = check(view, service)
        if wrong:
            found.append(wrong)
            if wrong.service is None:  # the others depend on it
                break
            service = wrong.service
    return found, service


def _destination(view: View, service: Object) -> Optional[_Wrong]:
    port, given = service["destination_port"], _given(service)
    spoken = {entrance.scheme for entrance in view.at(port)} - {""}
    if spoken and given and given not in spoken:
        evidence = f"It leads {given.upper()} to port {port}, where ingress-nginx speaks {min(spoken).upper()}."
    elif not view.at(port) and not view.listens(port):
        evidence = f"It leads to port {port}, which is no NodePort and no pod's, and where no node listens."
    else:
        return None
    fault, candidates = "balancer-wrong-destination", view.ingress(given) if given else []
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


def _proxy_protocol(view: View, service: Object) -> Optional[_Wrong]:
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


def _check_tells(nodes: Set[str], view: View, service: Object) -> Optional[_Wrong]:
    """Whether a health check that passes tells of requests that a target drops, as it has no endpoint of its own."""
    port, destination = service["health_check"]["port"], service["destination_port"]
    there = view.at(destination)
    silent = sorted(node for node in nodes if there and all(node in entrance.silent for entrance in there))
    if not silent or view.at(port) or view.is_health_check(port):
        return None
    return _Wrong(
        "external-traffic-policy-local",
        f"Requests go to port {destination}, where {', '.join(silent)} drop them (externalTrafficPolicy Local, without "
        f"an endpoint). Its health check asks port {port}, which does not tell that.",
        f"Check port {destination}, to which requests go.",
        _checked_there(view, service),
    )


def _checked_there(view: View, service: Object) -> Object:
    """The service with a health check of the port to which requests go."""
    check, destination = service["health_check"], service["destination_port"]
    spoken = {entrance.scheme for entrance in view.at(destination)} - {""}
    protocol = min(spoken) if spoken and check["protocol"] != "tcp" else check["protocol"]
    return {**service, "health_check": {**check, "port": destination, "protocol": protocol}}


def _check_port(view: View, service: Object) -> Optional[_Wrong]:
    port, destination = service["health_check"]["port"], service["destination_port"]
    asked = view.at(port)
    if port == destination or view.is_health_check(port) or (not asked and view.listens(port)):
        return None
    owners = {_asked(entrance) for entrance in asked}
    if not asked:
        evidence = f"Its health check asks port {port}, which is no NodePort and no pod's, and where no node listens."
    elif not owners & {_asked(entrance) for entrance in view.at(destination)}:
        evidence = f"Its health check asks port {port}, {min(owners)}, and requests go to port {destination}."
    else:
        return None
    there = _checked_there(view, service)
    return _Wrong("balancer-checks-wrong-port", evidence, f"Check port {destination}, to which requests go.", there)


def _asked(entrance: Entrance) -> str:
    return "ingress-nginx" if entrance.scheme else entrance.owner


def _check_protocol(view: View, service: Object) -> Optional[_Wrong]:
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


def _check_path(view: View, service: Object) -> Optional[_Wrong]:
    """Only of what ingress-nginx answers by itself: what a host's pods say to a path is their own affair."""
    check = service["health_check"]
    hosts = {path["host"] for ingress in view.cluster["ingresses"] for path in ingress["paths"]}
    is_ingress = any(entrance.scheme for entrance in view.at(check["port"]))
    if check["protocol"] == "tcp" or not is_ingress or "" in hosts or (check["http"].get("domain") or "") in hosts:
        return None
    path, well = check["http"]["path"], check["http"]["status_codes"]
    answer = 200 if path == HEALTHZ else 404
    if is_well(answer, well):
        return None
    right = {**check["http"], "path": HEALTHZ, "status_codes": well if is_well(200, well) else WELL}
    return _Wrong(
        "balancer-checks-wrong-path",
        f"Its health check asks for {path}, which ingress-nginx answers with {answer}; well is {', '.join(well)}.",
        f"Check {HEALTHZ}, which ingress-nginx answers with 200.",
        {**service, "health_check": {**check, "http": right}},
    )


_Found = Iterator[Tuple[Fault, List[TargetChange]]]


def _missing(view: View, balancer: Object, targets: List[Target]) -> _Found:
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
        remedy = f"Add {', '.join(known)} to the targets, by the {_address(private)}."
        changes = [
            _target_change(balancer, {"type": "server", "server": server}, before=None, after=private)
            for server in known
        ]
    where = ", ".join(nodes)
    evidence = f"ingress-nginx is ready there, and {balancer['name']} has no such target."
    yield _fault(balancer, where, _Wrong("balancer-target-missing", evidence, remedy)), changes


def _foreign(balancer: Object, targets: List[Target], remove: bool) -> _Found:
    for target in targets:
        where = ", ".join(end.name for end in target.ends if not end.node)
        if not where:
            continue
        changes: List[TargetChange] = []
        if "label_selector" in target.arguments:
            remedy = f"Change its labels, by which {target.arguments['label_selector']} selects it."
        else:
            remedy = "Take it from the targets, if it is nobody's: with balancers_remove_foreign_targets."
            changes = [_target_change(balancer, target.arguments, before=target.private, after=None)] if remove else []
        evidence = "Requests go there, and it is none of the cluster's nodes."
        yield _fault(balancer, where, _Wrong("balancer-target-foreign", evidence, remedy)), changes


def _on_public_addresses(view: View, balancer: Object, targets: List[Target]) -> _Found:
    for target in targets:
        stopped = [said for said in (_stopped(view, balancer, target, end) for end in target.ends) if said]
        if stopped:
            where = ", ".join(end.name for end in target.ends)
            remedy = "Let the balancer use the private address (use_private_ip)."
            wrong = _Wrong("balancer-on-public-addresses", stopped[0], remedy)
            change = _target_change(balancer, target.arguments, before=False, after=True)
            yield _fault(balancer, where, wrong), [change]


def _unhealthy(view: View, balancer: Object, targets: List[Target]) -> _Found:
    """Where nothing is wrong with a service, and yet its checks fail at nodes that should answer."""
    for service in balancer["services"]:
        silent = {node for entrance in view.at(service["destination_port"]) for node in entrance.silent}
        failing = [target for target in targets if target.status.get(service["listen_port"]) == "unhealthy"]
        names = [end.name for target in failing for end in target.ends if end.node not in {"", *silent}]
        if names:
            evidence = f"{', '.join(names)} unhealthy, though the settings fit what the cluster serves."
            remedy = "See what diagnose.yml says of the way from the balancer to these nodes."
            wrong = _Wrong("balancer-target-unhealthy", evidence, remedy)
            yield _fault(balancer, _port(service), wrong), []


def _port(service: Object) -> str:
    return f"port {service['listen_port']}"


def _stopped(view: View, balancer: Object, target: Target, end: End) -> str:
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


def _fault(balancer: Object, where: str, wrong: _Wrong) -> Fault:
    return Fault(
        fault=wrong.fault, balancer=balancer["name"], where=where, evidence=wrong.evidence, remedy=wrong.remedy
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
    view = View(project, {}, cluster)
    lines = [_summary(balancer, view.targets(balancer)) for balancer in project.balancers] or [NONE]
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


def _summary(balancer: Object, targets: List[Target]) -> str:
    services = (
        f"{service['protocol']} {service['listen_port']} to {service['destination_port']}"
        f" ({sum(target.is_healthy(service['listen_port']) for target in targets)} of {len(targets)} targets healthy)"
        for service in balancer["services"]
    )
    return f"{balancer['name']}, {balancer['ipv4_address']}: {', '.join(services) or 'no service'}"


def _said(change: TargetChange) -> str:
    def way(private: Optional[bool]) -> str:
        return "no target" if private is None else f"target by its {_address(private)}"

    name = change["server"] or change["label_selector"] or change["ip"]
    return f"{name}: {way(change['before'])} -> {way(change['after'])}"


def _address(private: bool) -> str:
    return "private address" if private else "public address"
