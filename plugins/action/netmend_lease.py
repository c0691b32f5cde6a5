"""The module, told who this run is; and, where a run of this controller has the lease, whether that one is dead.

It runs as plugins/action/netmend_bare.py has it.
"""

from __future__ import annotations

import getpass
import hashlib
import os
import socket
from pathlib import Path
from typing import Any

from ansible.plugins.loader import action_loader

BOOT = Path("/proc/sys/kernel/random/boot_id")
NAMESPACE = Path("/proc/self/ns/pid")
Bare = action_loader.get("netmend_bare", class_only=True)


class ActionModule(Bare):  # type: ignore[misc,valid-type]  # ansible ships no types
    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        here = place()
        # Tasks run in children of the process that is this run.
        self._task.args.setdefault("holder", f"{here}/{identity(os.getppid())}")
        result: dict[str, Any] = super().run(tmp, task_vars)
        there, _, process = result.get("holder", "").rpartition("/")
        if result.get("failed") and there == here and not _runs(process):
            self._task.args["dead"] = result["holder"]
            result = super().run(tmp, task_vars)
        return result


def place() -> str:
    """USER@HOST/SPACE: where a number means one process.

    Machines and containers of pipelines may share a host name, and each has process numbers of its own.
    """
    try:
        space = f"{BOOT.read_text()}{NAMESPACE.stat().st_ino}"
    except OSError:  # not on Linux
        space = ""
    return f"{getpass.getuser()}@{socket.gethostname()}/{hashlib.sha256(space.encode()).hexdigest()[:8]}"


def identity(process: int) -> str:
    """NUMBER.START, its start in clock ticks since the boot, as its number may be another's soon; ProcessLookupError.

    Where there is no /proc, the number alone. See proc_pid_stat(5).
    """
    os.kill(process, 0)
    try:
        fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return str(process)
    return f"{process}.{fields[19]}"


def _runs(said: str) -> bool:
    """Whether the process of that identity is there; one that may not be looked at is."""
    try:
        return identity(int(said.partition(".")[0])) == said
    except (ProcessLookupError, ValueError):
        return False
    except PermissionError:
        return True
