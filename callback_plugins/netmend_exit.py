"""The exit code of a run: what was left by it is told from what went wrong in it."""

from __future__ import annotations

from typing import Any

from ansible.plugins.callback import CallbackBase

DOCUMENTATION = """
    name: netmend_exit
    type: aggregate
    short_description: Exit codes for findings, for drift, and for errors
    description:
      - Ends a run that failed with 2 where findings are left (task C(Verdict)), with 10 where in check mode something
        would be changed (task C(Drift)), and with 1 where any other task failed. By itself ansible-playbook ends with 2
        in all three cases.
      - Works beside whatever writes to the terminal, ansible-runner's own callback among others. Other callbacks, such
        as P(ansible.builtin.junit#callback), do not learn of the end of a run that ends with 1 or 10.
"""

ERROR, FAILED = 1, 2  # ansible-playbook's own is the latter
CODES = {"Verdict": FAILED, "Drift": 10}  # by the task of playbooks/verdict.yml; an error outranks either


class CallbackModule(CallbackBase):  # type: ignore[misc]  # ansible ships no types
    CALLBACK_VERSION = 2.0
    CALLBACK_TYPE = "aggregate"
    CALLBACK_NAME = "netmend_exit"

    def __init__(self) -> None:
        super().__init__()
        self._codes: set[int] = set()

    def v2_runner_on_failed(self, result: Any, ignore_errors: bool = False) -> None:
        if not ignore_errors:
            self._codes.add(CODES.get(result.task.get_name(), ERROR))

    def v2_playbook_on_stats(self, stats: Any) -> None:
        code = min(self._codes, default=FAILED)
        if code != FAILED and stats.failures:  # what was rescued is no failure
            raise SystemExit(code)
