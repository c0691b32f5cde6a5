"""The module, with when the controller began and had the result: this bounds how far the node's clock is off."""

from __future__ import annotations

import time
from typing import Any

from ansible.plugins.loader import action_loader

Bare = action_loader.get("netmend_bare", class_only=True)


class ActionModule(Bare):  # type: ignore[misc,valid-type]  # ansible ships no types
    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        sent = time.time()
        result: dict[str, Any] = super().run(tmp, task_vars)
        return {**result, "netmend_call": {"sent": sent, "received": time.time()}}
