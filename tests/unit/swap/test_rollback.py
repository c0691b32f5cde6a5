"""The way back as its playbook goes it, with stand-ins for the modules that ask or change nodes and cluster."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from .conftest import NODES, Captured

ROOT = Path(__file__).parents[3]
STOOD_IN = (
    *("netmend_node_info", "netmend_cluster_info", "netmend_connectivity", "netmend_underlay", "netmend_lease"),
    *("netmend_k3s_restart", "netmend_pod_replacement", "netmend_apply", "netmend_cni_leftovers"),
    "netmend_iptables_rule",
)


class Journey:
    """A directory with the playbook, the facts of each stage, and what was asked of whom."""

    def __init__(self, place: Path) -> None:
        self.place = place
        shutil.copytree(ROOT / "playbooks", place / "playbooks")
        plays = yaml.safe_load((place / "playbooks/rollback.yml").read_text())
        (place / "playbooks/only.yml").write_text(yaml.safe_dump([play for play in plays if "tasks" in play]))
        (place / "playbooks/library").mkdir()
        for module in STOOD_IN:
            shutil.copy(Path(__file__).with_name("stand_in.py"), place / f"playbooks/library/{module}.py")
        (place / "playbooks/roles/k3s_backup/tasks").mkdir(parents=True)
        (place / "playbooks/roles/k3s_backup/tasks/main.yml").write_text("[]\n")
        self.script("k3s", f'echo "$@" >> {place}/kubectl')
        for name in NODES:
            environment = f"NETMEND_JOURNEY={place} NETMEND_HOST={name}"
            self.script(f"python-{name}", f'{environment} exec {sys.executable} "$@"')

    def script(self, name: str, text: str) -> None:
        path = self.place / "bin" / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(f"#!/bin/sh\n{text}\n")
        path.chmod(0o755)

    def stage(self, name: str, cluster: Captured) -> None:
        folder = self.place / name
        folder.mkdir()
        for node, facts in {**cluster.nodes, "cluster": cluster.cluster}.items():
            (folder / f"{node}.json").write_text(json.dumps(facts))

    def go(self, stage: str, wanted: dict[str, Any], manifest: Path, ok: bool = True) -> str:
        """The playbook's output, from that stage on."""
        (self.place / "stage").write_text(stage)
        facts = {name: json.loads((self.place / stage / f"{name}.json").read_text()) for name in (*NODES, "cluster")}
        of_all = {
            "ansible_connection": "local",
            "calico_ipip_manifest": str(manifest),
            "netmend_swap_wanted": wanted,
            "netmend_facts": {"expected_nodes": list(NODES), "cluster": facts["cluster"], "server": "server0"},
        }
        hosts = {
            name: {
                "ansible_python_interpreter": str(self.place / f"bin/python-{name}"),
                "netmend_node_info": {"netmend_node": facts[name]},
            }
            for name in reversed(NODES)
        }
        groups = {"k3s_servers": {"hosts": {"server0": {}}}, "k3s_agents": {"hosts": {"agent1": {}, "agent0": {}}}}
        inventory = {"k3s_cluster": {"hosts": hosts, "children": groups, "vars": of_all}}
        (self.place / "hosts.json").write_text(json.dumps(inventory))
        extra = json.dumps({"netmend_swap_wanted": wanted})
        done = subprocess.run(
            [
                Path(sys.executable).with_name("ansible-playbook"),
                "-i",
                self.place / "hosts.json",
                "-e",
                extra,
                "only.yml",
            ],
            cwd=self.place / "playbooks",
            env={
                **os.environ,
                "ANSIBLE_CONFIG": str(ROOT / "ansible.cfg"),
                "PATH": f"{self.place}/bin:{os.environ['PATH']}",
            },
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )
        assert (done.returncode == 0) is ok, done.stdout + done.stderr
        return done.stdout

    def told(self, name: str) -> list[str]:
        path = self.place / name
        return path.read_text().splitlines() if path.exists() else []


@pytest.fixture
def manifest() -> Path:
    upstream = os.environ.get("NETMEND_UPSTREAM")
    if not upstream:
        pytest.skip("NETMEND_UPSTREAM does not say where Calico's manifests are")
    return Path(upstream) / "calico/v3.32.1/calico-vxlan.yaml"


@pytest.fixture
def journey(tmp_path: Path, swapped: Captured) -> Journey:
    found = Journey(tmp_path / "journey")
    found.stage("calico", swapped)
    swapped.go_back(*NODES)
    swapped.move_pods_back()
    found.stage("pods", swapped)
    swapped.end_calico()
    found.stage("ended", swapped)
    return found


def test_from_calico_to_flannel(journey: Journey, manifest: Path) -> None:
    journey.go("calico", {"version": "v3.32.1", "insist": True}, manifest)

    calls = journey.told("calls")
    assert calls[0] == "netmend_lease server0 held"
    assert calls[-1] == "netmend_lease server0 released"
    assert [call.split()[1] for call in calls if call.startswith("netmend_k3s_restart")] == [
        "server0",
        "agent0",
        "agent1",
    ]
    order = [
        "netmend_k3s_restart server0",
        "netmend_iptables_rule server0",
        "netmend_k3s_restart agent0",
        "netmend_iptables_rule agent0",
        "netmend_k3s_restart agent1",
        "netmend_iptables_rule agent1",
        "netmend_pod_replacement server0 10.42.1.0/24 10.42.3.0/24 10.42.0.0/24",
        "netmend_apply server0 stop",
        "netmend_apply server0 all",
    ]
    places = [next(at for at, call in enumerate(calls) if call.startswith(start[:40])) for start in order]
    assert places == sorted(places)
    cleaned = [call.split() for call in calls if call.startswith("netmend_cni_leftovers")]
    assert sorted(call[1] for call in cleaned) == sorted(NODES)
    assert all(int(call[2]) > 5 for call in cleaned)
    patches = [line for line in journey.told("kubectl") if "patch" in line]
    assert len(patches) == 3
    assert '{"$patch": "delete", "type": "NetworkUnavailable"}' in patches[0]
    annotated = journey.told("kubectl")[-1]
    assert annotated.startswith("kubectl annotate nodes --all projectcalico.org/")


@pytest.mark.parametrize(("stage", "removed"), [("pods", ["stop", "all"]), ("ended", [])])
def test_it_goes_on_from_where_it_ended(journey: Journey, manifest: Path, stage: str, removed: list[str]) -> None:
    journey.go(stage, {"version": "v3.32.1", "insist": True}, manifest)
    calls = [call.split() for call in journey.told("calls")]
    assert "netmend_k3s_restart" not in [call[0] for call in calls]
    assert [call[2] for call in calls if call[0] == "netmend_apply" and len(call) > 2] == removed
    assert sum(call[0] == "netmend_cni_leftovers" and int(call[2]) > 5 for call in calls) == len(NODES)


def test_what_is_refused_changes_nothing(journey: Journey, manifest: Path) -> None:
    output = journey.go("calico", {"version": "v3.31.7", "flannel": "host-gw"}, manifest, ok=False)
    assert "Nothing was changed." in output
    assert "The network between the nodes was not measured" in output
    assert journey.told("calls") == []


def test_what_is_done_changes_nothing(journey: Journey, flannel: Captured, manifest: Path) -> None:
    journey.stage("done", flannel)
    output = journey.go("done", {"version": "v3.32.1", "insist": True}, manifest)
    assert "The way back stands at: done." in output
    assert output.count("changed=0") == len(NODES)
    assert (journey.told("calls"), journey.told("kubectl")) == ([], [])
