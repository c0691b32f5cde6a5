"""Measuring a lab: how long it takes to each stage, and what memory each machine uses."""

from __future__ import annotations

import subprocess
from collections.abc import Callable

from . import build, cluster, machines
from .spec import Lab

STAGES = {"ssh": "power-on to SSH", "api": "power-on to API", "ready": "power-on to all nodes Ready"}


def run(lab: Lab, say: Callable[[str], None]) -> None:
    """Bring a lab up, print the table, take it down."""
    build.ensure(lambda _: None)
    took = cluster.up(lab, lambda _: None)
    try:
        for stage, text in STAGES.items():
            say(f"{text:<32} {took[stage]:7.1f} s")
        for machine, (used, given) in memory(lab).items():
            say(f"{machine + ': used, of host, given':<40} {used:5d} MiB, {given} MiB")
    finally:
        machines.destroy(lab.name)


def memory(lab: Lab) -> dict[str, tuple[int, int, int]]:
    """MiB by machine: what its processes use, what its process takes of the host, what it was given."""
    found = {}
    for machine in lab.machines:
        used = (
            subprocess.run(machines.ssh(lab.name, machine, "free --mebi"), capture_output=True, text=True, check=True)
            .stdout.splitlines()[1]
            .split()[2]
        )
        found[machine.name] = (int(used), 0, machine.memory)
    return found
