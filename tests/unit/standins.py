"""The project beside a cluster that is not there: its modules answer what a captured cluster's nodes did."""

from __future__ import annotations

import copy
import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any, Callable

from lab.playbooks import PROGRAM
from tests.unit.diagnose.conftest import NODES, NOW, Bench

ROOT = Path(__file__).parents[2]
CAPTURED = ROOT / "tests/fixtures/k3s-1.36.3/flannel"
# Those that the playbooks run on nodes where the kernel's parameters and K3s's own components are mended, and
# applications moved.
MODULES = (
    "node_info", "cluster_info", "connectivity", "underlay", "lease", "guard", "sysctl", "iptables_rule", "k3s_restart",
    "rollout", "host_network",
)  # fmt: skip

# It knows its host by the directory that Ansible thinks it is run in. What it changes is what others answer then.
MODULE = """#!/usr/bin/python3
# WANT_JSON
import json, pathlib, sys
arguments = json.loads(pathlib.Path(sys.argv[1]).read_text())
here = pathlib.Path(arguments["_ansible_remote_tmp"])
file = here / (arguments["_ansible_module_name"] + ".json")
answer = json.loads(file.read_text()) if file.exists() else {"changed": False}
with file.with_suffix(".given").open("a") as given:
    given.write(json.dumps(arguments) + "\\n")
after = answer.pop("after", {})
if not arguments["_ansible_check_mode"]:
    for name, then in after.items():
        (here.parent / name).write_text(json.dumps(then))
print(json.dumps(answer))
"""


class Project:
    """This one as it is checked out, with an inventory of a server and two agents, healthy until said otherwise."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory / "project"
        self.reports = self.directory / "inventory/mine/reports"
        self._nodes = directory / "nodes"
        self._bench = Bench(CAPTURED)
        self._bench.with_dns()
        self._check_out()
        (self._nodes / "controller").mkdir(parents=True)
        groups: dict[str, Any] = {"k3s_servers": {"hosts": {}}, "k3s_agents": {"hosts": {}}}
        for node in NODES:
            variables = {"ansible_connection": "local", "ansible_remote_tmp": str(self._nodes / node)}
            groups["k3s_servers" if node == "server0" else "k3s_agents"]["hosts"][node] = variables
        _write(self.directory / "inventory/mine/hosts.json", json.dumps({"k3s_cluster": {"children": groups}}))
        self._measure()

    def run(self, *command: str, **environment: str) -> subprocess.CompletedProcess[str]:
        """Runs a command in it, without a terminal; ansible-playbook is the one that the tests run with."""
        path = f"{PROGRAM.parent}:{os.environ['PATH']}"
        kept = {name: value for name, value in os.environ.items() if not name.startswith("ANSIBLE_")}
        return subprocess.run(
            command,
            cwd=self.directory,
            env={**kept, "PATH": path, "ANSIBLE_REMOTE_TMP": str(self._nodes / "controller"), **environment},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
            start_new_session=True,
        )

    def report(self) -> Any:
        return json.loads((self.reports / "report.json").read_text())

    def forward_nothing(self) -> None:
        """ip_forward is off on an agent; netmend_sysctl mends that."""
        healthy = self._answers()
        self._bench.node("agent0")["sysctls"]["net.ipv4.ip_forward"] = "0"
        self._bench.fail(self._bench.forwarded_at("agent0"))
        self._measure()
        change = {"before": "net.ipv4.ip_forward = 0\n", "after": "net.ipv4.ip_forward = 1\n"}
        values = {"net.ipv4.ip_forward": "1"}
        mended = {"changed": True, "changes": ["net.ipv4.ip_forward: 0 -> 1"], "values": values, "diff": [change]}
        self.answer("agent0/netmend_sysctl.json", {**mended, "after": healthy})

    def hold_ports(self, config: Path, for_good: bool = False) -> None:
        """servicelb has a port of an agent that an ingress controller waits for, on a server with that configuration.

        Once it is restarted, K3s has read the drop-in, and has taken away what is disabled, unless that is for good.
        """
        k3s, cluster = self._bench.node("server0")["k3s"], self._bench.run["cluster"]
        k3s.update(started=NOW, sources={}, files={}, config={**k3s["config"], "config": str(config), "disable": []})
        told = {"sources": {"disable": str(config)}, "files": {f"{config}.d/90-netmend-disable.yaml": NOW - 1}}
        told["config"] = {**k3s["config"], "disable": ["servicelb", "traefik"]}
        as_it_is, healthy = {**k3s}, copy.deepcopy(cluster)
        k3s.update(told)
        after = self._answers()
        k3s.update(as_it_is)
        label = {"svccontroller.k3s.cattle.io/svcname": "traefik"}
        self._bench.pod("agent0", "kube-system", "svclb-traefik-x", label, ports={"web": 80}, host_network=True)
        waits = self._bench.pod("agent0", "shop", "controller-x", {}, ports={"http": 80}, host_network=True)
        waits.update(node="", ip="", ready=False, phase="Pending", meant_for="agent0")
        waits["unscheduled"] = "1 node(s) didn't have free ports for the requested pod ports."
        self._bench.plan()
        self._measure()
        seen = cluster if for_good else healthy
        self.answer("server0/netmend_cluster_info.json", {"changed": False, "netmend_cluster": seen})
        change = {"before": "k3s.service active\n", "after": "k3s.service restarted\n"}
        self.answer("server0/netmend_k3s_restart.json", {"changed": True, "diff": change, "after": after})

    def change(self, how: Callable[[Any], None]) -> None:
        """Changes what measuring brings back, given as a diagnose Run; probes are planned anew, and pass."""
        how(self._bench.run)
        self._bench.plan()
        self._measure()

    def drop_in_the_fabric(self) -> None:
        """Something between the machines drops VXLAN, which nothing here mends."""
        self._bench.fail(self._bench.crosses("agent0"))
        self._measure()

    def lend(self, holder: str) -> None:
        """Another run holds the lease."""
        said = f"another run changes this cluster: {holder}"
        self.answer("server0/netmend_lease.json", {"failed": True, "msg": said})

    def _check_out(self) -> None:
        self.directory.mkdir()
        for file in [ROOT / "ansible.cfg", *ROOT.glob("*.yml")]:
            shutil.copy(file, self.directory)
        for name in ("callback_plugins", "docs", "module_utils", "playbooks", "plugins", "roles"):
            (self.directory / name).symlink_to(ROOT / name)
        for module in MODULES:
            _write(self.directory / f"library/netmend_{module}.py", MODULE)

    def _measure(self) -> None:
        for name, answer in self._answers().items():
            self.answer(name, answer)

    def _answers(self) -> dict[str, Any]:
        """HOST/MODULE.json -> what measuring brings back there."""
        run, answers = copy.deepcopy(self._bench.run), {}
        for node, facts in run["nodes"].items():
            cluster = {"netmend_cluster": run["cluster"]} if node == "server0" else {}
            own = {"netmend_node": {**facts, "took": 0.1}, **cluster}
            answers[f"{node}/netmend_node_info.json"] = {"changed": False, **own}
            seen = {"netmend_connectivity": run["results"][node]}
            answers[f"{node}/netmend_connectivity.json"] = {"changed": False, **seen}
        return answers

    def given(self, name: str) -> list[dict[str, Any]]:
        """The arguments of each call of HOST/MODULE.json."""
        lines = (self._nodes / name).with_suffix(".given").read_text().splitlines()
        return [json.loads(line) for line in lines]

    def answer(self, name: str, answer: dict[str, Any]) -> None:
        _write(self._nodes / name, json.dumps(answer))


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
