"""What a swap to Calico and the way back cost on a running lab: by phase the seconds, what was lost, and p99.

Lost are requests without an answer, and downloads of 20 s that were cut off.

.venv/bin/python -m lab with swap -- .venv/bin/python benchmarks/swap.py [--lab NAME] [--drain S] [--parallel N]
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from datetime import datetime, timezone
from itertools import accumulate
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from lab import machines, upstream  # noqa: E402  it is not installed, and found by the line above
from lab.load import Client, load, percentile  # noqa: E402  as above
from lab.playbooks import Outcome, Playbooks  # noqa: E402  as above

BOOKS = ("swap_cni", "rollback")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lab", default=os.environ.get("NETMEND_LAB", "swap"), help="a lab that is up, on Flannel")
    parser.add_argument("--drain", type=int, default=60, help="seconds that a pod with connections goes on")
    parser.add_argument("--parallel", type=int, default=2, help="pods that start at once")
    parser.add_argument("--steps", action="store_true", help="show each step with its time, too")
    arguments = parser.parse_args()
    lab = machines.recall(arguments.lab)
    given = {
        "calico_ipip_manifest": upstream.calico("v3.32.1"),
        "netmend_swap_drain_seconds": arguments.drain,
        "netmend_swap_parallel": arguments.parallel,
    }
    extra = [word for name, value in given.items() for word in ("-e", f"{name}={value}")]
    with tempfile.TemporaryDirectory() as reports:
        playbooks = Playbooks(lab, Path(reports))
        for book in BOOKS:
            began = time.time()
            with load(lab, downloads=True) as clients:
                run = playbooks.run(f"playbooks/{book}.yml", *extra, limit=1200)
                ended = time.time()
            assert run.code in (0, 2), run.output
            if arguments.steps:
                print(run.output)
            show(f"{book}.yml, {len(lab.servers)}+{len(lab.machines) - len(lab.servers)}", run, clients, began, ended)


def show(title: str, run: Outcome, clients: dict[str, Client], began: float, ended: float) -> None:
    print(f"\n{title:<40} {'seconds':>8}" + "".join(f" {name + ' lost':>13} {'p99 ms':>7}" for name in clients))
    for name, since, until in [*phases(run, began, ended), ("whole", began, ended)]:
        row = f"  {name:<38} {until - since:8.1f}"
        for client in clients.values():
            lost = sum(since <= when < until for when, *_ in client.lost)
            answers = client.during(since, until)
            row += f" {f'{lost} of {lost + len(answers)}':>13} {1000 * percentile(answers, 0.99):7.0f}"
        print(row)
    print(f"  {run.report['verdict']}", flush=True)


def phases(run: Outcome, began: float, ended: float) -> list[tuple[str, float, float]]:
    """Name, begin and end of each phase of the report, and of what Ansible does around them; correct to a second.

    The report has their durations, and when it was made, to the second.
    """
    made = datetime.fromisoformat(run.report["time"].removesuffix("Z")).replace(tzinfo=timezone.utc).timestamp()
    lengths = [phase["seconds"] for phase in run.report["phases"]]
    ends = list(accumulate(lengths, initial=made - sum(lengths)))
    names = [phase["name"] for phase in run.report["phases"]]
    return [("start", began, ends[0]), *zip(names, ends, ends[1:], strict=False), ("end", ends[-1], ended)]


if __name__ == "__main__":
    main()
