"""Applications are rolled out, undone, and moved to their hosts' network and back, under load: nothing is lost."""

from __future__ import annotations

import json
from typing import Any

import pytest

from lab import cluster
from lab.load import Client, load
from lab.playbooks import Outcome, Playbooks
from lab.spec import Lab

NODE_PORT = 30080
SHOP: dict[str, Any] = {
    "name": "shop",
    "image": "docker.io/netmend/app:1",
    "port": 8080,
    "replicas": 2,
    "health": "/health",
    "node_port": NODE_PORT,
}


@pytest.fixture(scope="module", autouse=True)
def rolled_out(playbooks: Playbooks) -> Outcome:
    return roll_out(playbooks, SHOP)


def roll_out(playbooks: Playbooks, *applications: dict[str, Any], **more: Any) -> Outcome:
    asked = {"netmend_applications": applications, **more}
    return playbooks.run("playbooks/app_rollout.yml", "--diff", "-e", json.dumps(asked))


def move(playbooks: Playbooks, state: str, kind: str) -> Outcome:
    asked = {"host_network_applications": [{"name": "default/shop", "kind": kind}], "host_network_state": state}
    return playbooks.run("playbooks/host_network.yml", "--diff", "-e", json.dumps(asked))


def pods(lab: Lab) -> list[Any]:
    said = cluster.must(lab, lab.machines[0], "k3s kubectl get pods -l app.kubernetes.io/name=shop -o json")
    return [item for item in json.loads(said)["items"] if "deletionTimestamp" not in item["metadata"]]


def assert_nothing_lost(clients: dict[str, Client]) -> None:
    for client in clients.values():
        assert client.asked > 200
        assert client.lost == []


def test_it_is_rolled_out_and_then_there_is_nothing_to_do(lab: Lab, playbooks: Playbooks, rolled_out: Outcome) -> None:
    assert rolled_out.code == 0, rolled_out.output
    assert len(pods(lab)) == 2
    again = roll_out(playbooks, SHOP)
    assert (again.code, again.changed) == (0, 0), again.output


def test_a_new_version_loses_no_request(lab: Lab, playbooks: Playbooks) -> None:
    with load(lab, "shop", NODE_PORT) as clients:
        run = roll_out(playbooks, {**SHOP, "env": {"VERSION": "2"}})
    assert run.code == 0, run.output
    assert_nothing_lost(clients)
    assert roll_out(playbooks, SHOP).code == 0


def test_a_bad_image_is_undone_and_the_former_serves_meanwhile(lab: Lab, playbooks: Playbooks) -> None:
    with load(lab, "shop", NODE_PORT) as clients:
        run = roll_out(playbooks, {**SHOP, "image": "docker.io/netmend/none:1"})
    assert run.code != 0
    assert "It was undone: what was there before is up" in run.output
    assert "docker.io/netmend/none:1" in run.output
    assert_nothing_lost(clients)
    assert {pod["spec"]["containers"][0]["image"] for pod in pods(lab)} == {SHOP["image"]}
    again = roll_out(playbooks, SHOP)
    assert (again.code, again.changed) == (0, 0), again.output


@pytest.mark.parametrize("kind", ["DaemonSet", "Deployment"])
def test_there_and_back_under_load(lab: Lab, playbooks: Playbooks, kind: str) -> None:
    with load(lab, "shop", NODE_PORT) as clients:
        there = move(playbooks, "present", kind)
        assert there.code == 0, there.output
        assert [pod["spec"].get("hostNetwork") for pod in pods(lab)] == [True] * (3 if kind == "DaemonSet" else 2)
        again = move(playbooks, "present", kind)
        assert (again.code, again.changed) == (0, 0), again.output
        back = move(playbooks, "absent", kind)
        assert back.code == 0, back.output
    assert_nothing_lost(clients)
    assert [pod["spec"].get("hostNetwork") for pod in pods(lab)] == [None, None]
    again = roll_out(playbooks, SHOP)
    assert (again.code, again.changed) == (0, 0), again.output


def test_a_port_that_is_taken_is_named_and_nothing_is_changed(lab: Lab, playbooks: Playbooks) -> None:
    listener = "systemd-run --unit taken python3 -m http.server 8080"
    cluster.must(lab, lab.machines[-1], listener)
    try:
        run = move(playbooks, "present", "DaemonSet")
    finally:
        cluster.must(lab, lab.machines[-1], "systemctl stop taken")
    assert run.code != 0
    assert f"TCP/8080 on {lab.machines[-1].name} is python3's" in run.output
    assert len(pods(lab)) == 2


def test_what_is_declared_no_more_goes_when_that_is_asked_for(lab: Lab, playbooks: Playbooks) -> None:
    run = roll_out(playbooks, app_rollout_prune=True)
    assert run.code == 0, run.output
    assert pods(lab) == []
