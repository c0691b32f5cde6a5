"""Takes an application onto its hosts' network, and back, step by step as host_network.py has it.

Each step looks at what is there, so that a run that was interrupted is finished by running it again, either way.
"""

from __future__ import annotations

import time
from typing import Any, Callable, Iterable, List, Mapping, NamedTuple, Optional, Sequence, Tuple

from . import host_network as rules
from .apply import Change, Object, apply, patch, remove
from .host_network import Cluster, Wish
from .kube import Api
from .rollout import WORKLOADS, State, paths, pods_of, served_by
from .rollout_apply import Limits, NotUp, read_state, undo, wait_until, wait_until_up


class Refused(Exception):
    """Something stands against it; nothing was changed. The message has all of it."""


class Move(NamedTuple):
    changes: List[Change]  # that were made, or in a dry run would be
    failure: str = ""


def refuse(api: Api, wishes: Iterable[Wish], sockets: Optional[Mapping[str, Any]]) -> None:
    """Refused with all that stands against any of them; without sockets, against their way back."""
    found, deployments = [], []
    nodes, pods = api.items("/api/v1/nodes") or [], api.items("/api/v1/pods") or []
    for wish in wishes:
        state, name = read_state(api, wish.namespace), f"{wish.namespace}/{wish.name}"
        try:
            deployments.append((name, _deployment(state, wish)))
        except Refused as error:
            found.append(str(error))
            continue
        if sockets is not None:
            scalers = f"/apis/autoscaling/v2/namespaces/{wish.namespace}/horizontalpodautoscalers"
            cluster = Cluster(state, nodes, pods, api.items(scalers) or [], sockets)
            found += [f"{name}: {said}" for said in rules.refusals(cluster, deployments[-1][1], wish)]
    if sockets is not None:
        found += rules.contested(deployments)
    if found:
        raise Refused("\n".join(found))


class Mover:
    """One application's way. What serves stays until what comes in its place does."""

    def __init__(self, api: Api, wish: Wish, limits: Limits) -> None:
        self._api, self._wish, self._limits = api, wish, limits

    def there(self, dry_run: bool = False) -> Move:
        """Onto the hosts' network."""
        deployment, services = self._read()
        companion = rules.companion(deployment, self._wish)
        rest = rules.in_the_end(deployment, services, self._wish)
        if dry_run:
            return Move([*apply(self._api, [companion], dry_run=True), *rest])
        began = apply(self._api, [companion])
        try:
            self._wait_up(self._wish.kind, self._wish.companion)
        except NotUp as error:
            undo(self._api, began)
            return Move([], f"{self._called}: {error}. It was undone: what served before serves on")
        try:
            if rules.parked(deployment):
                self._hand_over(services)
            self._wait(lambda state: _named_first(pods_of(state, "Deployment", self._wish.name)))
        except NotUp as error:
            return Move([*began, *rest], f"{self._called}: {error}. Both serve: run this again to finish it")
        self._settle(lambda service: rules.exposed(service, self._wish.node_ports))
        return Move([*began, *rest])

    def back(self, dry_run: bool = False) -> Move:
        """Back onto the pods' network."""
        deployment, services = self._read()
        names = [(kind, rules.companion_name(self._wish.name, kind)) for kind in WORKLOADS]
        companions = [found for kind, name in names for found in [self._companion(kind, name)] if found]
        rest = rules.in_the_end(deployment, services, None)
        if dry_run:
            return Move([*rest, *remove(self._api, companions, dry_run=True)])
        patch(self._api, deployment, rules.unparked(deployment))
        for service in services:
            patch(self._api, service, rules.widened(service))
        try:
            if companions:
                self._wait_up("Deployment", self._wish.name)
        except NotUp as error:
            if rules.unparked(deployment):
                fresh, _ = self._read()
                patch(self._api, fresh, rules.parked(fresh))
            return Move([], f"{self._called}: {error}. It was undone: what served before serves on")
        gone = remove(self._api, companions)
        try:
            self._wait(lambda state: _named_first(rules.companion_pods(state, deployment)))
        except NotUp as error:
            return Move([*rest, *gone], f"{self._called}: {error}. The Deployment serves: run this again to finish it")
        self._settle(rules.hidden)
        return Move([*rest, *gone])

    def _hand_over(self, services: Iterable[Object]) -> None:
        """From the Deployment's pods to the companion's, both of which serve."""
        for service in services:
            patch(self._api, service, rules.narrowed(service))
        self._wait(lambda state: self._served(state, services))
        # Nodes take a while to learn of it, and connections that are open to end.
        time.sleep(self._wish.drain)
        deployment, _ = self._read()
        patch(self._api, deployment, rules.parked(deployment))

    def _settle(self, shown: Callable[[Object], rules.Patch]) -> None:
        _, services = self._read()
        for service in services:
            patch(self._api, service, rules.widened(service))
            patch(self._api, service, shown(service))

    def _served(self, state: State, services: Iterable[Object]) -> str:
        """A pod of the Deployment that still gets new requests; "" for none."""
        left = {pod["metadata"]["uid"]: pod for pod in pods_of(state, "Deployment", self._wish.name)}
        for service in services:
            for uid in served_by(state, service["metadata"]["name"]) & set(left):
                return (
                    f"{left[uid]['metadata']['name']} is still in the EndpointSlices of {service['metadata']['name']}"
                )
        return ""

    @property
    def _called(self) -> str:
        return f"{self._wish.namespace}/{self._wish.name}"

    def _read(self) -> Tuple[Object, List[Object]]:
        """The Deployment and its Services."""
        state = read_state(self._api, self._wish.namespace)
        deployment = _deployment(state, self._wish)
        # Items of a list do not say what they are.
        services = rules.services_of(state, deployment)
        return deployment, [{**each, "apiVersion": "v1", "kind": "Service"} for each in services]

    def _companion(self, kind: str, name: str) -> Optional[Object]:
        found = self._api.item(f"{paths(self._wish.namespace)[WORKLOADS[kind]]}/{name}")
        return found if found and rules.ON_HOST in found["metadata"].get("labels", {}) else None

    def _wait_up(self, kind: str, name: str) -> None:
        wait_until_up(self._api, self._wish.namespace, kind, name, self._limits)

    def _wait(self, lacking: Callable[[State], str]) -> None:
        wait_until(self._api, self._wish.namespace, lacking, self._limits)


def _deployment(state: State, wish: Wish) -> Object:
    """Refused where there is none."""
    for item in state["deployments"]:
        if item["metadata"]["name"] == wish.name:
            return {**item, "apiVersion": "apps/v1", "kind": "Deployment"}
    raise Refused(f"there is no Deployment {wish.namespace}/{wish.name}")


def _named_first(pods: Sequence[Object]) -> str:
    return f"{pods[0]['metadata']['name']} is still there" if pods else ""
