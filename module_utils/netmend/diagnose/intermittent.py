"""What fails at times: one endpoint of a Service, or whatever else repeated attempts have in common.

How many attempts fail does not tell one endpoint of five that always fails from five that fail a fifth of the time.
What does: the endpoint that connection tracking led each attempt to; else the ports that failed, asked again, which it
leads to the same endpoint as before.
"""

from __future__ import annotations

from collections import Counter
from itertools import islice
from typing import Dict, FrozenSet, Iterator, List, Optional, Tuple

from ..loss import BY_CHANCE, Label, Lead, Sample, Tally, chance, interval, leads, total, wilson
from ..model import Probe, Remedy
from . import cluster, overlay
from .case import Case, Endpoint, ids
from .path import Paths
from .registry import FABRIC, FAULTS, WORKLOAD, Fault, Suspicion

ENDPOINT_FAILS = Fault("endpoint-fails", 0, "One endpoint of a Service fails, and others answer", WORKLOAD)
FAILS_AT_TIMES = Fault("fails-at-times", 0, "Probes fail at times, and pass at others", FABRIC)
for _fault in (ENDPOINT_FAILS, FAILS_AT_TIMES):
    FAULTS[_fault.name] = _fault

WORDS = {"endpoint": "at {}", "from": "from {}", "node": "from or to {}", "pair": "from {}", "to": "to {}"}
# What would speak against a label, where another one fits as well.
TELLS = {
    "endpoint": "another pod on that node, asked by its own address",
    "from": "another pod of that node as the source",
    "node": "that node asked from others, and others from there",
    "pair": "others asked from the first, and the second from others",
    "to": "another pod on that node, asked by its own address",
}


def endpoint_fails(case: Case, paths: Paths, explained: FrozenSet[str]) -> Iterator[Suspicion]:
    """The failures at a Service keep to one of its endpoints, and not to that by chance.

    Probes of that endpoint's own address are explained by it, too.
    """
    left = [probe for probe in case.failed if probe["id"] not in explained]
    for service, asked in _by_service(case, left).items():
        ends = {_named(case, end): end for probe in asked for end in case.endpoints(probe)}
        addresses = {end.address for end in ends.values()}
        direct = [probe for probe in left if probe.get("address") in addresses]
        keeps = leads(_samples(case, paths, asked + direct))
        if not keeps or keeps[0].label[0] != "endpoint" or keeps[0].label[1] not in ends:
            continue
        end = ends[keeps[0].label[1]]
        yield Suspicion(
            where=service,
            evidence=[
                f"{service} has {len(ends)} endpoints: {interval(keeps[0].inside)} attempts at {keeps[0].label[1]} on "
                f"{end.node} failed, {keeps[0].outside} elsewhere; by chance: {keeps[0].chance:.1g}.",
                *_rivals(keeps),
            ],
            remedy=Remedy(
                role="",
                nodes=[end.node],
                text=f"See what is wrong with {keeps[0].label[1]}; a pod that is recreated has another address.",
            ),
            confidence=0.9 if len(keeps) == 1 else 0.6,
            explains=ids(asked) | ids(probe for probe in direct if probe["address"] == end.address),
            ruled_out=["All endpoints failing now and then: the failures would be spread over them."],
        )


def fails_at_times(case: Case, paths: Paths, explained: FrozenSet[str]) -> Iterator[Suspicion]:
    """Failing probes that no other fault accounts for, and some of whose attempts passed."""
    lossy = [probe for probe in case.failed if probe["id"] not in explained and case.comes_and_goes(probe)]
    if not lossy:
        return
    samples = _samples(case, paths, lossy)
    keeps = leads(samples)
    outcomes = Counter(case.said(probe) for probe in lossy).most_common()
    yield Suspicion(
        where=keeps[0].label[1] if keeps else ", ".join(sorted({probe["source_node"] for probe in lossy})),
        evidence=[
            f"{interval(total(map(case.attempts, lossy)))} attempts of {len(lossy)} probes failed: "
            + ", ".join(f"{count} {outcome}" for outcome, count in outcomes)
            + ".",
            *([_kept(keeps[0])] if keeps else [_spread(samples)]),
            *_rivals(keeps),
            *_same_ports(case, lossy),
            *cluster.clues(case, paths, lossy),
            *islice(overlay.clues(case, paths, lossy), 1),  # others resemble it
            *_shares(case, lossy),
        ],
        remedy=Remedy(
            role="", nodes=[], text="Nothing is changed for these; with netmend_rounds=20 the figures are surer."
        ),
        confidence=0.9 if len(keeps) == 1 else 0.7,
        explains=ids(lossy),
    )


def _by_service(case: Case, probes: List[Probe]) -> Dict[str, List[Probe]]:
    """Those that fail at times, by the Service that they ask."""
    found: Dict[str, List[Probe]] = {}
    for probe in probes:
        if probe.get("target_service") and case.comes_and_goes(probe):
            found.setdefault(probe["target_service"], []).append(probe)
    return found


# --- what the failures keep to ---


