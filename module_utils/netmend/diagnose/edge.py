"""The edge of the cluster: what lets requests in, from a balancer to the ingress controller; and the way out."""

from __future__ import annotations

import ipaddress
import json
from collections import Counter
from typing import Any, Dict, FrozenSet, Iterator, List, NamedTuple, Optional, Sequence, Set, Tuple

from .. import k3s_disable
from ..edge import Site, host_port
from ..model import Chain, ControllerSaid, Pod, Remedy, Ruleset
from ..parse.cluster import CONTROLLERS, INGRESS_NGINX
from ..walk import Packet, Place, walk
from .case import DROPPED, KUBE_CHAIN, Case, ids
from .control_plane import is_known_server
from .edge_view import NAMED, NO_FREE_PORTS, counts, logged, probes_of, requests, through_balancers
from .path import MASQUERADE_MARK, Passage, Paths
from .registry import FIREWALL, SERVICE, Fault, Suspicion, fault
from .stops import Stop, describe, removal

MASQUERADES = ("MASQUERADE", "SNAT")
TLS = "kubernetes.io/tls"


@fault("host-port-conflict", 42, "A pod does not start, as another one has its port of the node", SERVICE)
def host_port_conflict(case: Case, paths: Paths) -> Iterator[Suspicion]:
    conflicts = list(_port_conflicts(case))
    may_go = frozenset(case.run.get("k3s_disable", []))
    over = [conflict for conflict in conflicts if _is_over_without(may_go, conflict)]
    giving_way = _giving_way(case, over, may_go)
    for conflict in conflicts:
        pod, holders = conflict.pod, conflict.holders
        where = pod["meant_for"] or _name(pod)
        held = sorted({f"{_name(other)} on {other['node']}" for other in holders})
        wanted = _host_ports(pod)
        ports = sorted(frozenset().union(*(_host_ports(other) for other in holders)) & wanted) or sorted(wanted)
        failed = [probe for probe in case.failed if probe["row"] == "edge-health" and probe["target_node"] == where]
        yield Suspicion(
            where=where,
            evidence=[
                f"{_name(pod)} is Pending: {pod['unscheduled'].rstrip('.')}. It asks for "
                f"{', '.join(map(str, ports))} of its node"
                + (f", which {', '.join(held[:NAMED])} has." if held else ".")
            ],
            remedy=giving_way if conflict in over else _left_to_the_operator(conflict, where),
            confidence=0.95,
            explains=ids(failed),
            ruled_out=["Too little memory or processor: the scheduler names the ports."],
        )


@fault("ingress-class-mismatch", 47, "No ingress controller takes an Ingress for its own", SERVICE)
def ingress_class_mismatch(case: Case, paths: Paths) -> Iterator[Suspicion]:
    ingresses = {f"{each['namespace']}/{each['name']}": each for each in case.cluster["ingresses"]}
    classes = {each["name"]: each for each in case.cluster["ingress_classes"]}
    for site in case.edge.sites:
        ingress = ingresses[site.ingress]
        if site.controller or ingress["class"] in classes:
            continue
        asked = [probe for probe in probes_of(case, site.backend, "edge-node") if probe.get("name") == site.name]
        statuses = {case.seen(probe).get("status", 0) for probe in asked}
        own = {case.seen(probe).get("status", 404) for probe in probes_of(case, site.backend, "edge-pod", "edge-self")}
        if statuses != {404} or (own <= {404} and ingress["addresses"]):
            continue
        through = [probe for probe in probes_of(case, site.backend, "edge-balancer") if probe.get("name") == site.name]
        named = f"the class {ingress['class']!r}, which is no IngressClass" if ingress["class"] else "no class"
        default = "" if ingress["class"] else ", and none is the default"
        there = ", ".join(f"{name} ({each['controller']})" for name, each in classes.items())
        right = next((name for name, each in classes.items() if each["controller"] in CONTROLLERS), "nginx")
        namespace, _, name = site.ingress.partition("/")
        patch = json.dumps({"spec": {"ingressClassName": right}})
        yield Suspicion(
            where=site.ingress,
            evidence=[
                f"Ingress {site.ingress} has {named}{default}; there is {there or 'none'}. For "
                f"{site.host or 'any host'} each of {len(asked)} ports of the ingress controller answers 404, its pods "
                f"{', '.join(str(status) for status in sorted(own)) or 'nothing'}; "
                f"controllers have given it {len(ingress['addresses'])} addresses."
            ],
            remedy=Remedy(
                role="",
                nodes=[],
                command=f"kubectl -n {namespace} patch ingress {name} --type=merge -p '{patch}'",
                text="Give the Ingress the class of the controller that is to serve it.",
            ),
            confidence=0.95 if ingress["class"] else 0.9,
            explains=ids(probe for probe in (*asked, *through) if not case.met(probe)),
            ruled_out=["The application: a 404 of its own would come from the pods, too."],
        )


