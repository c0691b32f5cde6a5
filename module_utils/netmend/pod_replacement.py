"""Which pods have to be replaced for all to have addresses in given networks, or by name, and what is due for each now.

No request may be lost, so a pod leaves its Services before it ends, and its replacement is there before it leaves, or
else others of its controller serve meanwhile. Labels decide on both: without those that selectors ask for, the
controller makes a replacement at once, Services send nothing new, and the pod goes on with its connections. What was
taken from a pod is kept in an annotation of it, which is all that a run needs to finish what another one began.

The ways, the safest first:
- surge: the controller's label goes, the replacement joins the Services, then the Services' labels go. Needs a label of
  the controller's selector that no Service asks for, as every ReplicaSet of a Deployment has (pod-template-hash).
- release: all of these labels go at once, while others serve. So it is for DaemonSets.
- evict: the pod is deleted by the Eviction API while others serve. What it is just answering has its grace period. One
  at a time in the cluster, when nothing safer can be begun.
Source for what controllers do with labels: pkg/controller/controller_ref_manager.go of kubernetes/kubernetes.
"""

from __future__ import annotations

import ipaddress
import json
import math
import re
from collections import Counter, defaultdict
from typing import Any, Dict, FrozenSet, Iterable, List, Mapping, NamedTuple, Optional, Set, Tuple, Union

from .model import Pod
from .parse import cluster as parse

Object = Dict[str, Any]
State = Mapping[str, List[Object]]  # the API's objects by what PATHS calls them
Network = Union[ipaddress.IPv4Network, ipaddress.IPv6Network]

PATHS = {
    "nodes": "/api/v1/nodes",
    "pods": "/api/v1/pods",
    "services": "/api/v1/services",
    "endpointslices": "/apis/discovery.k8s.io/v1/endpointslices",
    "deployments": "/apis/apps/v1/deployments",
    "replicasets": "/apis/apps/v1/replicasets",
    "statefulsets": "/apis/apps/v1/statefulsets",
    "daemonsets": "/apis/apps/v1/daemonsets",
    "poddisruptionbudgets": "/apis/policy/v1/poddisruptionbudgets",
}
CONTROLLERS = {"ReplicaSet": "replicasets", "StatefulSet": "statefulsets", "DaemonSet": "daemonsets"}
RELEASED = "netmend/released"  # annotation: {"owner": "ReplicaSet/web-5d9f", "labels": {"app": "web"}}, what was taken
CONNECTED = "netmend/Connected"  # condition of a released pod, by its node: "False" where nobody has a connection to it
MIRROR = "kubernetes.io/config.mirror"
TEMPLATE_HASH = "pod-template-hash"
SURGE, RELEASE, EVICT, UNDER_WAY, LEFT = "surge", "release", "evict", "under way", ""
ORDER = (UNDER_WAY, SURGE, RELEASE, EVICT, LEFT)


class Wish(NamedTuple):
    networks: Tuple[Network, ...]  # where addresses are to be; none: wherever
    uids: FrozenSet[str] = frozenset()  # pods that are to be replaced in any case
    excluded: FrozenSet[str] = frozenset()  # namespaces whose pods are left
    recreate: bool = False  # whether pods go, too, that no other one stands in for
    parallel: int = 5  # replacements that start at once


class Replacement(NamedTuple):
    pod: str  # "namespace/name"
    uid: str
    node: str
    owner: str  # "namespace/ReplicaSet/web-5d9f"; "" for a bare pod
    way: str  # of ORDER
    why: str  # what is special about it; "" for nothing


class Step(NamedTuple):
    replacement: Replacement
    action: str  # label: take the labels; delete; evict
    labels: Tuple[str, ...] = ()


class Due(NamedTuple):
    """Nothing is left to do where there are neither steps nor waits."""

    plan: List[Replacement]
    steps: List[Step]
    waits: Dict[str, str]  # owner or pod -> what is waited for


def networks(cidrs: Iterable[str]) -> Tuple[Network, ...]:
    """ValueError, naming it, for what is no network."""
    return tuple(ipaddress.ip_network(cidr) for cidr in cidrs)


def plan(state: State, wish: Wish) -> List[Replacement]:
    """All pods that are not where they are to be, in the order in which they are replaced; what is left comes last."""
    return _View(state, wish).plan()


