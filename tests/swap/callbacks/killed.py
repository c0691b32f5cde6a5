"""Kills a run, with all of its processes, behind the first change that no run before it was killed behind.

$NETMEND_KILLED_BEHIND is a file that has a line for each of these: the task, and the hosts that it changed.
"""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

from ansible.plugins.callback import CallbackBase

DOCUMENTATION = """
    name: killed
    type: aggregate
    short_description: Kills a run behind a change
    description:
      - As a controller ends that loses its power. What tasks did to nodes stays.
"""


class CallbackModule(CallbackBase):  # type: ignore[misc]  # ansible ships no types
    CALLBACK_VERSION = 2.0
    CALLBACK_TYPE = "aggregate"
    CALLBACK_NAME = "killed"

    def __init__(self) -> None:
        super().__init__()
        self._hosts: list[str] = []
        self._task = ""

    def v2_runner_on_ok(self, result: Any) -> None:
        if result.is_changed():
            self._task = result.task.get_name().strip()
            self._hosts.append(result.host.get_name())

    def v2_playbook_on_task_start(self, task: Any, is_conditional: bool) -> None:
        self._end_behind_a_change()

    def v2_playbook_on_stats(self, stats: Any) -> None:
        self._end_behind_a_change()

    def _end_behind_a_change(self) -> None:
        if not self._hosts:
            return
        change = f"{self._task} on {', '.join(sorted(self._hosts))}"
        self._hosts = []
        killed = Path(os.environ["NETMEND_KILLED_BEHIND"])
        if change not in killed.read_text().splitlines():
            with killed.open("a") as file:
                file.write(f"{change}\n")
            os.killpg(0, signal.SIGKILL)
