"""netmend_pod_connections against an API server, and a folder that stands for the node's /proc."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest
from ansible.module_utils.netmend import pod_connections
from ansible.module_utils.netmend.kube import Api, Credentials, kubelet_credentials
from ansible.module_utils.netmend.pod_connections import Teller
from ansible.module_utils.netmend.pod_replacement import RELEASED, connected

from tests.unit.loaded import loaded, said
from tests.unit.pod_cluster import Cluster, Object
from tests.unit.pod_server import Server

HEADER = "  sl  local_address rem_address   st\n"
LISTENS = "   0: 00000000:0050 00000000:0000 0A\n"
CONNECTED = "   1: 05002A0A:0050 6E00000A:C000 01\n"
UID = "b129d998-febc-4b7c-b78d-9e6656ffaa2{}"


@pytest.fixture
def cluster(server: Server) -> Cluster:
    """Two pods on n0 and one on n1 that have left their Services, and one that has not."""
    for number, node in enumerate(("n0", "n0", "n1", "n0")):
        pod = server.cluster.pod(f"web-{number}", {}, node=node)
        del server.cluster.objects["pods"][pod["metadata"].pop("uid")]
        pod["metadata"]["uid"] = UID.format(number)
        pod["metadata"]["annotations"] = {RELEASED: "{}"} if number < 3 else {}
        server.cluster.put("pods", pod)
    return server.cluster


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for number in range(4):
        process = tmp_path / f"proc/{40 + number}"
        (process / "net").mkdir(parents=True)
        (process / "cgroup").write_text(f"0::/kubepods/burstable/pod{UID.format(number)}/0a1b\n")
        (process / "net/tcp").write_text(HEADER + LISTENS)
    return tmp_path


@pytest.fixture
def credentials(server: Server, tls: Path, tmp_path: Path) -> Credentials:
    agent = tmp_path / "agent"
    agent.mkdir()
    (agent / "kubelet.kubeconfig").write_text(f"clusters:\n- cluster:\n    server: {server.url}\n  name: local\n")
    (agent / "server-ca.crt").symlink_to(tls / "server-ca.crt")
    for kind in ("crt", "key"):
        (agent / f"client-kubelet.{kind}").symlink_to(tls / f"client-admin.{kind}")
    return kubelet_credentials(str(agent))


def told(cluster: Cluster) -> list[bool | None]:
    """What is said of each pod."""
    pods = sorted(cluster.state()["pods"], key=lambda pod: str(pod["metadata"]["name"]))
    return [connected(pod) for pod in pods]


def test_pods_of_the_node_that_left_their_services_are_told_once(
    cluster: Cluster, server: Server, root: Path, credentials: Credentials
) -> None:
    teller = Teller(Api(credentials), "n0", root)
    tcp = root / "proc/41/net/tcp"
    tcp.write_text(HEADER + LISTENS + CONNECTED)
    teller.tell()
    assert told(cluster) == [False, True, None, None]
    teller = Teller(Api(credentials), "n0", root)
    teller.tell()
    assert server.asked == ["PATCH default/web-0", "PATCH default/web-1"]
    tcp.write_text(HEADER + LISTENS)
    teller.tell()
    assert told(cluster) == [False, False, None, None]


def test_nothing_is_said_of_a_pod_without_a_process(cluster: Cluster, root: Path, credentials: Credentials) -> None:
    (root / "proc/40/cgroup").write_text("0::/init.scope\n")
    Teller(Api(credentials), "n0", root).tell()
    assert told(cluster) == [None, False, None, None]


def test_a_pod_whose_first_process_ends_is_found_by_another(
    cluster: Cluster, root: Path, credentials: Credentials
) -> None:
    teller = Teller(Api(credentials), "n0", root)
    teller.tell()
    (root / "proc/40/net/tcp").write_text(HEADER + LISTENS + CONNECTED)
    (root / "proc/40").rename(root / "proc/50")
    teller.tell()
    teller.tell()
    assert told(cluster) == [True, False, None, None]


@pytest.fixture
def address(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(pod_connections, "ADDRESS", f"\0{tmp_path}")
    monkeypatch.setattr(pod_connections, "SAMPLE", 0.02)


@pytest.mark.usefixtures("address")
def test_a_process_tells_until_it_is_stopped(
    cluster: Cluster, root: Path, credentials: Credentials, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = loaded("library/netmend_pod_connections.py")
    monkeypatch.setattr(module, "kubelet_credentials", lambda: credentials)
    monkeypatch.setattr(pod_connections, "Teller", partial(Teller, root=root))
    assert said(module, state="stopped")["running"] is False
    for _ in range(2):  # in the place of the one that runs
        result = said(module, node="n0")
        assert (result["changed"], result["running"]) == (False, True)
    with cluster.changed:
        assert cluster.changed.wait_for(lambda: told(cluster) == [False, False, None, None], 60)
    with pytest.raises(OSError, match="in use"):
        pod_connections.listen()
    assert said(module, state="stopped")["running"] is False
    pod_connections.listen().close()


@pytest.mark.usefixtures("address")
def test_a_node_without_credentials_is_a_warning(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    module = loaded("library/netmend_pod_connections.py")
    warnings: list[str] = []
    monkeypatch.setattr(module, "kubelet_credentials", partial(kubelet_credentials, str(tmp_path)))
    monkeypatch.setattr(module.AnsibleModule, "warn", lambda _, text: warnings.append(text))
    assert said(module, node="n0")["running"] is False
    (warning,) = warnings
    assert warning.startswith("Drains take their whole time on this node")


@pytest.mark.usefixtures("address")
@pytest.mark.parametrize(
    ("arguments", "why"),
    [({}, "node"), ({"node": "n0", "duration": 0}, "duration is 0, and has to be 1 at least")],
)
def test_bad_input_is_named(arguments: Object, why: str) -> None:
    result = said(loaded("library/netmend_pod_connections.py"), **arguments)
    assert result["failed"] is True
    assert why in result["msg"]
