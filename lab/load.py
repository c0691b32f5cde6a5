"""Clients that ask an application on and on, and tell what they lost."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import NamedTuple

from . import ingress, machines, network
from .cluster import must
from .spec import Lab

RATE = 50  # requests a second, of each client

# Asks targets in turn: an address, a port, and perhaps the host and, for TLS, the file of the authority to trust.
CLIENT = r"""
import asyncio, json, ssl, sys, time

async def ask(address, port, host="load", authority=""):
    tls = {"ssl": ssl.create_default_context(cafile=authority), "server_hostname": host} if authority else {}
    reader, writer = await asyncio.open_connection(address, port, **tls)
    try:
        writer.write(("GET / HTTP/1.1\r\nHost: " + host + "\r\nConnection: close\r\n\r\n").encode())
        answer = await reader.read()
        if not answer.startswith(b"HTTP/1.1 200"):
            raise OSError("answer " + repr(answer[:30]))
    finally:
        writer.close()

async def main(targets, rate):
    took, lost, under_way, ended = [], [], set(), asyncio.Event()
    asyncio.get_running_loop().add_reader(0, ended.set)
    async def request(number):
        began, target = time.time(), targets[number % len(targets)]
        try:
            await asyncio.wait_for(ask(*target), 10)
            took.append(time.time() - began)
        except (OSError, asyncio.TimeoutError) as error:
            lost.append([began, target, str(error) or type(error).__name__])
    number, start = 0, time.monotonic()
    while not ended.is_set():
        task = asyncio.ensure_future(request(number))
        under_way.add(task)
        task.add_done_callback(under_way.discard)
        number += 1
        await asyncio.sleep(max(0, start + number / rate - time.monotonic()))
    if under_way:
        await asyncio.wait(under_way)
    took.sort()
    print(json.dumps({"asked": number, "lost": lost, "p99": took[int(len(took) * .99)] if took else 0}))

asyncio.run(main(json.loads(sys.argv[1]), float(sys.argv[2])))
"""


class Client(NamedTuple):
    """What a client saw."""

    asked: int
    lost: list[tuple[float, Sequence[str | int], str]]  # when, whom (as asked for), and how it failed
    p99: float  # seconds


@contextmanager
def load(lab: Lab, service: str, node_port: int, rate: float = RATE) -> Iterator[dict[str, Client]]:
    """Asks by all nodes' NodePorts from outside, and by the ClusterIP from a node, as long as the context lasts.

    What was seen is in the mapping afterwards, by "outside" and "inside".
    """
    found = "k3s kubectl get service " + service + " -o jsonpath='{.spec.clusterIP} {.spec.ports[0].port}'"
    address, port = must(lab, lab.machines[0], found).split()
    by_cluster_ip = json.dumps([(address, int(port))])
    inside = f"exec python3 -u -c '{CLIENT}' '{by_cluster_ip}' {rate}"
    commands = {
        "outside": _outside(lab, [(machine.public, node_port) for machine in lab.machines], rate),
        "inside": machines.ssh(lab.name, lab.machines[-1], inside),
    }
    with _clients(commands) as seen:
        yield seen


@contextmanager
def load_at_edge(lab: Lab, rate: float = RATE) -> Iterator[dict[str, Client]]:
    """Asks for every host of the lab's Ingresses by every balancer, over HTTP and TLS, as long as the context lasts.

    What was seen is in the mapping afterwards, by "outside".
    """
    authority = str(machines.state(lab.name) / ingress.AUTHORITY)
    targets = [
        (balancer.public, *way)
        for balancer in lab.balancers
        for host in ingress.hosts(lab)
        for way in ((80, host), (443, host, authority))
    ]
    with _clients({"outside": _outside(lab, targets, rate)}) as seen:
        yield seen


def _outside(lab: Lab, targets: Sequence[Sequence[str | int]], rate: float) -> list[str]:
    return network.inside(lab.name, sys.executable, "-c", CLIENT, json.dumps(targets), str(rate), outside=True)


@contextmanager
def _clients(commands: Mapping[str, Sequence[str]]) -> Iterator[dict[str, Client]]:
    clients = {
        name: subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        for name, argv in commands.items()
    }
    seen: dict[str, Client] = {}
    try:
        yield seen
    finally:
        for name, client in clients.items():
            said, _ = client.communicate("end\n", timeout=60)
            seen[name] = Client(**json.loads(said))
