"""Running the project's playbooks on a lab's machines, and what came of it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

from jsonschema import Draft202012Validator

from . import machines, network
from .spec import Lab

ROOT = Path(__file__).parents[1]
SCHEMA = ROOT / "docs/report.schema.json"
PROGRAM = Path(sys.executable).with_name("ansible-playbook")


class Outcome(NamedTuple):
    code: int  # ansible-playbook's exit code
    output: str
    report: dict[str, Any]  # reports/report.json

    @property
    def first(self) -> dict[str, Any]:
        """The first measurement."""
        return self.report["before"] or self.report["now"]

    @property
    def named(self) -> list[str]:
        """The faults that were found first, in their order."""
        return [finding["fault"] for finding in self.first["findings"]]

    @property
    def seconds(self) -> float:
        """From the first look at the nodes until what is found there is known; Ansible's own start comes before it."""
        phases = self.report["phases"]
        known = next(place for place, phase in enumerate(phases, 1) if phase["name"] == "Diagnose")
        return float(sum(phase["seconds"] for phase in phases[:known]))

    @property
    def changed(self) -> int:
        """How many tasks changed something, on all hosts, as the recap counts them."""
        recap = self.output.rpartition("PLAY RECAP")[2]
        return sum(int(word.partition("=")[2]) for word in recap.split() if word.startswith("changed="))


class Playbooks:
    """Runs playbooks inside a lab's network; what they report is put into a directory."""

    def __init__(self, lab: Lab, reports: Path) -> None:
        self.lab, self.reports = lab, reports

    def run(self, name: str, *arguments: str, limit: int = 300) -> Outcome:
        """Runs a playbook; the report is empty where it wrote none.

        Raises TimeoutExpired after ``limit`` seconds, and ValidationError where the report is not what its schema says.
        """
        report = self.reports / "report.json"
        report.unlink(missing_ok=True)
        with self.start(name, *arguments) as process:
            output, _ = process.communicate(timeout=limit)
        written = json.loads(report.read_text()) if report.exists() else {}
        if written:
            Draft202012Validator(json.loads(SCHEMA.read_text())).validate(written)
        return Outcome(process.returncode, output, written)

    def start(self, name: str, *arguments: str, output: int | None = subprocess.PIPE) -> subprocess.Popen[str]:
        """Starts a playbook in a process group of its own; with None for output, on the terminal and in its group."""
        inventory = machines.state(self.lab.name) / "inventory.yml"
        settings = ["-i", str(inventory), "-e", f"netmend_report_dir={self.reports}"]
        return subprocess.Popen(
            network.inside(self.lab.name, str(PROGRAM), *settings, name, *arguments),
            cwd=ROOT,
            env=os.environ | {"ANSIBLE_CONFIG": str(ROOT / "ansible.cfg"), "PYTHONUNBUFFERED": "1"},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=None if output is None else subprocess.STDOUT,
            text=True,
            start_new_session=output is not None,
        )
