"""On a swapped cluster, an agent that started while a server said otherwise has Flannel again, and its new pods too."""

from __future__ import annotations

import pytest

from lab import cluster
from lab.playbooks import Playbooks
from lab.spec import Lab

from . import runs

DROP_IN = "/etc/rancher/k3s/config.yaml.d/90-netmend-cni.yaml"
CONTAINERD = "/var/lib/rancher/k3s/agent/etc/containerd/config.toml"
START = "systemctl restart {unit}; timeout 180 sh -c 'until {so}; do sleep 1; done'"
READY = "k3s kubectl wait --for=condition=Ready nodes --all --timeout=180s"
WITH_FLANNEL = f"mv {DROP_IN} /root/; " + START.format(unit="k3s", so=READY)
WITHOUT = f"mv /root/90-netmend-cni.yaml {DROP_IN}; " + START.format(unit="k3s", so=READY)
AGENT = START.format(unit="k3s-agent", so=f"grep -q k3s/agent/etc/cni {CONTAINERD}")
ANEW = """
pod=$(k3s kubectl get pods -l app=web -o name --field-selector spec.nodeName={node})
k3s kubectl delete "$pod"
address="k3s kubectl get pods -l app=web --field-selector spec.nodeName={node} -o jsonpath={{.items[*].status.podIP}}"
timeout 120 sh -c "until $address | grep -q .; do sleep 0.5; done"
k3s kubectl wait --for=condition=Ready pods -l app=web --timeout=180s
"""


@pytest.fixture(scope="module", autouse=True)
def _swapped(playbooks: Playbooks) -> None:
    run = runs.swap(playbooks)
    assert run.code == 0, run.output


def test_it_is_named_restarted_and_its_pods_are_made_anew(lab: Lab, playbooks: Playbooks) -> None:
    server, agent = lab.machines[0], lab.machines[-1]
    for machine, script in ((server, WITH_FLANNEL), (agent, AGENT), (server, WITHOUT)):
        cluster.must(lab, machine, script)
    cluster.must(lab, server, ANEW.format(node=agent.name))
    strays = {name for name, address in runs.pods(lab).items() if address not in runs.POOL}
    assert len(strays) == 1
    run = playbooks.run("fix_network.yml", *runs.arguments(lab), limit=runs.LIMIT)
    assert run.named == ["cni-config-not-read"], run.output
    assert (run.code, run.report["healthy"]) == (0, True), run.output
    assert {"k3s_restart", "pod_replacement"} <= {change["role"] for change in run.report["changes"]}, run.output
    assert not strays & set(runs.pods(lab))
    again = playbooks.run("fix_network.yml", *runs.arguments(lab), limit=runs.LIMIT)
    assert (again.code, again.changed) == (0, 0), again.output
    # What Flannel left anew stops nothing, and goes with the next swap that is asked for.
    assert runs.swap(playbooks).code == 0
    runs.assert_on_calico(lab)
