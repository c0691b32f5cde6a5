"""netmend_pod_replacement against an API server that has a cluster in memory behind it, and watches as the real one."""

from __future__ import annotations

import json
import ssl
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Callable
from urllib.parse import parse_qs, urlsplit

import pytest
from ansible.module_utils.netmend import mirror, pod_replacement_apply
from ansible.module_utils.netmend.kube import Api, ApiError, k3s_credentials
from ansible.module_utils.netmend.pod_replacement import PATHS
from ansible.module_utils.testing import patch_module_args

from tests.unit.loaded import loaded
from tests.unit.pod_cluster import NEW, Cluster

WHAT = {path: what for what, path in PATHS.items()}
STATUS = json.dumps({"message": "Cannot evict pod as it would violate the pod's disruption budget."})

Run = Callable[..., dict[str, Any]]


class Server:
    """Answers for the cluster; ``asked`` has every request that changes something."""

    def __init__(self, cluster: Cluster, tls: Path) -> None:
        self.cluster = cluster
        self.asked: list[str] = []
        self.watches: list[str] = []
        self.too_old = ""  # how the next watch is told that its version is: "status", "event" or not at all
        self.open = True
        server = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                url = urlsplit(self.path)
                query = parse_qs(url.query)
                if url.path not in WHAT:
                    self.answer(404)
                elif "watch" in query:
                    server.watches.append(url.path)
                    self.stream(WHAT[url.path], int(query["resourceVersion"][0]))
                else:
                    with server.cluster.changed:
                        items = list(server.cluster.objects[WHAT[url.path]].values())
                        version = max([0, *(version for version, _, _ in server.cluster.log)])
                        self.answer(200, json.dumps({"items": items, "metadata": {"resourceVersion": str(version)}}))

            def do_PATCH(self) -> None:
                assert self.headers["Content-Type"] == "application/merge-patch+json"
                self.change(server.cluster.patch, self.content())

            def do_DELETE(self) -> None:
                self.change(server.cluster.delete, self.content()["preconditions"]["uid"])

            def do_POST(self) -> None:
                content = self.content()
                assert (content["kind"], self.path.split("/")[-1]) == ("Eviction", "eviction")
                self.change(server.cluster.evict, content["deleteOptions"]["preconditions"]["uid"])

            def change(self, do: Callable[[str, Any], int], argument: Any) -> None:
                _, _, _, _, namespace, _, name = self.path.removesuffix("/eviction").split("/")
                with server.cluster.changed:
                    server.asked.append(f"{self.command} {namespace}/{name}")
                    status = do(f"{namespace}/{name}", argument)
                    server.cluster.settle()
                self.answer(status, STATUS if status == 429 else "{}")

            def content(self) -> Any:
                return json.loads(self.rfile.read(int(self.headers["Content-Length"])))

            def answer(self, status: int, body: str = "{}") -> None:
                self.send_response(status)
                self.send_header("Content-Length", str(len(body.encode())))
                self.end_headers()
                self.wfile.write(body.encode())

            def stream(self, what: str, version: int) -> None:
                too_old, server.too_old = server.too_old, ""
                if too_old == "status":
                    self.answer(410)
                    return
                self.send_response(200)
                self.send_header("Transfer-Encoding", "chunked")
                self.end_headers()
                if too_old:
                    self.chunk({"type": "ERROR", "object": {"code": 410}})
                    return
                bookmark = {"type": "BOOKMARK", "object": {"metadata": {"resourceVersion": str(version)}}}
                self.chunk(bookmark)
                done = 0
                while server.open:
                    with server.cluster.changed:
                        fresh = server.cluster.log[done:]
                        if not fresh:
                            server.cluster.changed.wait(0.1)
                    for at, of, event in fresh:
                        if of == what and at > version:
                            self.chunk(event)
                    done += len(fresh)

            def chunk(self, event: dict[str, Any]) -> None:
                line = json.dumps(event).encode() + b"\n"
                self.wfile.write(f"{len(line):x}\r\n".encode() + line + b"\r\n")

            def log_message(self, *_: object) -> None:
                pass

        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(tls / "server.crt", tls / "server.key")
        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.http.daemon_threads = True
        self.http.socket = context.wrap_socket(self.http.socket, server_side=True)
        self.http.handle_error = lambda *_: None  # type: ignore[method-assign] # clients hang up on their watches
        self.url = f"https://127.0.0.1:{self.http.server_port}"
        threading.Thread(target=self.http.serve_forever, args=(0.02,), daemon=True).start()

    def close(self) -> None:
        self.open = False
        with self.cluster.changed:
            self.cluster.changed.notify_all()
        self.http.shutdown()
        self.http.server_close()


