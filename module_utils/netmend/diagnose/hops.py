"""A failing probe's packet, walked hop by hop through what was gathered of the nodes, to the hop that ends it.

The walk is a second opinion: it does not look at what the diagnosis made of the probes, and where it does not agree
with what the probe saw, it says so. It takes one of the ways that a Service's address may lead.
"""

from __future__ import annotations

import ipaddress
from typing import Any, Dict, Iterable, Iterator, List, Optional, Tuple

from ..model import Finding, Hop, Probe, Route, Run, Walk
from ..plan import destination
from ..walk import Packet, translations
from .case import BLOCKED, DROPPED, MISSING, Case, contains
from .flannel import wrong_entries
from .overlay import measured, measured_tunnel
from .path import LAYER4, Flow, Passage, Paths

MOST = 100  # walks of a run
PASSES, DROPS, REJECTS, UNKNOWN = "passes", "drops", "rejects", "unknown"
ARRIVES = "arrives"

_OF_FIREWALL = {"accept": PASSES, "drop": DROPS, "reject": REJECTS, "unknown": UNKNOWN}
_OF_ROUTE = {"unicast": PASSES, "local": PASSES, "blackhole": DROPS, "unreachable": REJECTS, "prohibit": REJECTS}
_OF_UNDERLAY = {"passes": PASSES, "host": PASSES, "sender": DROPS, "fabric": DROPS}
# The kernel's own rules, where none were gathered.
_RULES = ({"priority": 0, "src": "all", "table": "local"}, {"priority": 32766, "src": "all", "table": "main"})
_LOOKED_AT = {"priority", "src", "srclen", "dst", "dstlen", "table", "protocol"}  # of a rule of policy routing


def walks(run: Run, findings: Iterable[Finding]) -> List[Walk]:
    """One for each finding's first probe, then one for each pair of a row that fails, as far as there is room."""
    case = Case(run)
    # Whether a packet of some size passes is no matter of routes and rules; and what comes and goes passes them.
    failed = {each["id"]: each for each in case.failed if each["protocol"] != "mtu" and not case.comes_and_goes(each)}
    first = (next((failed[id_] for id_ in finding["explains"] if id_ in failed), None) for finding in findings)
    chosen = {probe["id"]: probe for probe in first if probe}
    cells = {(each["row"], each["source_node"], destination(each)) for each in chosen.values()}
    for probe in failed.values():
        cell = probe["row"], probe["source_node"], destination(probe)
        if cell not in cells:
            cells.add(cell)
            chosen[probe["id"]] = probe
    paths = Paths(case)
    found = (_walk(case, paths, probe) for probe in list(chosen.values())[:MOST])
    return [walk for walk in found if walk]


def _walk(case: Case, paths: Paths, probe: Probe) -> Optional[Walk]:
    """Of several ways the one that agrees best with what the probe saw; None for a destination that is not known."""
    found: List[Walk] = []
    for flow in paths.flows(probe):
        found.append(_along(case, paths, probe, flow))
        if found[-1]["agrees"]:
            return found[-1]
    return next((walk for walk in found if walk["agrees"] is None), found[0] if found else None)


def _along(case: Case, paths: Paths, probe: Probe, flow: Flow) -> Walk:
    hops: List[Hop] = []
    for hop in _Way(case, paths, probe, flow).hops():
        hops.append(hop)
        if hop["verdict"] in (DROPS, REJECTS):
            break
    verdicts = [hop["verdict"] for hop in hops]
    says = verdicts[-1] if verdicts[-1] in (DROPS, REJECTS) else UNKNOWN if UNKNOWN in verdicts else ARRIVES
    own = flow.pod or case.internal_ip(flow.source)
    port = probe.get("port", 0)
    return Walk(
        row=probe["row"],
        source=flow.source,
        to=destination(probe),
        protocol=probe["protocol"],
        port=port,
        packet=f"{own} to {probe['address']}, {probe['protocol']}{f'/{port}' if port else ''}",
        hops=hops,
        says=says,
        saw=case.said(probe),
        agrees=_agrees(case.outcome(probe), says),
    )


