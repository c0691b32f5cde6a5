"""A swap that is killed at any of its steps is finished, or taken back, by a run that knows only what it finds."""

from __future__ import annotations

import copy
from typing import Any, Callable, Iterator

import pytest
from ansible.module_utils.netmend.swap import order
from ansible.module_utils.netmend.swap.gates import Wanted, gates, gates_back
from ansible.module_utils.netmend.swap.state import left, left_back, read

from .conftest import STARTED, Captured
from .test_order import carry_out, enlarged

WANTED = Wanted("v3.32.1", batch=2)
ON_CALICO = {"server0": "10.42.147.193", "agent0": "10.42.191.193", "agent1": "10.42.137.65"}
Way = Callable[[Captured], Iterator[str]]


# --- runs, as tasks/swap.yml goes about them; each step that can be the last one is yielded ---------------------------


def forth(cluster: Captured) -> Iterator[str]:
    now = allowed(cluster, gates)
    canary = order.canary(now, cluster.nodes, cluster.cluster)
    steps = order.flip(now, cluster.nodes, cluster.cluster, WANTED.batch)
    if canary:
        give_calico(cluster, canary)
        yield f"{canary} tries Calico"
    for name in (name for step in steps for name in step):
        if name.startswith("server"):
            cluster.drop_in(name, changed=STARTED + 1)
            yield f"drop-in of {name}"
            cluster.drop_in(name)
        cluster.nodes[name]["k3s"]["config"].pop("flannel-cni-conf", None)
        if cluster.nodes[name]["cni"]["conf_dir"] != "/etc/cni/net.d":
            cluster.flip(name)
        yield f"restart of {name}"
    for pod in left(read(cluster.nodes, cluster.cluster)):
        move(cluster, pod, onto_calico=True)
        yield f"replacement of {pod}"
    now = allowed(cluster, gates)
    yield from clean(cluster, order.clean(now))
    yield from forget(cluster, order.old_annotations(now))


def back(cluster: Captured) -> Iterator[str]:
    now = allowed(cluster, gates_back)
    for name in (name for step in order.flip_back(now, cluster.cluster, WANTED.batch) for name in step):
        if name.startswith("server"):
            cluster.take_drop_in(name)
            yield f"drop-in of {name}"
        cluster.nodes[name]["k3s"]["config"].pop("flannel-cni-conf", None)
        if cluster.nodes[name]["cni"]["conf_dir"] == "/etc/cni/net.d":
            cluster.flip(name, back=True)
        configure(cluster, name, "flannel")
        yield f"restart of {name}"
    now = read(cluster.nodes, cluster.cluster)
    for pod in left_back(now) if now["back"] == "pods" else []:
        move(cluster, pod, onto_calico=False)
        yield f"replacement of {pod}"
    if allowed(cluster, gates_back)["back"] == "calico":
        cluster.end_calico()
        yield "end of Calico"
    now = allowed(cluster, gates_back)
    for name in order.conditions_back(now):
        cluster.member(name)["network"] = ""
        yield f"condition of {name}"
    yield from clean(cluster, order.clean_back(now))
    yield from forget(cluster, order.old_annotations_back(now))


def allowed(cluster: Captured, ask: Any) -> Any:
    """Where it stands, if nothing stands against going on."""
    assert ask(cluster.nodes, cluster.cluster, cluster.underlay, WANTED) == []
    return read(cluster.nodes, cluster.cluster)


def give_calico(cluster: Captured, canary: str) -> None:
    cluster.nodes[canary]["k3s"]["config"]["flannel-cni-conf"] = "/etc/cni/net.d/10-calico.conflist"
    configure(cluster, canary, "calico")


def configure(cluster: Captured, name: str, plugin: str) -> None:
    """What K3s writes when it starts with Flannel, or with another network in its place."""
    cluster.nodes[name]["cni"]["networks"] = {"10-flannel.conflist": {"plugins": [{"type": plugin}]}}


