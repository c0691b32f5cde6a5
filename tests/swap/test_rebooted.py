"""A node that is rebooted in the middle of a swap or of the way back: a second run finishes what the first did not."""

from __future__ import annotations

from lab import cluster
from lab.playbooks import Playbooks
from lab.spec import Lab, Machine

from . import runs


def assert_finished(playbooks: Playbooks, way: runs.Way, book: str, behind: str, machine: Machine) -> None:
    """Runs a playbook, reboots a machine when it is behind a task, and goes the same way again."""
    said = ""
    with playbooks.start(f"playbooks/{book}.yml", *runs.arguments(playbooks.lab)) as process:
        assert process.stdout
        while behind not in said:
            line = process.stdout.readline()
            assert line, f"the run ended before {behind!r}: {said}"
            said += line
        cluster.reboot(playbooks.lab, machine)
        rest, _ = process.communicate(timeout=runs.LIMIT)
    print(f"the run in which {machine.name} was rebooted ended with {process.returncode}: {rest[-2000:]}")
    run = way(playbooks)
    assert (run.code, run.report["healthy"]) == (0, True), run.output


def test_an_agent_is_rebooted_while_nodes_are_flipped(lab: Lab, playbooks: Playbooks) -> None:
    assert_finished(playbooks, runs.swap, "swap_cni", "Have Calico's word for it, too", lab.agents[-1])
    runs.assert_on_calico(lab)


def test_a_server_is_rebooted_while_pods_are_replaced_on_the_way_back(lab: Lab, playbooks: Playbooks) -> None:
    assert_finished(playbooks, runs.back, "rollback", "Let nodes tell when nobody is connected", lab.servers[-1])
    runs.assert_on_flannel(lab)
