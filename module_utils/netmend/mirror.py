"""The cluster's objects as the API has them now, kept up to date by watches, so that a change can be waited for."""

from __future__ import annotations

import threading
import time
from typing import Any, Dict, List, Mapping

from .kube import Api, ApiError

PAUSE = 1  # seconds, after a watch that failed
WATCH = 60  # seconds; then the API server ends a watch, and the next one goes on from there

Object = Dict[str, Any]


class Mirror:
    """Lists each path at first, and then follows its changes in a thread of its own. ApiError where it cannot."""

    def __init__(self, api: Api, paths: Mapping[str, str]) -> None:
        self._api = api
        self._objects: Dict[str, Dict[str, Object]] = {}  # what -> uid -> object
        self._error = ""
        self._changes = 0
        self._seen = 0
        self._changed = threading.Condition()
        for what, path in paths.items():
            version = self._list(what, path)
            threading.Thread(target=self._follow, args=(what, path, version), daemon=True).start()

    def state(self) -> Dict[str, List[Object]]:
        """All objects, by what was asked for; none of them is ever changed in place."""
        with self._changed:
            self._seen = self._changes
            return {what: list(objects.values()) for what, objects in self._objects.items()}

    def wait(self, seconds: float) -> None:
        """Returns when anything has changed since state(), or after so long. ApiError where the API is gone."""
        with self._changed:
            self._changed.wait_for(lambda: self._changes != self._seen or self._error, seconds)
            if self._error:
                raise ApiError(self._error)

    def _follow(self, what: str, path: str, version: str) -> None:
        while True:
            try:
                version = self._watch(what, path, version) or self._list(what, path)
            except ApiError as error:
                with self._changed:
                    self._error = str(error)
                    self._changed.notify_all()
                return

    def _list(self, what: str, path: str) -> str:
        listed = self._api.listed(path)
        if listed is None:
            raise ApiError(f"{self._api.server} knows no {path}")
        with self._changed:
            self._objects[what] = {item["metadata"]["uid"]: item for item in listed[0]}
            self._told()
        return listed[1]

    def _watch(self, what: str, path: str, version: str) -> str:
        """The resourceVersion from which to go on; "" where only a new list helps."""
        try:
            for event in self._api.watch(path, WATCH, version):
                if event["type"] == "ERROR":
                    return ""
                version = event["object"]["metadata"]["resourceVersion"]
                if event["type"] != "BOOKMARK":
                    self._take(what, event)
        except ApiError:
            # An API server that restarts ends its watches; one that is gone does not answer the list either.
            time.sleep(PAUSE)
            return ""
        return version

    def _take(self, what: str, event: Mapping[str, Any]) -> None:
        item = event["object"]
        with self._changed:
            if event["type"] == "DELETED":
                self._objects[what].pop(item["metadata"]["uid"], None)
            else:
                self._objects[what][item["metadata"]["uid"]] = item
            self._told()

    def _told(self) -> None:
        self._changes += 1
        self._changed.notify_all()
