"""Clusters in each state of a swap, gathered from what real machines showed, and ways to change them."""

from __future__ import annotations

import copy
import json
import os
from pathlib import Path
from typing import Any, Callable

import pytest
from ansible.module_utils.netmend import kube, overlays

from tests.unit.test_gather import Machine
from tests.unit.test_kube import EMPTY, LISTS

STATES = ("flannel", "flannel-ufw-blocks", "both-overlays", "swapped-leftovers", "swapped-clean")
NODES = ("server0", "agent0", "agent1")
CHANGED, STARTED = 1000.0, 2000.0  # when K3s's files were, and then K3s itself
DROP_IN = "/etc/rancher/k3s/config.yaml.d/90-netmend-cni.yaml"
SPACE = {"size": 40 << 30, "free": 30 << 30}
K3S_CNI = "/var/lib/rancher/k3s/agent/etc/cni/net.d"


class Api:
    """The API of a captured cluster."""

    server = "https://127.0.0.1:6443"

    def __init__(self, captured: Path) -> None:
        self.captured = captured

    def get(self, path: str) -> tuple[int, str]:
        return 200, json.dumps({"gitVersion": "v1.36.3+k3s1"}) if path == "/version" else "[+]ping ok\n[+]etcd ok\n"

    def items(self, path: str) -> list[dict[str, Any]] | None:
        file = self.captured / f"k8s-{LISTS.get(path, '')}.json"
        if path in EMPTY or not file.exists() or not file.stat().st_size:
            return [] if path in EMPTY else None
        items: list[dict[str, Any]] = json.loads(file.read_text())["items"]
        return items


class Captured:
    """The facts of a cluster, and what was measured between its nodes."""

    def __init__(self, directory: Path, root: Path, reports: Callable[[dict[str, str]], dict[str, Any]]) -> None:
        self._reports = reports
        self.nodes: dict[str, Any] = {name: _facts(directory / name, root / name) for name in NODES}
        cluster = kube.gather_cluster(Api(directory / "server0"))  # type: ignore[arg-type]  # a stand-in for the API
        self.cluster: Any = kube.with_config(cluster, self.nodes)
        self.underlay: Any = None
        self.reports: dict[str, Any] = {}
        self.measure()

    def measure(self, change: Callable[[dict[str, Any]], None] = lambda reports: None) -> None:
        """Lets everything pass between the nodes, but for what is changed in their reports."""
        reports = self._reports({node["name"]: node["internal_ip"] for node in self.cluster["nodes"]})
        change(reports)
        self.reports = reports
        self.underlay = overlays.evaluate(reports, {})

    def member(self, name: str) -> Any:
        return next(node for node in self.cluster["nodes"] if node["name"] == name)

    def join(self, name: str, number: int, like: str = "server0") -> None:
        """Lets another node join, with the address and the podCIDR of this number."""
        self.nodes[name] = {**copy.deepcopy(self.nodes[like]), "name": name}
        member = copy.deepcopy(self.member(like))
        member.update(name=name, internal_ip=f"10.0.0.{number}", pod_cidr=f"10.42.{number}.0/24")
        self.cluster["nodes"].append(member)
        self.measure()

    def configure(self, name: str, source: str = DROP_IN, /, **settings: Any) -> None:
        """Settings of a server's K3s, and what decides them."""
        k3s = self.nodes[name]["k3s"]
        for key, value in settings.items():
            k3s["config"][key.replace("_", "-")] = value
            k3s["sources"][key.replace("_", "-")] = source

    def drop_in(self, name: str, changed: float = CHANGED) -> None:
        self.nodes[name]["k3s"]["files"][DROP_IN] = changed
        self.configure(name, flannel_backend="none", disable_network_policy=True)

    def flip(self, name: str, back: bool = False) -> None:
        """Lets containerd read the other folder, as after a start with another flannel-backend."""
        cni = self.nodes[name]["cni"]
        old, new = cni["conf_dir"], K3S_CNI if back else "/etc/cni/net.d"
        networks = {path.rpartition("/")[2]: each for path, each in cni["unread"].items()}
        unread = {f"{old}/{file}": each for file, each in cni["networks"].items()}
        cni.update(conf_dir=new, networks=networks, unread=unread)

    def own_drop_in(self) -> None:
        """The captured swap was made by a file of another name."""
        files = self.nodes["server0"]["k3s"]["files"]
        for path in [path for path in files if path.endswith("/90-cni.yaml")]:
            del files[path]
        self.drop_in("server0")

    def take_drop_in(self, name: str) -> None:
        self.nodes[name]["k3s"]["files"].pop(DROP_IN, None)
        self.configure(name, "K3s's default", flannel_backend="vxlan", disable_network_policy=False)

    def go_back(self, *names: str) -> None:
        for name in names:
            if name.startswith("server"):
                self.take_drop_in(name)
            self.flip(name, back=True)

    def move_pods_back(self) -> None:
        """Each onto its node's podCIDR."""
        for number, pod in enumerate(self.cluster["pods"], start=2):
            if not pod["host_network"]:
                pod["ip"] = self.member(pod["node"])["pod_cidr"].replace(".0/24", f".{number}")
        for facts in self.nodes.values():
            facts["interfaces"] = [each for each in facts["interfaces"] if not each["name"].startswith("cali")]
            facts["routes"] = [each for each in facts["routes"] if not each["device"].startswith("cali")]

    def end_calico(self) -> None:
        """Its objects are gone, and calico-node has said that it ends."""
        self.cluster["calico"].clear()
        for node in self.cluster["nodes"]:
            node["network"] = "CalicoIsDown"

    def run_calico(self, version: str = "v3.32.1", namespace: str = "kube-system") -> None:
        """By a DaemonSet with a Ready pod on each node, which the captured clusters did not have."""
        self.cluster["calico"]["node"] = {
            **{"namespace": namespace, "name": "calico-node", "desired": 3, "ready": 3, "version": version},
            **{"backend": "none", "autodetection": "kubernetes-internal-ip", "program_cluster_routes": ""},
        }
        for node in self.cluster["nodes"]:
            pod = copy.deepcopy(self.cluster["pods"][0])
            pod.update(namespace=namespace, name=f"calico-node-{node['name']}", node=node["name"], labels={})
            pod.update(owner="DaemonSet/calico-node", host_network=True, ip=node["internal_ip"], ready=True)
            self.cluster["pods"].append(pod)


