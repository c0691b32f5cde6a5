"""A playbook of the swap on a cluster that is not there, with stand-ins for the modules that ask or change it."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import yaml

from .conftest import NODES, Captured

ROOT = Path(__file__).parents[3]
STOOD_IN = (
    *("netmend_node_info", "netmend_cluster_info", "netmend_connectivity", "netmend_underlay", "netmend_lease"),
    *("netmend_k3s_restart", "netmend_pod_replacement", "netmend_apply", "netmend_cni_leftovers"),
    *("netmend_iptables_rule", "netmend_pod_connections"),
)


class Journey:
    """A directory with the last play of a playbook, the facts of each stage, and what was asked of whom."""

    def __init__(
        self, place: Path, book: str = "rollback", last: int = 1, servers: tuple[str, ...] = ("server0",)
    ) -> None:
        self.place, self.servers = place, servers
        shutil.copytree(ROOT / "playbooks", place / "playbooks")
        plays = yaml.safe_load((place / f"playbooks/{book}.yml").read_text())
        (place / "playbooks/only.yml").write_text(yaml.safe_dump([play for play in plays if "tasks" in play][-last:]))
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

    def go(
        self,
        stage: str,
        wanted: dict[str, Any],
        manifest: Path,
        *arguments: str,
        ok: bool = True,
        faults: tuple[str, ...] = (),
        reports: dict[str, Any] | None = None,
    ) -> str:
        """The playbook's output, from that stage on. faults: that were found; reports: of the underlay."""
        (self.place / "stage").write_text(stage)
        facts = {name: json.loads((self.place / stage / f"{name}.json").read_text()) for name in (*NODES, "cluster")}
        of_all = {
            "ansible_connection": "local",
            "calico_ipip_manifest": str(manifest),
            "netmend_swap_wanted": wanted,
            "netmend_facts": {"expected_nodes": list(NODES), "cluster": facts["cluster"], "server": "server0"},
            "netmend_marks": [],
            "netmend_read": {"answers": {name: read(facts[name]) for name in reversed(NODES)}},
            "netmend_round": {"answers": {name: {"netmend_underlay": said} for name, said in (reports or {}).items()}},
            "netmend_now": json.dumps({"findings": [{"fault": fault} for fault in faults]}),
        }
        hosts = {
            name: {
                "ansible_python_interpreter": str(self.place / f"bin/python-{name}"),
            }
            for name in reversed(NODES)
        }
        agents = [name for name in reversed(NODES) if name not in self.servers]
        named = {"k3s_servers": self.servers, "k3s_agents": agents}
        groups = {group: {"hosts": {name: {} for name in names}} for group, names in named.items()}
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
                *arguments,
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
            timeout=600,  # a busy machine takes twenty times as long
            check=False,
        )
        assert (done.returncode == 0) is ok, done.stdout + done.stderr
        return done.stdout

    def told(self, name: str) -> list[str]:
        path = self.place / name
        return path.read_text().splitlines() if path.exists() else []


def read(node: dict[str, Any]) -> dict[str, Any]:
    """The answer of a node whose clock is right."""
    return {"netmend_node": node, "netmend_call": {"sent": node["time"], "received": node["time"] + node["took"]}}
