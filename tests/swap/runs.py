"""Swaps and ways back on a lab's machines, and what is there afterwards."""

from __future__ import annotations

import json
import re
from datetime import datetime
from ipaddress import ip_address, ip_network
from typing import Any, Callable

from lab import cluster, upstream
from lab.load import Client
from lab.playbooks import Outcome, Playbooks
from lab.spec import Lab

POOL = ip_network("10.42.128.0/17")
TRACES = (
    "ip -br link; ip route show table all; ip rule; iptables-save; ipset list -n; ls /etc/cni/net.d 2>/dev/null || true"
)
LIMIT = 900  # seconds
wanted = {"version": "v3.32.1"}  # netmend_swap_wanted

Way = Callable[[Playbooks], Outcome]
Assert = Callable[[Lab], None]


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


def arguments(lab: Lab) -> tuple[str, ...]:
    """What a lab's swap and way back are given."""
    typha = lab.calico["typha"] if lab.calico else 0
    given = {
        "calico_ipip_manifest": str(upstream.calico(wanted["version"], upstream.variant(typha))),
        "netmend_swap_wanted": {**wanted, "typha": typha},
        # Each pod that starts takes a machine of the lab seconds, and what goes one by one waits for each of them.
        "netmend_swap_parallel": 2,
    }
    return ("-e", json.dumps(given))


def swap(playbooks: Playbooks) -> Outcome:
    return playbooks.run("playbooks/swap_cni.yml", *arguments(playbooks.lab), limit=LIMIT)


def back(playbooks: Playbooks) -> Outcome:
    return playbooks.run("playbooks/rollback.yml", *arguments(playbooks.lab), limit=LIMIT)


def assert_on_calico(lab: Lab) -> None:
    """All pods are, and nothing is left of Flannel."""
    assert all(address in POOL for address in pods(lab).values())
    for found in traces(lab).values():
        assert "flannel" not in found
        assert "cni0" not in found


def assert_on_flannel(lab: Lab) -> None:
    """All pods are, and nothing is left of Calico."""
    assert not any(address in POOL for address in pods(lab).values())
    for found in traces(lab).values():
        assert "cali" not in found
        # The device belongs to the kernel's module, and stays where that was loaded.
        assert not re.search(r"^tunl0@none +(?! |down )", found, re.M)
        assert not re.search(r" dev tunl0\b", found)


def assert_healthy_without_loss(run: Outcome, clients: dict[str, Client], before: str = "") -> None:
    """before: what another run said, that the clients asked through, too."""
    assert run.code == 0, before + run.output
    assert run.report["healthy"], before + run.output
    lost = []
    for name, client in clients.items():
        assert client.asked > (50 if name == "downloads" else 1000)
        if client.lost:
            lost += [f"{name} lost {len(client.lost)} of {client.asked}:"]
            lost += [f"{datetime.fromtimestamp(when):%T} {whom} {how}" for when, whom, how in client.lost[:20]]
    assert not lost, "\n".join([*lost, before, run.output])
