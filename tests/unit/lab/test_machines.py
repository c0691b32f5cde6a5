"""A machine is described to its kernel, to K3s and to Ansible by the same few facts."""

from __future__ import annotations

import subprocess
import tarfile
from pathlib import Path

import pytest
import yaml

from lab import machines, network, seed, spec

LAB = spec.parse(
    {"name": "unit", "servers": 2, "agents": 1, "k3s": {"config": {"etcd-snapshot": False}}}, Path("x.yml")
)
FIRST, SECOND, AGENT = LAB.machines


@pytest.fixture
def state(tmp_path, monkeypatch):
    monkeypatch.setattr(seed, "sockets", lambda lab: tmp_path / "sockets" / lab)
    seed.prepare(LAB, tmp_path, {})
    return tmp_path


def test_the_kernel_gets_memory_one_cpu_and_two_nics_that_keep_their_addresses():
    arguments = machines.arguments(LAB, AGENT)
    assert {"mem=1792M", "ncpus=1", "umid=k3s-worker-01"} <= set(arguments)
    assert [word for word in arguments if word.startswith("vec")] == [
        "vec0:transport=raw,ifname=public-2m,depth=64,gro=1,mtu=1500,mac=02:00:cb:00:71:6e",
        "vec1:transport=raw,ifname=private-2m,depth=64,gro=1,mtu=1450,mac=02:00:0a:00:00:6e",
    ]


def test_the_first_server_starts_the_cluster_and_the_others_join_it():
    first, second, agent = (seed.k3s_config(LAB, machine, "secret") for machine in LAB.machines)
    assert first["cluster-init"] is True
    assert "server" not in first
    assert second["server"] == agent["server"] == "https://10.0.0.100:6443"
    assert first["flannel-backend"] == second["flannel-backend"] == "vxlan"
    assert first["etcd-snapshot"] is second["etcd-snapshot"] is False
    # K3s refuses a server's flags on an agent.
    assert agent == {
        "token": "secret",
        "node-ip": "10.0.0.110",
        "flannel-iface": "enp7s0",
        "server": "https://10.0.0.100:6443",
    }


def test_a_seed_holds_what_is_the_machines_own(state):
    with tarfile.open(state / "k3s-worker-01.seed") as seeds:
        modes = {member.name: member.mode for member in seeds}
        config = yaml.safe_load(seeds.extractfile("etc/rancher/k3s/config.yaml"))
        link = seeds.getmember("etc/systemd/system/multi-user.target.wants/k3s-agent.service").linkname
        assert seeds.extractfile("etc/hostname").read() == b"k3s-worker-01\n"
    assert config["node-ip"] == "10.0.0.110"
    assert link == "/etc/systemd/system/k3s-agent.service"
    for secret in ("etc/ssh/ssh_host_ed25519_key", "etc/rancher/k3s/config.yaml", "root/.ssh/authorized_keys"):
        assert modes[secret] == 0o600


def test_secrets_on_the_host_are_its_owners_alone(state):
    for name in ("id_ed25519", "k3s-master-01.seed", "k3s-master-01.hostkey"):
        assert (state / name).stat().st_mode & 0o077 == 0


def test_every_machine_is_known_by_its_own_host_key(state):
    for machine in LAB.machines:
        search = ["ssh-keygen", "-F", machine.private, "-f", state / "known_hosts"]
        found = subprocess.run(search, capture_output=True, text=True, check=True).stdout
        assert (state / f"{machine.name}.hostkey.pub").read_text().split()[1] in found


def test_the_inventory_has_the_groups_and_checks_host_keys(state):
    cluster = yaml.safe_load((state / "inventory.yml").read_text())["k3s_cluster"]
    hosts = {name: group["hosts"] for name, group in cluster["children"].items()}
    assert hosts == {
        "k3s_servers": {
            "k3s-master-01": {"ansible_host": "10.0.0.100"},
            "k3s-master-02": {"ansible_host": "10.0.0.101"},
        },
        "k3s_agents": {"k3s-worker-01": {"ansible_host": "10.0.0.110"}},
    }
    assert f"UserKnownHostsFile={state}/known_hosts" in cluster["vars"]["ansible_ssh_common_args"]
    assert "StrictHostKeyChecking=yes" in cluster["vars"]["ansible_ssh_common_args"]
    assert cluster["vars"]["netmend_swap"] == "never"


def test_where_calicos_images_lie_ready_a_swap_is_not_forbidden(tmp_path):
    assert "netmend_swap" not in seed.inventory(spec.load(Path("swap")), tmp_path, {})["k3s_cluster"]["vars"]


def test_the_end_of_a_console_is_shown_without_escapes(tmp_path, monkeypatch):
    monkeypatch.setenv("NETMEND_CACHE", str(tmp_path))
    console = machines.console("unit", "k3s-master-01")
    console.parent.mkdir(parents=True)
    console.write_text("".join(f"line {n}\n" for n in range(40)) + "\x1b[0;31mKernel panic\x1b[0m\r\n\n")
    words = machines.last_words("unit", "k3s-master-01").splitlines()
    assert words[-2:] == ["    line 39", "    Kernel panic"]
    assert len(words) == 1 + machines.CONSOLE_LINES


def test_a_lab_that_is_not_up_is_said_with_those_that_are(tmp_path, monkeypatch):
    monkeypatch.setenv("NETMEND_CACHE", str(tmp_path))
    with pytest.raises(machines.MachineError, match="no lab unit is up; up are: none"):
        machines.recall("unit")


def test_names_fit_what_the_kernel_takes():
    assert network.mac("10.0.0.100") == "02:00:0a:00:00:64"
    assert all(len(f"{nic}m") <= 15 for nic in network.nics(spec.parse({"servers": 9, "agents": 99}, Path("x.yml"))))
