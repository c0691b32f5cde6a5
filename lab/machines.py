"""The machines of a lab: user-mode Linux processes in its network namespace, on copy-on-write disks."""

from __future__ import annotations

import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path

from . import cache, network, seed
from .build import Artifacts
from .processors import placement
from .spec import Balancer, Lab, Machine

ROOT = Path(__file__).parents[1]
POWER_ON = ROOT / "lab/power_on.py"
KERNEL = "linux"
IMAGE = "disk.img"
SSH_WITHIN = 120.0  # seconds from power-on
CONSOLE_LINES = 15
# What a panic prints behind its cause, and would hide it.
STACK = re.compile(r"\s*(\[<[0-9a-f]+>\].*|([0-9a-f]{8,16}\s*)+|Stack:|Call Trace:)$")


class MachineError(Exception):
    """A machine did not come up or ended; the message has the end of its console."""


def state(lab: str) -> Path:
    return cache.root() / "labs" / lab


def console(lab: str, machine: str) -> Path:
    return state(lab) / f"{machine}.console"


def power_on(lab: Lab, artifacts: Artifacts) -> dict[str, subprocess.Popen[bytes]]:
    """Start all machines; returns each one's process by its name."""
    # Links of its own: a reboot reads them again, and the cache may have forgotten these builds by then.
    for name, source in ((KERNEL, artifacts.kernel), (IMAGE, artifacts.image)):
        os.link(source, state(lab.name) / name)
    processors = sorted(os.sched_getaffinity(0))
    placed = placement(lab.machines, processors)
    started = {machine.name: _start(lab, machine, placed[machine.name]) for machine in lab.machines}
    if len(processors) < len(lab.machines):
        _keep_even(lab)
    return started


def _start(lab: Lab, machine: Machine, processor: int) -> subprocess.Popen[bytes]:
    directory = state(lab.name)
    memory = directory / f"{machine.name}.memory"
    memory.mkdir(exist_ok=True)
    environment = {
        "PATH": os.environ["PATH"],
        "HOME": str(directory),
        "KERNEL": str(directory / KERNEL),
        "MEMORY_DIRECTORY": str(memory),
        "MEMORY": str(machine.memory),
        "PROCESSOR": str(processor),
    }
    argv = network.inside(lab.name, str(POWER_ON), *arguments(lab, machine))
    with console(lab.name, machine.name).open("ab") as output:
        return subprocess.Popen(
            argv, cwd=directory, env=environment, stdin=subprocess.DEVNULL, stdout=output, stderr=output,
            start_new_session=True,
        )  # fmt: skip


def _keep_even(lab: Lab) -> None:
    """Has the machines looked after until the lab ends, with whose network all of its processes end."""
    files = [str(_pid_file(lab.name, machine)) for machine in lab.machines]
    subprocess.Popen(
        network.inside(lab.name, sys.executable, "-m", "lab.processors", *files), cwd=ROOT,
        stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True,
    )  # fmt: skip


def arguments(lab: Lab, machine: Machine) -> list[str]:
    """The kernel's command line; paths are relative to the lab's state directory."""
    index = lab.machines.index(machine)

    def nic(device: str, name: str, mtu: int, address: str) -> str:
        return f"{device}:transport=raw,ifname={name}m,depth=64,gro=1,mtu={mtu},mac={network.mac(address)}"

    return [
        f"umid={machine.name}",
        f"mem={machine.memory}M",
        # With two a machine hung under load, which kernel-interrupts.patch mends for one.
        "ncpus=1",
        f"ubd0={machine.name}.cow,{IMAGE}",
        f"ubd1r={machine.name}.seed",
        *([f"ubd2r={seed.RELEASE}"] if lab.k3s_release else []),
        *([f"ubd3r={seed.IMAGES}"] if lab.calico or lab.ingress else []),
        "root=/dev/ubda",
        "rw",
        "init=/usr/local/sbin/lab-init",
        "seccomp=on",
        # As kernel-folios.patch needs it, and what it is for.
        "transparent_hugepage=never",
        "thp_anon=16K-256K:always",
        "con0=null,fd:1",
        "con=null",
        "net.ifnames=0",
        "TERM=dumb",
        "systemd.getty_auto=no",
        "systemd.condition_needs_update=no",
        nic("vec0", f"public-{index}", lab.mtu_public, machine.public),
        nic("vec1", f"private-{index}", lab.mtu_private, machine.private),
    ]


