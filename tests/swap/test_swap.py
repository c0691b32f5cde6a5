"""Flannel is swapped for Calico and back under load: nothing is lost or left, and a second run changes nothing."""

from __future__ import annotations

import pytest

from lab.load import Client, load
from lab.playbooks import Outcome, Playbooks
from lab.spec import Lab

from .runs import POOL, assert_healthy_without_loss, assert_on_calico, assert_on_flannel, back, pods, swap


@pytest.fixture(scope="module")
def swapped(lab: Lab, playbooks: Playbooks) -> tuple[Outcome, dict[str, Client]]:
    assert not any(address in POOL for address in pods(lab).values())
    with load(lab, downloads=True) as clients:
        run = swap(playbooks)
    return run, clients


@pytest.fixture(scope="module")
def returned(
    swapped: tuple[Outcome, dict[str, Client]], lab: Lab, playbooks: Playbooks
) -> tuple[Outcome, dict[str, Client]]:
    assert swapped[0].code == 0
    with load(lab, downloads=True) as clients:
        run = back(playbooks)
    return run, clients


def test_the_swap_loses_no_request(swapped: tuple[Outcome, dict[str, Client]]) -> None:
    assert_healthy_without_loss(*swapped)


@pytest.mark.usefixtures("swapped")
def test_all_pods_are_on_calico_and_nothing_is_left_of_flannel(lab: Lab) -> None:
    assert_on_calico(lab)


@pytest.mark.usefixtures("swapped")
def test_a_second_swap_changes_nothing(playbooks: Playbooks) -> None:
    again = swap(playbooks)
    assert (again.code, again.changed) == (0, 0), again.output


def test_the_way_back_loses_no_request(returned: tuple[Outcome, dict[str, Client]]) -> None:
    assert_healthy_without_loss(*returned)


@pytest.mark.usefixtures("returned")
def test_all_pods_are_on_flannel_and_nothing_is_left_of_calico(lab: Lab) -> None:
    assert_on_flannel(lab)


@pytest.mark.usefixtures("returned")
def test_a_second_way_back_changes_nothing(playbooks: Playbooks) -> None:
    again = back(playbooks)
    assert (again.code, again.changed) == (0, 0), again.output
