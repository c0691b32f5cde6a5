"""Finds a pod's processes on this node, without the API server and without a CRI client."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path
from typing import Container, Iterator, Tuple

from .parse.proc import pod_uid


def network_pid(pod: str, root: Path = Path("/")) -> int:
    """A process in the network namespace of the pod "namespace/name"; 0 where that is the host's own.

    Raises LookupError where no such pod runs here.
    """
    namespace, _, name = pod.partition("/")
    # The kubelet names a pod's directory of logs so; those of its predecessors may still be there.
    uids = {path.name.rpartition("_")[2] for path in (root / "var/log/pods").glob(f"{namespace}_{name}_*")}
    pid = process_of(uids, root)
    try:
        return 0 if os.path.samefile(root / f"proc/{pid}/ns/net", root / "proc/self/ns/net") else pid
    except OSError:  # there is none, or it has ended meanwhile
        raise LookupError(f"no pod {pod} runs on this node") from None


def process_of(uids: Container[str], root: Path = Path("/")) -> int:
    """The first process of a pod with one of these UIDs: in the normal course, its sandbox's. 0 for none."""
    return next((pid for pid, uid in processes(root) if uid in uids), 0)


def processes(root: Path = Path("/")) -> Iterator[Tuple[int, str]]:
    """Each process that is a pod's, with the pod's UID, in the order of their PIDs."""
    for pid in sorted(int(entry.name) for entry in (root / "proc").iterdir() if entry.name.isdigit()):
        with suppress(OSError):  # ended meanwhile
            uid = pod_uid((root / f"proc/{pid}/cgroup").read_text())
            if uid:
                yield pid, uid
