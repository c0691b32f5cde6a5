"""What of a lab answers to a client on the internet."""

from __future__ import annotations

import json
import subprocess
import sys

from . import network
from .spec import Lab

# SSH, HTTP, HTTPS, Typha, BGP, etcd, the API, the kubelet, kube-proxy's health, K3s's registry, the lab's NodePort,
# the operators' NodePorts, and their fallbacks.
PORTS = (22, 80, 179, 443, 2379, 2380, 5001, 5473, 6443, 10250, 10256, 30000, 30080, 31695, 32720)
WAIT = 2.0  # seconds; silence is the answer of most

PROBE = """
import json, socket, sys
from concurrent.futures import ThreadPoolExecutor
def ask(target):
    try:
        socket.create_connection(tuple(target), timeout=float(sys.argv[2])).close()
        return "open"
    except ConnectionRefusedError:
        return "refused"
    except OSError:
        return "silent"
targets = json.loads(sys.argv[1])
print(json.dumps(list(ThreadPoolExecutor(len(targets)).map(ask, targets))))
"""


def answers(lab: Lab) -> dict[str, dict[int, str]]:
    """Node -> TCP port -> "open" or "refused"; a port that keeps silent is left out."""
    targets = [(machine.public, port) for machine in lab.machines for port in PORTS]
    argv = network.inside(lab.name, sys.executable, "-c", PROBE, json.dumps(targets), str(WAIT), outside=True)
    seen = json.loads(subprocess.run(argv, capture_output=True, text=True, check=True).stdout)
    said = dict(zip(targets, seen, strict=True))
    return {
        machine.name: {port: said[machine.public, port] for port in PORTS if said[machine.public, port] != "silent"}
        for machine in lab.machines
    }


def listen(lab: Lab) -> str:
    """The same as lines for a terminal."""
    lines = []
    for node, ports in answers(lab).items():
        shown = ", ".join(f"{port} {answer}" for port, answer in ports.items())
        lines.append(f"  {node}: {shown or 'nothing'} ({len(PORTS) - len(ports)} of {len(PORTS)} ports silent)")
    return "\n".join(lines)
