"""What a node's kernel does with packets before any firewall's rule, or for want of room."""

from __future__ import annotations

from typing import Any, Dict, Iterator, NamedTuple

from ..model import Remedy, Route
from .case import BLOCKED, DROPPED, Case, ids
from .path import Paths
from .registry import KERNEL, Suspicion, fault

NEARLY_FULL = 0.95
NO_ROOM = DROPPED | {"prohibited"}  # what the node itself sends comes back as EPERM
LEAST_CONNTRACK_MAX = 131072  # what kube-proxy sets at least (conntrack.min)
STRICT = 1  # of rp_filter; 2 is loose


@fault("ip-forward-off", 19, "The node's kernel forwards nothing (ip_forward is 0)", KERNEL)
def ip_forward_off(case: Case, paths: Paths) -> Iterator[Suspicion]:
    """Certain by the fact alone: every pod behind another node, and every NodePort, needs forwarding."""
    for node, facts in case.nodes.items():
        if facts["sysctls"].get("net.ipv4.ip_forward") != "0" or node not in case.members:
            continue
        through = [
            probe
            for probe in case.run["probes"]
            if any(
                passage.node == node and passage.hook == "FORWARD" and not passage.packet.bridged
                for flow in paths.flows(probe)
                if node in (flow.source, flow.via, flow.end.node)  # a Service has as many flows as endpoints
                for passage in paths.along(probe, flow)
            )
        ]
        yield Suspicion(
            where=node,
            evidence=[
                f"{node}: net.ipv4.ip_forward is 0. "
                f"{case.tally(through)} probes that it may have to forward came out as expected."
            ],
            remedy=Remedy(
                role="iptables_forward",
                nodes=[node],
                vars=_parameter("net.ipv4.ip_forward", 1),
                text="Set net.ipv4.ip_forward to 1, and keep it in /etc/sysctl.d.",
            ),
            confidence=0.99,
            explains=ids(probe for probe in through if case.outcome(probe) in BLOCKED and not case.met(probe)),
            ruled_out=["A firewall's drop: with ip_forward 0 no packet gets as far as FORWARD."],
        )


@fault("bridge-nf-off", 20, "Bridged packets bypass iptables (bridge-nf-call-iptables is 0)", KERNEL)
def bridge_nf_off(case: Case, paths: Paths) -> Iterator[Suspicion]:
    """A fact that bites whenever a Service's endpoint is on the asking pod's node: its answer is not translated back.

    Where the CNI has no bridge (Calico), the switch means nothing.
    """
    for node, facts in case.nodes.items():
        bridge = case.bridge(node)
        if facts["sysctls"].get("net.bridge.bridge-nf-call-iptables") != "0" or not bridge:
            continue
        beside = [
            probe
            for probe in case.run["probes"]
            if (node, "PREROUTING") in paths.translators(probe)
            and probe["source_node"] == node
            and any(flow.end.pod and flow.end.node == node for flow in paths.flows(probe))
        ]
        explained = ids(probe for probe in beside if case.outcome(probe) in BLOCKED and not case.met(probe))
        yield Suspicion(
            where=node,
            evidence=[
                f"{node}: net.bridge.bridge-nf-call-iptables is 0, and its pods hang on the bridge {bridge['name']}. "
                f"{case.tally(beside)} probes by pods here to Services with endpoints here came out as expected."
            ],
            remedy=Remedy(
                role="iptables_forward",
                nodes=[node],
                vars=_parameter("net.bridge.bridge-nf-call-iptables", 1),
                text="Set net.bridge.bridge-nf-call-iptables to 1, and keep it in /etc/sysctl.d.",
            ),
            confidence=0.95 if explained else 0.85,
            explains=explained,
            ruled_out=["kube-proxy: a Service whose endpoint is on another node is not concerned."],
        )


@fault("conntrack-full", 22, "The node's table of connections is full", KERNEL)
def conntrack_full(case: Case, paths: Paths) -> Iterator[Suspicion]:
    """Where there is no room left, the first packet of a connection is dropped before any rule sees it.

    A table that is nearly full, and that nothing was lost by yet, is going to be. Linux:
    Documentation/networking/nf_conntrack-sysctl.rst; "drop" of /proc/net/stat/nf_conntrack counts what found no room.
    """
    for node, facts in case.nodes.items():
        count, limit = facts["conntrack"].get("count", 0), facts["conntrack"].get("max", 0)
        if not limit or count < NEARLY_FULL * limit:
            continue
        lost = case.rose(node, "conntrack.drop")
        there = [probe for probe in case.run["probes"] if node in paths.nodes(probe)]
        enough = max(LEAST_CONNTRACK_MAX, 2 * limit)
        yield Suspicion(
            where=node,
            evidence=[
                f"{node}: {count} connections, and net.netfilter.nf_conntrack_max is {limit}. {lost} packets were "
                "dropped for want of room while it was probing. "
                f"{case.tally(there)} probes that it sends, receives or forwards came out as expected."
            ],
            remedy=Remedy(
                role="iptables_forward",
                nodes=[node],
                vars=_parameter("net.netfilter.nf_conntrack_max", enough),
                text=f"Set net.netfilter.nf_conntrack_max to {enough}, and keep it in /etc/sysctl.d.",
            ),
            confidence=0.95 if lost else 0.7,
            explains=ids(each for each in there if lost and case.outcome(each) in NO_ROOM and not case.met(each)),
            ruled_out=["A firewall: what has no room is dropped before any rule counts it."] if lost else [],
        )


