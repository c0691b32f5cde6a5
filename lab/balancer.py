"""The load balancers of a lab: HAProxy, one process each, in front of the agents' NodePorts.

They are where Hetzner's are: clients on the internet ask their public addresses, and they ask the machines from private
ones, in the network namespace that routes for both. What a balancer is set to is the JSON beside its configuration.
"""

from __future__ import annotations

import csv
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from . import machines, network, seed
from .build import Artifacts, edge
from .build.debian import LIBRARIES, LOADER
from .spec import Balancer, Lab

TOOLS = "edge-tools"  # in a lab's state directory
WITHIN = 10.0  # seconds until a balancer serves
HELP = (
    "CHANGE is proxy on|off (the PROXY protocol), health [tcp] PORT (what the checks ask) or path PATH; behind it may "
    "stand the name of one balancer"
)
# What a balancer is set to at first; the port by which it asks depends on nothing, so that each change is seen alone.
SERVICES: list[dict[str, Any]] = [
    {
        "protocol": protocol,
        "listen_port": listen,
        "destination_port": port,
        "proxy_protocol": False,
        "health": {"protocol": health, "port": port, "path": "/healthz", "codes": [200]},
    }
    for protocol, listen, health, port in (("http", 80, "http", 31695), ("tcp", 443, "https", 32720))
]

HEAD = """\
global
    log stdout format raw local0 info
    stats socket {socket} level admin
    nbthread 1
    maxconn 2000
defaults
    log global
    balance roundrobin
    timeout connect 5s
    timeout client 300s
    timeout server 300s
    timeout check 3s
    timeout http-request 30s
    option redispatch
    option dontlognull
    source {source}
    default-server inter 2s fall 3 rise 2
"""


class BalancerError(Exception):
    """A balancer does not serve, or is to be set to what it cannot be; the message says why."""


def variables(lab: Lab, state: Path) -> dict[str, Any]:
    """What the inventory says of a lab's balancers."""
    if not lab.balancers:
        return {}
    return {
        "netmend_balancers": [declared(lab, balancer, state) for balancer in lab.balancers],
        "ufw_balancers": [balancer.private for balancer in lab.balancers],
        # The ingress controller behind them is to have the nodes' ports.
        "netmend_k3s_disable": ["servicelb", "traefik"],
    }


def declared(lab: Lab, balancer: Balancer, state: Path) -> dict[str, Any]:
    """A balancer as netmend_balancers has it."""
    path = _settings(balancer, state)
    return {
        "name": balancer.name,
        "address": balancer.public,
        "private": True,
        "services": json.loads(path.read_text()) if path.exists() else SERVICES,
        "targets": [{"address": machine.private, "status": {}} for machine in lab.agents],
    }


def configuration(lab: Lab, balancer: Balancer, services: Sequence[dict[str, Any]]) -> str:
    """HAProxy's configuration."""
    text = HEAD.format(socket=_socket(lab, balancer), source=balancer.private)
    for service in services:
        health, port = service["health"], service["listen_port"]
        http = service["protocol"] == "http"
        check = f"check port {health['port']}" + (" check-ssl verify none" if health["protocol"] == "https" else "")
        proxy = " send-proxy check-send-proxy" if service["proxy_protocol"] else ""
        lines = [
            f"listen {port}",
            f"    bind {balancer.public}:{port}",
            f"    mode {'http' if http else 'tcp'}",
            f"    option {'httplog' if http else 'tcplog'}",
            *(["    option forwardfor"] if http else []),
            *(_asks(health) if health["protocol"] != "tcp" else []),
            *(
                f"    server {machine.name} {machine.private}:{service['destination_port']} {check}{proxy}"
                for machine in lab.agents
            ),
        ]
        text += "".join(f"{line}\n" for line in lines)
    return text


def _asks(health: dict[str, Any]) -> list[str]:
    return [
        "    option httpchk",
        f"    http-check send meth GET uri {health['path']}",
        f"    http-check expect status {','.join(map(str, health['codes']))}",
    ]


def changed(services: Sequence[dict[str, Any]], words: Sequence[str]) -> list[dict[str, Any]]:
    """What a balancer's services are after a change."""
    text = " ".join(words)
    if text in ("proxy on", "proxy off"):
        return [{**service, "proxy_protocol": text == "proxy on"} for service in services]
    if asked := re.fullmatch(r"health (tcp )?(\d{1,5})", text):
        health = {"port": int(asked[2]), **({"protocol": "tcp"} if asked[1] else {})}
        return [{**service, "health": {**service["health"], **health}} for service in services]
    if path := re.fullmatch(r"path (/\S*)", text):
        return [{**service, "health": {**service["health"], "path": path[1]}} for service in services]
    raise BalancerError(f"no change {text!r}; {HELP}")


