"""Clients that ask an application on and on, and tell what they lost."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import NamedTuple

from . import ingress, machines, network
from .cluster import ClusterError, must
from .spec import Lab

NODE_PORT = 31695  # of web, which is on each lab that has apps.yml
RATE = 25  # requests a second, of each of the two clients
PATIENCE = 10  # seconds until a request without an answer is lost

DOWNLOAD = 20  # seconds that one takes

# Asks targets in turn: an address, a port, and perhaps the host and, for TLS, the file of the authority to trust; and
# how many bytes are to come, in how many seconds.
CLIENT = r"""
import asyncio, json, socket, ssl, sys, time

STEPS = 100

async def ask(address, port, host="load", authority="", size=0, seconds=0):
    tls = {"ssl": ssl.create_default_context(cafile=authority), "server_hostname": host} if authority else {}
    wire = socket.socket()
    wire.setblocking(False)
    if size:  # or else all of it would be on its way at once
        wire.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, size // STEPS)
    await asyncio.get_running_loop().sock_connect(wire, (address, port))
    reader, writer = await asyncio.open_connection(sock=wire, **tls)
    try:
        path = "/?bytes=" + str(size) if size else "/"
        writer.write(("GET " + path + " HTTP/1.1\r\nHost: " + host + "\r\nConnection: close\r\n\r\n").encode())
        answer = await reader.readuntil(b"\r\n\r\n")
        if not answer.startswith(b"HTTP/1.1 200"):
            raise OSError("answer " + repr(answer[:30]))
        for _ in range(STEPS if size else 0):
            await reader.readexactly(size // STEPS)
            await asyncio.sleep(seconds / STEPS)
        await reader.read()
    finally:
        writer.close()

async def main(targets, rate, patience):
    took, lost, under_way, ended = [], [], set(), asyncio.Event()
    asyncio.get_running_loop().add_reader(0, ended.set)
    async def request(number):
        began, target = time.time(), targets[number % len(targets)]
        try:
            await asyncio.wait_for(ask(*target), patience)
            took.append([began, time.time() - began])
        except (OSError, EOFError, asyncio.TimeoutError) as error:
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
    print(json.dumps({"asked": number, "lost": lost, "answered": took}))

asyncio.run(main(json.loads(sys.argv[1]), *map(float, sys.argv[2:])))
"""


class Client(NamedTuple):
    """What a client saw."""

    asked: int
    lost: list[tuple[float, Sequence[str | int], str]]  # when, whom (as asked for), and how it failed
    answered: list[tuple[float, float]]  # when, and after how many seconds

    @property
    def p99(self) -> float:
        """Seconds that 99 of 100 answers took at most; 0 for no answer."""
        return percentile(self.during(float("-inf"), float("inf")), 0.99)

    def during(self, since: float, until: float) -> list[float]:
        """The seconds that the answers took to what was asked from one moment to another."""
        return [seconds for began, seconds in self.answered if since <= began < until]


def percentile(values: Iterable[float], share: float) -> float:
    """The smallest of them that this share of them do not exceed; 0 for none."""
    ordered = sorted(values)
    return ordered[min(int(len(ordered) * share), len(ordered) - 1)] if ordered else 0.0


@contextmanager
def load(
    lab: Lab,
    service: str = "web",
    node_port: int = NODE_PORT,
    *,
    rate: float = RATE,
    patience: float = PATIENCE,
    downloads: bool = False,
) -> Iterator[dict[str, Client]]:
    """Asks by all nodes' NodePorts from outside, and by the ClusterIP from a node, as long as the context lasts.

    What was seen is in the mapping afterwards, by "outside" and "inside", and by "downloads" if there are to be some:
    one that takes 20 s is begun every 2 s, from outside.
    """
    found = "k3s kubectl get service " + service + " -o jsonpath='{.spec.clusterIP} {.spec.ports[0].port}'"
    address, port = must(lab, lab.machines[0], found).split()
    by_cluster_ip = json.dumps([(address, int(port))])
    inside = f"exec python3 -u -c '{CLIENT}' '{by_cluster_ip}' {rate} {patience}"
    targets = [(machine.public, node_port) for machine in lab.machines]
    commands = {
        "outside": _outside(lab, targets, rate, patience),
        "inside": machines.ssh(lab.name, lab.machines[-1], inside),
    }
    if downloads:
        long = [(*target, "load", "", 2_000_000, DOWNLOAD) for target in targets]
        commands["downloads"] = _outside(lab, long, 0.5, 3 * DOWNLOAD)
    with _clients(commands) as seen:
        yield seen


@contextmanager
def load_at_edge(lab: Lab, *, rate: float = RATE, patience: float = PATIENCE) -> Iterator[dict[str, Client]]:
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
    with _clients({"outside": _outside(lab, targets, rate, patience)}) as seen:
        yield seen


def _outside(lab: Lab, targets: Sequence[Sequence[str | int]], rate: float, patience: float) -> list[str]:
    asked = [json.dumps(targets), str(rate), str(patience)]
    return network.inside(lab.name, sys.executable, "-c", CLIENT, *asked, outside=True)


@contextmanager
def _clients(commands: Mapping[str, Sequence[str]]) -> Iterator[dict[str, Client]]:
    # With streams of their own: ssh lets those that it is given not block, and Ansible takes none that do not.
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    clients = {name: subprocess.Popen(argv, **pipes, text=True) for name, argv in commands.items()}
    seen: dict[str, Client] = {}
    try:
        yield seen
    finally:
        for name, client in clients.items():
            said, error = client.communicate("end\n", timeout=120)
            if client.returncode:
                raise ClusterError(f"the client {name} ended early: {error.strip()}")
            seen[name] = Client(**json.loads(said))
