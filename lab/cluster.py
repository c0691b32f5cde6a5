"""A lab from its file to a cluster that is Ready, with its applications and its faults in; and its end."""

from __future__ import annotations

import json
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from textwrap import indent
from typing import Any

from module_utils.netmend.calico_manifest import Calico

from . import balancer, build, cache, calico, fabric, host, images, ingress, machines, network, release, seed, spec
from .playbooks import Playbooks
from .spec import Lab, Machine

READY_WITHIN = 300  # seconds from SSH
SSH_FAILED = 255
# Beside the machines' own: the host's kernel and what runs in the lab's network from outside (Ansible).
SPARE_MEMORY = 512 << 20

ROLLED_OUT = f"""
k3s kubectl get daemonset,deployment -A --no-headers -o custom-columns=:.metadata.namespace,:.kind,:.metadata.name |
while read -r namespace kind name; do
    k3s kubectl rollout status --namespace "$namespace" "$kind/$name" --timeout={READY_WITHIN}s
done
"""

Progress = Callable[[str], None]


class ClusterError(Exception):
    """The machines run, and K3s, an application or a fault does not come up on them; the message says what was seen."""


def up(lab: Lab, progress: Progress) -> dict[str, float]:
    """Start a lab and wait until all of it is there; returns the seconds from power-on to each stage.

    A plain lab ends with SSH. Whatever goes wrong, an interrupt too, nothing is left running.
    """
    edge = build.EDGE if lab.ingress or lab.balancers else ()
    artifacts = build.ensure(progress, build.LAB + (build.CALICO if lab.calico else ()) + edge)
    network_of_pods = calico.objects(lab, progress) if lab.calico else None
    k3s = release.fetch(release.parse(lab.k3s_release), progress) if lab.k3s_release else None
    host.prepare_run((lab.memory << 20) + SPARE_MEMORY, progress)
    if network.exists(lab.name):
        raise network.NetworkError(f"lab {lab.name} is up already; `python -m lab down {lab.name}` ends it")
    with cache.lock(cache.root() / "labs" / f"{lab.name}.lock"), _all_or_nothing(lab):
        machines.destroy(lab.name)
        directory = machines.state(lab.name)
        directory.mkdir(parents=True)
        seed.prepare(lab, directory, balancer.variables(lab, directory))
        if k3s:
            seed.pack_release(*k3s, directory)
        seed.pack_images(dict(_archives(lab, artifacts, network_of_pods)), directory)
        network.create(lab)
        machines.remember(lab)
        return _start(lab, artifacts, network_of_pods, progress)


def _archives(
    lab: Lab, artifacts: build.Artifacts, network_of_pods: Calico | None
) -> Iterator[tuple[str, list[images.Image]]]:
    if network_of_pods:
        yield "calico", calico.container_images(network_of_pods, artifacts)
    if lab.ingress:
        yield "ingress", ingress.container_images(artifacts)


def _start(
    lab: Lab, artifacts: build.Artifacts, network_of_pods: Calico | None, progress: Progress
) -> dict[str, float]:
    start = time.monotonic()
    took: dict[str, float] = {}

    def reached(stage: str, what: str) -> None:
        took[stage] = time.monotonic() - start
        progress(f"{took[stage]:6.1f} s  {what}")

    processes = machines.power_on(lab, artifacts)
    progress(f"   0.0 s  {len(lab.machines)} machines of lab {lab.name} powered on, {lab.memory} MiB")
    machines.wait_for_ssh(lab, processes)
    reached("ssh", "all machines answer on SSH")
    if lab.plain:
        return took
    first = lab.machines[0]
    _k3s(lab, first, "systemctl start k3s.service")
    reached("api", f"the API server of {first.name} is ready")
    if network_of_pods and lab.calico["applied"]:
        for command, text in calico.steps(network_of_pods):
            must(lab, first, command, text=text)
        reached("calico", f"Calico {network_of_pods.version} is applied")
    _wait_for_nodes(lab)
    reached("ready", "all nodes are Ready")
    balancer.start(lab, artifacts)
    if lab.ingress:
        playbook(lab, ingress.PLAYBOOK)
        reached("ingress", "the ingress controller runs")
    if lab.apps:
        apply(lab)
        reached("apps", "the applications run")
    for name in lab.faults:
        put_in(lab, name)
        reached(f"fault {name}", f"fault {name} is in")
    return took


