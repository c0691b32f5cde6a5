"""Lets tests import the core as modules do, and find captured outputs and the lab that they run in."""

from __future__ import annotations

import os
import warnings
from pathlib import Path

import ansible.module_utils
import pytest
from _pytest.runner import runtestprotocol

from lab import cluster, machines
from lab.playbooks import Playbooks
from lab.spec import Lab

HERE = Path(__file__).parent

ansible.module_utils.__path__.append(str(HERE.parent / "module_utils"))


@pytest.fixture(scope="session")
def fixtures() -> Path:
    """The directory of captured outputs."""
    return HERE / "fixtures"


def pytest_runtest_protocol(item: pytest.Item, nextitem: pytest.Item | None) -> bool | None:
    """A machine that hangs is not what a test is about: it is switched off and on, and the test run again."""
    if "NETMEND_LAB" not in os.environ:
        return None
    item.ihook.pytest_runtest_logstart(nodeid=item.nodeid, location=item.location)
    reports = runtestprotocol(item, log=False, nextitem=nextitem)
    if any(report.failed for report in reports):
        revived = cluster.revive(machines.recall(os.environ["NETMEND_LAB"]))
        if revived:
            warnings.warn(f"{item.nodeid} is run again: {', '.join(revived)} hung", pytest.PytestWarning, stacklevel=1)
            item._initrequest()  # type: ignore[attr-defined]  # as pytest-rerunfailures does
            reports = runtestprotocol(item, log=False, nextitem=nextitem)
    for report in reports:
        item.ihook.pytest_runtest_logreport(report=report)
    item.ihook.pytest_runtest_logfinish(nodeid=item.nodeid, location=item.location)
    return True


@pytest.fixture(scope="session")
def lab() -> Lab:
    """The lab that the tests run in."""
    if "NETMEND_LAB" not in os.environ:
        pytest.fail("not in a lab: run these by `python -m lab with FILE -- pytest ...`, as the Makefile does")
    return machines.recall(os.environ["NETMEND_LAB"])


@pytest.fixture(scope="session")
def playbooks(lab: Lab, tmp_path_factory: pytest.TempPathFactory) -> Playbooks:
    return Playbooks(lab, tmp_path_factory.mktemp("reports"))