def due(state: State, wish: Wish, touched: Iterable[str] = ()) -> Due:
    """What can be done now, and what has to be waited for. ``touched``: owners whose pods were already acted upon."""
    view = _View(state, wish)
    waits = {owner: wait for owner, wait in ((owner, view.missing(owner)) for owner in touched) if wait}
    todo: Dict[str, List[Replacement]] = defaultdict(list)
    planned = view.plan()
    for each in planned:
        todo[each.way].append(each)
    steps = []
    for each in todo[UNDER_WAY]:
        missing = view.missing(each.owner) or view.deserted(each)
        labels = view.service_labels(each)
        if missing:
            waits[each.owner] = missing
        elif labels:
            steps.append(Step(each, "label", labels))
        elif view.in_slices(each):
            waits[each.pod] = f"{each.pod} is still in an EndpointSlice"
        else:
            steps.append(Step(each, "delete"))
    # Of some owners one pod goes at a time, which takes longest where most are left: these wait for no others.
    starts, held = [], {}
    left = Counter(each.owner for each in todo[RELEASE])
    for each in sorted(_first_of_each_owner(todo[RELEASE]), key=lambda each: -left[each.owner]):
        wait = view.obstacle(each)
        if wait:
            held[each.owner] = wait
        else:
            starts.append(Step(each, "label", view.all_labels(each)))
    starts += [Step(each, "label", view.controller_labels(each)) for each in todo[SURGE]]
    # Pods that only drain keep nobody from starting.
    free = wish.parallel - sum(view.starting(owner) for owner in {each.owner for each in todo[UNDER_WAY]})
    starts = starts[: max(free, 0)]
    steps += starts
    # The replacement of one that was evicted is there before the next one goes.
    others = {each.owner for way in (UNDER_WAY, SURGE, RELEASE) for each in todo[way]}
    evicted = [owner for owner in touched if owner in waits and owner not in others]
    if todo[EVICT] and not starts and not evicted and free > 0:
        each = todo[EVICT][0]
        wait = view.obstacle(each)
        if wait:
            waits[each.owner] = wait
        else:
            steps.append(Step(each, "evict"))
    waits = waits if steps else {**held, **waits}
    return Due(planned, steps, waits if steps or waits else view.ending())


def without_labels(pod: Object, owner: str, labels: Iterable[str]) -> Object:
    """The merge patch that takes labels from a pod, and keeps them in the annotation."""
    taken = _taken(pod) or {"owner": owner.split("/", 1)[1], "labels": {}}
    kept = {**taken["labels"], **{label: pod["metadata"]["labels"][label] for label in labels}}
    return _patch(pod, dict.fromkeys(labels), json.dumps({**taken, "labels": kept}, sort_keys=True))


def with_labels(pod: Object) -> Object:
    """The merge patch that gives a released pod its labels again: its controller takes it back, and drops another one.

    Controllers drop pods that are not Ready first, and a DaemonSet the younger of two on a node.
    """
    return _patch(pod, (_taken(pod) or {"labels": {}})["labels"], None)


def shows(state: State, step: Step) -> bool:
    """Whether the state was read after the step was done."""
    pod = next((pod for pod in state["pods"] if pod["metadata"]["uid"] == step.replacement.uid), None)
    if pod is None or "deletionTimestamp" in pod["metadata"]:
        return True
    return step.action == "label" and not set(step.labels) & set(pod["metadata"].get("labels", {}))


def is_released(pod: Object) -> bool:
    return RELEASED in pod["metadata"].get("annotations", {})


def connected(pod: Object) -> Optional[bool]:
    """Whether somebody has a connection to it, by what its node said; None where that said nothing."""
    said = parse.condition(pod["status"], CONNECTED).get("status")
    return None if said is None else said == "True"


def _patch(pod: Object, labels: Mapping[str, Optional[str]], annotation: Optional[str]) -> Object:
    # With the uid in it the API refuses it for a namesake.
    return {"metadata": {"uid": pod["metadata"]["uid"], "labels": dict(labels), "annotations": {RELEASED: annotation}}}


