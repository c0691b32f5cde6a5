"""Flannel is swapped for Calico under load, nothing is lost, and a second run changes nothing."""

from __future__ import annotations

import json
from ipaddress import ip_address, ip_network
from typing import Any

import pytest

from lab import cluster, upstream
from lab.load import load
from lab.playbooks import Outcome, Playbooks
from lab.spec import Lab

POOL = ip_network("10.42.128.0/17")
NODE_PORT = 31695


def pods(lab: Lab) -> list[dict[str, Any]]:
    said = cluster.must(lab, lab.machines[0], "k3s kubectl get pods -A -o json")
    return [item for item in json.loads(said)["items"] if not item["spec"].get("hostNetwork")]


@pytest.fixture(scope="module")
def swapped(lab: Lab, playbooks: Playbooks) -> dict[str, Any]:
    assert not any(ip_address(pod["status"]["podIP"]) in POOL for pod in pods(lab))
    with load(lab, "web", NODE_PORT) as clients:
        run = swap(playbooks)
    return {"run": run, "clients": clients}


def swap(playbooks: Playbooks) -> Outcome:
    manifest = upstream.calico("v3.32.1")
    arguments = ("-e", f"calico_ipip_manifest={manifest}", "-e", "netmend_swap_drain_seconds=5")
    return playbooks.run("playbooks/swap_cni.yml", *arguments, limit=900)


def test_no_request_is_lost(swapped: dict[str, Any]) -> None:
    assert swapped["run"].code == 0, swapped["run"].output
    for client in swapped["clients"].values():
        assert client.asked > 1000
        assert client.lost == []


def test_all_pods_are_on_the_new_network(swapped: dict[str, Any], lab: Lab) -> None:
    assert swapped["run"].report["healthy"], swapped["run"].output
    assert all(ip_address(pod["status"]["podIP"]) in POOL for pod in pods(lab))


@pytest.mark.usefixtures("swapped")
def test_nothing_is_left_of_flannel(lab: Lab) -> None:
    for machine in lab.machines:
        seen = cluster.must(lab, machine, "ip -br link; ip route; iptables-save; ls /run/flannel 2>&1")
        assert "flannel" not in seen.lower().replace("/run/flannel", "")
        assert "cni0" not in seen


@pytest.mark.usefixtures("swapped")
def test_a_second_run_changes_nothing(playbooks: Playbooks) -> None:
    again = swap(playbooks)
    assert (again.code, again.changed) == (0, 0), again.output
