"""Kills a run, with all of its processes, behind a task of a swap: the $NETMEND_KILL_AFTERth that is started."""

from __future__ import annotations

import os
import signal
from typing import Any

from ansible.plugins.callback import CallbackBase

DOCUMENTATION = """
    name: killed
    type: aggregate
    short_description: Kills a run behind a task
    description:
      - As a controller ends that loses its power. What tasks did to nodes stays.
"""

FIRST = "Find what stands against it"  # of playbooks/tasks/swap.yml


class CallbackModule(CallbackBase):  # type: ignore[misc]  # ansible ships no types
    CALLBACK_VERSION = 2.0
    CALLBACK_TYPE = "aggregate"
    CALLBACK_NAME = "killed"

    def __init__(self) -> None:
        super().__init__()
        self._begun: list[str] = []

    def v2_playbook_on_task_start(self, task: Any, is_conditional: bool) -> None:
        if len(self._begun) == int(os.environ.get("NETMEND_KILL_AFTER", "0")) > 0:
            self._display.display(f"killed behind: {self._begun[-1]}")
            os.killpg(0, signal.SIGKILL)
        name = task.get_name().strip()
        if self._begun or name == FIRST:
            self._begun.append(name)
