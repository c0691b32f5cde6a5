"""The controller dies in the middle of a change: the node takes it back by itself."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator

import pytest

from lab import cluster
from lab.playbooks import Playbooks
from lab.spec import Lab, Machine

FAULT = "vxlan-dropped-by-host"
CHANGE = "ufw : Let in what the cluster needs"
# The timer's 20 s, and the time that UFW takes to restart on a busy machine.
WITHIN = 60


@pytest.fixture
def node(lab: Lab) -> Iterator[Machine]:
    """An agent without VXLAN let in."""
    cluster.put_in(lab, FAULT)
    yield lab.machines[-1]
    cluster.take_out(lab, FAULT)


def test_a_change_that_nobody_confirms_is_taken_back(lab: Lab, node: Machine, playbooks: Playbooks) -> None:
    before = cluster.firewall(lab, node)
    assert "netmend:" not in before
    with playbooks.start("fix_network.yml") as run:
        changing = False
        for line in run.stdout:
            changing = changing or CHANGE in line
            if changing and f"changed: {node.name}" in line:
                os.killpg(run.pid, signal.SIGKILL)
                break
    assert "netmend:" in cluster.firewall(lab, node), "the change was not in when the controller died"
    wait = f"timeout {WITHIN} sh -c 'until test -e /var/lib/netmend/guard/ufw/rolled_back.json; do sleep 0.2; done'"
    cluster.must(lab, node, wait)
    assert cluster.firewall(lab, node) == before
