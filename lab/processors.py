"""Which of the host's processors each machine of a lab stays on.

A machine's kernel and its processes are processes of the host that take turns. On one processor that is a switch,
between two it is an interrupt and a wake-up, which under a hypervisor costs several times as much. So each machine
stays on one; but where one that has much to do shares it, and the others would fit on another one, they are moved.
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
FULL = 0.05  # of a processor: where less is idle, something waits for it
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
    had: dict[str, dict[int, float]] = {}
    spare: dict[int, float] = {}
    demands: dict[str, float] = {}
    while pids := {name: int(file.read_text()) for name, file in pid_files.items() if file.exists()}:
        before, had = had, {}
        spared, spare = spare, _spare(processors)
        placed = {}
        for name, pid in pids.items():
            with suppress(OSError):
                had[name] = _had(pid)
                placed[name] = min(os.sched_getaffinity(pid))
        ran = {name: _more(before[name], had[name]) / PERIOD for name in had if name in before}
        idle = {processor: (spare[processor] - spared[processor]) / PERIOD for processor in spared}
        now = wanted(ran, placed, idle)
        # What a machine wants for a moment is no reason to move one.
        demands = {name: (asked + demands.get(name, asked)) / 2 for name, asked in now.items()}
        if moved := move(demands, placed, processors):
            name, processor = moved
            for task in _tasks(pids[name]):
                with suppress(ProcessLookupError):
                    os.sched_setaffinity(task, {processor})
        time.sleep(PERIOD)


def wanted(ran: Mapping[str, float], placed: Mapping[str, int], idle: Mapping[int, float]) -> dict[str, float]:
    """The share of a processor that each machine would take if it had one alone, by what it ran in a second.

    Where a processor had no time left, who ran most there would have taken all of it. That a machine waited says
    nothing: its kernel and its processes always wait for each other.
    """
    demands = dict(ran)
    for processor, left in idle.items():
        here = [name for name in ran if placed[name] == processor]
        if here and left < FULL:
            demands[max(here, key=lambda name: ran[name])] = 1.0
    return demands


def _spare(processors: Sequence[int]) -> dict[int, float]:
    """Processor -> the seconds that it has been idle so far (proc(5), /proc/stat)."""
    lines = (line.split() for line in Path("/proc/stat").read_text().splitlines())
    idle = {name: int(ticks[3]) / os.sysconf("SC_CLK_TCK") for name, *ticks in lines if name.startswith("cpu")}
    return {processor: idle[f"cpu{processor}"] for processor in processors}


def _had(pid: int) -> dict[int, float]:
    """Task of a machine -> the seconds that it has run so far.

    Source: Documentation/scheduler/sched-stats.rst of the kernel.
    """
    found = {}
    for task in _tasks(pid):
        with suppress(OSError):
            found[task] = int(Path(f"/proc/{task}/schedstat").read_text().split()[0]) / 1e9
    return found


def _more(before: Mapping[int, float], now: Mapping[int, float]) -> float:
    """What tasks have come to since; what those had that have ended meanwhile is not known."""
    return sum(max(0.0, seconds - before.get(task, 0.0)) for task, seconds in now.items())


def _tasks(pid: int) -> Iterator[int]:
    """The threads of a machine's kernel, which what they start has its processor from, and then its processes."""
    threads = list(Path(f"/proc/{pid}/task").iterdir())
    yield from (int(thread.name) for thread in threads)
    for thread in threads:
        yield from map(int, (thread / "children").read_text().split())


if __name__ == "__main__":
    keep_even({file: Path(file) for file in sys.argv[1:]}, sorted(os.sched_getaffinity(0)))