@fault("tls-secret-missing", 48, "A host is served with a certificate that is not its own", SERVICE)
def tls_secret_missing(case: Case, paths: Paths) -> Iterator[Suspicion]:
    """Without a usable Secret an ingress controller serves its default certificate, and goes on."""
    for site in case.edge.sites:
        if site.scheme != "https" or not site.secret or not site.controller:
            continue
        asked = [
            each
            for each in probes_of(case, site.backend, "edge-node", "edge-balancer")
            if each.get("name") == site.name
        ]
        shown = {
            row: [seen["certificate"] for each in asked for seen in [case.seen(each)]
                  if each["row"] == row and seen.get("certificate")]
            for row in ("edge-node", "edge-balancer")
        }  # fmt: skip
        wrong = [each for each in shown["edge-node"] if not _is_for(each, site.name)]
        # A balancer that ends TLS itself has a certificate of its own.
        if not wrong or any(_is_for(each, site.name) for each in shown["edge-balancer"]):
            continue
        kind = case.cluster["secrets"].get(site.secret)
        namespace, _, name = site.secret.partition("/")
        state = {None: "could not be asked for", "": "is not there", TLS: f"is there, of type {TLS}"}.get(
            kind, f"is of type {kind}"
        )
        named = ", ".join([wrong[0]["subject"], *wrong[0]["names"]][: NAMED + 1])
        yield Suspicion(
            where=site.ingress,
            evidence=[
                f"{site.name}: {len(wrong)} of {len(shown['edge-node'])} ports of the ingress controller show a "
                f"certificate for {named or 'nobody'}, issued by {wrong[0]['issuer'] or 'nobody'}. "
                f"Ingress {site.ingress} names the Secret {site.secret}, which {state}."
            ],
            remedy=Remedy(
                role="",
                nodes=[],
                command=f"kubectl -n {namespace} create secret tls {name} --cert=FILE --key=FILE",
                text="Put the host's certificate and key into the Secret that the Ingress names; see cert-manager's "
                "objects first, where it is to do that.",
            ),
            confidence={None: 0.7, "": 0.97, TLS: 0.8}.get(kind, 0.9),
            ruled_out=["The name that is asked for: it was sent by SNI."],
        )