def _samples(case: Case, paths: Paths, failing: List[Probe]) -> List[Sample]:
    """The attempts of these and of all probes that came out as expected, by where they began and ended.

    Only of probes that end as these do, at pods or at hosts: what passes between hosts says nothing of pods.
    """
    wanted = ids(failing)
    kinds = {end.pod for probe in failing for end in case.endpoints(probe)}
    samples = []
    for probe in case.run["probes"]:
        if probe["protocol"] == "dns-apart":
            continue  # of its two sockets, nobody knows which one led where
        ends = {flow.end.address: flow for flow in paths.flows(probe)}
        if not (probe["id"] in wanted or case.met(probe)) or not kinds & {flow.end.pod for flow in ends.values()}:
            continue
        rest = case.attempts(probe)
        for address, tally in case.led(probe).items():
            if address in ends:
                samples.append(Sample(_labels(case, probe, ends[address].end), tally))
                rest = rest.without(tally)
        only = next(iter(ends.values())).end if len(ends) == 1 else None
        samples.append(Sample(_labels(case, probe, only), rest))
    return samples


def _labels(case: Case, probe: Probe, end: Optional[Endpoint]) -> FrozenSet[Label]:
    source = probe["source_node"]
    labels = {("from", source), ("node", source)}
    if end:
        labels |= {("to", end.node), ("node", end.node), ("pair", f"{source}>{end.node}")}
    if end and (end.pod or probe.get("target_service")):
        labels.add(("endpoint", _named(case, end)))
    return frozenset(labels)


def _named(case: Case, end: Endpoint) -> str:
    """ "kube-system/coredns-1 (10.42.0.200)": that it is a resolver is in the name."""
    pod = case.pod_at(end.address)
    return f"{pod['namespace']}/{pod['name']} ({end.address})" if pod else end.address


def _kept(lead: Lead) -> str:
    counts = f"{lead.inside} failed, {lead.outside} elsewhere; by chance: {lead.chance:.1g}"
    return f"They keep to what goes {_words(lead)}: {counts}."


def _words(lead: Lead) -> str:
    kind, name = lead.label
    return WORDS[kind].format(name.replace(">", " to "))


def _rivals(keeps: List[Lead]) -> Iterator[str]:
    if len(keeps) > 1:
        others = ", or ".join(f"{_words(lead)} ({lead.inside})" for lead in keeps[1:])
        tells = "; ".join(dict.fromkeys(TELLS[lead.label[0]] for lead in keeps))
        yield f"That they keep to what goes {others} fits as well. What tells: {tells}."


def _spread(samples: List[Sample]) -> str:
    """How the failures are spread over the endpoints, where they keep to nothing."""
    by_end: Dict[str, Tally] = {}
    for sample in samples:
        for kind, name in sample.labels:
            if kind == "endpoint":
                by_end[name] = by_end.get(name, Tally(0, 0)).plus(sample.tally)
    failing = sum(tally.failed > 0 for tally in by_end.values())
    over = f" Of {len(by_end)} endpoints {failing} failed at times." if failing else ""
    return f"They keep to no node, pair of nodes or endpoint, as far as these are known, more than chance does.{over}"


# --- ports, and the share of a Service's endpoints ---


def _same_ports(case: Case, lossy: List[Probe]) -> Iterator[str]:
    """Whether what failed fails again from the same port: an entry of connection tracking, or one path of several."""
    again, others = _again(case, lossy)
    if not again.attempts:
        return
    by_chance = chance(again, others)
    said = f"Asked again from ports that had failed, {again} attempts failed, {others} from others"
    if by_chance >= BY_CHANCE:
        yield f"{said}; by chance: {by_chance:.1g}. That does not show that ports matter."
        return
    port = next(port for probe in lossy for port, tally in case.ports(probe).items() if tally.attempts > 1)
    yield (
        f"{said}; by chance: {by_chance:.1g}. So it is an entry of connection tracking that is stuck, the endpoint "
        "that it leads to, or one path of several that ports choose. What tells: each endpoint asked by its own "
        f"address, and `conntrack -D --orig-port-src {port}` before that port is asked again."
    )


def _again(case: Case, probes: List[Probe]) -> Tuple[Tally, Tally]:
    """The attempts that were made from a port that had failed, and all others."""
    tallies = [tally for probe in probes for tally in case.ports(probe).values() if tally.attempts > 1]
    again = Tally(sum(each.attempts - 1 for each in tallies), sum(each.failed - 1 for each in tallies))
    return again, total(map(case.attempts, probes)).without(again)


def _shares(case: Case, lossy: List[Probe]) -> Iterator[str]:
    """Of Services whose endpoints nobody told: whether one of them that always fails would give as many failures."""
    for service, probes in _by_service(case, lossy).items():
        ends = {end.address for probe in probes for end in case.endpoints(probe)}
        if len(ends) < 2 or any(case.led(probe) for probe in probes):
            continue
        tally = _again(case, probes)[1]  # the others repeat a choice, and make none
        low, high = wilson(tally)
        fits = low <= 1 / len(ends) <= high
        one = f"one of its {len(ends)} endpoints that always fails would give {1 / len(ends):.0%}, which "
        yield (
            f"{service}: {interval(tally)} attempts failed; {one}"
            + ("fits, as does that all fail so often. What tells: each endpoint asked by its own address."
               if fits else "does not fit.")
        )  # fmt: skip