class _Pod(NamedTuple):
    item: Object
    facts: Pod
    owner: str  # as in Replacement; of a released pod the one that it had
    released: bool
    outside: bool  # has an address where none is to be, or is named

    @property
    def name(self) -> str:
        return f"{self.facts['namespace']}/{self.facts['name']}"


class _Count(NamedTuple):
    """Of a PodDisruptionBudget's pods."""

    healthy: int
    expected: int  # that their controllers want
    required: int  # that have to be healthy


class _View:
    """A state, looked up by owner, Service and budget."""

    def __init__(self, state: State, wish: Wish) -> None:
        self.wish = wish
        self.nodes = {item["metadata"]["name"]: parse.node(item) for item in state["nodes"]}
        self.pods = [_pod(item, wish) for item in state["pods"] if _runs(item) and not _ends(item)]
        self._ending = [_pod(item, wish) for item in state["pods"] if _runs(item) and _ends(item)]
        self.by_uid = {pod.facts["uid"]: pod for pod in self.pods}
        self.owned: Dict[str, List[_Pod]] = defaultdict(list)
        for pod in self.pods:
            if pod.owner and not pod.released:
                self.owned[pod.owner].append(pod)
        self.controllers = {
            f"{item['metadata']['namespace']}/{kind}/{item['metadata']['name']}": item
            for kind, what in CONTROLLERS.items()
            for item in state[what]
        }
        self.deployments = {_key(item): item for item in state["deployments"]}
        self.services = _by_namespace(item for item in state["services"] if _selects(item))
        self.budgets = _by_namespace(state["poddisruptionbudgets"])
        self.counts = {_key(item): self._count(item) for item in state["poddisruptionbudgets"]}
        self.endpoints: Dict[str, Set[str]] = defaultdict(set)  # Service -> uids of ready pods
        self.sliced: Set[str] = set()  # uids of pods in any EndpointSlice
        for item in state["endpointslices"]:
            service = item["metadata"].get("labels", {}).get("kubernetes.io/service-name", "")
            for endpoint in item.get("endpoints") or []:
                uid = (endpoint.get("targetRef") or {}).get("uid", "")
                self.sliced.add(uid)
                if endpoint.get("conditions", {}).get("ready") is not False:
                    self.endpoints[f"{item['metadata']['namespace']}/{service}"].add(uid)

    def plan(self) -> List[Replacement]:
        found = []
        for pod in self.pods:
            if pod.released or (pod.outside and not pod.facts["host_network"]):
                way, why = (UNDER_WAY, "") if pod.released else self._allowed(pod, *self._way(pod))
                found.append(Replacement(pod.name, pod.facts["uid"], pod.facts["node"], pod.owner, way, why))
        return sorted(found, key=_place)

    def missing(self, owner: str) -> str:
        """What an owner's pods lack for one more to go; "" for nothing, and for an owner that is gone.

        Pods that were ill before, at their old address or on a node that is down, are not waited for.
        """
        if owner not in self.controllers:
            return ""
        pods = self.owned[owner]
        for pod in self._unready(owner):
            where = f" on {pod.facts['node']}" if pod.facts["node"] else ""
            return f"{pod.name}{where} is not Ready ({pod.facts['reason'] or 'no reason given'})"
        if self._unborn(owner):
            return f"{owner} has {len(pods)} of its {_wanted(self.controllers[owner])} pods"
        for pod in pods:
            for service in self._services_of(pod):
                if pod.facts["ready"] and pod.facts["uid"] not in self.endpoints[_key(service)]:
                    return f"{pod.name} is not yet in the EndpointSlices of the Service {_key(service)}"
        return ""

    def starting(self, owner: str) -> int:
        """Replacements that are yet to come, or to become Ready."""
        return self._unborn(owner) + len(self._unready(owner))

    def obstacle(self, replacement: Replacement) -> str:
        """Why a pod that others stand in for may not go just now."""
        pod = self.by_uid[replacement.uid]
        spent = [name for name, count in self._budgets_of(pod).items() if count.healthy <= count.required]
        if pod.facts["ready"] and spent:
            return f"the PodDisruptionBudget {spent[0]} does not let {pod.name} go now"
        return self.missing(pod.owner) or (self.deserted(replacement) if replacement.way == RELEASE else "")

    def deserted(self, replacement: Replacement) -> str:
        """The Service that would have no endpoint without a pod: its labels need not be those of its replacement."""
        others = {uid for uid, pod in self.by_uid.items() if not pod.released} - {replacement.uid}
        for service in self._services_of(self.by_uid[replacement.uid]):
            if not self.endpoints[_key(service)] & others:
                return f"the Service {_key(service)} has no other endpoint than {replacement.pod}"
        return ""

    def ending(self) -> Dict[str, str]:
        """Pods that were told to end, and have their addresses until they do; on a node that is down they never do."""
        ends = (pod for pod in self._ending if pod.outside and not pod.facts["host_network"] and self._node_ready(pod))
        return {pod.name: f"{pod.name} has not ended" for pod in ends}

    def in_slices(self, replacement: Replacement) -> bool:
        return replacement.uid in self.sliced

    def controller_labels(self, replacement: Replacement) -> Tuple[str, ...]:
        return _fewest([self._own_labels(self.by_uid[replacement.uid])])

    def service_labels(self, replacement: Replacement) -> Tuple[str, ...]:
        services = self._services_of(self.by_uid[replacement.uid])
        return _fewest([set(service["spec"]["selector"]) for service in services])

    def all_labels(self, replacement: Replacement) -> Tuple[str, ...]:
        pod = self.by_uid[replacement.uid]
        selectors = [set(service["spec"]["selector"]) for service in self._services_of(pod)]
        return _fewest([*selectors, _asked(self.controllers[pod.owner]["spec"]["selector"])])

    def _unborn(self, owner: str) -> int:
        controller = self.controllers.get(owner)
        return max(0, _wanted(controller) - len(self.owned[owner])) if controller else 0

    def _unready(self, owner: str) -> List[_Pod]:
        pods = self.owned[owner]
        return [pod for pod in pods if not pod.facts["ready"] and not pod.outside and self._node_ready(pod)]

    def _way(self, pod: _Pod) -> Tuple[str, str]:
        """The way, and what is special about it."""
        if pod.facts["namespace"] in self.wish.excluded:
            return LEFT, "its namespace is excluded"
        if MIRROR in pod.item["metadata"].get("annotations", {}):
            return LEFT, (
                "a static pod, which only its kubelet makes again: move its manifest out of the folder of static pods"
                f" on {pod.facts['node']}, and back when the pod is gone"
            )
        if not self._node_ready(pod):
            return LEFT, f"its node {pod.facts['node']} is not Ready: run this again when it is"
        if not pod.owner:
            return LEFT, "no controller makes it again: delete it, and make it from its manifest"
        kind = pod.owner.split("/")[1]
        controller = self.controllers.get(pod.owner)
        if not controller:
            return self._single(f"whether another pod stands in for it, only its {kind} knows")
        if pod.owner.startswith("kube-system/ReplicaSet/calico-kube-controllers-"):
            return EVICT, "nobody asks it"
        if not pod.facts["ready"]:
            return EVICT, f"it is not Ready ({pod.facts['reason']}), so it has no requests to lose"
        alone = self._alone(pod, controller)
        if not alone and self._own_labels(pod):
            return SURGE, ""
        if not any(other.facts["ready"] for other in self.owned[pod.owner] if other is not pod):
            one = f"it is the only Ready pod of its {kind}"
            return self._single(f"{one}, and {alone}" if alone else f"{one}, whose labels its Services ask for, too")
        if alone or not _asked(controller["spec"]["selector"]):
            return EVICT, alone or "no label decides on whether its controller counts it"
        local = [_key(item) for item in self._services_of(pod) if "Local" in _policies(item)]
        if local:
            return RELEASE, f"{local[0]} sends what comes in at a node to its pods there alone: that fails meanwhile"
        return RELEASE, ""

    def _single(self, why: str) -> Tuple[str, str]:
        return (EVICT, f"{why}: requests fail until it is back") if self.wish.recreate else (LEFT, why)

    def _allowed(self, pod: _Pod, way: str, why: str) -> Tuple[str, str]:
        """The way, unless budgets rule it out for good."""
        budgets = self._budgets_of(pod) if way in (RELEASE, EVICT) else {}
        never = [name for name, count in budgets.items() if count.expected <= count.required]
        if never:
            return LEFT, f"the PodDisruptionBudget {never[0]} never lets one of its pods go"
        if way == EVICT and len(budgets) > 1:
            return LEFT, f"the API evicts no pod that has several PodDisruptionBudgets: {' and '.join(budgets)}"
        return way, why

    def _alone(self, pod: _Pod, controller: Object) -> str:
        """Why it may not run beside its replacement; "" where it may."""
        if "/StatefulSet/" in pod.owner:
            return "its replacement has its name"
        ports = sorted({port["hostPort"] for port in pod.facts["ports"] if port["hostPort"]})
        if ports:
            return f"its replacement needs its port {ports[0]} of the host"
        if "/DaemonSet/" in pod.owner and _writes_to_host(pod.item["spec"]):
            return "it writes to folders of its host, which two of a DaemonSet do not expect to share"
        strategy = self._deployment(controller).get("spec", {}).get("strategy", {})
        if strategy.get("type") == "Recreate":
            return "its Deployment's strategy is Recreate"
        if str(strategy.get("rollingUpdate", {}).get("maxSurge", "")) in ("0", "0%"):
            return "its Deployment's maxSurge is 0"
        affinity = pod.item["spec"].get("affinity", {}).get("podAntiAffinity", {})
        terms = affinity.get("requiredDuringSchedulingIgnoredDuringExecution", [])
        if any(matches(term.get("labelSelector"), pod.facts["labels"]) for term in terms):
            return "its podAntiAffinity keeps its like away"
        return ""

    def _deployment(self, controller: Object) -> Object:
        owner = parse.controller(controller["metadata"])
        return self.deployments.get(f"{controller['metadata']['namespace']}/{owner.partition('/')[2]}", {})

    def _own_labels(self, pod: _Pod) -> Set[str]:
        """Labels by which the controller alone counts the pod."""
        asked = _asked(self.controllers[pod.owner]["spec"]["selector"])
        return asked.difference(*(service["spec"]["selector"] for service in self._services_of(pod)))

    def _services_of(self, pod: _Pod) -> List[Object]:
        services = self.services[pod.facts["namespace"]]
        return [item for item in services if item["spec"]["selector"].items() <= pod.facts["labels"].items()]

    def _budgets_of(self, pod: _Pod) -> Dict[str, _Count]:
        budgets = self.budgets[pod.facts["namespace"]]
        mine = [_key(item) for item in budgets if matches(item["spec"].get("selector"), pod.facts["labels"])]
        return {name: self.counts[name] for name in mine}

    def _count(self, budget: Object) -> _Count:
        """As pkg/controller/disruption of kubernetes/kubernetes does it, which rounds percentages up."""
        namespace, spec = budget["metadata"]["namespace"], budget["spec"]
        pods = [pod for pod in self.pods if pod.facts["namespace"] == namespace]
        pods = [pod for pod in pods if matches(spec.get("selector"), pod.facts["labels"])]
        owners = Counter(pod.owner for pod in pods if not pod.released)
        known = {owner: self.controllers.get(owner) for owner in owners}
        expected = sum(_wanted(item) if item else owners[owner] for owner, item in known.items())
        if "maxUnavailable" in spec:
            required = expected - _share(spec["maxUnavailable"], expected)
        else:
            required = _share(spec.get("minAvailable", 1), expected)
        return _Count(sum(pod.facts["ready"] for pod in pods), expected, required)

    def _node_ready(self, pod: _Pod) -> bool:
        node = self.nodes.get(pod.facts["node"])
        return not pod.facts["node"] or bool(node and node["ready"])


