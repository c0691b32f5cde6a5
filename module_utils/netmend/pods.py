"""Finds a pod on this node by its name, without the API server and without a CRI client."""

from __future__ import annotations

import os
from pathlib import Path

from .parse.proc import pod_uid


def network_pid(pod: str, root: Path = Path("/")) -> int:
    """A process in the network namespace of the pod "namespace/name"; 0 where that is the host's own.

    Raises LookupError where no such pod runs here.
    """
    namespace, _, name = pod.partition("/")
    # The kubelet names a pod's directory of logs so; those of its predecessors may still be there.
    uids = {path.name.rpartition("_")[2] for path in (root / "var/log/pods").glob(f"{namespace}_{name}_*")}
    for pid in sorted(int(entry.name) for entry in (root / "proc").iterdir() if entry.name.isdigit()):
        process = root / f"proc/{pid}"
        try:
            if pod_uid((process / "cgroup").read_text()) in uids:
                own = os.path.samefile(process / "ns/net", root / "proc/self/ns/net")
                return 0 if own else pid
        except OSError:
            continue  # ended meanwhile
    raise LookupError(f"no pod {pod} runs on this node")