@fault("egress-masquerade-missing", 49, "Pods' packets leave the cluster with addresses that nobody answers", FIREWALL)
def egress_masquerade_missing(case: Case, paths: Paths) -> Iterator[Suspicion]:
    """The node reaches the outside, its pods do not, and no rule gives their packets the node's address."""
    for probe in case.run["probes"]:
        node, pod = probe["source_node"], case.pods.get(probe.get("source_pod", ""))
        if probe["row"] != "edge-outside" or not pod or node not in case.nodes or case.outcome(probe) not in DROPPED:
            continue
        beside = [each for each in case.run["probes"] if each["row"] == "edge-outside" and each["source_node"] == node]
        if not all(case.outcome(each) == "ok" for each in beside if each is not probe):
            continue
        device = case.device(node, probe["address"])
        packet = Packet(pod["ip"], probe["address"], "tcp", probe["port"], interface_out=device)
        rules, sets = case.ruleset(node), case.nodes[node]["ipsets"]
        if _masquerades(rules, packet, sets):
            continue
        before = _bypass(rules, packet, sets)
        masquerading = sum(
            rule["target"] in MASQUERADES for chain in rules.get("nat", {}).values() for rule in chain["rules"]
        )
        if before:
            seen = f"nat {before.chain} rule {before.number} `{before.spec}` lets them past what would"
            remedy = removal(before, case.backend(node), node)
        else:
            seen = f"none of nat's {masquerading} rules that would masquerade is for them"
            text = "Restart K3s there: Flannel writes its rules anew; pods go on running."
            remedy = Remedy(role="k3s_restart", nodes=[node], text=text)
            if case.cluster["calico"].get("node"):
                text = "Set natOutgoing: true in the IPPool that the pods have their addresses from."
                command = "kubectl edit ippools.crd.projectcalico.org"
                remedy = Remedy(role="", nodes=[node], command=command, text=text)
        yield Suspicion(
            where=node,
            evidence=[
                f"{node}: {probe['source_pod']} gets {case.said(probe)} from {probe['address']}:{probe['port']}, the "
                f"node itself an answer. Its packets leave by {device or 'no device'} as {pod['ip']}: {seen}."
            ],
            remedy=remedy,
            confidence=0.95,
            ruled_out=["The way to the internet: the node's own packets take it."],
        )


@fault("node-port-blocked-for-balancer", 43, "The nodes' firewall keeps a balancer out", FIREWALL)
def node_port_blocked_for_balancer(case: Case, paths: Paths) -> Iterator[Suspicion]:
    """What comes to a NodePort is translated before it is filtered: a host's pod is met in INPUT at its own port."""
    declared = case.run.get("balancer_sources", [])
    for through in through_balancers(case):
        sources = [str(ipaddress.ip_network(each, strict=False)[0]) for each in declared] or [
            through.balancer["address"]
        ]
        if not through.suffers:
            continue
        for node in through.targets:
            stop = next(
                (
                    Stop(node, block.verdict, passage, [], frozenset())
                    for source in sources
                    for passage in _arrivals(case, node, source, through.service["destination_port"])
                    for block in paths.blocks(passage)
                ),
                None,
            )
            if stop is None:
                continue
            port = stop.passage.packet.dport
            yield Suspicion(
                where=node,
                evidence=[
                    f"{node}: {describe(case, node, stop.verdict)}. It stops TCP {port} from "
                    f"{stop.passage.packet.source}, which is what {through.balancer['name']} sends to "
                    f"{through.service['destination_port']}. "
                    f"{through.said(case)}; {case.tally(through.doors)} requests from nodes to that port came out as "
                    "expected."
                ],
                remedy=_letting_in(case, stop, declared),
                confidence=0.95 if declared else 0.7,
                explains=ids(through.failed),
                ruled_out=["The ingress and what is behind it: it answers the nodes at the same port."],
            )


