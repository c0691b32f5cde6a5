"""Clients that ask an application on and on, and tell what they lost."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import NamedTuple

from . import machines, network
from .cluster import must
from .spec import Lab

RATE = 25  # requests a second, of each of the two clients

CLIENT = r"""
import asyncio, json, sys, time

async def ask(host, port):
    reader, writer = await asyncio.open_connection(host, port)
    try:
        writer.write(b"GET / HTTP/1.1\r\nHost: load\r\nConnection: close\r\n\r\n")
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
            took.append([began, time.time() - began])
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
    print(json.dumps({"asked": number, "lost": lost, "answered": took}))

asyncio.run(main(json.loads(sys.argv[1]), float(sys.argv[2])))
"""


class Client(NamedTuple):
    """What a client saw."""

    asked: int
    lost: list[tuple[float, tuple[str, int], str]]  # when, whom, and how it failed
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
def load(lab: Lab, service: str, node_port: int, rate: float = RATE) -> Iterator[dict[str, Client]]:
    """Asks by all nodes' NodePorts from outside, and by the ClusterIP from a node, as long as the context lasts.

    What was seen is in the mapping afterwards, by "outside" and "inside".
    """
    found = "k3s kubectl get service " + service + " -o jsonpath='{.spec.clusterIP} {.spec.ports[0].port}'"
    address, port = must(lab, lab.machines[0], found).split()
    by_node_port = json.dumps([(machine.public, node_port) for machine in lab.machines])
    by_cluster_ip = json.dumps([(address, int(port))])
    inside = f"exec python3 -u -c '{CLIENT}' '{by_cluster_ip}' {rate}"
    commands = {
        "outside": network.inside(lab.name, sys.executable, "-c", CLIENT, by_node_port, str(rate), outside=True),
        "inside": machines.ssh(lab.name, lab.machines[-1], inside),
    }
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
