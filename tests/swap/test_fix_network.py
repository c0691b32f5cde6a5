"""The network drops VXLAN: fix_network.yml swaps Flannel for Calico, or says what stands against it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from lab.fabric import Fabric
from lab.playbooks import Outcome, Playbooks
from lab.spec import Lab

from . import runs

FAULT = "vxlan-dropped-by-fabric"


@pytest.fixture
def fabric(lab: Lab) -> Iterator[Fabric]:
    """Without VXLAN, until the end of the test."""
    fabric = Fabric(lab.name)
    fabric.drop("udp/8472")
    yield fabric
    fabric.clear()


def fix(playbooks: Playbooks, *more: str) -> Outcome:
    return playbooks.run("fix_network.yml", *runs.arguments(playbooks.lab), *more, limit=runs.LIMIT)


def test_where_ipip_is_dropped_too_it_says_what_passes(fabric: Fabric, playbooks: Playbooks) -> None:
    fabric.drop("proto/4")
    run = fix(playbooks)
    assert (run.code, run.changed, run.named[0]) == (2, 0, FAULT), run.output
    assert "IP protocol 4 packets do not pass." in run.output
    assert "Choose backend vxlan: VXLAN on UDP 4789 (Calico) passes" in run.output


@pytest.mark.usefixtures("fabric")
def test_who_forbids_it_keeps_flannel(playbooks: Playbooks) -> None:
    run = fix(playbooks, "-e", "netmend_swap=never")
    assert (run.code, run.changed, run.named[0]) == (2, 0, FAULT), run.output


@pytest.mark.usefixtures("fabric")
def test_a_check_says_that_it_would_be_swapped(playbooks: Playbooks, lab: Lab) -> None:
    run = fix(playbooks, "--check")
    assert (run.code, run.report["drift"], run.named[0]) == (10, True, FAULT), run.output
    runs.assert_on_flannel(lab)


@pytest.mark.usefixtures("fabric")
def test_it_is_found_swapped_and_mended(playbooks: Playbooks, lab: Lab) -> None:
    run = fix(playbooks)
    assert (run.code, run.report["healthy"], run.named[0]) == (0, True, FAULT), run.output
    assert run.report["verdict"].startswith(f"Mended: {FAULT}")
    runs.assert_on_calico(lab)
    again = fix(playbooks)
    assert (again.code, again.changed) == (0, 0), again.output
