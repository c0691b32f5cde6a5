"""Rolls an application out, waits until it is up and answers, and brings the former objects back where it does not.

What the objects were before is kept in a Secret, as a workload's environment may hold some, until one of the two is
reached. So a run that was interrupted is finished, or undone, by another one.
"""

from __future__ import annotations

import base64
import json
import time
from typing import Callable, Dict, Iterable, List, Mapping, NamedTuple, Optional, Sequence

from . import applications
from .applications import KINDS, Application, called
from .apply import OWN, Change, Object, apply, named, remove
from .kube import Api, ApiError
from .mirror import Mirror
from .model import met
from .parse import cluster as parse
from .probe import run_probes
from .rollout import GENERATION, PARKED, REVISION, WORKLOADS, State, current, find, hopeless, lacks, paths, unplaced

FORMER = "netmend-former-{}"  # Secret, by the application's name
ROUND = 1  # seconds, after which time limits are looked at even where nothing changes
# Annotations that controllers write; to bring them back would be to contradict them.
_CONTROLLERS = (REVISION, GENERATION)
_LISTS = {
    "Deployment": ("apps/v1", "/apis/apps/v1/deployments"),
    "DaemonSet": ("apps/v1", "/apis/apps/v1/daemonsets"),
    "Service": ("v1", "/api/v1/services"),
    "Ingress": ("networking.k8s.io/v1", "/apis/networking.k8s.io/v1/ingresses"),
}
_INGRESS = "its Ingress"


class NotUp(Exception):
    """A workload does not come up, or does not answer. The message says which pod, and why."""


class Limits(NamedTuple):
    wait: float  # seconds without progress
    patience: float  # seconds that a pod is given whose container cannot start or crashes
    answer: float  # seconds from then on for it to answer


class Result(NamedTuple):
    name: str  # "namespace/name"
    changes: List[Change]  # that were made, and are still there; in a dry run those that would be
    undone: bool = False
    failure: str = ""


def read_state(api: Api, namespace: str) -> State:
    return {what: api.items(path) or [] for what, path in paths(namespace).items()}


# --- waiting ----------------------------------------------------------------------------------------------------------


def wait_until(
    api: Api,
    namespace: str,
    lacking: Callable[[State], str],
    limits: Limits,
    troubles: Callable[[State], Mapping[str, str]] = lambda _: {},
) -> State:
    """The state in which nothing is lacking. NotUp where there is no progress, or a trouble lasts; ApiError.

    Something else that is lacking is progress, once: a pod that is Ready by turns makes none.
    """
    objects = Mirror(api, paths(namespace))
    deadline, known = 0.0, set()
    since: Dict[str, float] = {}
    while True:
        state = objects.state()
        missing = lacking(state)
        if not missing:
            return state
        now, found = time.monotonic(), troubles(state)
        if missing not in known:
            known.add(missing)
            deadline = now + limits.wait
        since = {who: since.get(who, now) for who in found}
        for who, began in since.items():
            if now >= began + limits.patience:
                raise NotUp(found[who])
        if now > deadline:
            raise NotUp(f"{missing}, which was waited for {limits.wait:g} s")
        objects.wait(ROUND)


def wait_until_up(api: Api, namespace: str, kind: str, name: str, limits: Limits) -> State:
    """The state in which a workload is rolled out and served. NotUp, ApiError."""

    def lacking(state: State) -> str:
        missing = lacks(state, kind, name)
        nowhere = unplaced(state, kind, name) if missing else ""
        return f"{missing} ({nowhere})" if nowhere else missing

    return wait_until(api, namespace, lacking, limits, lambda state: hopeless(state, kind, name))


# --- undoing ----------------------------------------------------------------------------------------------------------


def undo(api: Api, changes: Iterable[Change]) -> None:
    """Brings objects to what they were before: their labels, annotations and spec, or nothing at all."""
    changes = list(changes)
    apply(api, [_content(change.before) for change in changes if change.before])
    remove(api, [change.after for change in changes if change.after and not change.before])