def _pod(item: Object, wish: Wish) -> _Pod:
    facts, taken = parse.pod(item), _taken(item)
    owner = taken["owner"] if taken else parse.controller(item["metadata"])
    owner = f"{facts['namespace']}/{owner}" if owner else ""
    return _Pod(item, facts, owner, bool(taken), facts["uid"] in wish.uids or _outside(item, wish.networks))


def _taken(item: Object) -> Optional[Dict[str, Any]]:
    """What was taken from a released pod; None for others."""
    annotation = item["metadata"].get("annotations", {}).get(RELEASED)
    taken: Optional[Dict[str, Any]] = json.loads(annotation) if annotation else None
    return taken


def _outside(item: Object, wanted: Tuple[Network, ...]) -> bool:
    """Whether it has an address in none of the networks; a family that has no network here is not judged."""
    status = item.get("status", {})
    texts = [entry["ip"] for entry in status.get("podIPs", [])] or [status.get("podIP", "")]
    addresses = [ipaddress.ip_address(text) for text in texts if text]
    families = {network.version for network in wanted}
    return any(
        address.version in families and not any(address in network for network in wanted) for address in addresses
    )


def _runs(item: Object) -> bool:
    return item["status"].get("phase") not in ("Succeeded", "Failed")


def _ends(item: Object) -> bool:
    return "deletionTimestamp" in item["metadata"]


