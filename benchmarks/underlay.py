"""What a round over the network under the overlays takes and costs, between nodes that are network namespaces.

    .venv/bin/python benchmarks/underlay.py [--nodes N] [--runs N]

As root. It shows the seconds of the steps as a run of Ansible has them, by how much nodes were late, and the CPU
seconds that the module's own work costs a node, without Python's start.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from contextlib import ExitStack
from pathlib import Path

ROOT = Path(__file__).parents[1]
STEP = re.compile(r"^\[ *([0-9.]+) s\] (.+)$", re.MULTILINE)
PLAYBOOK = """
- hosts: all
  gather_facts: false
  tasks:
    - name: Read every node's network state
      netmend_everywhere:
        module: netmend_node_info
        hosts: "{{ ansible_play_hosts_all | netmend_reading([]) }}"
      register: netmend_read
      run_once: true
    - name: Agree on a moment
      ansible.builtin.set_fact:
        netmend_facts: "{{ {'cluster': {'nodes': members}} }}"
      run_once: true
    - name: Measure
      netmend_everywhere:
        module: netmend_underlay
        hosts: "{{ ansible_play_hosts_all | netmend_underlay_plan(hostvars, ansible_forks) }}"
        at_once: true
      register: netmend_round
      run_once: true
    - name: Keep what it said
      ansible.builtin.copy:
        content: "{{ netmend_round.answers.values() | to_json }}"
        dest: "{{ kept }}"
        mode: "0600"
      run_once: true
      delegate_to: localhost
      vars:
        ansible_python_interpreter: "{{ ansible_playbook_python }}"
"""
ALONE = """
import json, resource, sys, time
sys.path.insert(0, "module_utils")
from netmend import underlay
order = json.loads(sys.argv[1])
order.update(own=underlay.Peer(*order["own"]), peers=[underlay.Peer(*peer) for peer in order["peers"]])
def used():
    each = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(use.ru_utime + use.ru_stime for use in each)
before = used()
underlay.measure(underlay.Order(**order))
print(used() - before)
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nodes", type=int, default=8)
    parser.add_argument("--runs", type=int, default=5)
    arguments = parser.parse_args()
    with ExitStack() as stack, tempfile.TemporaryDirectory() as directory:
        nodes = network(arguments.nodes, stack)
        runs = [by_ansible(nodes, Path(directory)) for _ in range(arguments.runs)]
        costs = [cost for _ in range(arguments.runs) for cost in alone(nodes)]
    print(f"{arguments.nodes} nodes, {arguments.runs} runs{'':<24} {'median':>8} {'min':>8} {'max':>8}")
    for name in runs[0]:
        show(name, [run[name] for run in runs])
    show("CPU seconds of a node", costs)


def show(name: str, values: list[float]) -> None:
    print(f"  {name:<42} {statistics.median(values):8.3f} {min(values):8.3f} {max(values):8.3f}")


def network(count: int, stack: ExitStack) -> dict[str, tuple[str, str]]:
    """Name -> namespace and address of nodes around a router."""
    prefix = f"nmb-{os.getpid()}"
    fabric = f"{prefix}-fabric"
    namespaces = {f"node{number}": f"{prefix}-{number}" for number in range(1, count + 1)}
    for namespace in (fabric, *namespaces.values()):
        ip("netns", "add", namespace)
        stack.callback(ip, "netns", "del", namespace)
    run_inside(fabric, "sysctl", "-qw", "net.ipv4.ip_forward=1")
    for number, namespace in enumerate(namespaces.values(), 1):
        ip("-n", fabric, "link", "add", f"to{number}", "type", "veth", "peer", "name", "enp7s0", "netns", namespace)
        for where, device, end in ((fabric, f"to{number}", 1), (namespace, "enp7s0", 2)):
            ip("-n", where, "link", "set", device, "mtu", "1450", "up")
            ip("-n", where, "addr", "add", f"10.9.{number}.{end}/24", "dev", device)
        ip("-n", namespace, "route", "add", "default", "via", f"10.9.{number}.1")
    return {name: (namespace, f"10.9.{name[4:]}.2") for name, namespace in namespaces.items()}


def by_ansible(nodes: dict[str, tuple[str, str]], directory: Path) -> dict[str, float]:
    """Seconds of each step, and by how much the latest node was late."""
    hosts = {}
    for name, (namespace, _) in nodes.items():
        wrapper = directory / name
        inner = f'hostname {name}; exec {sys.executable} "$@"'
        wrapper.write_text(f"#!/bin/sh\nexec ip netns exec {namespace} unshare --uts sh -c '{inner}' sh \"$@\"\n")
        wrapper.chmod(0o700)
        hosts[name] = {"ansible_connection": "local", "ansible_python_interpreter": str(wrapper)}
    members = [{"name": name, "internal_ip": address, "labels": {}} for name, (_, address) in nodes.items()]
    kept = directory / "kept.json"
    variables = {"members": members, "kept": str(kept)}
    (directory / "inventory.json").write_text(json.dumps({"all": {"hosts": hosts, "vars": variables}}))
    (directory / "playbook.yml").write_text(PLAYBOOK)
    command = [Path(sys.executable).parent / "ansible-playbook", "-i", directory / "inventory.json"]
    start = time.monotonic()
    done = subprocess.run(
        [*command, directory / "playbook.yml"], cwd=ROOT, capture_output=True, text=True, check=False,
        env={**os.environ, "ANSIBLE_CONFIG": str(ROOT / "ansible.cfg")},
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    whole = time.monotonic() - start
    steps = [(float(at), name) for at, name in STEP.findall(done.stdout)] + [(whole, "")]
    took = {name: after - at for (at, name), (after, _) in zip(steps, steps[1:]) if name != "Keep what it said"}
    reports = [result["netmend_underlay"] for result in json.loads(kept.read_text())]
    arrived = [
        counts["arrived"] for report in reports for heard in report["heard"].values()
        for kind, counts in heard["kinds"].items() if kind != "routed"
    ]  # fmt: skip
    pairs: dict[str, float] = defaultdict(float)
    pairs["late, seconds"] = max(report["late"] for report in reports)
    pairs["call, seconds"] = max(report["listened"][1] - report["listened"][0] for report in reports)
    pairs["packets lost, share"] = 1 - sum(arrived) / (5 * len(arrived))
    return {**took, **pairs}


def alone(nodes: dict[str, tuple[str, str]]) -> list[float]:
    """CPU seconds of every node in one round."""
    start = time.time() + 1.5
    running = []
    for name, (namespace, address) in nodes.items():
        peers = [(other, theirs) for other, (_, theirs) in nodes.items() if other != name]
        order = {"run": str(start), "own": (name, address), "peers": peers, "start": start, "vni": 0xFFFFFF}
        command = ["ip", "netns", "exec", namespace, sys.executable, "-c", ALONE, json.dumps(order)]
        running.append(subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True))
    return [float(process.communicate()[0]) for process in running]


def ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True)


def run_inside(namespace: str, *command: str) -> None:
    subprocess.run(["ip", "netns", "exec", namespace, *command], check=True)


if __name__ == "__main__":
    main()
