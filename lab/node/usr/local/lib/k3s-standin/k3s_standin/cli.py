"""`k3s COMMAND`: the commands of K3s that the lab needs, in K3s's words.

What a command needs is imported where it is run: `k3s --version` and `k3s kubectl` are to be as quick as K3s's.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Callable, NoReturn

from . import version
from .log import Fatal, log
from .paths import CONTAINERD_SOCKET, KUBE, KUBECONFIG

HELP = """\
k3s stand-in for netmend's lab: starts real Kubernetes, etcd, containerd and Flannel the way K3s does.

USAGE: k3s COMMAND [arguments]

COMMANDS:
   server             run a server [--cluster-reset [--cluster-reset-restore-path=SNAPSHOT]]
   agent              run an agent
   kubectl, crictl, ctr
   etcd-snapshot      save [--name NAME] | ls | list
   certificate check
   --version, --help

Its configuration is /etc/rancher/k3s/config.yaml and config.yaml.d/*.yaml, as K3s merges them.
"""


def main(argv: list[str]) -> int:
    """Runs one command; the name it is called by may be the command, as with K3s's links. Returns the exit status."""
    called = Path(argv[0]).name
    words = argv[1:] if called not in ("kubectl", "crictl", "ctr") else [called, *argv[1:]]
    try:
        return _run(words)
    except Fatal as problem:
        log("fatal", str(problem))
        return 1


def _run(words: list[str]) -> int:
    command, arguments = (words[0], words[1:]) if words else ("--help", [])
    commands: dict[str, Callable[[list[str]], int]] = {
        "server": _server,
        "agent": _agent,
        "kubectl": _kubectl,
        "ctr": _ctr,
        "crictl": _crictl,
        "etcd-snapshot": _etcd_snapshot,
        "certificate": _certificate,
        "--version": lambda _: _print(version.text()),
        "-v": lambda _: _print(version.text()),
        "--help": lambda _: _print(HELP),
        "-h": lambda _: _print(HELP),
        "help": lambda _: _print(HELP),
    }
    if command not in commands:
        raise Fatal(f"No help topic for '{command}' (k3s stand-in)")
    return commands[command](arguments)


def _server(arguments: list[str]) -> int:
    from . import config, etcd, node

    settings = config.load("server", arguments)
    if not settings.cluster_reset:
        return node.run(settings)
    etcd.reset(settings)
    return 0


def _agent(arguments: list[str]) -> int:
    from . import config, node

    return node.run(config.load("agent", arguments))


def _crictl(arguments: list[str]) -> int:
    from . import crictl

    return crictl.main(arguments)


def _kubectl(arguments: list[str]) -> NoReturn:
    os.environ.setdefault("KUBECONFIG", str(KUBECONFIG))
    os.execv(KUBE, ["kubectl", *arguments])


def _ctr(arguments: list[str]) -> NoReturn:
    os.environ.setdefault("CONTAINERD_ADDRESS", str(CONTAINERD_SOCKET))
    os.environ.setdefault("CONTAINERD_NAMESPACE", "k8s.io")
    os.execv("/usr/bin/ctr", ["ctr", *arguments])


def _etcd_snapshot(arguments: list[str]) -> int:
    from . import config, etcd

    verb, options = (arguments[0], arguments[1:]) if arguments else ("save", [])
    if verb in ("ls", "list"):
        return _print(etcd.list_snapshots())
    matched = re.fullmatch(r"(?:--name[= ](\S+))?", " ".join(options))
    if verb != "save" or not matched:
        raise Fatal("usage: k3s etcd-snapshot save [--name NAME] | ls | list")
    settings = config.load("server", [])
    etcd.save_snapshot(matched.group(1) or "on-demand", settings.node_name)
    return 0


def _certificate(arguments: list[str]) -> int:
    if arguments != ["check"]:
        raise Fatal("usage: k3s certificate check (the stand-in rotates none)")
    from . import certificates

    certificates.check()
    return 0


def _print(text: str) -> int:
    print(text, end="")
    return 0
