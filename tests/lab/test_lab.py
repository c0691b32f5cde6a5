"""The lab itself, on two small machines without K3s: its network, its faults, its end; beside whatever else is up."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from lab import build, cluster, machines, network, spec
from lab.fabric import Fabric
from lab.spec import Lab

MACHINES = {"servers": 1, "agents": 1, "memory": {"server": 256, "agent": 256}}


def start(name: str, **changes: int) -> Lab:
    lab = replace(spec.parse({**MACHINES, **changes, "name": name}, Path("small.yml")), plain=True)
    cluster.up(lab, lambda _: None)
    return lab


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    lab = start("small")
    yield lab
    machines.destroy(lab.name)


@pytest.fixture
def fabric(lab: Lab) -> Iterator[Fabric]:
    fabric = Fabric(lab.name)
    yield fabric
    fabric.clear()


def says(lab: Lab, command: str, machine: int = 0) -> str:
    """What the first machine says, whether the command succeeds or not."""
    argv = machines.ssh(lab.name, lab.machines[machine], command)
    return subprocess.run(argv, capture_output=True, text=True, check=False, timeout=60).stdout


def passes(lab: Lab, options: str = "") -> bool:
    return " 0% packet loss" in says(lab, f"ping -n -c 2 -i 0.2 -W 1 {options} {lab.machines[1].private}")


def left_of(name: str) -> list[str]:
    """Namespaces, directories and processes of a lab."""
    places = [network.NAMESPACES / network.namespace(name), network.NAMESPACES / network.outside_namespace(name)]
    places.append(machines.state(name))
    there = [str(place) for place in places if place.exists()]
    return there + [str(pid) for pid in processes(name)]


def processes(name: str) -> list[int]:
    directory = str(machines.state(name))
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        try:
            if os.readlink(path / "cwd").startswith(directory):
                found.append(int(path.name))
        except OSError:
            continue
    return found


def test_nothing_starts_k3s_on_a_plain_machine(lab: Lab) -> None:
    assert says(lab, "systemctl is-active k3s.service") == "inactive\n"


def test_the_private_network_takes_1450_bytes_and_no_more(lab: Lab) -> None:
    assert passes(lab, "-M do -s 1422")
    assert not passes(lab, "-M do -s 1423")


def test_nothing_leads_out_of_the_lab(lab: Lab) -> None:
    namespace = network.inside(lab.name, "ip", "-o", "link")
    links = subprocess.run(namespace, capture_output=True, text=True, check=True).stdout
    names = {line.split(": ")[1].split("@")[0] for line in links.splitlines()}
    assert names - {"lo", "outside"} == {nic + end for nic in network.nics(lab) for end in ("", "m")}


def test_dropped_icmp(lab: Lab, fabric: Fabric) -> None:
    assert passes(lab)
    fabric.add(["drop", "icmp"])
    assert not passes(lab)


def test_a_lower_mtu_is_answered_unless_that_is_dropped_too(lab: Lab, fabric: Fabric) -> None:
    big = f"ping -n -c 1 -W 1 -M do -s 1400 {lab.machines[1].private}"
    fabric.add(["mtu", "1300"])
    assert "mtu = 1300" in says(lab, big)
    says(lab, "ip route flush cache")
    fabric.add(["drop", "icmp/frag-needed"])
    assert "mtu = 1300" not in says(lab, big)
    says(lab, "ip route flush cache")


def test_a_delay_is_seen_in_the_round_trip(lab: Lab, fabric: Fabric) -> None:
    fabric.add(["delay", "200ms"])
    answer = says(lab, f"ping -n -c 1 -W 5 {lab.machines[1].private}")
    assert float(answer.rpartition("time=")[2].split()[0]) >= 200, answer


def test_a_loss_is_counted(lab: Lab, fabric: Fabric) -> None:
    fabric.add(["loss", "50%"])
    # None of 100 lost, or all of them, is seen once in 2^99 runs.
    answer = says(lab, f"ping -n -q -c 100 -i 0.01 -W 1 {lab.machines[1].private}")
    received = int(answer.partition(" received")[0].rpartition(" ")[2])
    assert 0 < received < 100
    ((_, eaten),) = fabric.list().items()
    assert eaten is not None
    assert eaten >= 100 - received


def test_a_drop_of_one_direction_leaves_the_other(lab: Lab, fabric: Fabric) -> None:
    here, there = lab.machines
    fabric.add(["drop", "udp/8472", here.name, there.name])

    def arrived(sender: int, receiver: int) -> int:
        """How many of three datagrams to a port that nobody listens on."""
        count = "awk '/^Udp:/ {n = $3} END {print n}' /proc/net/snmp"
        before = int(cluster.must(lab, lab.machines[receiver], count))
        address = lab.machines[receiver].private
        # The third tells by its answer that the others are through, or that there is none.
        once = f"echo >/dev/udp/{address}/8472"
        says(lab, f"bash -c '{once}; {once}; exec 3<>/dev/udp/{address}/8472; echo >&3; read -t 1 <&3'", sender)
        return int(cluster.must(lab, lab.machines[receiver], count)) - before

    assert arrived(0, 1) == 0
    assert arrived(1, 0) == 3
    assert list(fabric.list().values()) == [3]


def test_two_labs_side_by_side_do_not_meet(lab: Lab) -> None:
    other = start("beside", agents=2)
    try:
        (only_there,) = {machine.private for machine in other.machines} - {machine.private for machine in lab.machines}
        ping = f"ping -n -c 2 -i 0.2 -W 1 {only_there}"
        assert " 0% packet loss" in says(other, ping)
        assert " 100% packet loss" in says(lab, ping)
    finally:
        machines.destroy(other.name)
    assert left_of(other.name) == []
    assert passes(lab)


def test_nothing_is_left_after_a_crash() -> None:
    lab = start("crashed")
    pids = processes(lab.name)
    assert pids
    for pid in pids[::2]:
        # A machine's other processes end with its kernel.
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    machines.destroy(lab.name)
    assert left_of(lab.name) == []


def test_a_machine_that_dies_while_it_starts_is_named_with_its_last_words(monkeypatch: pytest.MonkeyPatch) -> None:
    build.ensure(lambda _: None)
    right = machines.arguments
    monkeypatch.setattr(
        machines,
        "arguments",
        lambda lab, machine: [
            "root=/dev/nowhere" if word == "root=/dev/ubda" and machine.role == "agent" else word
            for word in right(lab, machine)
        ],
    )
    with pytest.raises(machines.MachineError) as caught:
        start("dying")
    assert "k3s-worker-01 ended while it started" in str(caught.value)
    assert "/dev/nowhere" in str(caught.value)
    assert left_of("dying") == []
