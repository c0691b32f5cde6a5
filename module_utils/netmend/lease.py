"""One run at a time changes a cluster: a Lease in kube-system says which (coordination.k8s.io/v1).

A run that ended without giving it back is known by its silence, or by whoever knows that its process is gone. Of two
that take it at the same moment the API lets one write (resourceVersion).
"""

from __future__ import annotations

import copy
from datetime import datetime, timedelta, timezone
from typing import Any, Dict, NamedTuple, Optional

from .kube import Api, ApiError

NAME = "netmend"
PATH = "/apis/coordination.k8s.io/v1/namespaces/kube-system/leases"
CONFLICT = 409

Lease = Dict[str, Any]  # the API's object


class LeaseHeld(Exception):
    """Another run holds the lease. The message says which, since when, and when it counts as dead."""

    def __init__(self, message: str, holder: str = "") -> None:
        super().__init__(message)
        self.holder = holder


class Claim(NamedTuple):
    holder: str  # USER@HOST/SPACE/PROCESS of the run
    duration: int  # seconds of silence after which a holder counts as dead
    dead: str = ""  # a holder that is known to be


def taken(lease: Optional[Lease], claim: Claim, now: datetime) -> Lease:
    """The lease as it is to be written, held by the claim's run. LeaseHeld where another one's is good."""
    held = _held(lease, now)
    if held and held["holderIdentity"] not in (claim.holder, claim.dead):
        holder, since = held["holderIdentity"], held.get("acquireTime", "an unknown time")
        raise LeaseHeld(
            f"another run changes this cluster: {holder} since {since}. Wait for its end; "
            f"if it is dead, its lease is taken over after {_moment(_ends(held))}",
            holder,
        )
    wanted: Lease = copy.deepcopy(lease) if lease else _new()
    spec = wanted.setdefault("spec", {})
    if not held or held["holderIdentity"] != claim.holder:
        spec["acquireTime"] = _moment(now)
        spec["leaseTransitions"] = spec.get("leaseTransitions", 0) + (1 if lease else 0)
    spec.update(holderIdentity=claim.holder, leaseDurationSeconds=claim.duration, renewTime=_moment(now))
    return wanted


def given_back(lease: Optional[Lease], holder: str) -> Optional[Lease]:
    """The lease as it is to be written, held by nobody; None where it is not this run's."""
    if not lease or lease.get("spec", {}).get("holderIdentity") != holder:
        return None
    wanted = copy.deepcopy(lease)
    wanted["spec"]["holderIdentity"] = ""
    return wanted


def take(api: Api, claim: Claim) -> None:
    """Takes the lease, or says that the run that has it is still there. LeaseHeld, ApiError."""
    lease = read(api)
    wanted = taken(lease, claim, datetime.now(timezone.utc))
    status, body = api.send("PUT", f"{PATH}/{NAME}", wanted) if lease else api.send("POST", PATH, wanted)
    if status == CONFLICT:
        raise LeaseHeld("another run has begun to change this cluster at the same moment. Wait for its end")
    if status not in (200, 201):
        raise ApiError(f"{api.server} does not take the lease ({status}): {body[:200]}")


def give_back(api: Api, holder: str) -> bool:
    """Whether it was this run's to give back."""
    wanted = given_back(read(api), holder)
    if wanted:
        status, body = api.send("PUT", f"{PATH}/{NAME}", wanted)
        if status not in (200, CONFLICT):  # in a conflict somebody else took it, who thought this run dead
            raise ApiError(f"{api.server} does not take the lease back ({status}): {body[:200]}")
    return bool(wanted)


def read(api: Api) -> Optional[Lease]:
    return api.item(f"{PATH}/{NAME}")


def _held(lease: Optional[Lease], now: datetime) -> Optional[Dict[str, Any]]:
    """The spec of a lease that somebody has who was heard from in time."""
    spec: Dict[str, Any] = (lease or {}).get("spec", {})
    return spec if spec.get("holderIdentity") and _ends(spec) > now else None


def _ends(spec: Dict[str, Any]) -> datetime:
    renewed = datetime.strptime(spec["renewTime"], "%Y-%m-%dT%H:%M:%S.%fZ").replace(tzinfo=timezone.utc)
    return renewed + timedelta(seconds=spec["leaseDurationSeconds"])


def _moment(time: datetime) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def _new() -> Lease:
    metadata = {"name": NAME, "namespace": "kube-system", "labels": {"app.kubernetes.io/managed-by": "netmend"}}
    return {"apiVersion": "coordination.k8s.io/v1", "kind": "Lease", "metadata": metadata, "spec": {}}
