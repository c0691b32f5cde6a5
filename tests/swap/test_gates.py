"""Each gate that can be violated on a lab's machines, violated: the swap refuses, and nothing is changed."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from datetime import datetime, timezone
from typing import Any, Callable

import pytest

from lab import cluster
from lab.fabric import Fabric
from lab.playbooks import Playbooks
from lab.spec import Lab, Machine

from .runs import swap

# What a swap changes on a node, without counters and what goes on changing by itself.
STATE = """
ip -br link; ip route show table all; ip rule; iptables-save | grep '^[-*]'; ipset list -n
find /etc/rancher /etc/cni /opt/cni /var/lib/rancher/k3s/server/db/snapshots -type f -printf '%p %s %T@\\n' 2>/dev/null
systemctl show --property=ActiveEnterTimestampMonotonic k3s.service k3s-agent.service
"""
OBJECTS = "k3s kubectl get pods,daemonsets,customresourcedefinitions,serviceaccounts -A -o name"
FILLED = "/var/lib/rancher/k3s/filled"
Violation = Callable[[Lab], AbstractContextManager[str]]


def state(lab: Lab) -> dict[str, str]:
    """What a swap would change."""
    on_nodes = {machine.name: cluster.must(lab, machine, STATE) for machine in lab.machines}
    return {**on_nodes, "objects": cluster.must(lab, lab.machines[0], OBJECTS)}


def steady(lab: Lab) -> dict[str, str]:
    """The same, once K3s itself is through with what a violation made it do."""
    deadline = time.monotonic() + 120
    before, now = {}, state(lab)
    while before != now and time.monotonic() < deadline:
        before, now = now, state(lab)
    return now


def kubectl(lab: Lab, command: str, given: Any = None) -> str:
    return cluster.must(lab, lab.machines[0], f"k3s kubectl {command}", text=json.dumps(given) if given else "")


@contextmanager
def done(lab: Lab, machine: Machine, command: str, undo: str) -> Iterator[None]:
    """A command that is undone at the end."""
    cluster.must(lab, machine, command)
    try:
        yield
    finally:
        cluster.must(lab, machine, undo)


@contextmanager
def stopped(lab: Lab, machine: Machine, unit: str) -> Iterator[None]:
    """K3s is stopped on a node, and the cluster has noticed."""
    with done(lab, machine, f"systemctl stop {unit}", f"systemctl start {unit}"):
        kubectl(lab, f"wait --for=condition=Ready=Unknown node/{machine.name} --timeout=120s")
        yield
    cluster.wait(lab)


@contextmanager
def node_not_ready(lab: Lab) -> Iterator[str]:
    machine = lab.machines[-1]
    with stopped(lab, machine, "k3s-agent"):
        yield f"{machine.name} is not Ready"


@contextmanager
def no_quorum_to_spare(lab: Lab) -> Iterator[str]:
    if len(lab.servers) < 3:
        pytest.skip("a lab with three servers: python -m lab with swap-ha")
    with stopped(lab, lab.servers[-1], "k3s"):
        yield "etcd has 3 voting members, 2 on Ready nodes"


@contextmanager
def ipip_is_dropped(lab: Lab) -> Iterator[str]:
    fabric = Fabric(lab.name)
    fabric.drop("proto/4")
    try:
        yield "Choose backend vxlan: VXLAN on UDP 4789 (Calico) passes"
    finally:
        fabric.clear()


@contextmanager
def no_pod_may_go(lab: Lab) -> Iterator[str]:
    replicas = len(lab.machines)
    kubectl(lab, f"create poddisruptionbudget web --selector=app=web --min-available={replicas}")
    try:
        counted = f"--for=jsonpath='{{.status.expectedPods}}'={replicas}"
        kubectl(lab, f"wait {counted} poddisruptionbudget/web --timeout=60s")
        yield f"The PodDisruptionBudget default/web wants {replicas} of {replicas} pods healthy"
    finally:
        kubectl(lab, "delete poddisruptionbudget web")


@contextmanager
def foreign_network(lab: Lab) -> Iterator[str]:
    network = '{"cniVersion": "1.0.0", "name": "weave", "plugins": [{"type": "weave-net"}]}'
    file = "/etc/cni/net.d/05-weave.conflist"
    put = f"mkdir -p /etc/cni/net.d; echo '{network}' >{file}"
    with done(lab, lab.machines[-1], put, f"rm {file}; rmdir --ignore-fail-on-non-empty /etc/cni/net.d"):
        yield f"{file} is of the network plugin weave-net"


@contextmanager
def flag_in_the_unit(lab: Lab) -> Iterator[str]:
    folder = "/etc/systemd/system/k3s.service.d"
    start = "[Service]\\nExecStart=\\nExecStart=/usr/local/bin/k3s server --flannel-backend=vxlan\\n"
    put = f"mkdir {folder}; printf '{start}' >{folder}/flag.conf; systemctl daemon-reload"
    with done(lab, lab.machines[0], put, f"rm -r {folder}; systemctl daemon-reload"):
        yield "flannel-backend is vxlan in k3s.service, which overrides 90-netmend-cni.yaml"


@contextmanager
def no_room(lab: Lab) -> Iterator[str]:
    """All but 1 GiB of what the kubelet does not keep to itself is taken."""
    room = "df --block-size=1 --output=size,avail /var/lib/rancher/k3s | tail -1"
    fill = f"set -- $({room}); fallocate -l $(($2 - $1 / 20 - (1 << 30))) {FILLED}"
    with done(lab, lab.machines[-1], fill, f"rm {FILLED}"):
        yield "before the kubelet evicts pods, and 2048 MiB are needed: make room."


@contextmanager
def image_that_cannot_be_pulled(lab: Lab) -> Iterator[str]:
    ctr, kept = "k3s ctr --namespace k8s.io images", "kept.lab/calico-node:1"
    machine = lab.machines[-1]
    image = cluster.must(lab, machine, f"{ctr} ls -q | grep '/calico/node:v'").split()[0]
    aside, back = (f"{ctr} tag {a} {b}; {ctr} rm {a}" for a, b in ((image, kept), (kept, image)))
    with done(lab, machine, aside, back):
        yield f"Not on this node, and not to be pulled: {image}: "


@contextmanager
def another_run(lab: Lab) -> Iterator[str]:
    now = datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
    spec = {"holderIdentity": "ci@elsewhere/0/17", "leaseDurationSeconds": 3600, "acquireTime": now, "renewTime": now}
    lease = {"apiVersion": "coordination.k8s.io/v1", "kind": "Lease", "spec": spec}
    kubectl(lab, "apply -f -", {**lease, "metadata": {"name": "netmend", "namespace": "kube-system"}})
    try:
        yield "another run changes this cluster: ci@elsewhere/0/17"
    finally:
        kubectl(lab, "delete lease netmend --namespace=kube-system")


VIOLATIONS: list[Violation] = [
    flag_in_the_unit,
    foreign_network,
    no_room,
    no_pod_may_go,
    another_run,
    image_that_cannot_be_pulled,
    ipip_is_dropped,
    node_not_ready,
    no_quorum_to_spare,
]


@pytest.mark.parametrize("violation", VIOLATIONS, ids=[each.__name__ for each in VIOLATIONS])
def test_a_gate_that_is_violated(lab: Lab, playbooks: Playbooks, violation: Violation) -> None:
    with violation(lab) as said:
        before = steady(lab)
        run = swap(playbooks)
        assert run.code == 1, run.output
        assert said in run.output
        assert run.changed == 0, run.output
        assert state(lab) == before
