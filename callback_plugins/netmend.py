"""A run on the terminal: one line a phase, what changed, what failed, and the report's text as it is."""

from __future__ import annotations

import time
from typing import Any

from ansible import constants as C
from ansible.plugins.callback.default import CallbackModule as Default
from ansible.plugins.loader import filter_loader, test_loader

DOCUMENTATION = """
    name: netmend
    type: stdout
    short_description: One line a step, the matrix and the findings in between
    description:
      - Shows each step that did something with the time since the start, changes and errors by host, and the text of
        C(ansible.builtin.debug) as it is. Everything else as the default callback does it with C(-v).
    extends_documentation_fragment:
      - default_callback
      - result_format_callback
"""

QUIET = ("assert", "debug", "fail", "meta", "netmend_report", "set_fact", "validate_argument_spec")


class CallbackModule(Default):  # type: ignore[misc]  # ansible ships no types
    CALLBACK_VERSION = 2.0
    CALLBACK_TYPE = "stdout"
    CALLBACK_NAME = "netmend"

    def __init__(self) -> None:
        super().__init__()
        self._started = time.monotonic()
        self._announced = ""

    def v2_playbook_on_play_start(self, play: Any) -> None:
        self._play = play
        # Else each of the processes that work on a host, one a host and task, imports all filters and tests for itself.
        filter_loader.get("default")
        test_loader.get("defined")
        if self._display.verbosity:
            super().v2_playbook_on_play_start(play)

    def v2_playbook_on_task_start(self, task: Any, is_conditional: bool) -> None:
        if self._display.verbosity:
            super().v2_playbook_on_task_start(task, is_conditional)

    def v2_playbook_on_handler_task_start(self, task: Any) -> None:
        self.v2_playbook_on_task_start(task, False)

    def v2_playbook_on_include(self, included_file: Any) -> None:
        if self._display.verbosity:
            super().v2_playbook_on_include(included_file)

    def v2_runner_on_start(self, host: Any, task: Any) -> None:
        # A task with a condition is announced when it turns out to run.
        if not self._display.verbosity and not task.when and task.action.rpartition(".")[2] not in QUIET:
            self._announce(task)

    def v2_runner_on_ok(self, result: Any) -> None:
        if result.task.action.rpartition(".")[2] == "debug" and "msg" in result.result:
            self._display.display(str(result.result["msg"]))
        elif self._display.verbosity:
            super().v2_runner_on_ok(result)
        else:
            # A look at the whole result copies it, and a node's facts are large.
            if result.warnings or result.deprecations or result.exception:
                self._handle_warnings_and_exception(result)
            if result.task.action.rpartition(".")[2] not in QUIET:
                self._announce(result.task)
            if result.is_changed():
                self._display.display(f"            changed: {self.host_label(result)}", color=C.COLOR_CHANGED)

    def v2_runner_on_skipped(self, result: Any) -> None:
        if self._display.verbosity:
            super().v2_runner_on_skipped(result)

    def v2_runner_item_on_ok(self, result: Any) -> None:
        if self._display.verbosity:
            super().v2_runner_item_on_ok(result)

    def v2_runner_item_on_skipped(self, result: Any) -> None:
        if self._display.verbosity:
            super().v2_runner_item_on_skipped(result)

    def v2_runner_on_failed(self, result: Any, ignore_errors: bool = False) -> None:
        if self._display.verbosity:
            super().v2_runner_on_failed(result, ignore_errors)
            return
        self._announce(result.task)
        if ignore_errors:
            self._display.display(f"            goes on without {result.result.get('msg', '')}", color=C.COLOR_WARN)
            return
        self._handle_warnings_and_exception(result)
        self._say_failure(self.host_label(result), result.result)

    def v2_runner_on_unreachable(self, result: Any) -> None:
        if self._display.verbosity:
            super().v2_runner_on_unreachable(result)
        else:
            self._announce(result.task)
            message = str(result.result.get("msg", "")).strip()
            text = f"            unreachable: {self.host_label(result)}: {message}"
            self._display.display(text, color=C.COLOR_UNREACHABLE)

    def _announce(self, task: Any) -> None:
        if self._announced != task._uuid:
            # The default's banner, which a diff would bring, says the same.
            self._announced = self._last_task_banner = task._uuid
            self._display.display(f"[{time.monotonic() - self._started:7.1f} s] {task.get_name().strip()}")

    def _say_failure(self, host: str, result: dict[str, Any]) -> None:
        parts = [str(result.get(key, "")).strip() for key in ("msg", "stderr", "module_stderr", "module_stdout")]
        for item in result.get("results", []):
            if item.get("failed"):
                parts.append(f"{item.get('item', '')}: {item.get('msg', '')}")
        text = "\n".join(part for part in parts if part) or "no message; run again with -v"
        self._display.display(f"failed: {host}: {text}", color=C.COLOR_ERROR)
