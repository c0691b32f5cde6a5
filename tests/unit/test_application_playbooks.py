"""app_rollout.yml and host_network.yml with modules that answer what they are told: who may run, what is handed on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.unit.standins import Project

BOOKS = {"app_rollout": "rollout", "host_network": "host_network"}
DONE = {"changed": False, "undeclared": ["Service shop/old"]}


@pytest.fixture
def project(tmp_path: Path) -> Project:
    return Project(tmp_path)


def run(project: Project, book: str, *arguments: str) -> Any:
    return project.run("ansible-playbook", "-i", "inventory/mine", f"playbooks/{book}.yml", *arguments)


@pytest.mark.parametrize("book", BOOKS)
def test_it_waits_for_no_other_run(book: str, project: Project) -> None:
    project.lend("ci@other/17")
    project.answer(f"server0/netmend_{BOOKS[book]}.json", {"failed": True, "msg": "it ran"})
    done = run(project, book)
    assert done.returncode != 0
    assert "another run changes this cluster: ci@other/17" in done.stdout
    assert "it ran" not in done.stdout


@pytest.mark.parametrize("book", BOOKS)
def test_it_gives_the_lease_back_where_it_fails(book: str, project: Project) -> None:
    project.answer(f"server0/netmend_{BOOKS[book]}.json", {"failed": True, "msg": "it does not come up"})
    done = run(project, book)
    assert done.returncode != 0
    assert "it does not come up" in done.stdout
    assert "Let others change it again" in done.stdout


def test_what_is_left_of_former_applications_is_said(project: Project) -> None:
    project.answer("server0/netmend_rollout.json", DONE)
    assert "Declared no more, and left: Service shop/old." in run(project, "app_rollout").stdout
    assert "Declared no more" not in run(project, "app_rollout", "-e", "app_rollout_prune=true").stdout


def test_what_listens_on_every_node_is_handed_on(project: Project) -> None:
    project.answer("server0/netmend_host_network.json", {"changed": False})
    done = run(project, "host_network", "-vvv", "-e", json.dumps({"host_network_applications": []}))
    assert done.returncode == 0, done.stdout + done.stderr
    (given,) = project.given("server0/netmend_host_network.json")
    assert set(given["sockets"]) == {"server0", "agent0", "agent1"}
    assert given["sockets"]["agent0"][0].keys() >= {"protocol", "port", "process"}
    assert given["state"] == "present"