def _agrees(outcome: str, says: str) -> Optional[bool]:
    """A rejection is often seen as a timeout: the kernel limits how many errors it sends."""
    if outcome == MISSING or (says == UNKNOWN and outcome in BLOCKED):
        return None
    return outcome in {DROPS: DROPPED, REJECTS: BLOCKED}.get(says, frozenset()) or (
        says in (ARRIVES, UNKNOWN) and outcome not in BLOCKED
    )


class _Way:
    def __init__(self, case: Case, paths: Paths, probe: Probe, flow: Flow) -> None:
        self.case, self.paths, self.probe, self.flow = case, paths, probe, flow
        self.end = flow.end
        self.passages = paths.along(probe, flow)
        self.translator = next((each for each in paths.translators(probe) if each[0] == flow.via), None)
        self.protocol = LAYER4.get(probe["protocol"], "tcp")

    def hops(self) -> Iterator[Hop]:
        source, pod, via, end = self.flow
        name = self.probe.get("source_pod", "")
        yield Hop(
            node=source,
            place="pod" if pod else "host",
            said=f"{name} sends from {pod}" if pod else f"the node sends from {self.case.internal_ip(source)}",
            verdict=PASSES,
        )
        yield from self._full(source)
        if via != source:
            yield from self._leaves(source, pod, self.probe["address"], via)
            yield from self._between(source, via, self._plain(source, via))
            yield from self._full(via)
        yield from self._translates(via)
        if self.flow.crosses:
            yield from self._leaves(via, pod, end.address, end.node)
            yield from self._tunnels(via, end.node)
        elif end.node != via:
            yield from self._leaves(via, pod, end.address, end.node)
            yield from self._between(via, end.node, self._plain(via, end.node))
        yield from self._arrives(pod)
        yield from self._answers()

    # --- on a node ---

    def _leaves(self, node: str, pod: str, address: str, peer: str) -> Iterator[Hop]:
        """From the node to another one."""
        if node not in self.case.nodes:
            yield _silent(node)
            return
        yield self._routed(node, pod, address, peer)
        yield from self._forwards(node)

    def _arrives(self, pod: str) -> Iterator[Hop]:
        """At the endpoint, from wherever the last hop was."""
        node, address = self.end.node, self.end.address
        if node not in self.case.nodes:
            yield _silent(node)
            return
        if node not in (self.flow.source, self.flow.via):
            yield from self._full(node)
        if self.end.pod:
            yield self._routed(node, pod, address, node)
            yield from self._forwards(node) if node != self.flow.source or self.flow.pod else ()
            there = self.case.pod_at(address)
            known = f"{there['namespace']}/{there['name']}" if there else "a pod that the API does not know"
            yield Hop(node=node, place="pod", said=f"{known} has {address}", verdict=PASSES if there else UNKNOWN)
            return
        yield from self._firewall(node, "INPUT", "host")
        yield self._listens(node)

    def _forwards(self, node: str) -> Iterator[Hop]:
        sysctls, passage = self.case.nodes[node]["sysctls"], self._passage(node, "FORWARD", "pod")
        past_iptables = sysctls.get("net.bridge.bridge-nf-call-iptables") == "0" and self.case.bridge(node)
        if self.translator and past_iptables and self.flow.pod and node == self.flow.source == self.end.node:
            said = "net.bridge.bridge-nf-call-iptables is 0: the answer is not translated back"
            yield Hop(node=node, place="kernel", said=said, verdict=DROPS)
        if not passage:
            return
        if not passage.packet.bridged and sysctls.get("net.ipv4.ip_forward") == "0":
            yield Hop(node=node, place="kernel", said="net.ipv4.ip_forward is 0", verdict=DROPS)
        yield from self._firewall(node, "FORWARD", "pod")

    def _firewall(self, node: str, hook: str, what: str) -> Iterator[Hop]:
        passage = self._passage(node, hook, what)
        if passage:
            yield self._ruled(passage, "firewall")

    def _ruled(self, passage: Passage, place: str) -> Hop:
        verdict = self.paths.judge(passage)
        doubt = "it hangs on " if verdict.action == "unknown" else ""
        said = f"{passage.hook}: {doubt}{verdict.backend} {verdict}"
        return Hop(node=passage.node, place=place, said=said, verdict=_OF_FIREWALL[verdict.action])

    def _passage(self, node: str, hook: str, what: str, answer: bool = False) -> Optional[Passage]:
        for passage in self.passages:
            same = (passage.node, passage.hook, passage.what) == (node, hook, what)
            if same and ("ESTABLISHED" in passage.packet.states) == answer:
                return passage
        return None

    def _translates(self, node: str) -> Iterator[Hop]:
        if not self.translator:
            return
        if node not in self.case.nodes:
            yield _silent(node)
            return
        address, port, hook = self.probe["address"], self.probe.get("port", 0), self.translator[1]
        own = self.flow.pod or self.case.internal_ip(self.flow.source)
        local = self.case.by_node_port(self.probe)
        packet = Packet(own, address, self.protocol, port, to_local=local, from_local=hook == "OUTPUT")
        facts = self.case.nodes[node]
        found = translations(self.case.ruleset(node), hook, packet, facts["ipsets"])
        wanted = f"{self.end.address}:{self.end.port}"
        one = next((each for each in found if each.destination == wanted), None)
        if one:
            of = f", one of {len(found)}" if len(found) > 1 else ""
            said, verdict = f"{hook}: {address}:{port} becomes {wanted}{of}: {one.rule}", PASSES
        elif found:
            said, verdict = f"{hook}: {address}:{port} becomes {found[0].destination}, not {wanted}", UNKNOWN
        elif "KUBE-SERVICES" in self.case.ruleset(node).get("nat", {}):
            said, verdict = f"no rule that {hook} leads to translates {address}:{port}, which is no machine's", DROPS
        else:
            said, verdict = f"{address}:{port} is translated by no iptables rule", UNKNOWN
        yield Hop(node=node, place="nat", said=said, verdict=verdict)

    def _routed(self, node: str, source: str, address: str, peer: str) -> Hop:
        """``peer``: where it is to lead; the node itself for what is there."""
        route, doubt = _lookup(self.case.nodes[node], source, address)
        if doubt:
            said = f"a rule of policy routing that is not looked into: {doubt}"
            return Hop(node=node, place="route", said=said, verdict=UNKNOWN)
        if not route:
            return Hop(node=node, place="route", said=f"none to {address}", verdict=REJECTS)
        interface = self.case.interface(node, route["device"])
        kind = f" ({interface['kind']})" if interface and interface["kind"] else ""
        via = f" via {route['gateway']}" if route["gateway"] else ""
        type_ = "" if route["type"] == "unicast" else f"{route['type']} "
        said = f"{address} by {type_}{route['destination']}{via} dev {route['device']}{kind}"
        verdict = _OF_ROUTE.get(route["type"], UNKNOWN)
        if route["type"] == "local":
            verdict, said = REJECTS, f"{said}: an address of the node itself"
        elif interface and interface["state"] == "DOWN":
            verdict, said = DROPS, f"{said}, which is down"
        elif self.flow.crosses and peer != node and not self._leads(node, peer, route):
            verdict, said = DROPS, f"{said}: into no tunnel, and not to {peer}"
        return Hop(node=node, place="route", said=said, verdict=verdict)

    def _leads(self, node: str, peer: str, route: Route) -> bool:
        return bool(self.paths.overlay(node, peer)) or route["gateway"] == self.case.internal_ip(peer)

    def _full(self, node: str) -> Iterator[Hop]:
        table = self.case.nodes[node]["conntrack"] if node in self.case.nodes else {}
        count, most = table.get("count", 0), table.get("max", 0)
        if most and count >= most:
            said = f"connection tracking is full: {count} of {most}"
            yield Hop(node=node, place="kernel", said=said, verdict=DROPS)

    def _listens(self, node: str) -> Hop:
        port = self.end.port
        if self.protocol == "icmp" or not port:
            return Hop(node=node, place="host", said="the node answers itself", verdict=PASSES)
        sockets = self.case.nodes[node]["sockets"]
        there = [each for each in sockets if (each["protocol"], each["port"]) == (self.protocol, port)]
        who = there[0]["process"] or "a process" if there else "nobody"
        said = f"{who} listens on {self.protocol}/{port}"
        return Hop(node=node, place="host", said=said, verdict=PASSES if there else REJECTS if sockets else UNKNOWN)

    # --- between nodes ---

    def _tunnels(self, here: str, there: str) -> Iterator[Hop]:
        overlay = self.paths.overlay(here, there)
        if not overlay:
            yield from self._between(here, there, None)
            return
        to = self.case.underlay_address(there, overlay.kind)
        wrong = wrong_entries(self.case, here, there, overlay.device) if overlay.kind == "vxlan" else []
        interface = self.case.interface(here, overlay.device)
        name = f"VXLAN (UDP {overlay.port})" if overlay.kind == "vxlan" else "IPIP"
        said = f"{name} to {to}, MTU {interface['mtu']}" if interface else name
        yield Hop(node=here, place="tunnel", said="; ".join(wrong) or said, verdict=DROPS if wrong else PASSES)
        yield from self._firewall(here, "OUTPUT", overlay.kind)
        yield from self._between(here, there, measured_tunnel(self.case, here, there, overlay.kind, overlay.port))
        yield from self._firewall(there, "INPUT", overlay.kind)

    def _plain(self, here: str, there: str) -> Any:
        ends = {node: self.case.internal_ip(node) for node in (here, there)}
        return measured(self.case, ends, f"{self.protocol}-{self.probe.get('port', 0)}")

    def _between(self, here: str, there: str, seen: Any) -> Iterator[Hop]:
        said = seen.sentence if seen else "not measured from both ends"
        verdict = _OF_UNDERLAY.get(seen.verdict, UNKNOWN) if seen else UNKNOWN
        yield Hop(node=f"{here}>{there}", place="network", said=said, verdict=verdict)

    # --- back ---

    def _answers(self) -> Iterator[Hop]:
        """What would stop the answer; otherwise, that nothing does."""
        own = self.flow.crosses
        back: List[Passage] = [
            passage
            for passage in reversed(self.passages)
            if "ESTABLISHED" in passage.packet.states
            or (own and (passage.node, passage.hook) in ((own[1], "OUTPUT"), (own[0], "INPUT")))
        ]
        stopped = [hop for hop in (self._ruled(each, "answer") for each in back) if hop["verdict"] != PASSES]
        if stopped:
            yield stopped[0]
        elif back:
            said = f"nothing stops it at {len({passage.node for passage in back})} nodes"
            yield Hop(node=self.end.node, place="answer", said=said, verdict=PASSES)