def _selects(service: Object) -> bool:
    return bool(service["spec"].get("selector")) and service["spec"].get("type") != "ExternalName"


def _writes_to_host(spec: Object) -> bool:
    shared = {volume["name"] for volume in spec.get("volumes", []) if "hostPath" in volume}
    mounts = [mount for container in spec["containers"] for mount in container.get("volumeMounts", [])]
    return any(mount["name"] in shared and not mount.get("readOnly") for mount in mounts)


def _policies(service: Object) -> Tuple[str, str]:
    spec = service["spec"]
    return spec.get("internalTrafficPolicy", ""), spec.get("externalTrafficPolicy", "")


def _wanted(controller: Object) -> int:
    """How many pods a controller wants; only DaemonSets count nodes."""
    count = controller["spec"].get("replicas", controller.get("status", {}).get("desiredNumberScheduled", 1))
    return int(count)


def _asked(selector: Object) -> Set[str]:
    """Labels without which the selector does not match."""
    expressions = selector.get("matchExpressions") or []
    needed = {entry["key"] for entry in expressions if entry["operator"] in ("In", "Exists")}
    return needed | set(selector.get("matchLabels") or {})


def matches(selector: Optional[Object], labels: Mapping[str, str]) -> bool:
    """As the API does it: an empty selector matches all, none at all matches nothing."""
    if selector is None or not (selector.get("matchLabels") or {}).items() <= labels.items():
        return False
    return all(_meets(entry, labels) for entry in selector.get("matchExpressions") or [])


