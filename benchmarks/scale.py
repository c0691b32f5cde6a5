"""What a diagnosis of a large cluster takes and costs, on nodes that are network namespaces of this machine.

    .venv/bin/python benchmarks/scale.py [--nodes N] [--forks N] [--runs N] [--sick]

As root. The nodes' facts are made up (benchmarks/simulated/cluster.py); Ansible, the modules, the probes of the matrix,
the round over the underlay, plan, diagnosis and report are the real ones. Modules run in their node's namespace without
SSH, so that its cost is missing, and share this machine's processors, which on real nodes they do not.

All of it is in namespaces (network, mounts, processes) of its own, which the kernel takes away when this ends.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import signal
import statistics
import subprocess
import sys
import time
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.simulated import cluster, network  # noqa: E402  it is not installed, and found by the line above
from lab.playbooks import PROGRAM  # noqa: E402  as above

OWN_NAMESPACES = ("unshare", "--net", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc")
INSIDE = "NETMEND_SIMULATED"  # set there: the directory of what the connection reads and writes
DIRECTORY = Path("/run/netmend-scale")
REPORT = DIRECTORY / "report.json"
PAUSE = 0.5  # seconds between two looks at the controller's memory
FAULT = "ip-forward-off"
PSS = re.compile(r"^Pss: +(\d+) kB", re.MULTILINE)
MODULES = {"netmend_node_info": "facts", "netmend_connectivity": "probes", "netmend_underlay": "underlay"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nodes", type=int, default=200, help=f"from {cluster.SERVERS + 1} to {cluster.MOST}")
    parser.add_argument("--forks", type=int, help="nodes that Ansible works on at a time; default: as ansible.cfg says")
    parser.add_argument("--runs", type=int, default=1)
    parser.add_argument("--sick", action="store_true", help=f"with {FAULT} on the last node")
    arguments = parser.parse_args()
    if not cluster.SERVERS < arguments.nodes <= cluster.MOST:
        parser.error(f"--nodes {arguments.nodes}: not from {cluster.SERVERS + 1} to {cluster.MOST}")
    if os.geteuid() != 0:
        parser.error("network namespaces need root")
    if INSIDE not in os.environ:
        os.environ[INSIDE] = str(DIRECTORY)
        os.execvp(OWN_NAMESPACES[0], [*OWN_NAMESPACES, sys.executable, *sys.argv])
    # It is the first process in its namespace, and those ignore what they do not handle.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda number, _: sys.exit(f"ended by {signal.Signals(number).name}"))
    subprocess.run(["mount", "-t", "tmpfs", "none", "/run"], check=True)
    (DIRECTORY / "answers").mkdir(parents=True)
    members = cluster.members(arguments.nodes)
    prepare(members, sick=arguments.sick)
    load = os.getloadavg()[0]
    runs = [measured(arguments.forks, sick=arguments.sick) for _ in range(arguments.runs)]
    print(f"{len(members)} nodes, {len(runs)} runs; load before {load:.1f}, after {os.getloadavg()[0]:.1f}")
    print(f"{'':<44} {'median':>8} {'min':>8} {'max':>8}")
    for name in runs[0]:
        values = [run[name] for run in runs]
        print(f"  {name:<42} {statistics.median(values):8.2f} {min(values):8.2f} {max(values):8.2f}")
    overlays = json.loads(REPORT.read_text())["now"]["overlays"]
    print("between all nodes: " + ", ".join(f"{name} {overlay['verdict']}" for name, overlay in overlays.items()))
    for why in next((each["why"] for each in overlays.values() if each["verdict"] == "unknown"), []):
        print(f"  {why}")


def prepare(members: list[cluster.Member], *, sick: bool) -> None:
    """Makes the nodes, what they are to say, and the inventory."""
    pids = network.build(members)
    network.answer(members)
    facts = cluster.facts(members, pids)
    if sick:
        last = members[-1].name
        facts[last]["sysctls"]["net.ipv4.ip_forward"] = "0"
        with network.inside(last):
            network.set_parameter("ipv4/ip_forward", "0")
    answers = {f"{name}.netmend_node_info": {"netmend_node": own} for name, own in facts.items()}
    whole = {"netmend_cluster": cluster.cluster(members)}
    for each in members:
        if each.role == "server":
            answers[f"{each.name}.netmend_node_info"].update(whole)
    for name, answer in answers.items():
        (DIRECTORY / "answers" / name).write_text(json.dumps({"changed": False, **answer}))
    hosts: dict[str, dict[str, Any]] = defaultdict(dict)
    for member in members:
        hosts[f"k3s_{member.role}s"][member.name] = {"ansible_connection": "netmend_namespace"}
    groups = {group: {"hosts": names} for group, names in hosts.items()}
    (DIRECTORY / "inventory.json").write_text(json.dumps({"k3s_cluster": {"children": groups}}))


def measured(forks: int | None, *, sick: bool) -> dict[str, float]:
    """One diagnosis: seconds of its phases, CPU seconds, and MB of memory."""
    used = DIRECTORY / "used"
    used.write_text("")
    REPORT.unlink(missing_ok=True)
    environment = os.environ | {
        "ANSIBLE_CONFIG": str(ROOT / "ansible.cfg"),
        "ANSIBLE_CONNECTION_PLUGINS": str(ROOT / "benchmarks/simulated/connection"),
        "ANSIBLE_HOME": str(DIRECTORY / "ansible"),
    }
    command = [str(PROGRAM), "-i", str(DIRECTORY / "inventory.json")]
    command += ["-e", f"netmend_report_dir={DIRECTORY}", *(["--forks", str(forks)] if forks else []), "diagnose.yml"]
    output = DIRECTORY / "output"
    start = time.monotonic()
    with output.open("w") as file:
        run = subprocess.Popen(command, cwd=ROOT, env=environment, stdin=subprocess.DEVNULL, stdout=file, stderr=file)
    most = 0.0
    while not (ended := os.wait4(run.pid, os.WNOHANG))[0]:
        most = max(most, memory(run.pid))
        time.sleep(PAUSE)
    whole, usage = time.monotonic() - start, ended[2]
    said = json.loads(REPORT.read_text()) if REPORT.exists() else {}
    named = [finding["fault"] for finding in said["now"]["findings"]] if said else None
    assert named == ([FAULT] if sick else []), output.read_text() + used.read_text()[-1000:]
    phases = {f"{phase['name']}, seconds": phase["seconds"] for phase in said["phases"]}
    by_module: Counter[str] = Counter()
    for line in used.read_text().splitlines():
        _, module, seconds = line.split()
        by_module[MODULES.get(module, "other modules")] += float(seconds)
    nodes = len(said["nodes"])
    return {
        "whole, seconds": whole,
        **phases,
        "before and after, seconds": whole - sum(phases.values()),
        "controller, CPU seconds": usage.ru_utime + usage.ru_stime - by_module.total(),
        **{f"a node's {what}, CPU seconds": seconds / nodes for what, seconds in by_module.items()},
        "controller, MB": most,
        "its largest process, MB": usage.ru_maxrss / 1024,
        "report.json, MB": REPORT.stat().st_size / 1e6,
    }


def memory(controller: int) -> float:
    """MB that Ansible and its workers have, what they share counted once."""
    total = 0
    for process in (controller, *children(controller)):
        try:
            total += int(PSS.search(Path(f"/proc/{process}/smaps_rollup").read_text())[1])
        except (OSError, TypeError):
            continue  # it has just ended
    return total / 1024


def children(process: int) -> list[int]:
    try:
        return [int(child) for child in Path(f"/proc/{process}/task/{process}/children").read_text().split()]
    except OSError:
        return []


if __name__ == "__main__":
    main()
