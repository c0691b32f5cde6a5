"""Lets tests import the core as modules do, and find captured outputs and the lab that they run in."""

from __future__ import annotations

import os
from pathlib import Path

import ansible.module_utils
import pytest

from lab import machines
from lab.playbooks import Playbooks
from lab.spec import Lab

HERE = Path(__file__).parent

ansible.module_utils.__path__.append(str(HERE.parent / "module_utils"))


@pytest.fixture(scope="session")
def fixtures() -> Path:
    """The directory of captured outputs."""
    return HERE / "fixtures"


@pytest.fixture(scope="session")
def lab() -> Lab:
    """The lab that the tests run in."""
    if "NETMEND_LAB" not in os.environ:
        pytest.fail("not in a lab: run these by `python -m lab with FILE -- pytest ...`, as the Makefile does")
    return machines.recall(os.environ["NETMEND_LAB"])


@pytest.fixture(scope="session")
def playbooks(lab: Lab, tmp_path_factory: pytest.TempPathFactory) -> Playbooks:
    return Playbooks(lab, tmp_path_factory.mktemp("reports"))
