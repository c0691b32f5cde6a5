"""The module, told who this run is; and, where a run of this controller has the lease, whether that one is dead."""

from __future__ import annotations

import getpass
import os
import socket
from typing import Any

from ansible.plugins.action.normal import ActionModule as Normal


class ActionModule(Normal):  # type: ignore[misc]  # ansible ships no types
    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        here = f"{getpass.getuser()}@{socket.gethostname()}"
        # Tasks run in children of the process that is this run.
        self._task.args.setdefault("holder", f"{here}/{os.getppid()}")
        result: dict[str, Any] = super().run(tmp, task_vars)
        place, _, process = result.get("holder", "").partition("/")
        if result.get("failed") and place == here and not _runs(process):
            self._task.args["dead"] = result["holder"]
            result = super().run(tmp, task_vars)
        return result


def _runs(process: str) -> bool:
    """Whether there is a process of that number; one of another run may have it by now, and is waited for."""
    try:
        os.kill(int(process), 0)
    except (ProcessLookupError, ValueError):
        return False
    except PermissionError:
        pass
    return True