def apply(lab: Lab) -> None:
    """Apply the lab's manifests and wait until everything that runs pods has all of them."""
    secrets = ingress.certificates(lab, machines.state(lab.name))
    for text in [*(app.read_text() for app in lab.apps), *map(json.dumps, secrets)]:
        must(lab, lab.machines[0], "k3s kubectl apply -f -", text=text)
    must(lab, lab.machines[0], "sh -e", text=ROLLED_OUT)


def playbook(lab: Lab, name: str, *arguments: str) -> str:
    """What a playbook says on a lab's machines; ClusterError with the end of that when it fails."""
    outcome = Playbooks(lab, machines.state(lab.name) / "reports").run(name, *arguments)
    if outcome.code:
        raise ClusterError(f"{name} failed: {outcome.output[-3000:]}")
    return outcome.output


def wait(lab: Lab) -> None:
    """Wait until all nodes are Ready, and everything that runs pods has all of them."""
    _wait_for_nodes(lab)
    must(lab, lab.machines[0], "sh -e", text=ROLLED_OUT)


def reboot(lab: Lab, machine: Machine) -> None:
    """Reboot a machine, and wait until the cluster has noticed and has its pods there again."""
    boot = "/proc/sys/kernel/random/boot_id"
    before = must(lab, machine, f"cat {boot}; systemctl reboot").splitlines()[0]
    deadline = time.monotonic() + READY_WITHIN
    while (now := _boot(lab, machine, boot)) in ("", before):
        if time.monotonic() > deadline:
            words = machines.last_words(lab.name, machine.name)
            raise machines.MachineError(f"{machine.name} does not come back{words}")
        time.sleep(0.5)
    noticed = f"--for=jsonpath='{{.status.nodeInfo.bootID}}'={now} node/{machine.name} --timeout={READY_WITHIN}s"
    # The API that is asked may be this machine's own.
    answers = f"timeout {READY_WITHIN} sh -c 'until k3s kubectl get --raw=/readyz; do sleep 0.5; done' >/dev/null 2>&1"
    must(lab, lab.machines[0], f"{answers}; k3s kubectl wait {noticed}")
    wait(lab)


def _boot(lab: Lab, machine: Machine, path: str) -> str:
    """The machine's boot ID; empty while it does not answer."""
    argv = machines.ssh(lab.name, machine, f"cat {path}")
    return subprocess.run(argv, capture_output=True, text=True, check=False).stdout.strip()


def _wait_for_nodes(lab: Lab) -> None:
    first = lab.machines[0]
    # It can wait for one node that is not there yet, and not for several.
    for machine in lab.machines:
        _k3s(lab, machine, f"k3s kubectl wait --for=create node/{machine.name} --timeout={READY_WITHIN}s")
    nodes = " ".join(f"node/{machine.name}" for machine in lab.machines)
    _k3s(lab, first, f"k3s kubectl wait --for=condition=Ready {nodes} --timeout={READY_WITHIN}s")


def put_in(lab: Lab, name: str) -> None:
    """Give the lab a fault of faults.yml, and make sure that it took hold."""
    fault = spec.faults()[name]
    for words in fault.get("fabric", []):
        fabric.Fabric(lab.name).add(words.split())
    for words in fault.get("balancer", []):
        balancer.change(lab, words.split())
    _scripts(lab, fault, "put_in", "holds")


def make_sure(lab: Lab, name: str) -> None:
    """Make sure that a fault of faults.yml is still in."""
    _scripts(lab, spec.faults()[name], "holds")


def take_out(lab: Lab, name: str) -> None:
    """Bring the lab back to where it was before a fault of faults.yml, mended or not."""
    fault = spec.faults()[name]
    if "fabric" in fault:
        fabric.Fabric(lab.name).clear()
    if "balancer" in fault:
        balancer.reset(lab)
    _scripts(lab, fault, "take_out")


