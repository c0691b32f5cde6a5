"""A node that is rebooted in the middle of a swap or of the way back: a second run finishes what the first did not."""

from __future__ import annotations

from lab import cluster
from lab.playbooks import Playbooks
from lab.spec import Lab, Machine

from . import runs


def begun_and_rebooted(playbooks: Playbooks, book: str, behind: str, machine: Machine) -> None:
    """Runs a playbook, and reboots a machine when it is behind a task."""
    said = ""
    with playbooks.start(f"playbooks/{book}.yml", *runs.arguments()) as process:
        assert process.stdout
        while behind not in said:
            line = process.stdout.readline()
            assert line, f"the run ended before {behind!r}: {said}"
            said += line
        cluster.reboot(playbooks.lab, machine)
        rest, _ = process.communicate(timeout=runs.LIMIT)
    print(f"the run in which {machine.name} was rebooted ended with {process.returncode}: {rest[-2000:]}")


def test_an_agent_is_rebooted_while_nodes_are_flipped(lab: Lab, playbooks: Playbooks) -> None:
    (*_, agent) = lab.agents
    begun_and_rebooted(playbooks, "swap_cni", "Have Calico's word for it, too", agent)
    run = runs.swap(playbooks)
    assert (run.code, run.report["healthy"]) == (0, True), run.output
    runs.assert_on_calico(lab)


def test_a_server_is_rebooted_while_pods_are_replaced_on_the_way_back(lab: Lab, playbooks: Playbooks) -> None:
    (*_, server) = lab.servers
    begun_and_rebooted(playbooks, "rollback", "Let nodes tell when nobody is connected", server)
    run = runs.back(playbooks)
    assert (run.code, run.report["healthy"]) == (0, True), run.output
    runs.assert_on_flannel(lab)
