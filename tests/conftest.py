"""Lets tests import the core as modules do, and find captured outputs."""

from __future__ import annotations

from pathlib import Path

import ansible.module_utils
import pytest

HERE = Path(__file__).parent

ansible.module_utils.__path__.append(str(HERE.parent / "module_utils"))


@pytest.fixture(scope="session")
def fixtures() -> Path:
    """The directory of captured outputs."""
    return HERE / "fixtures"
