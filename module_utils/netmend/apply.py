"""Brings objects into a cluster by server-side apply, and tells first what that would change.

Server-side apply gives every field an owner (https://kubernetes.io/docs/reference/using-api/server-side-apply/): what
others set on an object stays, and only the fields that are given become ours.
"""

from __future__ import annotations

import json
import math
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Callable, Dict, Iterable, List, NamedTuple, Optional, Sequence, Tuple

from .kube import MERGE_PATCH, STRATEGIC_PATCH, Api, ApiError

MANAGER = "netmend"
OWN = {"app.kubernetes.io/managed-by": MANAGER}  # labels of what is made here for good
APPLY = "application/apply-patch+yaml"  # JSON is YAML, too
CONCURRENCY = 6
ESTABLISHED_WITHIN = 120  # seconds; an API server describes itself anew for each new kind
WITH_PODS = ("DaemonSet ", "Deployment ")  # as named() begins
DEFINITION = "CustomResourceDefinition"
_DEFINITIONS = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions"
_NOT_FOUND = 404
_BUILT_IN = ("v1", "apps/v1")  # as far as put() is asked for
# What the API server keeps itself.
_KEPT = ("managedFields", "resourceVersion", "generation", "uid", "creationTimestamp", "selfLink")

Object = Dict[str, Any]


class Change(NamedTuple):
    """An object that is not as it has to be; None stands for one that is not there."""

    what: str  # as in "DaemonSet kube-system/calico-node"
    before: Optional[Object]
    after: Optional[Object]


class Resources:
    """Where objects are in the API, by what it says of itself."""

    def __init__(self, api: Api) -> None:
        self._api = api
        self._known: Dict[str, Dict[str, Tuple[str, bool]]] = {}

    def path(self, item: Object) -> Optional[str]:
        """Path of an object; None where the API does not know its kind, or not yet."""
        version, kind, metadata = item["apiVersion"], item["kind"], item["metadata"]
        if kind not in self._known.get(version, {}):
            self._known[version] = self._ask(version)
        if kind not in self._known[version]:
            return None
        plural, namespaced = self._known[version][kind]
        place = f"/namespaces/{metadata.get('namespace', 'default')}" if namespaced else ""
        return f"{_root(version)}{place}/{plural}/{metadata['name']}"

    def _ask(self, version: str) -> Dict[str, Tuple[str, bool]]:
        known = self._api.item(_root(version)) or {"resources": []}
        return {
            each["kind"]: (each["name"], each["namespaced"]) for each in known["resources"] if "/" not in each["name"]
        }


def apply(api: Api, objects: Sequence[Object], dry_run: bool = False) -> List[Change]:
    """Sees to it that the objects are as given, and returns what was, or would be, changed.

    Kinds are defined first, then namespaces made, then all the rest at once. ApiError with the object's name where the
    API takes one not.
    """
    resources = Resources(api)
    changes: List[Change] = []
    for stage in _stages(objects):
        wanted = [change for change in _each(lambda item: _change(api, resources, item, dry_run), stage) if change]
        changes += [change for change, _ in wanted]
        if dry_run:
            continue
        _each(lambda each: _write(api, resources, each[1]), wanted)
        defined = [item["metadata"]["name"] for _, item in wanted if item["kind"] == DEFINITION]
        if defined:
            _wait_until_established(api, defined)
    return changes


def remove(api: Api, objects: Sequence[Object], dry_run: bool = False, wait: float = 0) -> List[Change]:
    """Sees to it that the objects are gone, with what they own, and returns those that were, or are, there.

    ``wait``: seconds to wait for each one's end, and for that of its pods. ApiError where it does not come.
    """
    resources = Resources(api)
    changes: List[Change] = []
    for stage in reversed(list(_stages(objects))):
        paths = {named(item): path for item in stage for path in [resources.path(item)] if path}
        live = dict(zip(paths, _each(api.item, paths.values())))
        there = {what: item for what, item in live.items() if item}
        changes += [Change(what, item, None) for what, item in there.items()]
        if dry_run:
            continue
        going = [(paths[what], what, wait) for what in there]
        _each(lambda each: _delete(api, *each), going)
        if wait:
            _each(lambda each: _wait_until_gone(api, *each), going)
    return changes


def put(api: Api, objects: Sequence[Object], dry_run: bool = False) -> List[Change]:
    """Sees to it that objects that are there have the fields that are given, one after the other, and returns what was,
    or would be, changed. Nothing else of them changes, whoever owns it. ApiError for one that is not there."""
    resources = Resources(api)
    changes: List[Change] = []
    for item in objects:
        path = resources.path(item)
        live = api.item(path) if path else None
        if not path or not live:
            raise ApiError(f"{api.server} has no {named(item)}, which is to be changed")
        after = _put(api, path, item, "&dryRun=All")
        if _plain(live) != _plain(after):
            changes.append(Change(named(item), live, after))
            if not dry_run:
                _put(api, path, item)
    return changes


def _put(api: Api, path: str, item: Object, more: str = "") -> Object:
    # Lists are merged by their keys where the API knows them, which it does not of kinds that were defined in it.
    kind = STRATEGIC_PATCH if item["apiVersion"] in _BUILT_IN else MERGE_PATCH
    status, body = api.send("PATCH", f"{path}?fieldManager={MANAGER}{more}", item, content_type=kind)
    after: Object = json.loads(_good(status, body, named(item)))
    return after


