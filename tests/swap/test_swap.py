"""Flannel is swapped for Calico and back under load: nothing is lost or left, and a second run changes nothing."""

from __future__ import annotations

import json
from ipaddress import ip_address, ip_network
from typing import Any

import pytest

from lab import cluster, upstream
from lab.load import Client, load
from lab.playbooks import Outcome, Playbooks
from lab.spec import Lab

POOL = ip_network("10.42.128.0/17")
NODE_PORT = 31695
TRACES = "ip -br link; ip route show table all; ip rule; iptables-save; ipset list -n; ls /etc/cni/net.d 2>/dev/null"


@pytest.fixture(scope="module")
def swapped(lab: Lab, playbooks: Playbooks) -> tuple[Outcome, dict[str, Client]]:
    assert not any(address in POOL for address in pods(lab).values())
    with load(lab, "web", NODE_PORT) as clients:
        run = swap(playbooks)
    return run, clients


@pytest.fixture(scope="module")
def returned(
    swapped: tuple[Outcome, dict[str, Client]], lab: Lab, playbooks: Playbooks
) -> tuple[Outcome, dict[str, Client]]:
    assert swapped[0].code == 0
    with load(lab, "web", NODE_PORT) as clients:
        run = back(playbooks)
    return run, clients


def pods(lab: Lab) -> dict[str, Any]:
    """Pods with a network of their own -> their addresses."""
    said = cluster.must(lab, lab.machines[0], "k3s kubectl get pods -A -o json")
    return {
        item["metadata"]["name"]: ip_address(item["status"]["podIP"])
        for item in json.loads(said)["items"]
        if not item["spec"].get("hostNetwork")
    }


def traces(lab: Lab) -> dict[str, str]:
    """What a network leaves on each machine, in lower case."""
    return {machine.name: cluster.must(lab, machine, TRACES).lower() for machine in lab.machines}


def swap(playbooks: Playbooks, book: str = "swap_cni") -> Outcome:
    manifest = upstream.calico("v3.32.1")
    # Each pod that starts takes a machine of the lab seconds: one at a time on each.
    pace = ("-e", "netmend_swap_drain_seconds=5", "-e", "netmend_swap_parallel=3")
    arguments = ("-e", f"calico_ipip_manifest={manifest}", *pace)
    return playbooks.run(f"playbooks/{book}.yml", *arguments, limit=900)


def back(playbooks: Playbooks) -> Outcome:
    return swap(playbooks, "rollback")


def assert_healthy_without_loss(run: Outcome, clients: dict[str, Client]) -> None:
    assert run.code == 0, run.output
    assert run.report["healthy"], run.output
    for client in clients.values():
        assert client.asked > 1000
        assert client.lost == []


def test_the_swap_loses_no_request(swapped: tuple[Outcome, dict[str, Client]]) -> None:
    assert_healthy_without_loss(*swapped)


@pytest.mark.usefixtures("swapped")
def test_all_pods_are_on_calico(lab: Lab) -> None:
    assert all(address in POOL for address in pods(lab).values())


@pytest.mark.usefixtures("swapped")
def test_nothing_is_left_of_flannel(lab: Lab) -> None:
    for found in traces(lab).values():
        assert "flannel" not in found
        assert "cni0" not in found


@pytest.mark.usefixtures("swapped")
def test_a_second_swap_changes_nothing(playbooks: Playbooks) -> None:
    again = swap(playbooks)
    assert (again.code, again.changed) == (0, 0), again.output


def test_the_way_back_loses_no_request(returned: tuple[Outcome, dict[str, Client]]) -> None:
    assert_healthy_without_loss(*returned)


@pytest.mark.usefixtures("returned")
def test_all_pods_are_on_flannel(lab: Lab) -> None:
    assert not any(address in POOL for address in pods(lab).values())


@pytest.mark.usefixtures("returned")
def test_nothing_is_left_of_calico(lab: Lab) -> None:
    for found in traces(lab).values():
        assert "cali" not in found
        assert "tunl0@" not in found.replace("tunl0@none      down", "")


@pytest.mark.usefixtures("returned")
def test_a_second_way_back_changes_nothing(playbooks: Playbooks) -> None:
    again = back(playbooks)
    assert (again.code, again.changed) == (0, 0), again.output