@fault(
    "external-traffic-policy-local",
    44,
    "A balancer sends to nodes that have no endpoint, and may not pass it on",
    SERVICE,
)
def external_traffic_policy_local(case: Case, paths: Paths) -> Iterator[Suspicion]:
    """With externalTrafficPolicy Local a node without a ready endpoint drops (kube-proxy: "has no local endpoints").

    Right where the balancer's health check tells such nodes, which is what healthCheckNodePort is for.
    """
    for through in through_balancers(case):
        service, check = case.node_port(through.service["destination_port"]), through.service["health"]
        if not (through.failed or through.waited) or not service or service["external_traffic_policy"] != "Local":
            continue
        told = (service["health_check_node_port"], through.service["destination_port"])
        ends = {end.node for end in case.behind_node_port(through.service["destination_port"])}
        without = [node for node in through.targets if node not in ends]
        if not without or (check and check["port"] in told):
            continue
        name = f"{service['namespace']}/{service['name']}"
        asked = f"port {check['port']}" if check else "a port that is not known"
        yield Suspicion(
            where=name,
            evidence=[
                f"{name} has externalTrafficPolicy Local, and of the {len(through.targets)} targets of "
                f"{through.balancer['name']} {len(without)} have no endpoint of it: {', '.join(without)}. The "
                f"balancer's health check asks {asked}, which does not tell that. {through.said(case)}."
            ],
            remedy=Remedy(
                role="",
                nodes=[],
                command=f"kubectl -n {service['namespace']} patch service {service['name']} "
                '-p \'{"spec": {"externalTrafficPolicy": "Cluster"}}\'',
                text=f"Let the balancer check /healthz at port {service['health_check_node_port']} of the nodes, which "
                "is 200 only where an endpoint is; or, where clients' addresses do not matter, give up Local.",
            ),
            confidence=0.9,
            explains=ids(through.failed),
            ruled_out=[
                f"The nodes with an endpoint: {case.tally(through.doors)} requests to these came out as expected."
            ],
        )


@fault("balancer-checks-wrong-port", 45, "A balancer's health check asks what the nodes do not answer", SERVICE)
def balancer_checks_wrong_port(case: Case, paths: Paths) -> Iterator[Suspicion]:
    for through in through_balancers(case):
        check = through.service["health"]
        answering = {probe["target_node"] for probe in through.doors if case.met(probe)}
        if not check or not through.suffers or not answering:
            continue
        checks = [probe for probe in through.health if probe["port"] == check["port"]]
        asked = [probe for probe in checks if probe["target_node"] in answering]
        failed = [probe for probe in asked if not case.met(probe)]
        if not failed or len(failed) < len(asked):
            continue
        what = f"{check['protocol']} {check['port']}{check['path'] if check['protocol'] != 'tcp' else ''}"
        yield Suspicion(
            where=through.balancer["name"],
            evidence=[
                f"{through.balancer['name']} checks {what}, where {len(failed)} of {len(asked)} targets do not say "
                f"what it wants ({counts(Counter(map(case.said, failed)))}); the port that it sends to, "
                f"{through.service['destination_port']}, answers {case.tally(through.doors)} requests. "
                f"{through.said(case)}."
            ],
            remedy=Remedy(
                role="",
                nodes=[],
                text=f"Let the health checks of {through.balancer['name']} ask the ports that it sends to, by TCP or "
                "at a path that answers with a status that they take.",
            ),
            confidence=0.95,
            explains=ids(probe for probe in (*checks, *through.failed) if not case.met(probe)),
            ruled_out=["The nodes' firewall: the targets themselves were asked, from themselves."],
        )


@fault("proxy-protocol-mismatch", 46, "Balancer and ingress do not agree on the PROXY header", SERVICE)
def proxy_protocol_mismatch(case: Case, paths: Paths) -> Iterator[Suspicion]:
    """nginx takes a header that it does not expect for a bad request, and ends what lacks one that it does."""
    turned = [probe for probe in case.failed if probe["row"] == "edge-node" and case.seen(probe).get("proxied")]
    for through in through_balancers(case):
        port = through.service["destination_port"]
        probes = [probe for probe in turned if probe["port"] == port]
        if not probes:
            continue
        sent = probes[0]["proxy"] == "sent"
        does, wants = ("sends", "does not expect") if sent else ("does not send", "expects")
        yield Suspicion(
            where=through.balancer["name"],
            evidence=[
                f"{through.balancer['name']} {does} the PROXY header to port {port}, and the ingress {wants} it: "
                f"{len(probes)} of {len(through.doors)} requests as the balancer makes them fail, and pass the other "
                f"way ({case.said(probes[0])}).",
                f"{through.said(case)}.",
            ],
            remedy=Remedy(
                role="",
                nodes=[],
                command="kubectl -n ingress-nginx patch configmap ingress-nginx-controller --type=merge -p "
                f"'{json.dumps({'data': {'use-proxy-protocol': str(sent).lower()}})}'",
                text="Let both ends say the same: the header of the balancers, and use-proxy-protocol of the ingress.",
            ),
            confidence=0.97,
            explains=ids([*probes, *through.failed]),
            ruled_out=["The request itself: the same one passes the other way."],
        )


