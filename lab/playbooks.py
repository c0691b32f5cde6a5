"""Running the project's playbooks on a lab's machines, and what came of it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).parents[1]
PROGRAM = Path(sys.executable).with_name("ansible-playbook")


class Outcome(NamedTuple):
    code: int  # ansible-playbook's exit code
    output: str
    report: dict[str, Any]  # reports/report.json

    @property
    def named(self) -> list[str]:
        """The faults that were found first, in their order."""
        return [finding["fault"] for finding in (self.report["before"] or self.report["now"])["findings"]]

    @property
    def changed(self) -> int:
        """How many tasks changed something, on all hosts, as the recap counts them."""
        recap = self.output.rpartition("PLAY RECAP")[2]
        return sum(int(word.partition("=")[2]) for word in recap.split() if word.startswith("changed="))


class Playbooks:
    def __init__(self, inventory: Path, reports: Path) -> None:
        self.inventory, self.reports = inventory, reports

    def run(self, name: str, *arguments: str, limit: int = 300) -> Outcome:
        """Runs a playbook; the report is empty where it wrote none. Raises TimeoutExpired after ``limit`` seconds."""
        report = self.reports / "report.json"
        report.unlink(missing_ok=True)
        done = subprocess.run(
            [PROGRAM, "-i", self.inventory, "-e", f"netmend_report_dir={self.reports}", name, *arguments],
            cwd=ROOT,
            env=os.environ | {"ANSIBLE_CONFIG": str(ROOT / "ansible.cfg")},
            capture_output=True,
            text=True,
            timeout=limit,
            check=False,
        )
        written = json.loads(report.read_text()) if report.exists() else {}
        return Outcome(done.returncode, done.stdout + done.stderr, written)
