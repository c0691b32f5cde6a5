"""What is wrong with the cluster as a whole, and what no other fault accounts for."""

from __future__ import annotations

from collections import Counter
from itertools import islice
from typing import FrozenSet, Iterator, List

from ..model import Probe, Remedy
from . import overlay
from .case import Case, ids
from .path import Paths
from .registry import FAULTS, NODE, SYMPTOM, Fault, Suspicion, fault

EXAMPLES = 5
MEASURED = 2  # tunnels between nodes; the next ones resemble them

UNEXPLAINED = Fault("unexplained", 0, "Probes fail for a reason that is not known here", SYMPTOM)
FAULTS[UNEXPLAINED.name] = UNEXPLAINED


@fault("node-unreachable", 0, "A node could not be asked", NODE)
def node_unreachable(case: Case, paths: Paths) -> Iterator[Suspicion]:
    for node in case.run["expected_nodes"]:
        if node in case.nodes:
            continue
        member = case.members.get(node)
        state = "unknown to the cluster" if member is None else "Ready" if member["ready"] else "not Ready"
        said = case.run.get("silent", {}).get(node)
        yield Suspicion(
            where=node,
            evidence=[
                f"{node} gave no facts{f' ({said})' if said else ''}; it is {state}. What is wrong there is not known."
            ],
            remedy=Remedy(
                role="",
                nodes=[node],
                text="See that the machine is up, that SSH to it works, and that it has Python 3.9 or newer.",
            ),
            confidence=0.9,
            explains=ids(probe for probe in case.failed if node in paths.nodes(probe)),
        )


@fault("node-not-ready", 0, "A node is not Ready", SYMPTOM)
def node_not_ready(case: Case, paths: Paths) -> Iterator[Suspicion]:
    for name, node in case.members.items():
        if not node["ready"]:
            yield Suspicion(
                where=name,
                evidence=[f"{name} is not Ready: {node['reason'] or 'no reason given'}."],
                remedy=Remedy(role="", nodes=[name], text="Mend what else was found; then see K3s's journal there."),
                confidence=0.9,
            )


@fault("api-unhealthy", 0, "The API server says that it is not well", SYMPTOM)
def api_unhealthy(case: Case, paths: Paths) -> Iterator[Suspicion]:
    checks = {name: case.cluster["api"].get(name, "ok") for name in ("livez", "readyz", "etcd")}
    unwell = [f"{name}: {said}" for name, said in checks.items() if said not in ("ok", "")]
    if unwell:
        server = case.cluster["api"].get("server", "the API server")
        yield Suspicion(
            where=server,
            evidence=[f"{server} says {'; '.join(unwell)}."],
            remedy=Remedy(role="", nodes=[], text="Mend the servers before anything else is changed."),
            confidence=0.9,
        )


def unexplained(case: Case, paths: Paths, explained: FrozenSet[str]) -> Iterator[Suspicion]:
    """Failing probes that no other finding accounts for: a sick network never looks healthy."""
    left = [probe for probe in case.failed if probe["id"] not in explained]
    if not left:
        return
    rows = Counter(f"{probe['row'] or 'declared'} {case.outcome(probe)}" for probe in left)
    yield Suspicion(
        where=", ".join(sorted({probe["source_node"] for probe in left})),
        evidence=[
            f"{len(left)} failing probes fit no fault that is known here: "
            + ", ".join(f"{count} {row}" for row, count in rows.most_common())
            + ".",
            *islice(overlay.clues(case, paths, left), MEASURED),
            *clues(case, paths, left),
            *(f"{probe['id']}: {case.outcome(probe)}." for probe in left[:EXAMPLES]),
        ],
        remedy=Remedy(role="", nodes=[], text="Nothing is changed for these."),
        confidence=1.0,
        explains=ids(left),
    )


def clues(case: Case, paths: Paths, probes: List[Probe]) -> Iterator[str]:
    """What the firewalls on their way say other than accept: a policy's verdict, or one that is not certain."""
    said = Counter(
        f"{passage.node}: {verdict.backend} {verdict}: {verdict.action}"
        for probe in probes
        for passage in paths.passages(probe)
        for verdict in [paths.judge(passage)]
        if verdict.action != "accept"
    )
    for clue, count in said.most_common(EXAMPLES):
        yield f"{clue}, on the way of {count} of them."
    involved = frozenset().union(*(paths.nodes(probe) for probe in probes))
    for node, result in case.run["results"].items():
        if node in involved:
            for counter, more in result.get("risen", {}).items():
                yield f"{node}: the kernel's counter {counter} rose by {more} while it was probing."
