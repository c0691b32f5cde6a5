"""A swap's end and the way back as their playbooks go about them."""

from __future__ import annotations

from pathlib import Path

import pytest

from .conftest import NODES, Captured
from .journey import Journey


@pytest.fixture
def journey(tmp_path: Path, swapped: Captured) -> Journey:
    found = Journey(tmp_path / "journey")
    found.stage("calico", swapped)
    swapped.go_back(*NODES)
    swapped.move_pods_back()
    found.stage("pods", swapped)
    swapped.end_calico()
    found.stage("ended", swapped)
    return found


def test_from_calico_to_flannel(journey: Journey, manifest: Path) -> None:
    journey.go("calico", {"version": "v3.32.1", "insist": True}, manifest)

    calls = journey.told("calls")
    assert calls[0] == "netmend_lease server0 held"
    assert calls[-1] == "netmend_lease server0 released"
    assert [call.split()[1] for call in calls if call.startswith("netmend_k3s_restart")] == [
        "server0",
        "agent0",
        "agent1",
    ]
    order = [
        "netmend_k3s_restart server0",
        "netmend_iptables_rule server0",
        "netmend_k3s_restart agent0",
        "netmend_iptables_rule agent0",
        "netmend_k3s_restart agent1",
        "netmend_iptables_rule agent1",
        "netmend_pod_replacement server0 10.42.1.0/24 10.42.3.0/24 10.42.0.0/24",
        "netmend_apply server0 stop",
        "netmend_apply server0 all",
    ]
    places = [next(at for at, call in enumerate(calls) if call.startswith(start[:40])) for start in order]
    assert places == sorted(places)
    cleaned = [call.split() for call in calls if call.startswith("netmend_cni_leftovers")]
    assert sorted(call[1] for call in cleaned) == sorted(NODES)
    assert all(int(call[2]) > 5 for call in cleaned)
    assert all(call[3:] == ["NetworkUnavailable", "projectcalico.org"] for call in cleaned)
    assert journey.told("kubectl") == []


@pytest.fixture
def forth(tmp_path: Path, swapped: Captured, both: Captured) -> Journey:
    """All nodes ask Calico, and no pod does yet."""
    found = Journey(tmp_path / "journey", "swap_cni")
    found.stage("leftovers", swapped)
    swapped.cluster["pods"] = both.cluster["pods"]
    found.stage("flipped", swapped)
    return found


def test_from_flannel_to_calico(forth: Journey, swapped: Captured, manifest: Path) -> None:
    output = forth.go("flipped", {}, manifest, reports=swapped.reports)
    assert "The swap to calico stands at: pods." in output
    calls = forth.told("calls")
    assert (calls[0], calls[-1]) == ("netmend_lease server0 held", "netmend_lease server0 released")
    assert not any(call.startswith("netmend_k3s_restart") for call in calls)
    replaced = calls.index("netmend_pod_replacement server0 10.42.128.0/17")
    assert calls.index("netmend_apply server0 all") < replaced
    cleaned = [call.split() for call in calls[replaced:] if call.startswith("netmend_cni_leftovers")]
    assert sorted(call[1] for call in cleaned) == sorted(NODES)
    assert all(int(call[2]) > 3 for call in cleaned)
    assert all(call[3:] == ["flannel.alpha.coreos.com"] for call in cleaned)


@pytest.mark.parametrize(("stage", "removed"), [("pods", ["stop", "all"]), ("ended", [])])
def test_it_goes_on_from_where_it_ended(journey: Journey, manifest: Path, stage: str, removed: list[str]) -> None:
    journey.go(stage, {"version": "v3.32.1", "insist": True}, manifest)
    calls = [call.split() for call in journey.told("calls")]
    assert "netmend_k3s_restart" not in [call[0] for call in calls]
    assert [call[2] for call in calls if call[0] == "netmend_apply" and len(call) > 2] == removed
    assert sum(call[0] == "netmend_cni_leftovers" and int(call[2]) > 5 for call in calls) == len(NODES)


def test_what_is_refused_changes_nothing(journey: Journey, manifest: Path) -> None:
    output = journey.go("calico", {"version": "v3.31.7", "flannel": "host-gw"}, manifest, ok=False)
    assert "Nothing was changed." in output
    assert "The network between the nodes was not measured" in output
    assert journey.told("calls") == []


def test_what_is_done_changes_nothing(journey: Journey, flannel: Captured, manifest: Path) -> None:
    journey.stage("done", flannel)
    output = journey.go("done", {"version": "v3.32.1", "insist": True}, manifest)
    assert "The swap to flannel stands at: done." in output
    assert output.count("changed=0") == len(NODES)
    assert (journey.told("calls"), journey.told("kubectl")) == ([], [])
