"""Each fault of lab/faults.yml: put in, seen, named first, mended or left with its remedy, and nothing else touched."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from lab import faults
from lab.faults import Fault

from .conftest import Playbooks

CATALOGUE = faults.catalogue()


@pytest.fixture
def fault(request: pytest.FixtureRequest, playbooks: Playbooks) -> Iterator[Fault]:
    """The fault, in and seen to hold; afterwards it is out, and so is what the repair brought."""
    chosen: Fault = CATALOGUE[request.param]
    faults.put_in(chosen)
    yield chosen
    faults.take_out(chosen)
    if chosen.mended_by:
        undone = playbooks.run("playbooks/undo.yml")
        assert undone.code == 0, undone.output


@pytest.mark.parametrize("fault", [f.name for f in CATALOGUE.values() if f.mended_by and not f.combined], indirect=True)
def test_a_fault_is_named_and_mended(fault: Fault, playbooks: Playbooks) -> None:
    run = playbooks.run("fix_network.yml")
    assert run.report, run.output
    row = run.report["before"]["matrix"]["rows"][fault.shows]
    assert row["ok"] < row["total"], run.output
    assert run.named[0] == fault.name, run.output
    assert run.code == 0, run.output
    assert run.report["healthy"], run.output
    assert {change["role"] for change in run.report["changes"]} <= set(fault.mended_by)
    again = playbooks.run("fix_network.yml")
    assert (again.code, again.changed) == (0, 0), again.output


@pytest.mark.parametrize("fault", [f.name for f in CATALOGUE.values() if not f.mended_by and not f.healthy], indirect=True)
def test_a_fault_is_named_and_left(fault: Fault, playbooks: Playbooks) -> None:
    run = playbooks.run("fix_network.yml")
    assert run.code == 2, run.output
    assert run.named[0] == fault.name, run.output
    finding = run.report["now"]["findings"][0]
    assert finding["remedy"]["text"]
    assert run.changed == 0, run.output


@pytest.mark.parametrize("fault", [f.name for f in CATALOGUE.values() if f.healthy], indirect=True)
def test_what_is_odd_but_healthy_is_left(fault: Fault, playbooks: Playbooks) -> None:
    run = playbooks.run("fix_network.yml")
    assert (run.code, run.named, run.changed) == (0, [], 0), run.output
