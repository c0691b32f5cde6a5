"""What the mended state of a node has to survive, one after the other."""

from __future__ import annotations

from lab import cluster
from lab.playbooks import Playbooks
from lab.spec import Lab, Machine


def reload_ufw(lab: Lab, machine: Machine) -> None:
    cluster.must(lab, machine, "ufw reload")


def restart_k3s(lab: Lab, machine: Machine) -> None:
    unit = "k3s" if machine.role == "server" else "k3s-agent"
    cluster.must(lab, machine, f"systemctl restart {unit}.service")


def reboot(lab: Lab, machine: Machine) -> None:
    cluster.reboot(lab, machine)


ALL = (reload_ufw, restart_k3s, reboot)


def assert_healthy(lab: Lab, playbooks: Playbooks) -> None:
    """Once all nodes are Ready, nothing is found, and nothing is left to change."""
    cluster.wait(lab)
    again = playbooks.run("fix_network.yml")
    assert (again.code, again.named, again.changed) == (0, [], 0), again.output
