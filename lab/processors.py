"""Which of the host's processors each machine of a lab stays on.

A machine's kernel and its processes are processes of the host that take turns. On one processor that is a switch,
between two it is an interrupt and a wake-up, which under a hypervisor costs several times as much. So each machine
stays on one; but where two that have much to do share one while another has less, one of them is moved.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from .spec import Machine

PERIOD = 1.0  # seconds
Share = tuple[float, float]  # seconds that a task or a machine ran, and waited to run
WORTH = 0.1  # of a processor, that the fullest one has to be asked for less after a move


def placement(machines: Sequence[Machine], processors: Sequence[int]) -> dict[str, int]:
    """The processor that each machine, by its name, begins on."""
    load = dict.fromkeys(processors, 0)
    placed = {}
    for machine in machines:
        processor = min(load, key=lambda p: load[p])
        load[processor] += machine.memory
        placed[machine.name] = processor
    return placed


def move(demands: Mapping[str, float], placed: Mapping[str, int], processors: Sequence[int]) -> tuple[str, int] | None:
    """The machine that goes to another processor, and which, where that is worth it.

    demands: the share of a processor that each machine would take if it had one alone.
    """
    load = dict.fromkeys(processors, 0.0)
    for name, demand in demands.items():
        load[placed[name]] += demand
    fullest = max(load, key=lambda processor: load[processor])
    after = {
        (name, other): max(load[fullest] - demands[name], load[other] + demands[name])
        for name in demands
        if placed[name] == fullest
        for other in processors
        if other != fullest
    }
    best = min(after, key=lambda each: after[each], default=None)
    return best if best and load[fullest] - after[best] >= WORTH else None


def keep_even(pid_files: Mapping[str, Path], processors: Sequence[int]) -> None:
    """Looks after machines, by the files with the numbers of their processes, until none of them is there any more."""
    had: dict[str, dict[int, Share]] = {}
    demands: dict[str, float] = {}
    while pids := {name: int(file.read_text()) for name, file in pid_files.items() if file.exists()}:
        before, had = had, {}
        placed = {}
        for name, pid in pids.items():
            with suppress(OSError):
                had[name] = _had(pid)
                placed[name] = min(os.sched_getaffinity(pid))
        now = {name: demand(*_more(before[name], had[name])) for name in had if name in before}
        # What a machine wants for a moment is no reason to move one.
        demands = {name: (asked + demands.get(name, asked)) / 2 for name, asked in now.items()}
        if moved := move(demands, placed, processors):
            name, processor = moved
            for task in _tasks(pids[name]):
                with suppress(ProcessLookupError):
                    os.sched_setaffinity(task, {processor})
        time.sleep(PERIOD)


def demand(ran: float, waited: float) -> float:
    """What a machine would take of a processor of its own, by the seconds that it ran and waited for its turn in one.

    Who has always something to do takes all of it; who sleeps between, works no longer for having to wait less.
    """
    return min(1.0, ran / max(ran, PERIOD - waited)) if ran else 0.0


def _had(pid: int) -> dict[int, Share]:
    """Task of a machine -> the seconds that it has run, and waited to run, so far.

    Source: Documentation/scheduler/sched-stats.rst of the kernel.
    """
    found = {}
    for task in _tasks(pid):
        with suppress(OSError):
            run, waited, _ = Path(f"/proc/{task}/schedstat").read_text().split()
            found[task] = int(run) / 1e9, int(waited) / 1e9
    return found


def _more(before: Mapping[int, Share], now: Mapping[int, Share]) -> Share:
    """What tasks have come to since; what those had that have ended meanwhile is not known."""
    grown = [[max(0.0, new - old) for new, old in zip(now[task], before.get(task, (0.0, 0.0)))] for task in now]
    return sum(ran for ran, _ in grown), sum(waited for _, waited in grown)


def _tasks(pid: int) -> Iterator[int]:
    """The threads of a machine's kernel, which what they start has its processor from, and then its processes."""
    threads = list(Path(f"/proc/{pid}/task").iterdir())
    yield from (int(thread.name) for thread in threads)
    for thread in threads:
        yield from map(int, (thread / "children").read_text().split())


if __name__ == "__main__":
    keep_even({file: Path(file) for file in sys.argv[1:]}, sorted(os.sched_getaffinity(0)))
