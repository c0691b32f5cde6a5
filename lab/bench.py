"""Measuring a lab: how long it takes to each stage, and what memory each machine takes."""

from __future__ import annotations

import re
from collections.abc import Callable

from . import build, cluster, machines
from .spec import Lab, Machine

FORKS = 50
FORK = f"s=$(date +%s%N); i=0; while [ $i -lt {FORKS} ]; do /bin/true; i=$((i+1)); done; echo $(($(date +%s%N) - s))"
STAGES = {"ssh": "SSH", "api": "API", "ready": "all nodes Ready", "apps": "applications running"}


def run(lab: Lab, say: Callable[[str], None]) -> None:
    """Start a lab with a warm cache, print its times and memory, end it."""
    build.ensure(lambda _: None)
    took = cluster.up(lab, lambda _: None)
    try:
        say(f"{'power-on to':<28}{'s':>8}")
        for stage, seconds in took.items():
            say(f"{STAGES.get(stage, stage):<28}{seconds:>8.1f}")
        say(f"\n{'ms for fork and exec there':<28}{fork(lab, lab.machines[-1]):>8.1f}")
        say(f"\n{'memory':<28}{'used MiB':>10}{'of host':>10}{'given':>10}")
        for machine in lab.machines:
            say(f"{machine.name:<28}{used(lab, machine):>10}{taken(lab, machine):>10}{machine.memory:>10}")
    finally:
        machines.destroy(lab.name)


def fork(lab: Lab, machine: Machine) -> float:
    """Milliseconds that a machine takes to start a program and see it end."""
    return int(cluster.must(lab, machine, FORK)) / FORKS / 1e6


def used(lab: Lab, machine: Machine) -> int:
    """MiB that a machine's processes and kernel use, without caches, as free has it."""
    return int(cluster.must(lab, machine, "free --mebi").splitlines()[1].split()[2])


def taken(lab: Lab, machine: Machine) -> int:
    """MiB that a machine takes of the host: what of its memory has been touched."""
    status = machines.status_file(lab.name, machine).read_text()
    found = re.search(r"^VmRSS:\s+(\d+) kB", status, re.MULTILINE)
    assert found
    return int(found[1]) // 1024
