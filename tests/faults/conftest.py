"""The playbooks and the lab that the tests run in: `python -m lab with default -- pytest tests/faults`."""

from __future__ import annotations

import os

import pytest

from lab import machines
from lab.playbooks import Playbooks
from lab.spec import Lab


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--thorough", action="store_true", help="after each repair reload UFW, restart K3s, reboot")


@pytest.fixture(scope="session")
def thorough(pytestconfig: pytest.Config) -> bool:
    return bool(pytestconfig.getoption("--thorough"))


@pytest.fixture(scope="session")
def lab() -> Lab:
    """The lab that the tests run in."""
    if "NETMEND_LAB" not in os.environ:
        pytest.fail("not in a lab: run these with `python -m lab with default -- pytest tests/faults`")
    return machines.recall(os.environ["NETMEND_LAB"])


@pytest.fixture(scope="session")
def playbooks(lab: Lab, tmp_path_factory: pytest.TempPathFactory) -> Playbooks:
    return Playbooks(lab, tmp_path_factory.mktemp("reports"))