@fault("reverse-path-filter", 21, "The strict reverse path filter drops what a peer sends", KERNEL)
def reverse_path_filter(case: Case, paths: Paths) -> Iterator[Suspicion]:
    """rp_filter 1 drops what arrives on another interface than the one by which its sender would be answered.

    RFC 3704; Linux: Documentation/networking/ip-sysctl.rst, where the larger value of conf/all and of the interface
    counts. The counter is of the whole node, and other packets raise it too: so it takes a way that is not symmetric.
    """
    for node in case.nodes:
        dropped = case.rose(node, "TcpExt.IPReversePathFilter")
        for peer in case.peers(node) if dropped else []:
            between = [probe for probe in case.run["probes"] if {node, peer} <= paths.nodes(probe)]
            explained = ids(each for each in between if case.outcome(each) in DROPPED and not case.met(each))
            for detour in _detours(case, paths, node, peer) if explained else []:
                filter_there = f"net.ipv4.conf.{detour.arrives.replace('.', '/')}.rp_filter"
                yield Suspicion(
                    where=node,
                    evidence=[
                        f"{node}: the reverse path filter dropped {dropped} packets while it was probing. What {peer} "
                        f"sends from {detour.address} arrives on {detour.arrives}, where rp_filter is strict (1), and "
                        f"the way back is {_written(detour.route)}. "
                        f"{case.tally(between)} probes between the two came out as expected."
                    ],
                    remedy=Remedy(
                        role="",
                        nodes=[node],
                        command=f"ip route del {_written(detour.route)}"
                        if detour.another
                        else f"sysctl -w {filter_there}=2",
                        text=f"Let the way to {detour.address} leave by {detour.arrives}, where its packets arrive; "
                        f"only where the route has to stay, set {filter_there} to 2 (loose), and keep it in sysctl.d.",
                    ),
                    confidence=0.95,
                    explains=explained,
                    ruled_out=[
                        "A firewall's drop: the kernel drops these while it looks for their route, and counts them.",
                        "The fabric: they arrived.",
                    ],
                )


class _Detour(NamedTuple):
    """A peer's address that the node answers by another interface than the one on which its packets arrive."""

    address: str
    arrives: str
    route: Route  # the way back
    another: bool  # a route behind it leads where the packets arrive


def _detours(case: Case, paths: Paths, node: str, peer: str) -> Iterator[_Detour]:
    """As far as the main table tells; of the peer itself, and of its pods."""
    own = case.internal_ip(node)
    ways = {
        case.internal_ip(peer): next(
            (
                interface["name"]
                for interface in case.nodes[node]["interfaces"]
                if own in (address.partition("/")[0] for address in interface["addresses"])
            ),
            "",
        )
    }
    overlay = paths.overlay(peer, node)
    if overlay and case.interface(node, overlay.device):
        ways[case.pod_address(peer)] = overlay.device
    for address, arrives in ways.items():
        routes = case.routes(node, address) if address else []
        if routes and arrives and routes[0]["device"] != arrives and _rp_filter(case, node, arrives) == STRICT:
            another = len(routes) > 1 and routes[1]["device"] == arrives
            yield _Detour(address, arrives, routes[0], another)


def _rp_filter(case: Case, node: str, device: str) -> int:
    sysctls = case.nodes[node]["sysctls"]
    names = (f"net.ipv4.conf.{name}.rp_filter" for name in ("all", device.replace(".", "/")))
    return max(int(sysctls.get(name, 0)) for name in names)


def _written(route: Route) -> str:
    via = f" via {route['gateway']}" if route["gateway"] else ""
    return f"{route['destination']}{via} dev {route['device']}"


def _parameter(name: str, value: int) -> Dict[str, Any]:
    """What the role iptables_forward is given to set one kernel parameter, and do nothing else."""
    return {"iptables_forward_accepts": False, "iptables_forward_sysctls": {name: str(value)}}
