"""The module; and, while the node probes, what the machine that runs Ansible asks itself."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import ansible.module_utils
from ansible.plugins.loader import action_loader

_CORE = str(Path(__file__).resolve().parents[2] / "module_utils")
if _CORE not in ansible.module_utils.__path__:
    ansible.module_utils.__path__.append(_CORE)

from ansible.module_utils.netmend.model import CONTROLLER  # noqa: E402  the path above has to be set first
from ansible.module_utils.netmend.probe import checked, measure  # noqa: E402  as above

Bare = action_loader.get("netmend_bare", class_only=True)


class ActionModule(Bare):  # type: ignore[misc,valid-type]  # ansible ships no types
    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        try:
            probes = checked("here", self._task.args.pop("here", None) or [])
            rounds = int(self._task.args.get("rounds", 1))
        except ValueError as error:
            return {"failed": True, "msg": str(error)}
        if not probes:
            return super().run(tmp, task_vars)  # type: ignore[no-any-return]  # ansible ships no types
        with ThreadPoolExecutor(1) as beside:
            asked = beside.submit(measure, CONTROLLER, probes, rounds)
            result: dict[str, Any] = super().run(tmp, task_vars)
        return {**result, "netmend_here": asked.result()}
