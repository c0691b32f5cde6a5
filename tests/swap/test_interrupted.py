"""A swap and a way back that are killed behind any of their tasks, and run again, end as those that are not.

Each case is both, which takes about ten minutes: --boundaries chooses some.
"""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

from lab.load import load
from lab.playbooks import ROOT, Playbooks
from lab.spec import Lab

from . import runs

CALLBACKS = f"{ROOT / 'callback_plugins'}:{Path(__file__).with_name('callbacks')}"
KILLED = -signal.SIGKILL


def test_killed_and_run_again(
    lab: Lab, playbooks: Playbooks, monkeypatch: pytest.MonkeyPatch, boundary: int, past_the_end: list[int]
) -> None:
    if past_the_end:
        pytest.skip(f"neither way has so many tasks: {past_the_end[0]} was too many")
    monkeypatch.setenv("ANSIBLE_CALLBACK_PLUGINS", CALLBACKS)

    codes = []
    for book, again, assert_there in (
        ("swap_cni", runs.swap, runs.assert_on_calico),
        ("rollback", runs.back, runs.assert_on_flannel),
    ):
        with load(lab, downloads=True) as clients:
            with monkeypatch.context() as patch:
                patch.setenv("NETMEND_KILL_AFTER", str(boundary))
                killed = playbooks.run(f"playbooks/{book}.yml", *runs.arguments(), limit=runs.LIMIT)
            run = again(playbooks)
        assert killed.code in (0, KILLED), killed.output
        runs.assert_healthy_without_loss(run, clients, killed.output)
        assert_there(lab)
        codes.append(killed.code)

    if KILLED not in codes:
        past_the_end.append(boundary)
