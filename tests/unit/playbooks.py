"""Runs a playbook as a user does, with this project's settings."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

from lab.playbooks import PROGRAM, ROOT


def run(playbook: str | Path, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [PROGRAM, *arguments, playbook],
        cwd=ROOT,
        env={**os.environ, "ANSIBLE_CONFIG": str(ROOT / "ansible.cfg")},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
