"""The main job on the embedded lab: broken as the operators' cluster was, the cause found, mended, and proven."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

from . import cluster, machines, network, spec
from .outside import listen
from .playbooks import Playbooks

FILE = Path("demo")
REPORTS = Path(__file__).parents[1] / "reports"

Progress = Callable[[str], None]


def run(progress: Progress, *, keep: bool = False) -> int:
    """Returns 0 where everything was as it has to be. The lab ends with it, unless it is kept."""
    began = time.monotonic()
    lab = spec.load(FILE)
    playbooks = Playbooks(lab, REPORTS)

    def step(text: str) -> None:
        progress(f"\n=== {text} ({time.monotonic() - began:.0f} s)")

    if network.exists(lab.name):
        step("End the demo that is still up")
        machines.destroy(lab.name)
    step("Start one server and two agents, and break them as the operators' cluster was")
    cluster.up(lab, progress)
    try:
        step("What answers from the internet now")
        progress(listen(lab))
        step("ansible-playbook fix_network.yml --diff")
        mended = _shown(playbooks, "fix_network.yml", "--diff")
        step("Once more: nothing may change")
        again = _shown(playbooks, "fix_network.yml")
        step("What answers from the internet now")
        progress(listen(lab))
    finally:
        if not keep:
            step("End the lab")
            machines.destroy(lab.name)
    step("Done" if (mended, again) == (0, 0) else f"Not mended: exit codes {mended}, {again}")
    return mended or again


def _shown(playbooks: Playbooks, name: str, *arguments: str) -> int:
    """Runs a playbook on this terminal; returns its exit code."""
    with playbooks.start(name, *arguments, output=None) as process:
        return process.wait()
