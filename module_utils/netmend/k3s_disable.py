"""K3s's own components that have ports of the nodes, and what tells a server to do without them.

docs.k3s.io/installation/packaged-components: what `disable` names is uninstalled when a server starts, and its manifest
deleted. servicelb has no manifest: a cloud controller that starts without it deletes all DaemonSets with its label
nodeselector (k3s-io/k3s: pkg/cloudprovider/cloudprovider.go, Initialize). It is one server's, whichever leads: all
servers have to do without it.
"""

from __future__ import annotations

from typing import Any, Collection, Dict, FrozenSet, Iterator, List, Mapping, NamedTuple, Sequence, Set, cast

from .declared import each, one_of
from .model import ClusterFacts, NodeFacts, Pod
from .parse.cluster import NAME_LABEL
from .parse.k3s import drop_in

COMPONENTS = ("servicelb", "traefik")
NAMESPACE = "kube-system"
SERVICE = "svccontroller.k3s.cattle.io/svcname"  # the labels of servicelb's pods: for which Service they hold ports
SERVICE_NAMESPACE = "svccontroller.k3s.cattle.io/svcnamespace"
DROP_IN = "90-netmend-disable.yaml"  # in config.yaml.d of every server


class Plan(NamedTuple):
    """What a server's drop-in comes to."""

    path: str
    content: str  # "": nothing to write
    restart: bool  # whether K3s has yet to start with what its configuration then says


def read(given: Any, where: str = "netmend_k3s_disable") -> List[str]:
    """The variable. ValueError names what is wrong."""
    return cast(List[str], each(one_of(*COMPONENTS))(given or [], where))


def owners(pod: Pod) -> FrozenSet[str]:
    """The components without any one of which the pod would not be there; none: it is not K3s's."""
    labels = pod["labels"]
    if SERVICE in labels:
        service = labels.get(SERVICE_NAMESPACE, NAMESPACE), labels[SERVICE]
        return frozenset(COMPONENTS if service == (NAMESPACE, "traefik") else ("servicelb",))
    is_traefik = pod["namespace"] == NAMESPACE and labels.get(NAME_LABEL) == "traefik"
    return frozenset(("traefik",) if is_traefik else ())


def plan(facts: NodeFacts, components: Collection[str]) -> Plan:
    """What lets a server do without these components; with none, what takes that back."""
    k3s, disabled = facts["k3s"], _disabled(facts)
    path = drop_in(k3s["config"], DROP_IN)
    there = path in k3s["files"]
    if not components:
        return Plan(path, "", restart=there)
    if set(components) <= disabled:
        return Plan(path, "", restart=_waits(facts))
    named = {*components, *(disabled if there else ())}
    listed = ", ".join(name for name in COMPONENTS if name in named)
    return Plan(path, f"# Others have the nodes' ports: netmend_k3s_disable.\ndisable+: [{listed}]\n", restart=True)


def refusal(servers: Mapping[str, NodeFacts], components: Sequence[str]) -> str:
    """What stands against it on servers that are all known; "" where nothing does."""
    named = " and ".join(components)
    plans = {name: plan(facts, components) for name, facts in servers.items()}
    for name, facts in servers.items():
        later = _overrides(facts)
        if plans[name].content and later:
            return f"{name} has a list `disable` in {later}, which counts for more than {DROP_IN}: put {named} there."
    if not any(each.content or each.restart for each in plans.values()):
        return f"All servers do without {named} already: see why K3s has left this behind, and delete it."
    return ""


def left(cluster: ClusterFacts, components: Collection[str], waiting: Collection[str]) -> List[str]:
    """What is yet to come of it; `waiting`: pods, "namespace/name", that had no ports."""
    return [*_still_there(cluster, set(components)), *_not_ready(cluster, waiting)]


def _disabled(facts: NodeFacts) -> Set[str]:
    return set(COMPONENTS) & set(facts["k3s"]["config"].get("disable", []))


def _waits(facts: NodeFacts) -> bool:
    k3s = facts["k3s"]
    return any(k3s["files"].get(source, 0.0) > k3s["started"] for source in _sources(facts))


def _overrides(facts: NodeFacts) -> str:
    """The file that is read later and replaces the list; "" for none. One with the key `disable+` only adds to it."""
    path = drop_in(facts["k3s"]["config"], DROP_IN)
    folder = path.rpartition("/")[0]
    first = _sources(facts)[0]
    return first if first.startswith(f"{folder}/") and first > path else ""


def _sources(facts: NodeFacts) -> List[str]:
    """Where the list comes from: what it began with, and what added to that."""
    return facts["k3s"]["sources"].get("disable", "").split(", ")


def _still_there(cluster: ClusterFacts, components: Set[str]) -> Iterator[str]:
    for pod in cluster["pods"]:
        if owners(pod) & components and pod["phase"] not in ("Succeeded", "Failed"):
            yield f"{pod['namespace']}/{pod['name']} is still there"


def _not_ready(cluster: ClusterFacts, waiting: Collection[str]) -> Iterator[str]:
    pods: Dict[str, Pod] = {f"{pod['namespace']}/{pod['name']}": pod for pod in cluster["pods"]}
    for name in waiting:
        if name in pods and not pods[name]["ready"]:
            yield f"{name} is not ready ({pods[name]['reason'] or pods[name]['phase']})"
