"""A swap and a way back that are killed behind any of their tasks, and run again, end as those that are not.

Each case is both, which takes about ten minutes: --boundaries chooses some.
"""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

from lab.load import load
from lab.playbooks import ROOT, Outcome, Playbooks
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

    def killed(book: str) -> Outcome:
        with monkeypatch.context() as patch:
            patch.setenv("NETMEND_KILL_AFTER", str(boundary))
            return playbooks.run(f"playbooks/{book}.yml", *runs.arguments(), limit=runs.LIMIT)

    with load(lab, "web", runs.NODE_PORT) as clients:
        forth = killed("swap_cni")
        run = runs.swap(playbooks)
    assert forth.code in (0, KILLED), forth.output
    runs.assert_healthy_without_loss(run, clients, forth.output)
    runs.assert_on_calico(lab)

    with load(lab, "web", runs.NODE_PORT) as clients:
        back = killed("rollback")
        run = runs.back(playbooks)
    assert back.code in (0, KILLED), back.output
    runs.assert_healthy_without_loss(run, clients, back.output)
    runs.assert_on_flannel(lab)

    if KILLED not in (forth.code, back.code):
        past_the_end.append(boundary)
