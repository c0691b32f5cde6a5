"""Machines are placed, and moved, so that no processor of the host has much more to do than another."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from lab import processors
from lab.processors import keep_even, move, placement, wanted
from lab.spec import Machine

SPIN = "while True: pass"


def machines(*memory: int) -> list[Machine]:
    return [Machine(f"m{number}", "agent", "10.0.0.1", "198.51.100.1", each) for number, each in enumerate(memory)]


def test_machines_begin_where_the_least_memory_is() -> None:
    assert placement(machines(3000, 1500, 1500, 1000), [0, 1]) == {"m0": 0, "m1": 1, "m2": 1, "m3": 0}


@pytest.mark.parametrize(
    ("demands", "placed", "moved"),
    [
        # Two that want a whole one each share one.
        ({"a": 0.3, "b": 1.0, "c": 0.9}, {"a": 0, "b": 1, "c": 1}, ("c", 0)),
        # Who has much to do is better off alone, however little the others have.
        ({"a": 0.3, "b": 1.0, "c": 0.2}, {"a": 0, "b": 1, "c": 1}, ("c", 0)),
        ({"a": 0.9, "b": 1.0, "c": 0.2}, {"a": 0, "b": 1, "c": 1}, None),
        # Neither way round is it worth it.
        ({"a": 1.0, "b": 1.0, "c": 1.0}, {"a": 0, "b": 1, "c": 1}, None),
        ({"a": 1.0}, {"a": 0}, None),
        ({}, {}, None),
    ],
)
def test_one_is_moved_where_that_takes_much_from_the_fullest(
    demands: dict[str, float], placed: dict[str, int], moved: tuple[str, int] | None
) -> None:
    assert move(demands, placed, [0, 1]) == moved


def test_who_runs_most_where_no_time_is_left_would_take_all_of_it() -> None:
    ran, placed = {"a": 0.6, "b": 0.3, "c": 0.4, "d": 0.1}, {"a": 0, "b": 0, "c": 1, "d": 1}
    assert wanted(ran, placed, {0: 0.0, 1: 0.4}) == {**ran, "a": 1.0}
    assert wanted(ran, placed, {0: 0.1, 1: 0.04}) == {**ran, "c": 1.0}
    assert wanted({}, {}, {0: 0.0}) == {}


@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="needs two processors")
def test_two_that_are_busy_get_a_processor_each(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processors, "PERIOD", 0.1)
    first, second = sorted(os.sched_getaffinity(0))[:2]
    spinning = [subprocess.Popen([sys.executable, "-c", SPIN]) for _ in range(2)]
    files = {f"m{number}": tmp_path / f"pid{number}" for number in range(2)}
    try:
        for file, process in zip(files.values(), spinning, strict=True):
            os.sched_setaffinity(process.pid, {first})
            file.write_text(f"{process.pid}\n")
        until = time.monotonic() + 30

        def apart() -> bool:
            return {min(os.sched_getaffinity(process.pid)) for process in spinning} == {first, second}

        def end_when_apart(seconds: float) -> None:
            time.sleep(seconds)
            if apart() or time.monotonic() > until:
                for file in files.values():
                    file.unlink()

        monkeypatch.setattr(processors, "time", type("Clock", (), {"sleep": staticmethod(end_when_apart)}))
        keep_even(files, [first, second])
        assert apart()
    finally:
        for process in spinning:
            process.kill()
            process.wait()