def wait_for_ssh(lab: Lab, processes: dict[str, subprocess.Popen[bytes]]) -> dict[str, float]:
    """Wait until every machine's SSH greets; returns the seconds that each one took. MachineError when one does not."""
    start = time.monotonic()

    def wait(machine: Machine) -> float:
        while not greets(machine.private):
            if processes[machine.name].poll() is not None:
                raise MachineError(f"{machine.name} ended while it started" + last_words(lab.name, machine.name))
            if time.monotonic() - start > SSH_WITHIN:
                waited = f"{machine.name} does not answer on port 22 after {SSH_WITHIN:.0f} s"
                raise MachineError(waited + last_words(lab.name, machine.name))
            time.sleep(0.1)
        return time.monotonic() - start

    with ThreadPoolExecutor(len(lab.machines), initializer=network.enter, initargs=(lab.name,)) as pool:
        return dict(zip((m.name for m in lab.machines), pool.map(wait, lab.machines), strict=True))


def greets(address: str) -> bool:
    """Whether SSH says its name at address, in the network namespace of the calling thread."""
    try:
        with socket.create_connection((address, 22), timeout=0.5) as connection:
            return connection.recv(4) == b"SSH-"
    except OSError:
        return False


def last_words(lab: str, machine: str) -> str:
    """The end of a machine's console, to be put behind a message."""
    path = console(lab, machine)
    text = path.read_text(errors="replace") if path.exists() else ""
    plain = re.sub(r"\x1b[\[\]!][0-9;?]*[a-zA-Z]?|\r|\0", "", text)
    lines = [line for line in plain.splitlines() if line.strip() and not STACK.match(line)]
    return "; the end of its console:\n" + "\n".join(f"    {line}" for line in lines[-CONSOLE_LINES:])


def status_file(lab: str, machine: Machine) -> Path:
    """/proc/PID/status of a machine's process."""
    return Path("/proc") / _pid_file(lab, machine).read_text().strip() / "status"


def _pid_file(lab: str, machine: Machine) -> Path:
    return state(lab) / ".uml" / machine.name / "pid"


def ssh(lab: str, machine: Machine, *command: str, options: Sequence[str] = ()) -> list[str]:
    """The command that runs another one on a machine, or a shell."""
    directory = state(lab)
    settings = {
        "UserKnownHostsFile": directory / "known_hosts",
        "StrictHostKeyChecking": "yes",
        "IdentityFile": directory / seed.KEY,
        "IdentitiesOnly": "yes",
        "ConnectTimeout": "5",
        # A machine that hangs still acknowledges what it gets.
        "ServerAliveInterval": "15",
        "ServerAliveCountMax": "4",
        "LogLevel": "ERROR",
    }
    pairs = [part for key, value in settings.items() for part in ("-o", f"{key}={value}")]
    return network.inside(lab, "ssh", "-F", "none", *pairs, *options, f"root@{machine.private}", *command)


def remember(lab: Lab) -> None:
    """Note what runs, for the commands that come later."""
    content = asdict(lab)
    content["apps"] = [str(app) for app in lab.apps]
    (state(lab.name) / "lab.json").write_text(json.dumps(content, indent=2))


def recall(name: str) -> Lab:
    """The lab of this name that runs; MachineError when there is none."""
    path = state(name) / "lab.json"
    if not path.exists() or not network.exists(name):
        raise MachineError(f"no lab {name} is up; up are: {', '.join(running()) or 'none'}")
    content = json.loads(path.read_text())
    content["machines"] = tuple(Machine(**machine) for machine in content["machines"])
    content["balancers"] = tuple(Balancer(**balancer) for balancer in content["balancers"])
    content["apps"] = tuple(Path(app) for app in content["apps"])
    content["faults"] = tuple(content["faults"])
    return Lab(**content)


def running() -> list[str]:
    directory = cache.root() / "labs"
    return sorted(path.name for path in directory.glob("*") if network.exists(path.name))


def destroy(name: str) -> None:
    """End a lab from any state and forget it: processes, namespaces, disks, keys."""
    network.delete(name)
    for directory in (state(name), seed.sockets(name)):
        if directory.exists():
            shutil.rmtree(directory)
