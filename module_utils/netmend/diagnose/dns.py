"""The cluster's DNS: CoreDNS itself, and the way to it."""

from __future__ import annotations

import json
from typing import FrozenSet, Iterator, List, Optional, Tuple

from ..model import Pod, Probe, Remedy, Service
from .case import BLOCKED, DROPPED, Case, ids
from .path import Paths
from .registry import FAULTS, WORKLOAD, Fault, Suspicion, fault

WORDS = {
    "dns-udp": "UDP",
    "dns-tcp": "TCP",
    "dns-pair": "A and AAAA from one socket",
    "dns-apart": "A and AAAA from two sockets",
}
BY_UDP = ("dns-udp", "dns-pair", "dns-apart")
NAMED_PODS = 3  # in a sentence

# What a pod template needs, so that no two queries of its leave one socket at once.
_OPTIONS = [{"name": "single-request-reopen"}, {"name": "ndots", "value": "2"}]
_APART = {"spec": {"template": {"spec": {"dnsConfig": {"options": _OPTIONS}}}}}

UNREACHABLE = Fault("coredns-unreachable", 35, "CoreDNS answers some nodes, and others not", WORKLOAD, None)
FAULTS[UNREACHABLE.name] = UNREACHABLE


@fault("coredns-down", 34, "CoreDNS does not run, or is not ready", WORKLOAD)
def coredns_down(case: Case, paths: Paths) -> Iterator[Suspicion]:
    """Without a ready endpoint kube-proxy rejects what is sent to the Service
    (kubernetes/kubernetes, pkg/proxy/iptables: "has no endpoints")."""
    address = case.cluster["dns_ip"]
    service = _service(case)
    asked = [probe for probe in case.run["probes"] if address and probe.get("address") == address]
    explained = ids(probe for probe in asked if not case.met(probe) and case.outcome(probe) in BLOCKED)
    if not explained or (service and any(end["ready"] for end in service["endpoints"])):
        return
    name = f"{service['namespace']}/{service['name']}" if service else address
    pods = _pods(case, service)
    others = [probe for probe in case.run["probes"] if probe["row"] in ("pod-pod", "host-pod")]
    yield Suspicion(
        where=name,
        evidence=[
            f"{_state(name, address, service, pods)} {case.tally(asked)} probes of DNS, and {case.tally(others)} to "
            "pods' own addresses, came out as expected."
        ],
        remedy=_remedy(service, pods),
        confidence=0.9 if pods else 0.97,
        explains=explained,
        ruled_out=["The way to it: the Service has no ready endpoint, so that there is nowhere to go."],
    )


@fault("dns-conntrack-race", 36, "Of two DNS queries at once from one socket, the node drops one", WORKLOAD)
def conntrack_race(case: Case, paths: Paths) -> Iterator[Suspicion]:
    """glibc asks for A and AAAA at once from one socket. Where both are on their way before the first one's entry is
    in the table, the second one's cannot be inserted, and kernels that do not resolve the clash drop it.

    Each such packet is counted (insert_failed of /proc/net/stat/nf_conntrack), so that a race accounts for no more
    losses than that; kernels that do resolve it may count it as well, and lose nothing.
    """
    asked = [probe for probe in case.run["probes"] if probe["protocol"] in WORDS]
    twins = {_ends(probe): probe for probe in asked if probe["protocol"] == "dns-apart"}
    for pair in case.failed:
        node, apart = pair["source_node"], twins.get(_ends(pair))
        lost, dropped = case.attempts(pair), case.rose(node, "conntrack.insert_failed")
        if pair["protocol"] != "dns-pair" or case.outcome(pair) not in DROPPED or dropped < lost.failed:
            continue
        if not apart or not case.met(apart):
            continue
        others = [probe for probe in asked if probe["source_node"] == node and probe is not pair]
        yield Suspicion(
            where=node,
            evidence=[
                f"{node}: of pairs of queries, A and AAAA at once, {lost} from one socket lost one, and "
                f"{case.attempts(apart)} from two sockets. Connection tracking there dropped {dropped} packets whose "
                "entries it could not insert while it was probing (insert_failed)."
            ],
            remedy=Remedy(
                role="",
                nodes=[node],
                command="k3s kubectl -n NAMESPACE patch deployment NAME -p '" + json.dumps(_APART) + "'",
                text="Let resolvers send no two queries at once by the Service: a cache on each node (NodeLocal "
                "DNSCache), or in the pods' dnsConfig the option single-request-reopen, which asks for AAAA from a "
                "socket of its own, or use-vc, which asks by TCP (both glibc's; musl has neither). A lower ndots, or a "
                "dot behind external names, makes fewer queries. A kernel since 5.7 resolves such clashes.",
            ),
            confidence=0.9 if lost.failed > 1 else 0.7,
            explains=ids([pair]),
            ruled_out=[
                f"CoreDNS and the way to it: {case.tally(others)} other probes of DNS passed from {node}.",
                "Packets that are lost on their way: as many would be lost from two sockets, and that would not "
                "be counted there.",
                *_room(case, node),
            ],
        )


def _room(case: Case, node: str) -> Iterator[str]:
    table = case.nodes[node]["conntrack"] if node in case.nodes else {}
    if table.get("max"):
        yield (
            f"A full table: it has {table['count']} of {table['max']} connections, and what finds no room is counted "
            "otherwise (drop alone)."
        )


def _ends(probe: Probe) -> Tuple[str, str, str]:
    return probe["source_node"], probe.get("source_pod", ""), probe.get("address", "")


