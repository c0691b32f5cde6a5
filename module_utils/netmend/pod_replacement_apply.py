"""Replaces pods step by step, as pod_replacement.py says what is due, and stops where one does not come up.

The cluster's state alone decides on the next step, so a run that was interrupted is finished by another one.
"""

from __future__ import annotations

import json
import time
from typing import Dict, Iterable, List, NamedTuple, Set, Tuple

from .kube import MERGE_PATCH, Api, answered
from .mirror import Mirror
from .pod_replacement import (
    LEFT,
    UNDER_WAY,
    Object,
    Replacement,
    State,
    Step,
    Wish,
    connected,
    due,
    plan,
    shows,
    with_labels,
    without_labels,
)

GONE = (404, 409)  # it ended meanwhile, or a namesake took its place: the next state says so
REFUSED = 429  # by a PodDisruptionBudget
BURST = 0.2  # seconds: one change brings others
AGAIN = 5  # seconds until an eviction that was refused is asked for again
SETTLE = 15  # seconds until every kube-proxy and ingress controller knows that a pod has left its Services


class NotReplaced(Exception):
    """A replacement does not come up, or a pod may not go. The message says which, and what became of it."""


class Limits(NamedTuple):
    drain: float  # seconds from when a pod gets no new requests to its deletion, at most
    wait: float  # seconds for each thing that is waited for


class Replaced(NamedTuple):
    replacement: Replacement
    seconds: float  # from the first step with it to its deletion


class Replacer:
    """One run. ``replaced`` grows as it goes on, and holds what was done where it fails."""

    def __init__(self, api: Api, objects: Mirror, wish: Wish, limits: Limits) -> None:
        self.replaced: List[Replaced] = []
        self._api, self._objects, self._wish, self._limits = api, objects, wish, limits
        self._begun: Dict[str, Tuple[Replacement, float]] = {}  # uid -> as it was at the first step with it, and when
        self._drains: Dict[str, float] = {}  # uid -> when its deletion was first due
        self._waits: Dict[str, float] = {}  # owner or pod that is waited for -> since when
        self._unseen: List[Step] = []  # done, but not yet in the state
        self._touched: Set[str] = set()  # owners of pods with which something was done

    @property
    def changed(self) -> bool:
        return bool(self._touched)

    def run(self) -> None:
        """Returns when nothing is left to do. NotReplaced, ApiError."""
        known = {each.uid for each in plan(self._objects.state(), self._wish)}
        while True:
            state = self._objects.state()
            self._unseen = [step for step in self._unseen if not shows(state, step)]
            waits = {pod: f"{pod} does not change" for pod in (step.replacement.pod for step in self._unseen)}
            if not self._unseen:
                planned, steps, waits = due(state, self._wish, self._touched)
                _refuse_strays(pod for pod in planned if pod.uid not in known and pod.way != LEFT)
                if not steps and not waits:
                    return
                refusals = {step.replacement.pod: self._do(state, step) for step in steps}
                waits.update((pod, refusal) for pod, refusal in refusals.items() if refusal)
            self._pause(state, waits)

    def _do(self, state: State, step: Step) -> str:
        """What a budget has against it; "" where it was done, or waits for connections to end."""
        pod, now = step.replacement, time.monotonic()
        item = _item(state, pod)
        if step.action == "delete":
            self._drains.setdefault(pod.uid, now)
            if now < self._drained(item):
                return ""
        refusal = _act(self._api, item, step)
        if not refusal:
            self._unseen.append(step)
            self._touched.add(pod.owner)
            first, began = self._begun.setdefault(pod.uid, (pod, now))
            self._drains.pop(pod.uid, None)
            if step.action != "label":
                self.replaced.append(Replaced(first, round(now - began, 1)))
        return refusal

    def _pause(self, state: State, waits: Dict[str, str]) -> None:
        """Until something changes, or a drain or somebody's patience ends."""
        now = time.monotonic()
        self._waits = {what: self._waits.get(what, now) for what in waits}
        for what, since in self._waits.items():
            if now > since + self._limits.wait:
                self._stop(state, f"{waits[what]}, which was waited for {self._limits.wait:g} s")
        time.sleep(BURST)
        now = time.monotonic()
        ends = [self._drained(item) - now for item in state["pods"] if item["metadata"]["uid"] in self._drains]
        self._objects.wait(min([AGAIN, *(end for end in ends if end > 0)]))

    def _drained(self, pod: Object) -> float:
        """When a pod has gone on long enough without new requests, by the monotonic clock."""
        seconds = min(SETTLE, self._limits.drain) if connected(pod) is False else self._limits.drain
        return self._drains[pod["metadata"]["uid"]] + seconds

    def _stop(self, state: State, why: str) -> None:
        """Gives their controllers back the pods whose replacements are not there."""
        back = [each for each in plan(state, self._wish) if each.way == UNDER_WAY and each.owner in self._waits]
        for each in back:
            _patch(self._api, each, with_labels(_item(state, each)))
        names = ", ".join(each.pod for each in back)
        raise NotReplaced(f"{why}. " + (f"Put back into service: {names}" if back else "Nothing more was begun"))


def _refuse_strays(pods: Iterable[Replacement]) -> None:
    for pod in pods:
        raise NotReplaced(
            f"{pod.pod} came up on {pod.node} with an address outside of the networks: containerd there still uses"
            " another CNI. Nothing more was begun"
        )


def _act(api: Api, pod: Object, step: Step) -> str:
    """What a PodDisruptionBudget has against the step; "" where it was done."""
    to = step.replacement
    if step.action == "label":
        return _patch(api, to, without_labels(pod, to.owner, step.labels))
    options = {"apiVersion": "v1", "kind": "DeleteOptions", "preconditions": {"uid": to.uid}}
    if step.action == "delete":
        return _send(api, "DELETE", _path(to), options)
    metadata = {"namespace": pod["metadata"]["namespace"], "name": pod["metadata"]["name"]}
    eviction = {"apiVersion": "policy/v1", "kind": "Eviction", "metadata": metadata, "deleteOptions": options}
    return _send(api, "POST", f"{_path(to)}/eviction", eviction)


def _patch(api: Api, to: Replacement, content: Object) -> str:
    return _send(api, "PATCH", _path(to), content, MERGE_PATCH)


def _send(api: Api, method: str, path: str, content: Object, content_type: str = "application/json") -> str:
    accepted = (200, 201, 202, REFUSED, *GONE)
    status, body = answered(api, accepted, method, path, content=content, content_type=content_type)
    if status == REFUSED:
        return f"the API refuses {method} {path}: {json.loads(body).get('message', body[:200])}"
    return ""


def _path(to: Replacement) -> str:
    namespace, _, name = to.pod.partition("/")
    return f"/api/v1/namespaces/{namespace}/pods/{name}"


def _item(state: State, to: Replacement) -> Object:
    return next(item for item in state["pods"] if item["metadata"]["uid"] == to.uid)
