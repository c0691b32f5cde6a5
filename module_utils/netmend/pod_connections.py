"""Tells the API which of a node's pods that have left their Services somebody still has a connection to.

Their node alone knows. It says so in a condition of the pod, as it says whether the pod is Ready: nodes may write the
status of their own pods (plugin/pkg/admission/noderestriction of kubernetes/kubernetes), and the kubelet leaves
conditions as they are that are not its own (pkg/kubelet/status).
"""

from __future__ import annotations

import socket
import time
from contextlib import suppress
from pathlib import Path
from select import select
from typing import Dict, Optional

from .kube import STRATEGIC_PATCH, Api, answered
from .mirror import Mirror
from .parse.proc import incoming
from .pod_replacement import CONNECTED, Object, connected, is_released
from .pod_replacement_apply import GONE
from .pods import process_of

SAMPLE = 1.0  # seconds; no event tells that a socket of another network namespace was closed
# It is gone with its process, whatever ends that. A local user who connects to it makes drains longer, and no more.
ADDRESS = "\0netmend-pod-connections"
PATIENCE = 10  # seconds


def serve(listener: socket.socket, api: Api, node: str, seconds: float) -> None:
    """Tells until somebody connects to the listener, or for so long. ApiError where the API is gone."""
    teller, until = Teller(api, node), time.monotonic() + seconds
    while time.monotonic() < until and not select([listener], [], [], SAMPLE)[0]:
        teller.tell()


def listen() -> socket.socket:
    """Where who serves is told to end. OSError where another one does."""
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(ADDRESS)
    listener.listen()
    return listener


def end() -> None:
    """Returns when nobody serves any more. socket.timeout where who does goes on."""
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(PATIENCE)
        with suppress(ConnectionError):  # nobody serves, or has just ended without reading this
            client.connect(ADDRESS)
            client.recv(1)


class Teller:
    """Of the pods of one node."""

    def __init__(self, api: Api, node: str, root: Path = Path("/")) -> None:
        """ApiError where the pods cannot be read."""
        self._api, self._root = api, root
        self._pods = Mirror(api, {"pods": f"/api/v1/pods?fieldSelector=spec.nodeName={node}"})
        self._processes: Dict[str, int] = {}  # uid -> a process of the pod

    def tell(self) -> None:
        """Says of each released pod what is not yet said of it. ApiError."""
        self._pods.wait(0)
        for pod in filter(is_released, self._pods.state()["pods"]):
            count = self._count(pod["metadata"]["uid"])
            if count is not None and connected(pod) is not bool(count):
                self._say(pod, count)

    def _count(self, uid: str) -> Optional[int]:
        """Connections to it; None where no process of it is found, which is looked for again the next time."""
        pid = self._processes.pop(uid, 0) or process_of([uid], self._root)
        tables = [self._root / f"proc/{pid}/net/{name}" for name in ("tcp", "tcp6")]
        try:
            texts = [table.read_text() for table in tables if table.exists()]
        except OSError:  # it ended meanwhile
            return None
        if texts:
            self._processes[uid] = pid
        return incoming(*texts) if texts else None

    def _say(self, pod: Object, count: int) -> None:
        condition = {
            "type": CONNECTED,
            "status": str(bool(count)),
            "message": f"{count} connections",
            "lastTransitionTime": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        }
        metadata = pod["metadata"]
        path = f"/api/v1/namespaces/{metadata['namespace']}/pods/{metadata['name']}/status"
        content = {"metadata": {"uid": metadata["uid"]}, "status": {"conditions": [condition]}}
        answered(self._api, (200, *GONE), "PATCH", path, content=content, content_type=STRATEGIC_PATCH)
