"""When fix_network.yml swaps Flannel for Calico, and what it says where it does not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from ansible.module_utils.netmend.swap.cause import why

from .conftest import NODES, STARTED, Captured
from .journey import Journey

LOST = "vxlan-dropped-by-fabric"


def lose(*kinds: str, to: tuple[str, ...] = NODES) -> Any:
    """These kinds get lost on their way to these nodes."""

    def change(reports: dict[str, Any]) -> None:
        for node in to:
            for heard in reports[node]["heard"].values():
                heard["kinds"].update({kind: {"arrived": 0, "accepted": 0} for kind in kinds})

    return change


def cause(cluster: Captured, *faults: str, consent: str = "auto") -> str:
    return why(consent, faults, cluster.nodes, cluster.cluster, cluster.underlay)


def test_where_vxlan_passes_nowhere_nothing_smaller_helps(flannel: Captured) -> None:
    flannel.measure(lose("udp-8472"))
    assert cause(flannel, LOST).startswith("The network between the nodes lets UDP 8472 packets through between no two")
    assert cause(flannel, LOST, consent="never") == ""


def test_where_it_passes_somewhere_a_person_decides(flannel: Captured) -> None:
    flannel.measure(lose("udp-8472", to=("agent0", "agent1")))
    assert cause(flannel, LOST) == ""
    assert cause(flannel, LOST, consent="always") == "netmend_swap is always."


def test_what_was_not_measured_or_fails_nobody_calls_for_nothing(flannel: Captured) -> None:
    flannel.measure(lose("udp-8472"))
    assert cause(flannel) == ""
    flannel.underlay["unknown"]["agent1"] = "it was late"
    assert cause(flannel, LOST) == ""
    flannel.underlay = None
    assert cause(flannel, LOST) == ""


def test_nothing_is_swapped_while_etcd_is_cut_off(flannel: Captured) -> None:
    flannel.measure(lose("udp-8472"))
    assert cause(flannel, LOST, "etcd-dropped-by-host") == ""


def test_calicos_own_vxlan_is_not_flannels(swapped: Captured) -> None:
    swapped.measure(lose("udp-8472", "udp-4789"))
    swapped.take_drop_in("server0")
    assert cause(swapped, LOST) == ""


def test_what_was_begun_is_finished_while_something_is_wrong(both: Captured) -> None:
    both.drop_in("server0", changed=STARTED + 1)
    assert cause(both, "cni-leftovers") == "A swap was begun, and stands at: flipping."
    assert cause(both) == ""
    assert cause(both, "cni-leftovers", consent="never") == ""


# --- as the playbook goes about it ------------------------------------------------------------------------------------


@pytest.fixture
def journey(tmp_path: Path, flannel: Captured) -> Journey:
    found = Journey(tmp_path / "journey", "mend")
    found.stage("flannel", flannel)
    return found


def check(journey: Journey, cluster: Captured, manifest: Path, *arguments: str, ok: bool = True) -> str:
    wanted = {"version": "v3.32.1"}
    said = {"faults": (LOST,), "reports": cluster.reports}
    return journey.go("flannel", wanted, manifest, "--check", *arguments, ok=ok, **said)


def test_a_check_says_that_it_would_be_swapped(journey: Journey, flannel: Captured, manifest: Path) -> None:
    flannel.measure(lose("udp-8472"))
    output = check(journey, flannel, manifest)
    assert "no smaller repair helps" in output
    assert "The swap to calico stands at: none." in output
    calls = [call.split()[:2] for call in journey.told("calls")]
    restarted = [node for module, node in calls if module == "netmend_k3s_restart"]
    assert (restarted[0], sorted(restarted[1:])) == ("server0", ["agent0", "agent1"])


@pytest.mark.parametrize("others", [(), ("udp-4789", "udp-51820")])
def test_where_ipip_is_lost_too_it_says_what_is_left(
    journey: Journey, flannel: Captured, manifest: Path, others: tuple[str, ...]
) -> None:
    flannel.measure(lose("udp-8472", "ipip", *others))
    output = check(journey, flannel, manifest)
    assert "The swap to calico is not begun.\nIP protocol 4 packets do not pass. " in output
    assert "agent0>agent1: 0 of 5 IP protocol 4 packets arrived" in output
    offer = "No overlay passes: keep the applications up" if others else "Choose backend vxlan: VXLAN on UDP 4789"
    assert offer in output
    assert journey.told("calls") == []


def test_who_asked_for_it_gets_an_error(journey: Journey, flannel: Captured, manifest: Path) -> None:
    flannel.measure(lose("ipip"))
    output = check(journey, flannel, manifest, "-e", "netmend_swap=always", ok=False)
    assert "IP protocol 4 packets do not pass." in output
    assert journey.told("calls") == []


@pytest.mark.parametrize("consent", ["auto", "never"])
def test_what_nothing_calls_for_is_not_even_planned(
    journey: Journey, flannel: Captured, manifest: Path, consent: str
) -> None:
    output = check(journey, flannel, manifest, "-e", f"netmend_swap={consent}")
    assert "The swap to calico" not in output
    assert journey.told("calls") == []
