"""What was asked along the way from the internet to the applications, by backend and by balancer, and in words."""

from __future__ import annotations

from collections import Counter
from typing import Dict, Iterable, Iterator, List, NamedTuple, Optional, Sequence, Tuple

from ..edge import Edge, Site, services_of
from ..model import Balancer, BalancerService, Observation, Probe, Remedy, Service
from .case import Case, ids
from .registry import Suspicion

AT_ONCE = 1.0  # seconds; nobody was waited for
TRIED = 3.0  # seconds; a SYN was sent at 0, 1 and 3 s (RFC 6298), and who balances gives up later than that
NAMED = 3  # in a sentence
GONE = "499"  # nginx's own: the client went before there was an answer. What comes after it are errors, too
NO_FREE_PORTS = "free ports"  # Kubernetes: pkg/scheduler/framework/plugins/nodeports, ErrReason


class Failing(NamedTuple):
    """A backend of Ingresses, some of whose probes fail."""

    edge: Edge
    site: Site
    service: Optional[Service]
    probes: List[Probe]
    failed: List[Probe]

    @property
    def name(self) -> str:
        return f"{self.site.namespace}/{self.site.service}"

    def rows(self, *rows: str) -> List[Probe]:
        return [probe for probe in self.probes if probe["row"] in rows]

    def inside(self, pod: str = "") -> List[Probe]:
        """What pods, or one of them, asked themselves, by no Service."""
        own = [probe for probe in self.rows("edge-self") if not probe.get("target_service")]
        return [probe for probe in own if pod in ("", probe["target_pod"])]

    def said(self, case: Case) -> str:
        through = [probe for probe in self.failed if probe["row"] in ("edge-balancer", "edge-node")]
        return f"{requests(case, through or self.failed)}."

    def suspicion(self, evidence: List[str], remedy: Remedy, confidence: float, ruled_out: Sequence[str]) -> Suspicion:
        return Suspicion(self.name, evidence, remedy, confidence, ids(self.failed), ruled_out)


class Through(NamedTuple):
    """A balancer's service, and what was asked by it and behind it."""

    balancer: Balancer
    service: BalancerService
    targets: Dict[str, Dict[str, str]]  # node -> status by listening port
    asked: List[Probe]
    failed: List[Probe]
    waited: List[Probe]  # passed, but the balancer had to try more than one target
    doors: List[Probe]  # the same port of the nodes, asked by nodes
    health: List[Probe]

    @property
    def suffers(self) -> bool:
        """Whether requests fail, or the balancer says itself that targets do."""
        port = str(self.service["listen_port"])
        return bool(self.failed) or any(status.get(port) == "unhealthy" for status in self.targets.values())

    def said(self, case: Case) -> str:
        if self.failed:
            return requests(case, self.failed)
        said = f"{self.balancer['name']}: of {len(self.asked)} probes none fails"
        if self.waited:
            said += f", and {len(self.waited)} had requests that were answered{after(case.seen(self.waited[0]))}"
        return said


def failing_backends(case: Case) -> Iterator[Failing]:
    edge = case.edge
    for site in {site.backend: site for site in reversed(edge.sites)}.values():
        probes = probes_of(case, site.backend)
        failed = [probe for probe in probes if not case.met(probe)]
        if failed:
            yield Failing(edge, site, edge.service(site), probes, failed)


def through_balancers(case: Case) -> Iterator[Through]:
    edge = case.edge
    for balancer in edge.balancers:
        of_it = [probe for probe in case.run["probes"] if probe.get("balancer") == balancer["name"]]
        for service in services_of(balancer):
            at_port = [
                each for each in of_it if each["row"] == "edge-balancer" and each["port"] == service["listen_port"]
            ]
            yield Through(
                balancer,
                service,
                edge.targets(balancer),
                at_port,
                [probe for probe in at_port if not case.met(probe)],
                [probe for probe in at_port if case.met(probe) and case.seen(probe).get("rtt_ms", 0) > TRIED * 1000],
                [
                    probe
                    for probe in case.run["probes"]
                    if probe["row"] == "edge-node" and probe["port"] == service["destination_port"]
                ],
                [probe for probe in of_it if probe["row"] == "edge-health"],
            )


def probes_of(case: Case, backend: str, *rows: str) -> List[Probe]:
    return [probe for probe in case.by_backend.get(backend, []) if not rows or probe["row"] in rows]


def requests(case: Case, probes: Iterable[Probe]) -> str:
    """ "7 of 20 requests fail by lb1, agent1:31695 (6 status 503 at once, 1 timeout)"."""
    asked = list(probes)
    tallies = [case.attempts(probe) for probe in asked]
    seen = Counter[str]()
    for probe, tally in zip(asked, tallies):
        observed = case.seen(probe)
        status = observed.get("status", 0)
        seen[(f"status {status}" if status else case.outcome(probe)) + after(observed)] += tally.failed
    by = list(dict.fromkeys(way(probe) for probe in asked))
    more = f" and {len(by) - NAMED} more ways" if len(by) > NAMED else ""
    failed, made = sum(tally.failed for tally in tallies), sum(tally.attempts for tally in tallies)
    return f"{failed} of {made} requests fail by {', '.join(by[:NAMED])}{more} ({counts(seen)})"


def logged(case: Case, sites: Iterable[Site]) -> str:
    """What ingress-nginx's own logs have of the sites: what was answered with an error, and which tries failed.

    "" where there is no log, or no error in it.
    """
    upstreams = {site.upstream for site in sites}
    answers, tries, failures, where, seconds = Counter[str](), Counter[str](), Counter[Tuple[str, str]](), [], 0.0
    for node, said in case.controllers:
        if said["log"] is None:
            continue
        ends = {end for name in upstreams for end in (said["endpoints"] or {}).get(name, [])}
        of_node = Counter[str]()
        for name in upstreams:
            of_node.update(said["log"]["answers"].get(name, {}))
        failed = {(end, what): n for end in ends for what, n in said["log"]["failures"].get(end, {}).items()}
        if failed or any(status >= GONE for status in of_node):
            where.append(node)
        answers.update(of_node)
        failures.update(failed)
        tries.update({end: said["log"]["tries"].get(end, 0) for end in ends})
        seconds = max(seconds, said["seconds"])
    if not where:
        return ""
    bad = Counter({f"with {status}": count for status, count in answers.items() if status >= GONE})
    clauses = [f"{sum(bad.values())} of {sum(answers.values())} requests answered {counts(bad)}"] if bad else []
    for (end, what), count in failures.most_common(NAMED):
        # Where the log's form is another one, how many tries there were is not known.
        share = f"{count} of {tries[end]}" if tries[end] >= count else str(count)
        clauses.append(f'{share} tries of {end} ended with "{what}"')
    said_by = ", ".join(where[:NAMED]) + (f" and {len(where) - NAMED} more" if len(where) > NAMED else "")
    return f"The ingress controller's own log of {seconds / 60:.0f} minutes on {said_by}: {'; '.join(clauses)}."


def way(probe: Probe) -> str:
    if probe.get("balancer"):
        return probe["balancer"]
    return f"{probe.get('target_node') or probe['address']}:{probe['port']}"


def after(seen: Observation) -> str:
    took = seen.get("rtt_ms", 0.0) / 1000
    if not seen.get("status"):
        return ""
    return " at once" if took < AT_ONCE else f" after {took:.0f} s"


def counts(seen: Counter[str]) -> str:
    return ", ".join(f"{count} {what}" for what, count in seen.most_common(NAMED))


def listed(labels: Dict[str, str]) -> str:
    return ",".join(f"{key}={value}" for key, value in labels.items())
