"""fix_network.yml and undo.yml where K3s's servicelb has a port that others wait for. What K3s does is stood in for."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from tests.unit.standins import Project

FIX = "fix_network.yml"
# The firewall's part of it has nothing to do here.
UNDO = ("playbooks/undo.yml", "--start-at-task", "Read the servers' configuration")
DECLARED = ("-e", '{"netmend_k3s_disable": ["servicelb", "traefik"]}')


@pytest.fixture
def drop_in(tmp_path: Path) -> Path:
    return tmp_path / "k3s/config.yaml.d/90-netmend-disable.yaml"


@pytest.fixture
def project(tmp_path: Path, drop_in: Path) -> Project:
    drop_in.parents[1].mkdir()
    project = Project(tmp_path)
    project.hold_ports(drop_in.parent.with_suffix(""))
    return project


def run(project: Project, book: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return project.run("ansible-playbook", "-i", "inventory/mine", book, *arguments)


def restarts(project: Project) -> int:
    return sum(not each["_ansible_check_mode"] for each in project.given("server0/netmend_k3s_restart.json"))


def test_without_a_declaration_it_is_named_and_left(project: Project, drop_in: Path) -> None:
    done = run(project, FIX)
    assert done.returncode == 2, done.stdout + done.stderr
    assert "netmend_k3s_disable: [servicelb, traefik]" in done.stdout
    assert not drop_in.parent.exists()


def test_a_wrong_declaration_is_named(project: Project) -> None:
    done = run(project, FIX, "-e", '{"netmend_k3s_disable": ["coredns"]}')
    assert done.returncode == 1, done.stdout + done.stderr
    assert "netmend_k3s_disable[0]: 'coredns' is none of servicelb, traefik" in done.stdout


def test_there_and_back(project: Project, drop_in: Path) -> None:
    """Check, mend, mend again, undo."""
    checked = run(project, FIX, *DECLARED, "--check", "--diff")
    assert checked.returncode == 10, checked.stdout + checked.stderr
    assert "+disable+: [servicelb, traefik]" in checked.stdout
    assert not drop_in.parent.exists()
    assert restarts(project) == 0

    mended = run(project, FIX, *DECLARED)
    assert mended.returncode == 0, mended.stdout + mended.stderr
    assert drop_in.read_text().endswith("\ndisable+: [servicelb, traefik]\n")
    assert drop_in.stat().st_mode & 0o777 == 0o600
    report = project.report()
    assert report["verdict"].startswith("Mended: host-port-conflict.")
    (written,) = (each["diff"][0]["after"] for each in report["changes"] if each["role"] == "k3s_disable")
    assert written == drop_in.read_text()
    assert restarts(project) == 1

    again = run(project, FIX, *DECLARED)
    assert again.returncode == 0, again.stdout + again.stderr
    assert "changed: " not in again.stdout

    undone = run(project, *UNDO)
    assert undone.returncode == 0, undone.stdout + undone.stderr
    assert not drop_in.exists()
    assert restarts(project) == 2


def test_what_does_not_come_of_it_is_said(tmp_path: Path, drop_in: Path) -> None:
    drop_in.parents[1].mkdir()
    project = Project(tmp_path)
    project.hold_ports(drop_in.parent.with_suffix(""), for_good=True)
    done = run(project, FIX, *DECLARED, "-e", "k3s_disable_timeout=2")
    assert done.returncode == 1, done.stdout + done.stderr
    left = "kube-system/svclb-traefik-x is still there; shop/controller-x is not ready (Pending)."
    assert f"All servers are told to do without servicelb and traefik. {left}" in done.stdout