def unreachable(case: Case, paths: Paths, explained: FrozenSet[str]) -> Iterator[Suspicion]:
    """Failing probes of DNS that no fault of the path accounts for, where CoreDNS answers others.

    It is named only beside a path that is well: nothing else that the node asked is left unexplained. And only where a
    whole way fails, UDP or the Service's address: a lost packet or two is no fault that is known here.
    """
    asked = [probe for probe in case.run["probes"] if _of_dns(case, probe)]
    left = [probe for probe in case.failed if probe["id"] not in explained]
    beside = {probe["source_node"] for probe in left if not _of_dns(case, probe)}
    for node in sorted({probe["source_node"] for probe in left} - beside):
        failed = [probe for probe in left if probe["source_node"] == node]
        own = [probe for probe in asked if probe["source_node"] == node]
        of_others = [probe for probe in asked if probe["source_node"] != node and probe["protocol"] in WORDS]
        by_udp = [probe for probe in own if probe["protocol"] in BY_UDP]
        by_service = [probe for probe in own if probe.get("address") == case.cluster["dns_ip"]]
        whole = [way for way in (by_udp, by_service) if way and not any(map(case.met, way))]
        if not whole or not any(map(case.met, of_others)):
            continue
        ends = sorted({flow.end.node for probe in failed for flow in paths.flows(probe)})
        yield Suspicion(
            where=node,
            evidence=[
                f"{node}: {case.tally(own)} probes of DNS passed; {_listed(case, failed)}. Nothing else that was asked "
                f"from there is left unexplained, and CoreDNS, on {', '.join(ends)}, answered "
                f"{case.tally(of_others)} probes of other nodes."
            ],
            remedy=_way(node, ends, own, failed),
            confidence=0.6,
            explains=ids(failed),
            ruled_out=[
                "CoreDNS itself: it answers other nodes.",
                "The overlay, forwarding and the rules of iptables: the node's other probes pass, and no rule there "
                "stops these.",
            ],
        )


def _of_dns(case: Case, probe: Probe) -> bool:
    return probe["protocol"] in WORDS or probe.get("address") == case.cluster["dns_ip"]


def _service(case: Case) -> Optional[Service]:
    address = case.cluster["dns_ip"]
    return next((each for each in case.cluster["services"] if each["cluster_ip"] == address), None)


def _pods(case: Case, service: Optional[Service]) -> List[Pod]:
    """Those that the Service selects."""
    if not service or not service["selector"]:
        return []
    wanted = service["selector"].items()
    return [
        pod
        for pod in case.cluster["pods"]
        if pod["namespace"] == service["namespace"] and wanted <= pod["labels"].items()
    ]


def _state(name: str, address: str, service: Optional[Service], pods: List[Pod]) -> str:
    if not service:
        return f"No Service has the address {address}, which pods are given for DNS."
    said = f"{name} ({address}) has no ready endpoint"
    if not pods:
        return f"{said}: there is no pod with its labels ({_labels(service)})."
    states = [
        f"{pod['name']} on {pod['node'] or 'no node'}: {'ready' if pod['ready'] else 'not ready'}, "
        f"{pod['reason'] or pod['phase']}"
        for pod in pods[:NAMED_PODS]
    ]
    return f"{said}; of its {len(pods)} pods: {'; '.join(states)}."


def _labels(service: Service) -> str:
    return ",".join(f"{key}={value}" for key, value in sorted(service["selector"].items()))


def _remedy(service: Optional[Service], pods: List[Pod]) -> Remedy:
    if not service:
        text = "Install a DNS for the cluster; K3s brings CoreDNS unless it is told to disable it."
        return Remedy(role="", nodes=[], text=text)
    kubectl, labels = f"k3s kubectl -n {service['namespace']}", _labels(service)
    if not pods:
        return Remedy(
            role="",
            nodes=[],
            command=f"{kubectl} scale deployment -l {labels} --replicas=1",
            text="Scale CoreDNS up; where its Deployment is gone, a restart of K3s on a server applies its own again.",
        )
    return Remedy(
        role="",
        nodes=[],
        command=f"{kubectl} describe pods -l {labels}; {kubectl} logs -l {labels}",
        text="Mend what else was found; then see why CoreDNS's pods are not ready, and mend that.",
    )


def _way(node: str, ends: List[str], own: List[Probe], failed: List[Probe]) -> Remedy:
    """What to look at, by which of the ways to CoreDNS fail: by its Service, by its own address, by UDP, by TCP."""
    nodes = list(dict.fromkeys([node, *ends]))
    direct = [probe for probe in own if probe.get("target_pod")]
    if direct and all(probe not in failed for probe in direct):
        text = "Only the Service's address fails: look there at kube-proxy's rules and at conntrack's entries for it."
        return Remedy(role="", nodes=[node], command="conntrack -L -p udp --orig-port-dst 53", text=text)
    only_udp = all(probe["protocol"] in BY_UDP for probe in failed)
    text = (
        f"Look on {', '.join(nodes)} for what stops port 53{' by UDP alone' if only_udp else ''}: a rule of nftables "
        "that is not in iptables' tables, or a program that handles packets itself. To tell at which end: tcpdump "
        "port 53 on CoreDNS's node."
    )
    return Remedy(role="", nodes=nodes, command="nft list ruleset | grep -n 53", text=text)


def _listed(case: Case, probes: List[Probe]) -> str:
    return ", ".join(
        f"{WORDS.get(probe['protocol'], 'TCP')} to {probe['address']} {case.outcome(probe)}" for probe in probes
    )
