"""The operators' cluster once mended: it stays so, and nothing answers to the internet that did not have to."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from lab import cluster, outside, spec
from lab.playbooks import Outcome, Playbooks
from lab.spec import Lab

from . import disturbances, table

FAULT = "operators"
NAMED = spec.faults()[FAULT]["named"]
# SSH, and a NodePort: Kubernetes opens it on all of a node's addresses, and Flannel's accepts let it through.
MAY_BE_OPEN = {22, 31695}
# UFW lets it in, and nobody listens.
MAY_REFUSE = {443}


@pytest.fixture(scope="module")
def broken(lab: Lab, playbooks: Playbooks) -> Iterator[None]:
    cluster.put_in(lab, FAULT)
    yield
    undone = playbooks.run("playbooks/undo.yml")
    cluster.take_out(lab, FAULT)
    assert undone.code == 0, undone.output


@pytest.fixture(scope="module")
def mended(broken: None, playbooks: Playbooks, rows: table.Rows) -> Outcome:
    rows[FAULT] = None
    run = playbooks.run("fix_network.yml")
    rows[FAULT] = table.row(NAMED, run)
    return run


def test_check_mode_says_what_would_change_and_changes_nothing(lab: Lab, broken: None, playbooks: Playbooks) -> None:
    before = [cluster.firewall(lab, machine) for machine in lab.machines]
    run = playbooks.run("fix_network.yml", "--check", "--diff")
    assert run.code == 10, run.output
    assert run.report["drift"]
    assert "+ufw allow from 10.0.0.110 to any port 8472 proto udp" in run.output
    assert "--A FORWARD -d 10.42.0.0/16 -j DROP" in run.output
    assert [cluster.firewall(lab, machine) for machine in lab.machines] == before


def test_it_is_named_and_mended(mended: Outcome) -> None:
    assert mended.code == 0, mended.output
    assert set(mended.named[:3]) == set(NAMED), mended.output
    assert mended.report["before"]["score"] < 50
    assert mended.report["score"] == 100


def test_only_what_has_to_answers_to_the_internet(lab: Lab, mended: Outcome) -> None:
    for node, ports in outside.answers(lab).items():
        assert {port for port, answer in ports.items() if answer == "open"} <= MAY_BE_OPEN, node
        assert {port for port, answer in ports.items() if answer == "refused"} <= MAY_REFUSE, node


@pytest.mark.parametrize("disturb", disturbances.ALL, ids=lambda disturb: disturb.__name__)
def test_what_was_mended_stays_so(disturb, lab: Lab, mended: Outcome, playbooks: Playbooks) -> None:
    with ThreadPoolExecutor(len(lab.machines)) as pool:
        # A reboot of all nodes at once would only show that a cluster starts.
        chosen = lab.machines[-1:] if disturb is disturbances.reboot else lab.machines
        list(pool.map(lambda machine: disturb(lab, machine), chosen))
    disturbances.assert_healthy(lab, playbooks)