@fault("ingress-endpoints-stale", 0, "An ingress controller sends to endpoints of the past", SERVICE)
def ingress_endpoints_stale(case: Case, paths: Paths) -> Iterator[Suspicion]:
    """nginx goes on with the list that it was given when its controller does not hear from the API any more."""
    for node, said in case.controllers:
        for site in case.edge.sites:
            listed = _listed(case, said, site)
            if listed is None:
                continue
            asked = [each for each in probes_of(case, site.backend, "edge-node") if each["target_node"] == node]
            failed = [probe for probe in asked if not case.met(probe)]
            ends = case.edge.endpoints(site)
            ready = {f"{end['ip']}:{end['port']}" for end in ends if end["ready"]}
            gone = sorted(listed - {f"{end['ip']}:{end['port']}" for end in ends})
            # Pods come and go between two looks: what is gone has to have failed, too.
            tried = [end for end in gone if (said["log"] or {}).get("failures", {}).get(end)]
            if not failed or not ready or listed & ready or (listed and not tried):
                continue
            namespace, _, pod = said["pod"].partition("/")
            has = f"{', '.join(gone[:NAMED])}, which no EndpointSlice has," if gone else "nothing"
            yield Suspicion(
                where=node,
                evidence=[
                    f"{said['pod']} on {node} sends requests for {site.namespace}/{site.service} to {has} and not to "
                    f"{', '.join(sorted(ready)[:NAMED])}, which {'is' if len(ready) == 1 else 'are'} ready. "
                    f"{requests(case, failed)}."
                ],
                remedy=Remedy(
                    role="",
                    nodes=[],
                    command=f"kubectl -n {namespace} delete pod {pod}",
                    text="See in its log why it does not hear from the API, and let it start anew.",
                ),
                confidence=0.9,
                explains=ids(failed),
                ruled_out=["The application and the Service: others have their endpoints from the API, as was asked."],
            )


def _listed(case: Case, said: ControllerSaid, site: Site) -> Optional[Set[str]]:
    """The endpoints that the controller has for a site; None where that is not known, or says nothing of pods."""
    service = case.edge.service(site)
    if said["endpoints"] is None or site.controller != INGRESS_NGINX or not service:
        return None
    listed = set(said["endpoints"].get(site.upstream, []))
    # Some Ingresses want the Service's own address: nginx.ingress.kubernetes.io/service-upstream.
    return None if service["cluster_ip"] in {end.rpartition(":")[0] for end in listed} else listed


def reaching(case: Case, found: List[Tuple[Fault, Suspicion]]) -> List[Tuple[Fault, Suspicion]]:
    """The same, each explaining also what fails before it: a request that an ingress, or a balancer, would hand on.

    By the backend that both are about, and by the nodes' ports that a balancer sends to; with what the ingress
    controllers logged of it.
    """
    explained = frozenset(probe for _, suspicion in found for probe in suspicion.explains)
    rows = ("edge-node", "edge-balancer")
    left = [probe for probe in case.failed if probe["row"] in rows and probe["id"] not in explained]
    probes = {probe["id"]: probe for probe in case.run["probes"]}
    sent = {
        probe["id"]: {(node, through.service["destination_port"]) for node in through.targets}
        for through in through_balancers(case)
        for probe in through.failed
    }
    extended = []
    for fault_, suspicion in found:
        behind = [probes[each] for each in suspicion.explains if each in probes]
        backends = {each["backend"] for each in behind if each["row"] in ("edge-pod", "edge-service", "edge-self")}
        doors = {(each["target_node"], each["port"]) for each in behind if each["row"] == "edge-node"}
        more = [probe for probe in left if probe["backend"] in backends or doors & sent.get(probe["id"], set())]
        of_backends = {probe["backend"] for probe in (*behind, *more) if probe.get("backend")}
        log = logged(case, (site for site in case.edge.sites if site.backend in of_backends))
        before = f"Before it, {requests(case, more)}." if more else ""
        evidence = [*suspicion.evidence, *filter(None, (before, log))]
        extended.append((fault_, suspicion._replace(explains=suspicion.explains | ids(more), evidence=evidence)))
    return extended