@pytest.fixture
def server(tls: Path) -> Iterator[Server]:
    running = Server(Cluster(), tls)
    yield running
    running.close()


@pytest.fixture
def cluster(server: Server) -> Cluster:
    """Three pods of a Deployment and a Service; new pods get new addresses."""
    made = server.cluster
    made.deployment("web", 3)
    made.service("web", {"app": "web"})
    made.settle()
    made.addresses = NEW
    return made


@pytest.fixture
def replace(server: Server, tls: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs the module; what it does not have to wait for, it does at once."""
    module = loaded("library/netmend_pod_replacement.py")
    monkeypatch.setattr(module, "k3s_credentials", lambda: k3s_credentials(server.url, str(tls)))
    monkeypatch.setattr(pod_replacement_apply, "BURST", 0.01)
    monkeypatch.setattr(pod_replacement_apply, "AGAIN", 0.1)

    def run(**arguments: Any) -> dict[str, Any]:
        arguments = {"cidrs": ["10.42.128.0/17"], "drain_seconds": 0, **arguments}
        with patch_module_args(arguments), pytest.raises(SystemExit):
            module.main()
        return json.loads(capsys.readouterr().out)

    return run


def addresses(cluster: Cluster) -> set[str]:
    return {pod["status"]["podIP"].rpartition(".")[0] for pod in cluster.state()["pods"]}


def test_pods_are_replaced_and_then_there_is_nothing_to_do(replace: Run, cluster: Cluster, server: Server) -> None:
    before = sorted(pod["metadata"]["name"] for pod in cluster.state()["pods"])
    result = replace(drain_seconds=1)
    assert result["changed"] is True
    assert sorted(each["pod"] for each in result["replaced"]) == [f"default/{name}" for name in before]
    assert {each["way"] for each in result["replaced"]} == {"surge"}
    assert (result["left"], result["diff"]["after"]) == ([], "")
    assert (addresses(cluster), cluster.lost) == ({"10.42.128"}, [])
    server.asked.clear()
    again = replace()
    assert (again["changed"], again["replaced"], server.asked) == (False, [], [])


class Clock:
    """Stands still but while somebody sleeps."""

    def __init__(self) -> None:
        self.now = 0.0

    def monotonic(self) -> float:
        return self.now

    def sleep(self, _: float) -> None:
        self.now += 7


def test_a_pod_goes_on_without_new_requests_before_it_is_deleted(
    replace: Run, cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Clock()
    monkeypatch.setattr(pod_replacement_apply, "time", clock)
    taken, drained = {}, {}
    patch, delete = cluster.patch, cluster.delete

    def patched(name: str, content: Any) -> int:
        taken[name] = clock.now
        return patch(name, content)

    def deleted(name: str, uid: str) -> int:
        drained[name] = clock.now - taken[name]
        return delete(name, uid)

    monkeypatch.setattr(cluster, "patch", patched)
    monkeypatch.setattr(cluster, "delete", deleted)
    replace(drain_seconds=30, timeout=10**6)
    assert len(drained) == 3
    assert min(drained.values()) >= 30


def test_check_mode_says_what_would_be_done(replace: Run, cluster: Cluster, server: Server) -> None:
    cluster.pod("bare", {})["status"]["podIP"] = "10.42.0.99"
    result = replace(_ansible_check_mode=True)
    assert result["changed"] is True
    assert {(each["way"], each["owner"]) for each in result["replaced"]} == {("surge", "default/ReplicaSet/web-5d9f")}
    assert [each["pod"] for each in result["left"]] == ["default/bare"]
    assert len(result["diff"]["before"].splitlines()) == 4
    assert result["diff"]["after"] == "default/bare on n0\n"
    assert server.asked == []


def test_what_does_not_come_up_is_named_and_its_predecessor_serves_again(replace: Run, cluster: Cluster) -> None:
    before = set(cluster.objects["pods"])
    cluster.sick.add("ReplicaSet/web-5d9f")
    result = replace(timeout=1)
    assert result["failed"] is True
    assert "is not Ready (ContainersNotReady), which was waited for 1 s. Put back into service: " in result["msg"]
    assert (result["changed"], result["replaced"]) == (True, [])
    assert (set(cluster.objects["pods"]), cluster.lost) == (before, [])
    cluster.sick.clear()
    assert len(replace()["replaced"]) == 3


def test_a_node_that_still_gives_old_addresses_ends_it(replace: Run, cluster: Cluster) -> None:
    cluster.addresses = "10.42.2.{}"
    result = replace()
    assert result["failed"] is True
    assert "came up on n0 with an address outside of the networks" in result["msg"]
    assert cluster.ended == []


def test_a_budget_that_lets_nobody_go_in_time_is_said(replace: Run, server: Server) -> None:
    cluster = server.cluster
    cluster.statefulset("db", 2)
    cluster.budget("db", minAvailable=1)
    cluster.named("poddisruptionbudgets", "default/db")["spec"]["selector"] = {"matchLabels": {"app": "db"}}
    cluster.addresses = NEW
    cluster.evict = lambda name, uid: 429  # type: ignore[method-assign] # another pod is on its way out
    result = replace(timeout=1)
    assert result["failed"] is True
    assert "refuses POST /api/v1/namespaces/default/pods/db-1/eviction: Cannot evict pod" in result["msg"]
    assert (result["changed"], cluster.ended) == (False, [])


def test_a_budget_is_waited_for(replace: Run, server: Server) -> None:
    cluster = server.cluster
    cluster.statefulset("db", 2)
    cluster.addresses = NEW
    answers = [429, 429]
    evict = cluster.evict
    cluster.evict = lambda name, uid: answers.pop() if answers else evict(name, uid)  # type: ignore[method-assign]
    result = replace()
    assert [each["pod"] for each in result["replaced"]] == ["default/db-1", "default/db-0"]
    assert answers == []


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"cidrs": ["10.42.128.0/16"]}, "cidrs: 10.42.128.0/16 has host bits set"),
        ({"cidrs": []}, "cidrs is empty"),
        ({"drain_seconds": -1}, "drain_seconds is -1, and has to be 0 at least"),
        ({"parallel": 0}, "parallel is 0, and has to be 1 at least"),
        ({"timeout": 0}, "timeout is 0, and has to be 1 at least"),
    ],
)
def test_bad_input_is_named_before_anything_is_asked(replace: Run, server: Server, arguments: Any, said: str) -> None:
    result = replace(**arguments)
    assert result["failed"] is True
    assert said in result["msg"]
    assert server.watches == []


def follow(server: Server, tls: Path) -> mirror.Mirror:
    return mirror.Mirror(Api(k3s_credentials(server.url, str(tls)), timeout=5), {"pods": PATHS["pods"]})


def test_a_mirror_follows(server: Server, tls: Path) -> None:
    pods = follow(server, tls)
    assert pods.state() == {"pods": []}
    one = server.cluster.pod("one", {})
    pods.wait(10)
    assert pods.state() == {"pods": [one]}
    server.cluster.delete("default/one", one["metadata"]["uid"])
    pods.wait(10)
    assert pods.state() == {"pods": []}


@pytest.mark.parametrize("told", ["status", "event"])
def test_a_mirror_whose_version_is_too_old_begins_again(server: Server, tls: Path, told: str) -> None:
    server.cluster.pod("one", {})
    server.too_old = told
    pods = follow(server, tls)
    pods.wait(10)
    server.cluster.pod("two", {})
    while len(pods.state()["pods"]) < 2:
        pods.wait(10)
    assert server.too_old == ""


def test_a_mirror_says_when_the_api_is_gone(server: Server, tls: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mirror, "PAUSE", 0)
    pods = follow(server, tls)
    server.close()

    def wait_for_ever() -> None:
        while True:
            pods.state()
            pods.wait(10)

    with pytest.raises(ApiError, match="cannot be reached"):
        wait_for_ever()


def test_a_mirror_of_what_the_api_lacks(server: Server, tls: Path) -> None:
    with pytest.raises(ApiError, match="knows no /apis/none"):
        mirror.Mirror(Api(k3s_credentials(server.url, str(tls)), timeout=5), {"none": "/apis/none"})