def patch(api: Api, item: Object, content: Object) -> None:
    """Sends a merge patch (RFC 7386) for an object that is there; an empty one is not sent. ApiError."""
    if content:
        path = f"{Resources(api).path(item)}?fieldManager={MANAGER}"
        _good(*api.send("PATCH", path, content, content_type=MERGE_PATCH), named(item))


def named(item: Object) -> str:
    """How people call an object: Kind namespace/name."""
    namespace = _namespace(item)
    return f"{item['kind']} {namespace + '/' if namespace else ''}{item['metadata']['name']}"


def text(item: Optional[Object]) -> str:
    """An object as it stands in a diff: without what the API server keeps itself; "" for one that is not there."""
    return json.dumps(_plain(item), indent=2, sort_keys=True) + "\n" if item else ""


def differences(changes: Iterable[Change]) -> List[Dict[str, str]]:
    """Ansible's diff; of a Secret no more than that it changes."""

    def shown(change: Change, item: Optional[Object]) -> str:
        return "(not shown)\n" if item and change.what.startswith("Secret ") else text(item)

    return [
        {
            "before_header": change.what,
            "after_header": change.what,
            "before": shown(change, change.before),
            "after": shown(change, change.after),
        }
        for change in changes
    ]


def _namespace(item: Object) -> str:
    return str(item["metadata"].get("namespace", ""))


def _root(version: str) -> str:
    return f"/apis/{version}" if "/" in version else f"/api/{version}"


def _stages(objects: Iterable[Object]) -> Iterable[List[Object]]:
    kinds: List[Callable[[str], bool]] = [
        lambda kind: kind == DEFINITION,
        lambda kind: kind == "Namespace",
        lambda kind: kind not in (DEFINITION, "Namespace", "Node"),
        # Removed first: controllers make what is on it anew as long as it is there.
        lambda kind: kind == "Node",
    ]
    objects = list(objects)
    return [[item for item in objects if belongs(item["kind"])] for belongs in kinds]


def _each(do: Callable[[Any], Any], items: Iterable[Any]) -> List[Any]:
    with ThreadPoolExecutor(CONCURRENCY) as pool:
        return list(pool.map(do, items))


def _change(api: Api, resources: Resources, item: Object, dry_run: bool) -> Optional[Tuple[Change, Object]]:
    """What applying an object would change, and the object; None where it is as it has to be.

    One that is not there is written in any case, and what the API makes of it is not asked before.
    """
    path = resources.path(item)
    live = api.item(path) if path else None
    after = _would_be(api, path, item) if path and (live or dry_run) else item
    if live and _plain(live) == _plain(after):
        return None
    return Change(named(item), live, after), item


def _write(api: Api, resources: Resources, item: Object) -> None:
    path = resources.path(item)
    if not path:
        raise ApiError(f"{api.server} knows no {item['apiVersion']} {item['kind']}, which {named(item)} is")
    _good(*_patch(api, path, item), named(item))


def _would_be(api: Api, path: str, item: Object) -> Object:
    status, body = _patch(api, path, item, "&dryRun=All")
    if status == _NOT_FOUND:
        return item  # without its namespace, as without its kind, there is nobody to ask
    found: Object = json.loads(_good(status, body, named(item)))
    return found


def _patch(api: Api, path: str, item: Object, more: str = "") -> Tuple[int, str]:
    # Others who once set these fields, kubectl among them, would be in the way for good.
    return api.send("PATCH", f"{path}?fieldManager={MANAGER}&force=true{more}", item, content_type=APPLY)


def _delete(api: Api, path: str, what: str, wait: float) -> None:
    # What goes in the foreground is there until its pods have ended. Nothing else here has any.
    policy = "Foreground" if wait and what.startswith(WITH_PODS) else "Background"
    status, body = api.send("DELETE", f"{path}?propagationPolicy={policy}")
    if status != _NOT_FOUND:
        _good(status, body, what)


def _wait_until_gone(api: Api, path: str, what: str, seconds: float) -> None:
    place, _, name = path.rpartition("/")
    alone = f"{place}?fieldSelector=metadata.name%3D{name}"
    until = time.monotonic() + seconds
    while True:
        listed = api.listed(alone)
        if not listed or not listed[0]:
            return
        left = until - time.monotonic()
        if left <= 0:
            raise ApiError(f"{what} was removed, and is still there after {seconds:g} s")
        for event in api.watch(alone, math.ceil(left), listed[1]):
            if event["type"] == "DELETED":
                return


def _good(status: int, body: str, what: str) -> str:
    if status in (200, 201, 202):
        return body
    try:
        said = json.loads(body)["message"]
    except (ValueError, KeyError, TypeError):
        said = body[:300]
    raise ApiError(f"the API refuses {what} ({status}): {said}")


def _plain(item: Optional[Object]) -> Object:
    """An object without its status and what the API server keeps."""
    metadata = {key: value for key, value in (item or {}).get("metadata", {}).items() if key not in _KEPT}
    return {**{key: value for key, value in (item or {}).items() if key != "status"}, "metadata": metadata}


def _wait_until_established(api: Api, definitions: Iterable[str]) -> None:
    """Waits until new kinds can be used, CustomResourceDefinition by CustomResourceDefinition."""
    missing = set(definitions)
    for event in api.watch(_DEFINITIONS, ESTABLISHED_WITHIN):
        conditions = event["object"].get("status", {}).get("conditions") or []
        if any(each["type"] == "Established" and each["status"] == "True" for each in conditions):
            missing.discard(event["object"]["metadata"]["name"])
        if not missing:
            return
    raise ApiError(f"{api.server} has not established {', '.join(sorted(missing))} within {ESTABLISHED_WITHIN} s")
