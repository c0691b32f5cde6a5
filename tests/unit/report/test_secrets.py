"""No secret of nodes or cluster is in anything that is written: planted where they live, and looked for everywhere."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any, Callable

import pytest
from ansible.module_utils.netmend import kube, plan
from ansible.module_utils.netmend.diagnose import diagnose
from ansible.module_utils.netmend.report import judge, members, report, text

from tests.unit.report import sample
from tests.unit.test_gather import Machine
from tests.unit.test_kube import EMPTY, LISTS

STATES = ("flannel-ufw-blocks", "swapped-clean")
NODES = ("server0", "agent0", "agent1")
MARK = "t0psecret"  # in each planted value, with a number that tells where it leaked
CERTIFICATE = f"-----BEGIN EC PRIVATE KEY-----\n{MARK}-pem\n-----END EC PRIVATE KEY-----\n"
ENCODED = base64.b64encode(CERTIFICATE.encode()).decode()

CONFIG = f"""
token: K10abc::server:{MARK}-1
agent-token: {MARK}-2
agent-token-file: /etc/rancher/token
datastore-endpoint: "postgres://k3s:{MARK}-3@db.internal:5432/k3s"
datastore-keyfile: /etc/k3s/key.pem
etcd-s3-access-key: {MARK}-4
etcd-s3-secret-key: {MARK}-5
etcd-s3-session-token: {MARK}-6
etcd-s3-proxy: http://user:{MARK}-7@proxy.internal:3128
vpn-auth: name=tailscale,joinKey={MARK}-8
kubelet-arg: ["bootstrap-token={MARK}-9", "v=2"]
kube-apiserver-arg:
  - --oidc-client-secret={MARK}-10
  - "etcd-password={MARK}-11"
