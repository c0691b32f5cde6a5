"""netmend_rollout against a cluster in memory: what comes up stays, what does not is undone, and nobody is cut off."""

from __future__ import annotations

import json
from typing import Any, Callable

import pytest
from ansible.module_utils.netmend import rollout_apply
from ansible.module_utils.testing import patch_module_args

from tests.unit.loaded import loaded
from tests.unit.rollout_cluster import APPS, CORE, Clock, Cluster, Mirror

WEB = {"name": "web", "namespace": "shop", "image": "good:1", "port": 8080, "replicas": 2, "health": "/health"}
INGRESS = "/apis/networking.k8s.io/v1/namespaces/shop/ingresses/web"

Run = Callable[..., dict[str, Any]]


@pytest.fixture
def cluster() -> Cluster:
    return Cluster()


@pytest.fixture
def silent() -> set[str]:
    """Beginnings of the titles of probes that are not answered."""
    return set()


@pytest.fixture
def roll_out(
    cluster: Cluster, silent: set[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Run:
    def answers(probes: list[dict[str, Any]]) -> list[dict[str, Any]]:
        failed = [any(probe["id"].startswith(title) for title in silent) for probe in probes]
        outcomes = [{"outcome": "timeout" if each else "ok", "detail": "no answer" if each else ""} for each in failed]
        return [{"id": probe["id"], **seen} for probe, seen in zip(probes, outcomes, strict=True)]

    module = loaded("library/netmend_rollout.py")
    monkeypatch.setattr(module, "k3s_credentials", lambda: None)
    monkeypatch.setattr(module, "Api", lambda *_, **__: cluster)
    monkeypatch.setattr(rollout_apply, "Mirror", Mirror)
    monkeypatch.setattr(rollout_apply, "time", Clock(cluster))
    monkeypatch.setattr(rollout_apply, "run_probes", answers)

    def run(*applications: dict[str, Any], **arguments: Any) -> dict[str, Any]:
        with patch_module_args({"applications": list(applications), **arguments}), pytest.raises(SystemExit):
            module.main()
        return json.loads(capsys.readouterr().out)

    return run


def test_it_comes_up_and_then_there_is_nothing_to_do(roll_out: Run, cluster: Cluster) -> None:
    checked = roll_out(WEB, _ansible_check_mode=True, _ansible_diff=True)
    assert (checked["changed"], cluster.written) == (True, [])
    assert [each["after_header"] for each in checked["diff"]] == ["Deployment shop/web", "Service shop/web"]
    done = roll_out(WEB)
    assert done["applications"] == [
        {"name": "shop/web", "objects": ["Deployment shop/web", "Service shop/web"], "undone": False, "failure": ""}
    ]
    assert cluster.images() == ["good:1", "good:1"]
    assert not any("netmend-former" in path for path in cluster.stored)
    cluster.written.clear()
    for mode in ({"_ansible_check_mode": True}, {}):
        again = roll_out(WEB, **mode)
        assert (again["changed"], again["applications"][0]["objects"]) == (False, [])
    assert [request for request in cluster.written if "former" not in request] == []


def test_controllers_that_have_not_seen_a_change_are_waited_for(roll_out: Run, cluster: Cluster) -> None:
    roll_out(WEB)
    cluster.late = 5
    assert roll_out({**WEB, "image": "good:2"})["changed"] is True
    assert cluster.late == 0
    assert cluster.images() == ["good:2", "good:2"]


@pytest.mark.usefixtures("roll_out")
@pytest.mark.parametrize(
    ("lacking", "ends"),
    [
        (["1 of 3", "2 of 3", "3 of 3", ""], ""),
        (["1 of 3"], "1 of 3, which was waited for 300 s"),
        (["1 of 3", "2 of 3"] * 9, "of 3, which was waited for 300 s"),
    ],
    ids=["progress", "none", "by turns"],
)
def test_a_rollout_has_time_as_long_as_it_goes_on(cluster: Cluster, lacking: list[str], ends: str) -> None:
    def lacks(_: Any) -> str:
        return lacking[min(int(cluster.now // 200), len(lacking) - 1)]

    limits = rollout_apply.Limits(300, 20, 0)
    if not ends:
        rollout_apply.wait_until(cluster, "shop", lacks, limits)  # type: ignore[arg-type]  # a stand-in for the API
        return
    with pytest.raises(rollout_apply.NotUp, match=ends):
        rollout_apply.wait_until(cluster, "shop", lacks, limits)  # type: ignore[arg-type]  # a stand-in for the API
    assert cluster.now < 600


@pytest.mark.parametrize("more", [{}, {"daemonset": True, "replicas": None}, {"host_network": True}])
def test_what_does_not_come_up_is_undone_while_the_former_serves(roll_out: Run, cluster: Cluster, more: Any) -> None:
    good = {**WEB, **more, "env": {"LEVEL": "info"}}
    roll_out(good)
    before = {path: item["spec"] for path, item in cluster.stored.items() if "/web" in path and "spec" in item}
    cluster.bad.add("bad:1")
    failed = roll_out({**good, "image": "bad:1", "env": {"OTHER": "x"}, "node_port": 30080}, patience=7)
    assert failed["failed"] is True
    assert 'container main: ImagePullBackOff: Back-off pulling image "bad:1"' in failed["msg"]
    assert failed["msg"].startswith("shop/web: web-")
    assert failed["msg"].endswith("It was undone: what was there before is up")
    assert (failed["applications"][0]["undone"], failed["applications"][0]["objects"]) == (True, [])
    assert cluster.now < 30
    assert {path: cluster.stored[path]["spec"] for path in before if "/pods/" not in path and "-" not in path} == {
        path: spec for path, spec in before.items() if "/pods/" not in path and "-" not in path
    }
    assert set(cluster.images()) == {"good:1"}
    assert cluster.lost == []
    assert roll_out(good)["changed"] is False


def test_what_was_there_before_may_be_ill_by_now(roll_out: Run, cluster: Cluster) -> None:
    on_host = {**WEB, "host_network": True}
    roll_out(on_host)
    cluster.bad |= {"bad:1", "good:1"}
    failed = roll_out({**on_host, "image": "bad:1"})
    assert "It was undone, and what was there before does not come up either: web-" in failed["msg"]
    assert f"{CORE}/secrets/netmend-former-web" in cluster.stored


def test_a_first_rollout_that_does_not_come_up_leaves_nothing(roll_out: Run, cluster: Cluster) -> None:
    there = set(cluster.stored)
    cluster.bad.add("bad:1")
    failed = roll_out({**WEB, "image": "bad:1"})
    assert failed["msg"].endswith("It was undone")
    assert {path for path in set(cluster.stored) - there if "endpointslices" not in path} == set()


def test_one_that_fails_does_not_stop_the_others(roll_out: Run, cluster: Cluster) -> None:
    cluster.bad.add("bad:1")
    other = {**WEB, "name": "api"}
    failed = roll_out({**WEB, "image": "bad:1"}, other)
    assert [each["undone"] for each in failed["applications"]] == [True, False]
    assert cluster.images() == ["good:1", "good:1"]


def test_a_run_that_died_is_undone_by_the_next_one(roll_out: Run, cluster: Cluster) -> None:
    roll_out(WEB)
    cluster.bad.add("bad:1")
    cluster.interrupt = lambda request: request == f"PATCH {CORE}/services/web"
    bad = {**WEB, "image": "bad:1", "node_port": 30080}
    with pytest.raises(KeyboardInterrupt):
        roll_out(bad)
    assert f"{CORE}/secrets/netmend-former-web" in cluster.stored
    cluster.interrupt = lambda request: False
    assert roll_out(bad)["applications"][0]["undone"] is True
    assert (cluster.images(), cluster.lost) == (["good:1", "good:1"], [])
    assert "nodePort" not in cluster.stored[f"{CORE}/services/web"]["spec"]["ports"][0]


def test_a_way_that_is_not_answered_any_more_undoes_it(roll_out: Run, cluster: Cluster, silent: set[str]) -> None:
    roll_out(WEB)
    silent.add("NodePort 30080 of n1")
    failed = roll_out({**WEB, "image": "good:2", "node_port": 30080})
    assert "it runs, and NodePort 30080 of n1 does not answer: timeout (no answer). It was undone" in failed["msg"]
    assert cluster.images() == ["good:1", "good:1"]
    assert roll_out({**WEB, "image": "good:2", "node_port": 30080}, probe=False)["changed"] is True


def test_a_way_that_was_not_answered_before_undoes_nothing(roll_out: Run, cluster: Cluster, silent: set[str]) -> None:
    roll_out({**WEB, "node_port": 30080})
    silent.add("NodePort 30080 of n1")
    failed = roll_out({**WEB, "image": "good:2", "node_port": 30080})
    assert failed["msg"] == (
        "shop/web is rolled out, and as before NodePort 30080 of n1 does not answer: timeout (no answer)"
    )
    assert cluster.images() == ["good:2", "good:2"]


def test_an_ingress_is_asked_where_a_controller_has_given_it_an_address(roll_out: Run, cluster: Cluster) -> None:
    hosted = {**WEB, "host": "shop.example"}
    failed = roll_out(hosted)
    assert "its Ingress does not answer: no controller has given it an address" in failed["msg"]
    served = {"status": {"loadBalancer": {"ingress": [{"ip": "10.0.0.1"}]}}}
    put = cluster.put
    cluster.put = lambda place, item: put(place, {**item, **(served if place == INGRESS else {})})  # type: ignore[method-assign]  # the test's own in its place
    assert roll_out(hosted)["applications"][0]["objects"][-1] == "Ingress shop/web"


def test_only_what_is_its_own_and_declared_no_more_is_pruned(roll_out: Run, cluster: Cluster) -> None:
    cluster.deployment("theirs", 1)
    other = {**WEB, "name": "api"}
    roll_out(WEB, other)
    left = roll_out(WEB)
    assert (left["changed"], left["undeclared"]) == (False, ["Deployment shop/api", "Service shop/api"])
    checked = roll_out(WEB, prune=True, _ansible_check_mode=True)
    assert (checked["changed"], f"{APPS}/deployments/api" in cluster.stored) == (True, True)
    assert roll_out(WEB, prune=True)["changed"] is True
    assert {path for path in cluster.stored if "/deployments/" in path} == {
        f"{APPS}/deployments/web", f"{APPS}/deployments/theirs",
    }  # fmt: skip
    assert roll_out(WEB, prune=True)["changed"] is False


def test_nothing_is_pruned_where_an_application_fails(roll_out: Run, cluster: Cluster) -> None:
    roll_out(WEB, {**WEB, "name": "api"})
    cluster.bad.add("bad:1")
    roll_out({**WEB, "image": "bad:1"}, prune=True)
    assert f"{APPS}/deployments/api" in cluster.stored


def test_somebody_elses_deployment_is_taken_over_with_its_labels(roll_out: Run, cluster: Cluster) -> None:
    cluster.deployment("web", 3)
    scaler = {"metadata": {"name": "web"}, "spec": {"scaleTargetRef": {"kind": "Deployment", "name": "web"}}}
    cluster.put("/apis/autoscaling/v2/namespaces/shop/horizontalpodautoscalers/web", scaler)
    roll_out({**WEB, "port": 8080})
    spec = cluster.stored[f"{APPS}/deployments/web"]["spec"]
    assert (spec["selector"], spec["replicas"]) == ({"matchLabels": {"app": "web"}}, 3)
    assert cluster.stored[f"{CORE}/services/web"]["spec"]["selector"] == {"app": "web"}


def test_one_on_its_hosts_network_is_left_alone(roll_out: Run, cluster: Cluster) -> None:
    cluster.deployment("web", 3)
    cluster.stored[f"{APPS}/deployments/web"]["metadata"]["annotations"]["netmend/replicas"] = "3"
    failed = roll_out(WEB)
    assert "shop/web: it is on the hosts' network: take it back first" in failed["msg"]
    assert cluster.written == []


def test_bad_input_is_named_before_anything_is_asked(roll_out: Run, cluster: Cluster) -> None:
    assert "applications[0].node_port: 80 is none of the NodePorts" in roll_out({**WEB, "node_port": 80})["msg"]
    assert roll_out(WEB, timeout=0)["msg"] == "timeout is 0, and has to be 1 at least"
    assert cluster.written == []
