"""Network namespaces for tests that need real iptables, certificates for those that need an API server."""

from __future__ import annotations

import os
import subprocess
import sys
import uuid
from pathlib import Path
from typing import Any, Callable, Iterator

import pytest
from ansible.module_utils.netmend.underlay_packets import DF, KINDS, ROUNDS, ROUTED

from tests.unit.pod_cluster import Cluster
from tests.unit.pod_server import Server

ROOT = Path(__file__).parents[2]
CORE = "import ansible.module_utils; ansible.module_utils.__path__.append('module_utils')\n"


class Namespace:
    """A network namespace; calling it runs a command in it, from the root of the repository."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __call__(self, *argv: str, text: str = "", ok: bool = True) -> str:
        """What the command prints, having read ``text``."""
        argv = ("ip", "netns", "exec", self.name, *argv)
        done = subprocess.run(argv, input=text, capture_output=True, text=True, cwd=ROOT, timeout=60, check=False)
        assert not ok or done.returncode == 0, done.stderr + done.stdout
        return done.stdout

    def python(self, code: str, text: str = "", ok: bool = True) -> str:
        """What the code prints; it finds the core where modules find it."""
        return self(sys.executable, "-c", CORE + code, text=text, ok=ok)


@pytest.fixture
def namespace() -> Iterator[Namespace]:
    if os.geteuid() != 0:
        pytest.skip("network namespaces need root")
    name = f"netmend-{uuid.uuid4().hex[:8]}"
    subprocess.run(["ip", "netns", "add", name], check=True)
    yield Namespace(name)
    subprocess.run(["ip", "netns", "del", name], check=True)


@pytest.fixture(scope="session")
def tls(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An authority, K3s's way: server-ca.crt, client-admin.crt and .key, and certificates for the server."""
    place = tmp_path_factory.mktemp("tls")

    def openssl(*argv: str) -> None:
        subprocess.run(["openssl", *argv], cwd=place, check=True, capture_output=True, timeout=60)

    def certificate(name: str, days: str = "2") -> None:
        key = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-keyout", f"{name}.key")
        openssl("req", *key, "-subj", f"/CN={name}", "-out", f"{name}.csr")
        (place / "san").write_text("subjectAltName=IP:127.0.0.1")
        authority = ("-CA", "server-ca.crt", "-CAkey", "server-ca.key", "-CAcreateserial", "-extfile", "san")
        openssl("x509", "-req", "-in", f"{name}.csr", *authority, "-days", days, "-out", f"{name}.crt")

    ca = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-keyout", "server-ca.key")
    openssl("req", "-x509", *ca, "-subj", "/CN=k3s-server-ca", "-days", "2", "-out", "server-ca.crt")
    certificate("client-admin")
    certificate("server")
    certificate("expired", days="-1")
    return place


@pytest.fixture
def server(tls: Path) -> Iterator[Server]:
    """An API server with an empty cluster behind it."""
    with Server(Cluster(), tls) as running:
        yield running


@pytest.fixture
def underlay_reports() -> Callable[[dict[str, str]], dict[str, Any]]:
    """Addresses by node -> reports of a round in which all passes but what needs the peer on the same link."""

    def report(node: str, addresses: dict[str, str]) -> dict[str, Any]:
        peers = [peer for peer in addresses if peer != node]
        kinds = [kind.name for kind in KINDS if kind.name not in (DF, ROUTED)]
        behind = {"sent": 0, "answered": 0, "told": {}, "kept": {"not on the same link, but behind 10.0.0.1": ROUNDS}}
        sent = {kind: {"sent": ROUNDS, "answered": 0, "told": {}, "kept": {}} for kind in kinds}
        heard = {kind: {"arrived": ROUNDS, "accepted": ROUNDS} for kind in kinds}
        sizes = {"1450": 2, "1440": 2, "1400": 2}
        return {
            "node": node, "address": addresses[node], "run": "run", "start": 100.0, "late": 0.0,
            "listened": [99.0, 101.7], "sent": [100.0, 100.9], "moved": [], "overflow": 0, "errors": [],
            "to": {
                peer: {"device": "enp7s0", "gateway": "10.0.0.1", "mtu": 1450, "sizes": dict(sizes), "frag_needed": {},
                       "kinds": {**{kind: dict(each) for kind, each in sent.items()}, ROUTED: dict(behind)}}
                for peer in peers
            },
            "heard": {
                peer: {"device": "enp7s0", "rounds": list(range(ROUNDS)), "sizes": dict(sizes),
                       "kinds": {**{kind: dict(each) for kind, each in heard.items()},
                                 ROUTED: {"arrived": 0, "accepted": 0}}}
                for peer in peers
            },
        }  # fmt: skip

    return lambda addresses: {node: report(node, addresses) for node in addresses}