def _content(item: Object) -> Object:
    """An object's content as it can be applied again."""
    kept = {key: value for key, value in item["metadata"].items() if key in ("name", "namespace", "labels")}
    notes = item["metadata"].get("annotations", {})
    notes = {key: value for key, value in notes.items() if key not in _CONTROLLERS}
    if notes:
        kept["annotations"] = notes
    return {"apiVersion": item["apiVersion"], "kind": item["kind"], "metadata": kept, "spec": item["spec"]}


# --- rolling out ------------------------------------------------------------------------------------------------------


class Rollout:
    """One application's. ``probe``: whether it has to answer, too; ``drain``: as in applications.objects()."""

    def __init__(self, api: Api, application: Application, limits: Limits, probe: bool, drain: int) -> None:
        self._api, self._limits, self._probe, self._drain = api, limits, probe, drain
        self._application, self._kind = application, applications.kind(application)
        self._namespace, self._name = application["namespace"], application["name"]

    def run(self, dry_run: bool = False) -> Result:
        """ApiError and NotUp are in the result's failure."""
        name = called(self._application)
        try:
            wanted = self._objects()
            planned = apply(self._api, wanted, dry_run=True)
            if dry_run:
                return Result(name, planned)
            former = self._begin(planned)
            failed_before = self._unmet() if planned and self._live(self._kind) else {}
            changes = apply(self._api, wanted)
        except (ApiError, NotUp) as error:
            return Result(name, [], failure=f"{name}: {error}")
        try:
            self._come_up(failed_before)
        except NotUp as error:
            if not former:
                return Result(name, changes, failure=f"{name}: {error}. Nothing was changed")
            return Result(name, [], undone=True, failure=f"{name}: {error}. {self._undo(former)}")
        except ApiError as error:
            return Result(name, changes, failure=f"{name}: {error}. Run this again to finish it")
        remove(self._api, [self._kept()])
        doubts = self._probe and failed_before and self._unmet()
        failure = f"{name} is rolled out, and as before {_joined(doubts)}" if doubts else ""
        return Result(name, changes, failure=failure)

    def _objects(self) -> List[Object]:
        live = {kind: self._live(kind) for kind in KINDS}
        deployment = live["Deployment"] or {}
        if PARKED in deployment.get("metadata", {}).get("annotations", {}):
            raise NotUp("it is on the hosts' network: take it back first (playbooks/host_network.yml)")
        application = self._application
        if deployment and self._is_scaled():
            application = {**application, "replicas": deployment["spec"]["replicas"]}
        try:
            selector = applications.selector([live[self._kind], *live.values()])
        except ValueError as error:
            raise NotUp(str(error)) from error
        return [self._home(), *applications.objects(application, selector, self._drain)]

    def _home(self) -> Object:
        return {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": self._namespace}}

    def _live(self, kind: str) -> Optional[Object]:
        return self._api.item(f"{paths(self._namespace)[WORKLOADS[kind]]}/{self._name}")

    def _is_scaled(self) -> bool:
        """Whether the number of replicas is a HorizontalPodAutoscaler's to decide on."""
        found = self._api.items(f"/apis/autoscaling/v2/namespaces/{self._namespace}/horizontalpodautoscalers") or []
        targets = (item["spec"]["scaleTargetRef"] for item in found)
        return any((each["kind"], each["name"]) == ("Deployment", self._name) for each in targets)

    def _begin(self, planned: Sequence[Change]) -> List[Change]:
        """Keeps what is to be changed as it is, beside what an interrupted run has kept, and returns all of it."""
        there = self._api.item(f"/api/v1/namespaces/{self._namespace}/secrets/{FORMER.format(self._name)}")
        kept = [Change(*each) for each in json.loads(base64.b64decode(there["data"]["changes"]))] if there else []
        known = {change.what for change in kept}
        fresh = [
            Change(change.what, change.before, _identity(change.after))
            for change in planned
            if change.after and change.after["kind"] != "Namespace" and change.what not in known
        ]
        if fresh:
            text = json.dumps([*kept, *fresh]).encode()
            apply(self._api, [self._home(), {**self._kept(), "data": {"changes": base64.b64encode(text).decode()}}])
        return [*kept, *fresh]

    def _kept(self) -> Object:
        metadata = {"name": FORMER.format(self._name), "namespace": self._namespace, "labels": OWN}
        return {"apiVersion": "v1", "kind": "Secret", "metadata": metadata}

    def _come_up(self, failed_before: Mapping[str, str]) -> None:
        wait_until_up(self._api, self._namespace, self._kind, self._name, self._limits)
        deadline = time.monotonic() + self._limits.answer
        while self._probe:
            unmet = {title: said for title, said in self._unmet().items() if title not in failed_before}
            if not unmet:
                return
            if time.monotonic() > deadline:
                raise NotUp(f"it runs, and {_joined(unmet)}")
            time.sleep(ROUND)

    def _unmet(self) -> Dict[str, str]:
        """The ways in which it does not answer from here, of those that there are, and what was seen."""
        if not self._probe:
            return {}
        state = read_state(self._api, self._namespace)
        ingress = self._api.item(f"/apis/networking.k8s.io/v1/namespaces/{self._namespace}/ingresses/{self._name}")
        workload = find(state, WORKLOADS[self._kind], self._name)
        service = find(state, "services", self._name)
        live = {
            "pods": current(state, self._kind, workload) if workload else [],
            "services": [service] if service else [],
            "ingresses": [ingress] if ingress else [],
        }
        nodes = [parse.node(item) for item in self._api.items("/api/v1/nodes") or []]
        addresses = {node["name"]: node["internal_ip"] for node in nodes if node["internal_ip"] and node["ready"]}
        probes = applications.probes(self._application, live, addresses)
        seen = zip(probes, run_probes(probes))
        unmet = {
            probe["id"]: f"{observed['outcome']} ({observed['detail']})"
            for probe, observed in seen
            if not met(probe, observed)
        }
        if ingress and not any(probe["id"].startswith(_INGRESS) for probe in probes):
            unmet[_INGRESS] = "no controller has given it an address"
        return unmet

    def _undo(self, former: Sequence[Change]) -> str:
        """What became of it."""
        try:
            undo(self._api, former)
            workload = next((each.before for each in former if each.before and each.before["kind"] in KINDS), None)
            if workload:
                wait_until_up(self._api, self._namespace, workload["kind"], self._name, self._limits)
            remove(self._api, [self._kept()])
        except NotUp as error:
            return f"It was undone, and what was there before does not come up either: {error}"
        except ApiError as error:
            return f"It could not be undone: {error}. Run this again"
        return "It was undone: what was there before is up" if workload else "It was undone"


def _identity(item: Object) -> Object:
    kept = {key: value for key, value in item["metadata"].items() if key in ("name", "namespace")}
    return {"apiVersion": item["apiVersion"], "kind": item["kind"], "metadata": kept}


def _joined(unmet: Mapping[str, str]) -> str:
    return "; ".join(f"{title} does not answer: {said}" for title, said in unmet.items())


# --- what is declared no more -----------------------------------------------------------------------------------------


def undeclared(api: Api, declared: Iterable[Application]) -> List[Object]:
    """The objects that were rolled out, and are of no application any more."""
    wanted = {named(item) for application in declared for item in applications.objects(application)}
    found = []
    for kind, (version, path) in _LISTS.items():
        for item in api.items(path) or []:
            labels = item["metadata"].get("labels", {})
            own = OWN.items() <= labels.items() and applications.NAME in labels
            whole = {**item, "apiVersion": version, "kind": kind}
            if own and "deletionTimestamp" not in item["metadata"] and named(whole) not in wanted:
                found.append(whole)
    return found