def _meets(entry: Object, labels: Mapping[str, str]) -> bool:
    value = labels.get(entry["key"])
    if entry["operator"] in ("Exists", "DoesNotExist"):
        return (value is not None) is (entry["operator"] == "Exists")
    return (value in entry["values"]) is (entry["operator"] == "In")


def _fewest(selectors: List[Set[str]]) -> Tuple[str, ...]:
    """Few labels of which each selector has one, as NetworkPolicies may ask for the others.

    The template's hash first, as nothing but its ReplicaSet asks for it.
    """
    left, taken = [selector for selector in selectors if selector], []
    while left:
        counts = Counter(label for selector in left for label in selector)
        best = min(counts, key=lambda label: (label != TEMPLATE_HASH, -counts[label], label))
        taken.append(best)
        left = [selector for selector in left if best not in selector]
    return tuple(taken)


def _share(value: Union[int, str], whole: int) -> int:
    return math.ceil(whole * int(value.rstrip("%")) / 100) if isinstance(value, str) else value


def _first_of_each_owner(replacements: List[Replacement]) -> Iterable[Replacement]:
    first: Dict[str, Replacement] = {}
    for each in replacements:
        first.setdefault(each.owner, each)
    return first.values()


def _place(replacement: Replacement) -> Tuple[int, str, int, str]:
    """A StatefulSet's highest ordinal goes first."""
    ordinal = re.search(r"-(\d+)$", replacement.pod) if "/StatefulSet/" in replacement.owner else None
    return ORDER.index(replacement.way), replacement.owner, -int(ordinal[1]) if ordinal else 0, replacement.pod


def _key(item: Object) -> str:
    return f"{item['metadata']['namespace']}/{item['metadata']['name']}"


def _by_namespace(items: Iterable[Object]) -> Dict[str, List[Object]]:
    found: Dict[str, List[Object]] = defaultdict(list)
    for item in items:
        found[item["metadata"]["namespace"]].append(item)
    return found
