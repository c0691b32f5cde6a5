"""netmend_pod_replacement against an API server that has a cluster in memory behind it."""

from __future__ import annotations

import copy
import json
import threading
from pathlib import Path
from typing import Any, Callable

import pytest
from ansible.module_utils.netmend import mirror, pod_replacement_apply
from ansible.module_utils.netmend.kube import Api, ApiError, k3s_credentials
from ansible.module_utils.netmend.pod_replacement import CONNECTED, PATHS
from ansible.module_utils.testing import patch_module_args

from tests.unit.loaded import loaded
from tests.unit.pod_cluster import NEW, Cluster
from tests.unit.pod_server import Server

Run = Callable[..., dict[str, Any]]


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


def test_pods_that_are_named_are_replaced_once_wherever_they_are(replace: Run, cluster: Cluster) -> None:
    pods = {pod["metadata"]["name"]: pod["metadata"]["uid"] for pod in cluster.state()["pods"]}
    first, *others = sorted(pods)
    asked = {"cidrs": [], "uids": [pods[first], "of-one-that-is-gone"]}
    assert replace(**asked, _ansible_check_mode=True)["diff"]["before"].startswith(f"default/{first} on ")
    result = replace(**asked)
    assert [each["pod"] for each in result["replaced"]] == [f"default/{first}"]
    assert set(others) < {pod["metadata"]["name"] for pod in cluster.state()["pods"]}
    assert (replace(**asked)["changed"], cluster.lost) == (False, [])


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


def test_a_pod_goes_when_its_node_says_that_nobody_is_connected_to_it(
    replace: Run, cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pod_replacement_apply, "SETTLE", 0.1)
    busy = next(iter(cluster.state()["pods"]))["metadata"]
    patch, delete = cluster.patch, cluster.delete

    def say(name: str, uid: str, is_connected: bool) -> None:
        condition = {"type": CONNECTED, "status": str(is_connected)}
        cluster.tell(name, {"metadata": {"uid": uid}, "status": {"conditions": [condition]}})

    def patched(name: str, content: Any) -> int:
        status = patch(name, content)
        say(name, content["metadata"]["uid"], content["metadata"]["uid"] == busy["uid"])
        return status

    def deleted(name: str, uid: str) -> int:
        status = delete(name, uid)
        if len(cluster.ended) == 2:
            say(f"default/{busy['name']}", busy["uid"], False)
        return status

    monkeypatch.setattr(cluster, "patch", patched)
    monkeypatch.setattr(cluster, "delete", deleted)
    result = replace(drain_seconds=10**6, timeout=10**6)
    assert (len(result["replaced"]), cluster.ended[-1]) == (3, f"default/{busy['name']}")


def test_it_returns_when_those_that_were_deleted_have_ended(
    replace: Run, cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    delete, threads = cluster.delete, []

    def told(name: str, uid: str) -> int:
        with cluster.changed:
            pod = copy.deepcopy(cluster.objects["pods"][uid])
            pod["metadata"]["deletionTimestamp"] = "2026-11-21T08:34:28Z"
            cluster.put("pods", pod)
        threads.append(threading.Timer(0.3, delete, (name, uid)))
        threads[-1].start()
        return 200

    monkeypatch.setattr(cluster, "delete", told)
    result = replace()
    assert (len(result["replaced"]), len(cluster.ended)) == (3, 3)
    for thread in threads:
        thread.join()


def test_who_does_not_end_is_named(replace: Run, cluster: Cluster) -> None:
    (first, *_) = cluster.state()["pods"]
    first["metadata"].update(deletionTimestamp="2026-11-21T08:34:28Z", labels={})
    cluster.put("pods", first)
    result = replace(timeout=1)
    assert result["msg"].startswith(f"default/{first['metadata']['name']} has not ended, which was waited for 1 s.")


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
    cluster.evict = lambda name, uid: answers.pop() if answers else evict(name, uid)  # type: ignore[method-assign]  # the test's own in its place
    result = replace()
    assert [each["pod"] for each in result["replaced"]] == ["default/db-1", "default/db-0"]
    assert answers == []


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"cidrs": ["10.42.128.0/16"]}, "cidrs: 10.42.128.0/16 has host bits set"),
        ({"cidrs": []}, "cidrs and uids are empty"),
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