def _host_ports(pod: Pod) -> FrozenSet[int]:
    return frozenset(host_port(pod, port) for port in pod["ports"]) - {0}


class _PortConflict(NamedTuple):
    """A pod that finds no node for want of free ports, and those that have them."""

    pod: Pod
    holders: List[Pod]

    @property
    def of_k3s(self) -> List[str]:
        """Which of K3s's own components are in it."""
        found = frozenset().union(*map(k3s_disable.owners, (self.pod, *self.holders)))
        return [name for name in k3s_disable.COMPONENTS if name in found]


def _port_conflicts(case: Case) -> Iterator[_PortConflict]:
    for pod in case.cluster["pods"]:
        if NO_FREE_PORTS in pod["unscheduled"]:
            holders = [
                other
                for other in case.cluster["pods"]
                if other is not pod and other["node"] and pod["meant_for"] in ("", other["node"])
                if _host_ports(other) & _host_ports(pod) and other["phase"] not in ("Succeeded", "Failed")
            ]
            yield _PortConflict(pod, holders)


def _is_over_without(components: FrozenSet[str], conflict: _PortConflict) -> bool:
    """Either the pod that waits goes with these components of K3s's, or all that have its ports do."""
    goes = [bool(k3s_disable.owners(pod) & components) for pod in (conflict.pod, *conflict.holders)]
    return goes[0] or (len(goes) > 1 and all(goes[1:]))


def _giving_way(case: Case, conflicts: Sequence[_PortConflict], may_go: FrozenSet[str]) -> Remedy:
    """One for all of them: who is to have the ports is for the operators to say, and they did."""
    of_k3s = frozenset(name for conflict in conflicts for name in conflict.of_k3s)
    components = [name for name in k3s_disable.COMPONENTS if name in may_go & of_k3s]
    members = [node["name"] for node in case.cluster["nodes"] if node["role"] == "server"]
    servers = {name: case.nodes[name] for name in members if name in case.nodes and is_known_server(case.nodes[name])}
    unknown = [name for name in members if name not in servers]
    against = (
        f"All servers have to do without {' and '.join(components)}, and {', '.join(unknown)} could not be read."
        if unknown
        else k3s_disable.refusal(servers, components)
    )
    if against:
        return Remedy(role="", nodes=members, text=against)
    return Remedy(
        role="k3s_disable",
        nodes=members,
        vars={
            "k3s_disable_components": components,
            "k3s_disable_waiting": sorted(_name(conflict.pod) for conflict in conflicts),
        },
        text=f"Let K3s do without {' and '.join(components)}, on every server, and restart it there one by one.",
    )


def _left_to_the_operator(conflict: _PortConflict, where: str) -> Remedy:
    nodes = [conflict.pod["meant_for"]] if conflict.pod["meant_for"] else []
    if not _is_over_without(frozenset(conflict.of_k3s), conflict):
        text = "Let one of the two have the port, or keep them on different nodes."
        return Remedy(role="", nodes=nodes, command=f"kubectl get pods -A -o wide | grep {where}", text=text)
    components = f"[{', '.join(conflict.of_k3s)}]"
    return Remedy(
        role="",
        nodes=nodes,
        command="mkdir -p /etc/rancher/k3s/config.yaml.d && "
        f"echo 'disable+: {components}' > /etc/rancher/k3s/config.yaml.d/90-edge.yaml",
        text="Switch K3s's own off, on every server, and restart K3s there: one controller has the ports. With "
        f"netmend_k3s_disable: {components} fix_network.yml does that.",
    )


