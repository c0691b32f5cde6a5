"""The module; and it confirms over a connection of its own, as established ones survive most mistakes."""

from __future__ import annotations

import time
from typing import Any

from ansible.errors import AnsibleConnectionFailure
from ansible.plugins.action.normal import ActionModule as Normal

TIMEOUT = 30  # seconds, as the module has it
PAUSE = 1  # seconds between two attempts


class ActionModule(Normal):  # type: ignore[misc]  # ansible ships no types
    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        if self._task.args.get("state") != "confirmed" or self._task.check_mode:
            return super().run(tmp, task_vars)  # type: ignore[no-any-return]  # ansible ships no types
        timeout = float(self._task.args.get("timeout", TIMEOUT))
        until = time.monotonic() + timeout
        while True:
            self._connection.reset()
            try:
                return super().run(tmp, task_vars)  # type: ignore[no-any-return]  # ansible ships no types
            except AnsibleConnectionFailure as error:
                # A host that is unreachable never gets to a rescue, one where a task fails does.
                if time.monotonic() + PAUSE > until:
                    message = f"not reached over a new connection within {timeout:.0f} s: {error}"
                    return {"failed": True, "msg": message}
            time.sleep(PAUSE)
