"""Each fault of lab/faults.yml: put in, seen, named first, mended or left with its remedy, and nothing else touched."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import pytest
from ansible.module_utils.netmend.diagnose.registry import FAULTS as KNOWN
from ansible.module_utils.netmend.diagnose.registry import SYMPTOM

from lab import cluster, machines, spec
from lab.playbooks import Outcome, Playbooks
from lab.spec import Lab

from . import disturbances, pairs, table
from .pairs import Pair

# The fixture `lab` says where there is none.
LAB = machines.recall(os.environ["NETMEND_LAB"]) if "NETMEND_LAB" in os.environ else None
KIND = LAB.kind if LAB else "default"


def fits(fault: dict[str, Any]) -> bool:
    """Whether the lab that the tests run in has what the fault needs."""
    return KIND in fault.get("labs", ["default"]) and fault.get("servers", 1) <= (len(LAB.servers) if LAB else 1)


def label(name: str) -> str:
    """What the table calls a fault that is put in here."""
    return f"{name} ({KIND})" if LAB and len(FAULTS[name].get("labs", [])) > 1 else name


def shape(lab: Lab) -> str:
    """What is to be known of a lab that has no fault."""
    return ", ".join([KIND, f"{len(lab.servers)}+{len(lab.agents)}", *oddities(lab)])


def oddities(lab: Lab) -> list[str]:
    return list(lab.k3s_config.get("kube-proxy-arg", []))


FAULTS = {name: fault for name, fault in spec.faults().items() if fits(fault)}
HEALTHY = [name for name, fault in FAULTS.items() if fault.get("healthy")]
NAMED = {name: fault.get("named", [name]) for name, fault in FAULTS.items()}
EASED = [name for name, fault in FAULTS.items() if fault.get("eased")]
MENDED = [name for name, fault in FAULTS.items() if fault["mended_by"] and len(NAMED[name]) == 1 and name not in EASED]
LEFT = [name for name, fault in FAULTS.items() if not fault["mended_by"] and name not in HEALTHY]
PAIRS = 20
WOULD_CHANGE = 10  # exit code of fix_network.yml --check
# By what a mode of kube-proxy is seen to be in force.
TRACES = {
    "proxy-mode=ipvs": "ip link show kube-ipvs0",
    "proxy-mode=nftables": "nft list chain ip kube-proxy services",
}
SYMPTOMS = {name for name, fault in KNOWN.items() if fault.layer == SYMPTOM}


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "pair" in metafunc.fixturenames:
        chosen = pairs.choose(FAULTS, PAIRS, metafunc.config.getoption("--seed"))
        metafunc.parametrize("pair", chosen, ids="+".join, indirect=True)


@pytest.fixture
def fault(
    request: pytest.FixtureRequest, lab: Lab, playbooks: Playbooks, rows: table.Rows
) -> Iterator[tuple[str, dict[str, Any]]]:
    """The name and the fault, in and seen to hold; afterwards it is out, and so is what the repair brought."""
    name = request.param
    rows[label(name)] = None
    with ExitStack() as stack:
        # One that does not take hold is taken out, too: the next one is to meet a healthy cluster.
        stack.callback(cluster.take_out, lab, name)
        cluster.put_in(lab, name)
        yield name, FAULTS[name]
        if FAULTS[name]["mended_by"]:
            undone = playbooks.run("playbooks/undo.yml")
            assert undone.code == 0, undone.output


@pytest.fixture
def run(fault: tuple[str, dict[str, Any]], lab: Lab, playbooks: Playbooks, rows: table.Rows, thorough: bool) -> Outcome:
    """What became of it by the one command that a user runs; a look at what it would do changed nothing before."""
    name, entry = fault
    if thorough and entry["mended_by"]:
        look = playbooks.run("fix_network.yml", "--check", "--diff")
        assert (look.code, look.report["drift"]) == (WOULD_CHANGE, True), look.output
        assert {change["role"] for change in look.report["changes"]} <= set(entry["mended_by"])
        cluster.make_sure(lab, name)
    run = playbooks.run("fix_network.yml")
    rows[label(name)] = table.row([] if entry.get("healthy") else NAMED[name], run)
    return run


def test_a_lab_without_faults_is_left(lab: Lab, playbooks: Playbooks, rows: table.Rows) -> None:
    for oddity in oddities(lab):
        cluster.must(lab, lab.servers[0], TRACES[oddity])
    run = playbooks.run("fix_network.yml")
    rows[f"none ({shape(lab)})"] = table.row([], run)
    assert (run.code, run.named, run.changed) == (0, [], 0), run.output


@pytest.mark.parametrize("fault", MENDED, indirect=True)
def test_a_fault_is_named_and_mended(
    fault: tuple[str, dict[str, Any]], run: Outcome, lab: Lab, playbooks: Playbooks, disturb: bool
) -> None:
    name, entry = fault
    assert run.report, run.output
    if entry["shows"]:
        row = run.first["matrix"]["rows"][entry["shows"]]
        assert row["ok"] < row["total"], run.output
    assert run.named[:1] == NAMED[name], run.output
    assert (run.code, run.report["healthy"]) == (0, True), run.output
    assert {change["role"] for change in run.report["changes"]} <= set(entry["mended_by"])
    disturbances.assert_healthy(lab, playbooks)
    for disturbance in disturbances.ALL if disturb else []:
        disturbance(lab, cluster.fault_nodes(lab, entry["nodes"])[-1])
        disturbances.assert_healthy(lab, playbooks)


@pytest.mark.parametrize("fault", LEFT, indirect=True)
def test_a_fault_is_named_and_left(fault: tuple[str, dict[str, Any]], run: Outcome) -> None:
    name, entry = fault
    assert (run.code, run.changed) == (2, 0), run.output
    if entry["shows"]:
        row = run.report["now"]["matrix"]["rows"][entry["shows"]]
        assert row["ok"] < row["total"], run.output
    assert run.named[:1] == NAMED[name], run.output
    first = run.report["now"]["findings"][0]
    assert first["remedy"]["text"]
    assert any(entry.get("says", "") in sentence for sentence in first["evidence"]), first["evidence"]


@pytest.mark.parametrize("fault", HEALTHY, indirect=True)
def test_what_is_odd_but_healthy_is_left(run: Outcome) -> None:
    assert (run.code, run.named, run.changed) == (0, [], 0), run.output


@pytest.fixture
def pair(request: pytest.FixtureRequest, lab: Lab, playbooks: Playbooks, rows: table.Rows) -> Iterator[Pair]:
    """Two faults, both in and seen to hold; afterwards they are out, and so is what repairs brought."""
    rows["+".join(request.param)] = None
    with ExitStack() as stack:
        for name in request.param:
            stack.callback(cluster.take_out, lab, name)
            cluster.put_in(lab, name)
        cluster.make_sure(lab, request.param[0])
        yield request.param
        undone = playbooks.run("playbooks/undo.yml")
        assert undone.code == 0, undone.output


def test_two_faults_at_once_are_named_and_mended(pair: Pair, playbooks: Playbooks, rows: table.Rows) -> None:
    named = [NAMED[name][0] for name in pair]
    run = playbooks.run("fix_network.yml")
    rows["+".join(pair)] = table.row(named, run)
    assert run.report, run.output
    assert set(named) <= set(run.named), run.output
    last = max(map(run.named.index, named))
    assert not SYMPTOMS & set(run.named[:last]), run.output
    assert {change["role"] for change in run.report["changes"]} <= {
        role for name in pair for role in FAULTS[name]["mended_by"]
    }
    left = {NAMED[name][0] for name in pair if name in EASED or not FAULTS[name]["mended_by"]}
    assert {finding["fault"] for finding in run.report["now"]["findings"]} & set(named) == left, run.output
    assert (run.code, run.report["healthy"]) == ((2, False) if left else (0, True)), run.output