def start(lab: Lab, artifacts: Artifacts) -> None:
    """Start a lab's balancers."""
    if lab.balancers:
        # Links of its own: the cache may have forgotten the build when a balancer is changed.
        shutil.copytree(artifacts.edge_tools, machines.state(lab.name) / TOOLS, copy_function=os.link)
    for balancer in lab.balancers:
        _serve(lab, balancer, SERVICES)


def change(lab: Lab, words: Sequence[str]) -> None:
    """Change a lab's balancers, or the one that is named behind the change; none of their connections is lost."""
    state = machines.state(lab.name)
    *what, last = words
    one = [balancer for balancer in lab.balancers if balancer.name == last]
    before = {balancer: declared(lab, balancer, state)["services"] for balancer in one or lab.balancers}
    configure(lab, {balancer: changed(services, what if one else words) for balancer, services in before.items()})


def reset(lab: Lab) -> None:
    """Set all balancers to what they were at first."""
    configure(lab, dict.fromkeys(lab.balancers, SERVICES))


def configure(lab: Lab, wanted: Mapping[Balancer, Sequence[dict[str, Any]]]) -> None:
    """Set balancers to services as netmend_balancers has them, and say so in the inventory."""
    for balancer, services in wanted.items():
        _serve(lab, balancer, services)
    state = machines.state(lab.name)
    seed.write_inventory(lab, state, variables(lab, state))


def seen(lab: Lab) -> list[dict[str, Any]]:
    """netmend_balancers, with what the checks say of each target."""
    return [_with_status(lab, balancer) for balancer in lab.balancers]


def command(lab: Lab, words: Sequence[str]) -> str:
    """What the command line's `balancer` does; returns what is to be shown."""
    if words[0] == "set":
        change(lab, words[1:])
    elif list(words) == ["reset"]:
        reset(lab)
    elif list(words) != ["list"]:
        raise BalancerError(f"balancer does set CHANGE, reset and list, not {' '.join(words)!r}")
    return json.dumps(seen(lab), indent=2)


def _with_status(lab: Lab, balancer: Balancer) -> dict[str, Any]:
    found = declared(lab, balancer, machines.state(lab.name))
    rows = list(csv.DictReader(_ask(lab, balancer, "show stat").removeprefix("# ").splitlines()))
    for machine, target in zip(lab.agents, found["targets"], strict=True):
        states = {row["pxname"]: row["status"] for row in rows if row["svname"] == machine.name}
        target["status"] = {port: "healthy" if text == "UP" else _unhealthy(text) for port, text in states.items()}
    return found


def _unhealthy(text: str) -> str:
    return "unhealthy" if text.startswith("DOWN") else "unknown"


def _serve(lab: Lab, balancer: Balancer, services: Sequence[dict[str, Any]]) -> None:
    """Have a balancer serve so; one that runs already gives its sockets up when the new one has them."""
    state = machines.state(lab.name)
    path, pid_file = state / f"{balancer.name}.cfg", state / f"{balancer.name}.pid"
    path.write_text(configuration(lab, balancer, services))
    tree = state / TOOLS
    program = [str(tree / LOADER), "--library-path", str(tree / LIBRARIES), str(tree / edge.HAPROXY)]
    former = ["-sf", pid_file.read_text()] if pid_file.exists() else []
    argv = network.inside(lab.name, *program, "-db", "-f", str(path), *former)
    with (state / f"{balancer.name}.log").open("ab") as log:
        process = subprocess.Popen(
            argv, stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd=state, start_new_session=True
        )
    deadline = time.monotonic() + WITHIN
    while f"\nPid: {process.pid}\n" not in _ask(lab, balancer, "show info"):
        if process.poll() is not None or time.monotonic() > deadline:
            process.send_signal(signal.SIGKILL)
            said = (state / f"{balancer.name}.log").read_text()[-1000:]
            raise BalancerError(f"balancer {balancer.name} does not serve:\n{said}")
        time.sleep(0.05)
    pid_file.write_text(str(process.pid))
    _settings(balancer, state).write_text(json.dumps(services))


def _ask(lab: Lab, balancer: Balancer, what: str) -> str:
    """HAProxy's answer on its own socket; empty while there is nobody."""
    try:
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(WITHIN)
            connection.connect(str(_socket(lab, balancer)))
            connection.sendall(f"{what}\n".encode())
            return b"".join(iter(lambda: connection.recv(65536), b"")).decode()
    except (FileNotFoundError, ConnectionRefusedError):
        return ""


def _socket(lab: Lab, balancer: Balancer) -> Path:
    return seed.sockets(lab.name) / f"{balancer.name}.sock"


def _settings(balancer: Balancer, state: Path) -> Path:
    return state / f"{balancer.name}.json"