def _name(pod: Pod) -> str:
    return f"{pod['namespace']}/{pod['name']}"


def _arrivals(case: Case, node: str, source: str, port: int) -> Iterator[Passage]:
    """What a balancer's packets to a port of the node pass there, on the way to what is on the node itself."""
    if node not in case.nodes or not port:
        return
    address = case.internal_ip(node)
    device = case.device(node, source)
    if not case.node_port(port):
        packet = Packet(source, address, "tcp", port, interface_in=device, to_local=True)
        yield Passage(node, "INPUT", "host", "", packet)
    for end in case.behind_node_port(port):
        if end.node != node:
            continue
        packet = Packet(source, end.address, "tcp", end.port, interface_in=device, states=("NEW", "DNAT"))
        if end.pod:
            out = case.device(node, end.address)
            yield Passage(node, "FORWARD", "pod", "", packet._replace(interface_out=out, mark=MASQUERADE_MARK))
        else:
            yield Passage(node, "INPUT", "host", "", packet._replace(to_local=True))


def _letting_in(case: Case, stop: Stop, declared: List[str]) -> Remedy:
    """UFW lets balancers in by its role, which has to know their addresses; what else stops them is somebody's rule."""
    verdict = stop.verdict
    in_ufw = any(step.chain.startswith("ufw-") for step in (*verdict.path, verdict.rule)) or verdict.rule.number == 0
    if not (case.nodes[stop.node]["ufw"]["enabled"] and in_ufw and stop.passage.hook == "INPUT"):
        if verdict.rule.number:
            return removal(verdict.rule, verdict.backend, stop.node)
        text = f"Accept the balancers' addresses in {verdict.rule.chain}."
        return Remedy(role="", nodes=[stop.node], text=text)
    if declared:
        text = "Let the balancers' own addresses in, at the ports of the ingress and its NodePorts."
        return Remedy(role="ufw", nodes=[stop.node], text=text)
    return Remedy(
        role="",
        nodes=[stop.node],
        command=f"ufw allow proto tcp from BALANCER to any port {stop.passage.packet.dport}",
        text="Declare the balancers' private addresses in ufw_balancers: role ufw then lets them in.",
    )


def _masquerades(rules: Ruleset, packet: Packet, sets: Any) -> bool:
    verdict = walk(rules, "nat", "POSTROUTING", packet, sets)
    return verdict.action == "unknown" or any(f"-j {target}" in verdict.rule.spec for target in MASQUERADES)


def _bypass(rules: Ruleset, packet: Packet, sets: Any) -> Optional[Place]:
    """The rule without which the packet would be masqueraded; None where there is no such.

    kube-proxy's own let past what is not marked for them, and rightly so.
    """
    nat = rules.get("nat", {})
    for name, chain in nat.items():
        if name.startswith(KUBE_CHAIN):
            continue
        for number, rule in enumerate(chain["rules"], 1):
            if rule["target"] not in ("RETURN", "ACCEPT"):
                continue
            without: Chain = {**chain, "rules": [each for each in chain["rules"] if each is not rule]}
            if _masquerades({**rules, "nat": {**nat, name: without}}, packet, sets):
                return Place("nat", name, number, rule["spec"], rule["packets"])
    return None


def _is_for(certificate: Dict[str, Any], host: str) -> bool:
    """RFC 6125, 6.4.3: a wildcard stands for the leftmost label."""
    names = certificate["names"] or [certificate["subject"]]
    return any(name == host or (name.startswith("*.") and name[2:] == host.partition(".")[2]) for name in names)
