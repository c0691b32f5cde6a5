"""A swap and a way back that are killed behind each change that they make, and run again, end as those that are not.

Behind a task that changes nothing, all is as behind the last change, so that these are all boundaries of tasks.
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


@pytest.fixture
def behind(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A file that gets a line for each change that a run was killed behind; all are killed behind one that it lacks."""
    file = tmp_path / "killed"
    file.touch()
    monkeypatch.setenv("ANSIBLE_CALLBACK_PLUGINS", CALLBACKS)
    monkeypatch.setenv("NETMEND_KILLED_BEHIND", str(file))
    return file


@pytest.mark.parametrize(
    ("way", "assert_there"),
    [(runs.swap, runs.assert_on_calico), (runs.back, runs.assert_on_flannel)],
    ids=["there", "back"],
)
def test_killed_behind_each_change(
    lab: Lab, playbooks: Playbooks, behind: Path, way: runs.Way, assert_there: runs.Assert
) -> None:
    killed = ""
    with load(lab, downloads=True) as clients:
        while (run := way(playbooks)).code == KILLED:
            killed += run.output
            print(f"killed behind: {behind.read_text().splitlines()[-1]}", flush=True)
    runs.assert_healthy_without_loss(run, clients, killed)
    assert_there(lab)
    assert len(behind.read_text().splitlines()) > 10
