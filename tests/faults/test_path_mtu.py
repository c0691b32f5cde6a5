"""Where the network between nodes drops large packets without a word: TCP passes again, and the rest is named still."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from lab import cluster
from lab.playbooks import Playbooks
from lab.spec import Lab

from .test_faults import EASED

FAULT = "path-mtu-black-hole"
SIZE = 200_000  # bytes, in segments as large as may be
SEND = f"""
import socket
server = socket.create_server(("", 7000))
server.settimeout(20)
peer, _ = server.accept()
peer.settimeout(20)
peer.sendall(b"x" * {SIZE})
"""
RECEIVE = """
import socket, time
until, got = time.monotonic() + 20, 0
while True:
    try:
        peer = socket.create_connection(("{address}", 7000), timeout=5)
        break
    except ConnectionRefusedError:
        if time.monotonic() > until:
            raise
try:
    while part := peer.recv(65536):
        got += len(part)
except TimeoutError:
    pass
print(got)
"""


def received(lab: Lab) -> int:
    """How much of what the first node sends the last one gets, before nothing more comes for some seconds."""
    here, there = lab.machines[0], lab.machines[-1]
    with ThreadPoolExecutor(1) as pool:
        sending = pool.submit(cluster.must, lab, here, "python3 - || true", text=SEND)
        got = int(cluster.must(lab, there, "python3 -", text=RECEIVE.format(address=here.private)))
        sending.result()
    return got


@pytest.fixture
def _put_in(lab: Lab, playbooks: Playbooks) -> Iterator[None]:
    assert received(lab) == SIZE
    try:
        cluster.put_in(lab, FAULT)
        yield
    finally:
        cluster.take_out(lab, FAULT)
        assert playbooks.run("playbooks/undo.yml").code == 0


@pytest.mark.skipif(FAULT not in EASED, reason="the lab cannot be given this fault")
@pytest.mark.usefixtures("_put_in")
def test_tcp_passes_again_and_the_rest_is_named(lab: Lab, playbooks: Playbooks) -> None:
    assert received(lab) < SIZE
    run = playbooks.run("fix_network.yml")
    assert (run.code, run.named[0]) == (2, FAULT), run.output
    assert {change["role"] for change in run.report["changes"]} == {"path_mtu"}, run.output
    assert received(lab) == SIZE
    again = playbooks.run("fix_network.yml")
    assert (again.code, again.changed, again.named[0]) == (2, 0, FAULT), again.output
