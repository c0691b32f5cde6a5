"""Writes a run's report on the controller, for people and for programs, readable by its owner only."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any, Callable

import ansible.module_utils
import jinja2
from ansible.errors import AnsibleActionFail
from ansible.plugins.action import ActionBase

_CORE = str(Path(__file__).resolve().parents[2] / "module_utils")
if _CORE not in ansible.module_utils.__path__:
    ansible.module_utils.__path__.append(_CORE)

from ansible.module_utils.netmend.report import junit, markdown, page, prometheus  # noqa: E402  after the path

TEMPLATE = "report.html.j2"


def written(report: Any, templates: Path) -> dict[str, str]:
    """A report.Report -> the files of a run, by name."""
    writers: dict[str, Callable[[Any], str]] = {
        "report.json": lambda whole: json.dumps(whole, separators=(",", ":"), ensure_ascii=False) + "\n",
        "report.html": lambda whole: _page(whole, templates),
        "report.md": markdown.render,
        "report.xml": junit.render,
        "report.prom": prometheus.render,
    }
    return {name: write(report) for name, write in writers.items()}


class ActionModule(ActionBase):  # type: ignore[misc]  # ansible ships no types
    """Arguments: ``report`` (report.Report, as JSON), ``directory``. Returns its ``verdict``, ``drift`` and ``passed``.

    In check mode, too, it writes: it changes no machine.
    """

    _VALID_ARGS = frozenset(("report", "directory"))
    TRANSFERS_FILES = False

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        result: dict[str, Any] = super().run(tmp, task_vars)
        report, directory = json.loads(self._task.args["report"]), Path(self._task.args["directory"]).expanduser()
        templates = Path(self._find_needle("templates", TEMPLATE)).parent
        files = written(report, templates)
        try:
            directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            for name, text in files.items():
                _write(directory / name, text)
        except OSError as error:
            message = f"The report cannot be written: {error}. Set netmend_report_dir to where it can."
            raise AnsibleActionFail(message) from error
        said = {name: report[name] for name in ("verdict", "drift", "passed")}
        return {**result, **said, "changed": False, "files": [str(directory / name) for name in files]}


def _page(report: Any, templates: Path) -> str:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(templates),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template(TEMPLATE).render(page.context(report))


def _write(path: Path, text: str) -> None:
    """Put the whole text there or none of it, for its owner's eyes only."""
    beside = path.with_name(path.name + ".new")
    with os.fdopen(os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w", encoding="utf-8") as file:
        file.write(text)
    beside.replace(path)