def _facts(captured: Path, root: Path) -> Any:
    facts: Any = Machine(captured, root).facts()
    facts["disk"] = {path: dict(SPACE) for path in facts["disk"]}
    facts["k3s"].update(started=STARTED, files=dict.fromkeys(facts["k3s"]["files"], CHANGED))
    return facts


@pytest.fixture(scope="session")
def gathered() -> dict[str, Captured]:
    return {}


@pytest.fixture
def captured(
    gathered: dict[str, Captured],
    fixtures: Path,
    tmp_path: Path,
    underlay_reports: Callable[[dict[str, str]], dict[str, Any]],
) -> Callable[[str], Captured]:
    def copied(state: str) -> Captured:
        if state not in gathered:
            gathered[state] = Captured(fixtures / "k3s-1.36.3" / state, tmp_path / state, underlay_reports)
        return copy.deepcopy(gathered[state])

    return copied


@pytest.fixture
def flannel(captured: Callable[[str], Captured]) -> Captured:
    return captured("flannel")


@pytest.fixture
def both(captured: Callable[[str], Captured]) -> Captured:
    """Calico beside Flannel."""
    return captured("both-overlays")


@pytest.fixture
def leftovers(captured: Callable[[str], Captured]) -> Captured:
    return captured("swapped-leftovers")


@pytest.fixture
def swapped(leftovers: Captured) -> Captured:
    """On Calico, and swapped by the drop-in that the way back takes away."""
    leftovers.own_drop_in()
    return leftovers


@pytest.fixture
def returned(swapped: Captured) -> Captured:
    """All nodes and pods have Flannel again, and Calico's objects are gone."""
    swapped.go_back(*NODES)
    swapped.move_pods_back()
    swapped.end_calico()
    return swapped


@pytest.fixture
def manifest() -> Path:
    upstream = os.environ.get("NETMEND_UPSTREAM")
    if not upstream:
        pytest.skip("NETMEND_UPSTREAM does not say where Calico's manifests are")
    return Path(upstream) / "calico/v3.32.1/calico-vxlan.yaml"