def move(cluster: Captured, name: str, onto_calico: bool) -> None:
    """Gives a pod an address, and an interface, of the other network."""
    pod = next(each for each in cluster.cluster["pods"] if f"{each['namespace']}/{each['name']}" == name)
    node = pod["node"]
    pod["ip"] = ON_CALICO[node] if onto_calico else cluster.member(node)["pod_cidr"].replace(".0/24", ".9")
    for each in cluster.nodes[node]["interfaces"]:
        if each["master"] == "cni0" or each["name"].startswith("cali"):
            each.update(
                {"name": "cali7df05913c2e", "master": ""} if onto_calico else {"name": "veth9", "master": "cni0"}
            )
    routes = cluster.nodes[node]["routes"]
    cluster.nodes[node]["routes"] = [each for each in routes if not each["device"].startswith("cali")]


def clean(cluster: Captured, plan: dict[str, Any]) -> Iterator[str]:
    for name, commands in plan.items():
        for command in commands:
            carry_out(cluster.nodes[name], command)
            yield f"{name}: {' '.join(command['argv'])}"


def forget(cluster: Captured, annotations: dict[str, list[str]]) -> Iterator[str]:
    for name, gone in annotations.items():
        member = cluster.member(name)
        member["annotations"] = {key: text for key, text in member["annotations"].items() if key not in gone}
        yield f"annotations of {name}"


# --- what comes of a run that is killed -------------------------------------------------------------------------------


@pytest.fixture(params=[2, 5], ids=["one server", "three servers"])
def beside(both: Captured, request: pytest.FixtureRequest) -> Captured:
    """Calico runs beside Flannel."""
    if request.param > 2:
        enlarged(both, agents=request.param)
    both.run_calico()
    return both


@pytest.fixture
def on_calico(beside: Captured) -> Captured:
    return after(beside, forth)


def after(cluster: Captured, *ways: Way) -> Captured:
    """What is there after whole runs."""
    for way in ways:
        for _ in way(cluster):
            pass
    return cluster


def killed(cluster: Captured, way: Way) -> Iterator[tuple[str, Captured]]:
    """What is there after each step of a run, and which step that was."""
    run = copy.deepcopy(cluster)
    for step in way(run):
        yield step, copy.deepcopy(run)


def facts(cluster: Captured) -> Any:
    """All that a run can know, but for the order in which it is told."""
    return copy.deepcopy(cluster.nodes), copy.deepcopy(cluster.cluster)


def test_a_swap_that_was_killed_ends_as_one_that_was_not(beside: Captured) -> None:
    steps = []
    end = facts(after(copy.deepcopy(beside), forth))
    for step, there in killed(beside, forth):
        assert facts(after(there, forth)) == end, step
        steps.append(step)
    assert len(steps) == len(set(steps)) > 25


def test_a_way_back_that_was_killed_ends_as_one_that_was_not(on_calico: Captured) -> None:
    steps = []
    end = facts(after(copy.deepcopy(on_calico), back))
    for step, there in killed(on_calico, back):
        assert facts(after(there, back)) == end, step
        steps.append(step)
    assert len(steps) == len(set(steps)) > 25


def test_a_swap_that_was_killed_is_taken_back(beside: Captured) -> None:
    for step, there in killed(beside, forth):
        now = read(*facts(after(there, back)))
        assert (now["back"], now["phase"], now["pods"]["calico"]) == ("done", "none", []), step


def test_a_way_back_that_was_killed_is_no_way_forth(on_calico: Captured) -> None:
    """Until Flannel has all nodes and pods again, or is to have none of them."""
    for step, there in killed(on_calico, back):
        refused = {each["gate"] for each in gates(there.nodes, there.cluster, there.underlay, WANTED)}
        assert "direction" in refused or read(there.nodes, there.cluster)["phase"] in ("none", "installed"), step


@pytest.mark.parametrize("way", [forth, back])
def test_a_run_after_a_whole_one_has_no_step(on_calico: Captured, way: Way) -> None:
    assert list(way(after(on_calico, way))) == []
