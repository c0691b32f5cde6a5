"""Writes a run's report on the controller, as JSON and as a page, readable by its owner only."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import jinja2
from ansible.errors import AnsibleActionFail
from ansible.plugins.action import ActionBase


class ActionModule(ActionBase):  # type: ignore[misc]  # ansible ships no types
    """Arguments: ``report`` (report.Report), ``directory``. In check mode, too, it writes: it changes no machine."""

    _VALID_ARGS = frozenset(("report", "directory"))
    TRANSFERS_FILES = False

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        result: dict[str, Any] = super().run(tmp, task_vars)
        report, directory = self._task.args["report"], Path(self._task.args["directory"]).expanduser()
        try:
            directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            written = {
                "report.json": json.dumps(report, indent=2) + "\n",
                "report.html": self._page(report),
            }
            for name, text in written.items():
                _write(directory / name, text)
        except OSError as error:
            message = f"The report cannot be written: {error}. Set netmend_report_dir to where it can."
            raise AnsibleActionFail(message) from error
        return {**result, "changed": False, "files": [str(directory / name) for name in written]}

    def _page(self, report: Any) -> str:
        template = Path(self._find_needle("templates", "report.html.j2")).read_text(encoding="utf-8")
        environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined)
        return environment.from_string(template).render(report=report)


def _write(path: Path, text: str) -> None:
    """Put the whole text there or none of it, for its owner's eyes only."""
    beside = path.with_name(path.name + ".new")
    with os.fdopen(os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w", encoding="utf-8") as file:
        file.write(text)
    beside.replace(path)