def _silent(node: str) -> Hop:
    return Hop(node=node, place="host", said="nothing is known of this node", verdict=UNKNOWN)


def _lookup(facts: Any, source: str, address: str) -> Tuple[Optional[Route], str]:
    """The route that decides, by the node's rules in their order; or the rule that cannot be judged."""
    rules: List[Dict[str, Any]] = sorted(facts.get("routing_rules") or _RULES, key=lambda rule: rule["priority"])
    for rule in rules:
        if not (_from(rule, "src", source) and _from(rule, "dst", address)):
            continue
        routes = [
            route
            for route in facts["routes"]
            if route["table"] == str(rule.get("table", "")) and contains(route["destination"], address)
        ]
        if not set(rule) <= _LOOKED_AT:
            if routes or "table" not in rule:
                return None, " ".join(f"{key} {value}" for key, value in rule.items())
            continue
        if routes:
            return max(routes, key=lambda route: (_length(route["destination"]), -route["metric"])), ""
    return None, ""


def _from(rule: Dict[str, Any], end: str, address: str) -> bool:
    """Whether the rule is about packets with this address; the node's own, "", may be any."""
    network = rule.get(end, "all")
    length = f"/{rule[f'{end}len']}" if f"{end}len" in rule else ""
    return network == "all" or not address or contains(f"{network}{length}", address)


def _length(network: str) -> int:
    return 0 if network == "default" else ipaddress.ip_network(network, strict=False).prefixlen
