"""How long a diagnosis of a running lab takes, by its parts, and what it costs a node.

.venv/bin/python -m lab up && .venv/bin/python benchmarks/diagnosis.py [--lab NAME] [--runs N]
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from lab import machines  # noqa: E402  it is not installed, and found by the line above
from lab.playbooks import Playbooks  # noqa: E402  as above

GATHER = """
import resource, sys
sys.path.insert(0, sys.argv[1])
from netmend import gather, node
gather.gather_node(run=node.run)
used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
print(sum(use.ru_utime + use.ru_stime for use in used))
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lab", default="default", help="a lab that is up")
    parser.add_argument("--runs", type=int, default=5, help="counted runs, after one that warms up")
    arguments = parser.parse_args()
    lab = machines.recall(arguments.lab)
    with tempfile.TemporaryDirectory() as reports:
        playbooks = Playbooks(lab, Path(reports))
        runs = [timed(playbooks) for _ in range(arguments.runs + 1)][1:]
    show("diagnose.yml, seconds", runs)
    show(
        "facts of a node, CPU seconds",
        [{machine.name: gathering(lab.name, machine) for machine in lab.machines} for _ in range(arguments.runs)],
    )


def timed(playbooks: Playbooks) -> dict[str, float]:
    """Seconds of each phase, and of the whole: from the command to its end."""
    start = time.monotonic()
    run = playbooks.run("diagnose.yml")
    whole = time.monotonic() - start
    assert run.code in (0, 2), run.output
    return {**{phase["name"]: phase["seconds"] for phase in run.report["phases"]}, "whole": whole}


def gathering(lab: str, machine: machines.Machine) -> float:
    """CPU seconds of one gathering, in user mode and in the kernel, with the commands that it runs."""
    core = subprocess.run(
        ["tar", "--create", "--exclude=__pycache__", "--directory", ROOT / "module_utils", "netmend"],
        capture_output=True, check=True,
    ).stdout  # fmt: skip
    unpack = "core=$(mktemp -d); tar --extract --directory $core"
    run = f"{unpack}; python3 -c '{GATHER}' $core; rm -r $core"
    done = subprocess.run(machines.ssh(lab, machine, run), input=core, capture_output=True, check=True)
    return float(done.stdout)


def show(title: str, runs: list[dict[str, float]]) -> None:
    parts: dict[str, list[float]] = defaultdict(list)
    for run in runs:
        for name, seconds in run.items():
            parts[name].append(seconds)
    print(f"\n{title:<44} {'median':>8} {'min':>8} {'max':>8}   ({len(runs)} runs)")
    for name, seconds in parts.items():
        print(f"  {name:<42} {statistics.median(seconds):8.2f} {min(seconds):8.2f} {max(seconds):8.2f}")


if __name__ == "__main__":
    main()