flannel-iface: vec0
"""
ENVIRONMENT = f"K3S_TOKEN={MARK}-20\nAWS_SECRET_ACCESS_KEY='{MARK}-21'\nHTTPS_PROXY=http://u:{MARK}-22@proxy:3128\n"
CNI = {
    "name": "site",
    "cniVersion": "1.0.0",
    "plugins": [
        {
            "type": "calico",
            "policy": {"type": "k8s", "k8s_auth_token": f"{MARK}-30", "k8s_client_key_data": ENCODED},
            "kubernetes": {
                "kubeconfig": "/etc/cni/net.d/calico-kubeconfig",
                "certificate-authority-data": ENCODED,
                "client-certificate-data": ENCODED,
                "client-key-data": ENCODED,
            },
            "etcd_key": CERTIFICATE,
            "etcd_cert": CERTIFICATE,
        }
    ],
}
KUBECONFIG = f"users: [{{name: admin, user: {{token: {MARK}-40, client-key-data: {ENCODED}}}}}]\n"
ANNOTATIONS = {
    "kubectl.kubernetes.io/last-applied-configuration": f'{{"stringData": {{"password": "{MARK}-50"}}}}',
    "k3s.io/node-args": f'["server","--token","{MARK}-51"]',
    "k3s.io/node-env": f'{{"K3S_TOKEN":"{MARK}-52"}}',
    "k3s.io/bootstrap-token": f"{MARK}-53",
}
CONTAINER = {
    "env": [{"name": "PASSWORD", "value": f"{MARK}-60"}],
    "args": [f"--api-key={MARK}-61"],
    "command": ["sh", "-c", f"login {MARK}-62"],
}


class Api:
    """The API of the captured cluster, with secrets in its objects."""

    server = "https://127.0.0.1:6443"

    def __init__(self, captured: Path) -> None:
        self._captured = captured

    def get(self, path: str) -> tuple[int, str]:
        return 200, json.dumps({"gitVersion": "v1.36.3+k3s1"}) if path == "/version" else "[+]ping ok\n"

    def items(self, path: str) -> list[dict[str, Any]] | None:
        file = self._captured / f"k8s-{LISTS.get(path, '')}.json"
        if path in EMPTY or not file.exists():
            return [] if path in EMPTY else None
        items: list[dict[str, Any]] = json.loads(file.read_text())["items"]
        for item in items:
            item["metadata"].setdefault("annotations", {}).update(ANNOTATIONS)
            item["metadata"]["managedFields"] = [{"manager": f"{MARK}-70"}]
            for container in item.get("spec", {}).get("containers", []):
                container.update(CONTAINER)
        return items


def planted(captured: Path, root: Path) -> Machine:
    machine = Machine(captured, root)
    machine.write("etc/rancher/k3s/config.yaml", CONFIG)
    machine.write("etc/default/k3s", ENVIRONMENT)
    machine.write("etc/systemd/system/k3s.service.env", ENVIRONMENT)
    for unit in root.glob("etc/systemd/system/k3s*.service"):
        unit.write_text(f"{unit.read_text()} --token {MARK}-80 --agent-token={MARK}-81\n")
    for place in ("etc/rancher/k3s/k3s.yaml", "etc/cni/net.d/calico-kubeconfig", "root/.kube/config"):
        machine.write(place, KUBECONFIG)
    machine.write("var/lib/rancher/k3s/server/token", f"{MARK}-82")
    machine.write("var/lib/rancher/k3s/agent/client-kubelet.key", CERTIFICATE)
    machine.write("etc/cni/net.d/90-site.conflist", json.dumps(CNI))
    machine.write("var/lib/rancher/k3s/agent/etc/cni/net.d/90-site.conflist", json.dumps(CNI))
    return machine


@pytest.fixture(params=STATES)
def run(request: pytest.FixtureRequest, fixtures: Path, tmp_path: Path) -> Any:
    """A run on machines and a cluster that are full of secrets, in which the overlay fails and one name is refused."""
    captured = fixtures / "k3s-1.36.3" / request.param
    cluster = kube.gather_cluster(Api(captured / "server0"))  # type: ignore[arg-type]  # a stand-in for the API
    nodes: dict[str, Any] = {}
    for name in NODES:
        machine = planted(captured / name, tmp_path / name)
        for number, pod in enumerate(pod for pod in cluster["pods"] if pod["node"] == name):
            machine.write(f"proc/{900 + number}/cgroup", f"0::/kubepods/pod{pod['uid']}/a\n")
            machine.write(f"proc/{900 + number}/ns/net", f"pod{number}")
        nodes[name] = machine.facts()
    cluster = kube.with_config(cluster, nodes)
    probes = plan.plan_matrix(nodes, cluster)
    results: dict[str, Any] = {name: {"node": name, "observations": [], "moved": []} for name in nodes}
    for probe in probes:
        local = probe["source_node"] == probe.get("target_node") or probe["row"] == "host-host"
        seen = {"id": probe["id"], "outcome": "ok" if local else "timeout", "detail": "" if local else "no answer"}
        results[probe["source_node"]]["observations"].append(seen)
    return {"expected_nodes": list(NODES), "nodes": nodes, "cluster": cluster, "probes": probes, "results": results}


def test_no_secret_is_written(run: Any, written: Callable[[Any], dict[str, str]]) -> None:
    findings = diagnose(run)
    now = judge(plan.summarise(run["probes"], run["results"]), findings)
    assert run["probes"]
    assert findings
    assert {probe["row"] for probe in run["probes"]} >= {"pod-pod", "pod-clusterip"}
    nodes = members(run["cluster"], run["expected_nodes"], run["nodes"])
    whole = report(now, None, [], nodes, [], time=sample.TIME, version=run["cluster"]["version"])
    files = {**written(whole), "terminal": text.render(whole), "first": text.measured(now)}
    assert all("agent0" in file for name, file in files.items() if name != "report.prom")
    for name, file in files.items():
        assert MARK not in file, name
        assert ENCODED[:24] not in file, name
        assert "PRIVATE KEY" not in file, name


def test_no_secret_is_in_the_facts(run: Any) -> None:
    """They cross to the controller, and stand in its memory and on its terminal with -vvv."""
    facts = json.dumps({"nodes": run["nodes"], "cluster": run["cluster"]})
    assert all(node["k3s"]["config"]["token"] == "(redacted)" for node in run["nodes"].values())
    assert any("90-site.conflist" in node["cni"]["networks"] for node in run["nodes"].values())
    leaked = [facts[at - 60 : at + 20] for at in range(len(facts)) if facts.startswith((MARK, ENCODED[:24]), at)]
    assert leaked == []
