"""Reading a matrix: its probes one by one, and what fails in as few sentences as name every failing path."""

from __future__ import annotations

from collections import Counter
from typing import Dict, FrozenSet, Iterable, Iterator, List, NamedTuple, Optional, Tuple, Union

from ..loss import Tally, interval, wilson
from ..model import Check, Matrix, Outcome, Row, Walk

Pair = Tuple[str, str]  # source node, destination

# What a row of the plan tells of, for a reader who does not know the project.
MEANINGS = {
    "host-host": "From node to node: ping, full MTU, kubelet and API server",
    "host-pod": "From a node to pods on every node",
    "pod-pod": "From a pod to pods on every node",
    "pod-clusterip": "From a pod to Services by their ClusterIP",
    "host-clusterip": "From a node to Services by their ClusterIP",
    "pod-dns": "From a pod to the cluster's DNS, by UDP and TCP",
    "node-nodeport": "From a node to NodePorts on every node",
    "edge-balancer": "From outside to the Ingresses' hosts by each balancer",
    "edge-health": "On each node what the balancers' health checks ask there",
    "edge-node": "From a node to the Ingresses' hosts by each ingress controller's ports",
    "edge-service": "From an ingress controller's node to the Services behind Ingresses",
    "edge-pod": "From an ingress controller's node to the pods behind Ingresses",
    "edge-self": "From inside the pods behind Ingresses to themselves, and to their own Service",
    "edge-outside": "From pods, and from their nodes, to a balancer outside of the cluster",
}


class Seen(NamedTuple):
    """One probe."""

    source: str
    check: Check
    outcome: Outcome
    rtt_ms: Optional[float]


class Star(NamedTuple):
    """Failing paths that have one end in common."""

    node: str
    outwards: bool  # from the node; False: to it
    others: List[str]


def probes(matrix: Matrix, name: str) -> Iterator[Seen]:
    """All probes of a row, by source."""
    row, outcomes = matrix["rows"][name], matrix["outcomes"]
    for source, line in row["sources"].items():
        for check, seen, rtt_ms in zip(row["checks"], line["seen"], line["rtt_ms"]):
            if seen is not None:
                yield Seen(source, check, outcomes[seen], rtt_ms)


def cells(matrix: Matrix, name: str) -> Dict[Pair, List[Seen]]:
    """A row's probes by source and destination."""
    found: Dict[Pair, List[Seen]] = {}
    for probe in probes(matrix, name):
        found.setdefault((probe.source, probe.check["to"]), []).append(probe)
    return found


def failing(matrix: Matrix, name: str) -> Dict[Pair, List[Seen]]:
    """The probes of a row that were not met, by source and destination."""
    found: Dict[Pair, List[Seen]] = {}
    for probe in probes(matrix, name):
        if not probe.outcome["met"]:
            found.setdefault((probe.source, probe.check["to"]), []).append(probe)
    return found


def destinations(row: Row) -> List[str]:
    return list(dict.fromkeys(check["to"] for check in row["checks"]))


def asked(check: Union[Check, Walk]) -> str:
    """What a probe asks, in a word: "tcp/10250", "icmp"."""
    return f"{check['protocol']}/{check['port']}" if check["protocol"] in ("tcp", "udp") else check["protocol"]


def stars(pairs: Iterable[Pair]) -> List[Star]:
    """Directed pairs, gathered around the ends that most have in common, the largest first; each pair is in one."""
    left: Dict[bool, Dict[str, Dict[str, None]]] = {True: {}, False: {}}
    for source, target in pairs:
        left[True].setdefault(source, {})[target] = None
        left[False].setdefault(target, {})[source] = None
    found = []
    while left[True]:
        # The first of those that are alike, and sources before destinations: the same sentences for the same matrix.
        outwards, node = max(
            ((outwards, node) for outwards in (True, False) for node in left[outwards]),
            key=lambda end: len(left[end[0]][end[1]]),
        )
        others = list(left[outwards].pop(node))
        for other in others:
            opposite = left[not outwards][other]
            del opposite[node]
            if not opposite:
                del left[not outwards][other]
        found.append(Star(node, outwards, others))
    return found


def sentences(matrix: Matrix, name: str, most: int = 6) -> List[str]:
    """What fails in a row: "agent1 to agent2, server0: timeout (tcp/8080)"."""
    failed = failing(matrix, name)
    return [f"{path}: {_outcomes(failed, pairs)}" for path, pairs in _paths(stars(failed), most)]


def losses(matrix: Matrix, most: int = 12) -> List[str]:
    """What is lost now and then, the most first: "pod-pod agent1 to agent2 (tcp/8080): 4 of 20 (20 %, ...)"."""
    found = [
        (Tally(loss["attempts"], loss["failed"]), f"{name} {loss['source']} to {check['to']} ({asked(check)})")
        for name, row in matrix["rows"].items()
        for loss in row["losses"]
        for check in [row["checks"][loss["check"]]]
    ]
    found.sort(key=lambda item: -wilson(item[0])[0])
    more = [f"and {len(found) - most} more of the kind"] if len(found) > most else []
    return [f"{path}: {interval(tally)}" for tally, path in found[:most]] + more


def named(names: List[str], most: int) -> str:
    """ "a, b and 7 more"."""
    if len(names) <= most + 1:
        return ", ".join(names)
    return f"{', '.join(names[:most])} and {len(names) - most} more"


def _paths(found: List[Star], most: int) -> Iterator[Tuple[str, List[Pair]]]:
    """The stars in words, with their pairs; nodes that all fail with each other are told of at once."""
    meshes: Dict[FrozenSet[str], List[Star]] = {}
    for star in found:
        meshes.setdefault(frozenset([star.node, *star.others]), []).append(star)
    for ends, alike in meshes.items():
        if len(ends) > 2 and len(alike) == len(ends) and all(star.outwards for star in alike):
            names = [star.node for star in alike]
            yield f"each of {named(names, most)} to each other", [pair for star in alike for pair in _pairs(star)]
            continue
        for star in alike:
            others = named(star.others, most)
            yield f"{star.node} to {others}" if star.outwards else f"{others} to {star.node}", _pairs(star)


def _pairs(star: Star) -> List[Pair]:
    return [(star.node, other) if star.outwards else (other, star.node) for other in star.others]


def _outcomes(failed: Dict[Pair, List[Seen]], pairs: List[Pair]) -> str:
    """ "refused (tcp/10250, tcp/6443), timeout (icmp)", the most frequent first."""
    seen: Dict[str, Counter[str]] = {}
    for pair in pairs:
        for probe in failed[pair]:
            seen.setdefault(probe.outcome["outcome"], Counter())[asked(probe.check)] += 1
    ordered = sorted(seen.items(), key=lambda item: -sum(item[1].values()))
    return ", ".join(f"{outcome} ({named([what for what, _ in of.most_common()], 3)})" for outcome, of in ordered)