def _scripts(lab: Lab, fault: dict[str, Any], *names: str) -> None:
    """Run those of these scripts that a fault has on its machines, all at once."""
    nodes = fault_nodes(lab, fault.get("nodes", "all"))

    def run(machine: Machine) -> None:
        for script in (fault[name] for name in names if name in fault):
            must(lab, machine, "sh -e", text=script)

    with ThreadPoolExecutor(len(nodes)) as pool:
        list(pool.map(run, nodes))


def firewall(lab: Lab, machine: Machine) -> str:
    """The rules of a machine, in the kernel and in UFW's files, without counters."""
    files = "/etc/default/ufw /etc/ufw/before.rules"
    return must(lab, machine, f"ufw show added; iptables-save | grep '^[-*]'; cat {files}")


def fault_nodes(lab: Lab, where: str) -> list[Machine]:
    """The machines that faults.yml means by all, servers, server, agents or one."""
    agents = [machine for machine in lab.machines if machine.role == "agent"]
    servers = list(lab.servers)
    groups = {"all": list(lab.machines), "servers": servers, "agents": agents}
    return {**groups, "server": servers[-1:], "one": agents[-1:]}[where]


def _k3s(lab: Lab, awaited: Machine, command: str) -> None:
    """must on the first server, for what waits on K3s of a machine or of those that failure names.

    The message has the end of K3s's journal there.
    """
    try:
        must(lab, lab.machines[0], command)
    except ClusterError as problem:
        machine = next((machine for machine in lab.machines if f"nodes/{machine.name}" in str(problem)), awaited)
        unit = seed.UNITS[machine.role]
        argv = machines.ssh(lab.name, machine, f"journalctl --no-pager --output=cat --lines=15 --unit={unit}")
        journal = subprocess.run(argv, capture_output=True, text=True, check=False).stdout
        raise ClusterError(
            f"{problem}; the end of {unit}'s journal on {machine.name}:\n{indent(journal, '    ')}"
        ) from None


def must(lab: Lab, machine: Machine, command: str, text: str = "") -> str:
    """What a command says on a machine; ClusterError with that when it fails."""
    argv = machines.ssh(lab.name, machine, command)
    try:
        done = subprocess.run(argv, input=text, capture_output=True, text=True, check=False, timeout=READY_WITHIN + 30)
    except subprocess.TimeoutExpired:
        raise ClusterError(f"{machine.name}: `{command}` did not end") from None
    if done.returncode == SSH_FAILED:
        raise machines.MachineError(f"{machine.name} is gone{machines.last_words(lab.name, machine.name)}")
    if done.returncode:
        raise ClusterError(f"{machine.name}: `{command}` failed: {done.stdout}{done.stderr}".rstrip())
    return done.stdout


@contextmanager
def _all_or_nothing(lab: Lab) -> Iterator[None]:
    """Take the lab down again when the block fails or is interrupted, by SIGTERM or a lost terminal too."""

    def interrupt(number: int, _frame: object) -> None:
        raise KeyboardInterrupt(signal.Signals(number).name)

    before = {number: signal.signal(number, interrupt) for number in (signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    except BaseException:
        machines.destroy(lab.name)
        raise
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def show(lab: Lab) -> int:
    """Print a lab's machines, nodes and fabric faults; returns 0 when all machines answer, else 1."""
    with ThreadPoolExecutor(len(lab.machines), initializer=network.enter, initargs=(lab.name,)) as pool:
        answers = list(pool.map(machines.greets, (machine.private for machine in lab.machines)))
    for machine, answer in zip(lab.machines, answers, strict=True):
        seen = "up" if answer else "no answer on port 22"
        print(f"{machine.name:<16} {machine.private:<12} {machine.public:<15} {machine.memory:>5} MiB  {seen}")
    for line in fabric.command(lab, ["list"]):
        print(f"fabric: {line}")
    if answers[0]:
        argv = machines.ssh(lab.name, lab.machines[0], "k3s kubectl get nodes -o wide")
        print(subprocess.run(argv, capture_output=True, text=True, check=False).stdout, end="")
    return 0 if all(answers) else 1
