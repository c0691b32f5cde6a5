"""Constructed reports, and the files that are written of one."""

from __future__ import annotations

from typing import Any, Callable

import pytest

from tests.unit.loaded import ROOT, loaded


@pytest.fixture(scope="session")
def written() -> Callable[[Any], dict[str, str]]:
    """A report -> its files, as the action plugin writes them."""
    plugin = loaded("plugins/action/netmend_report.py")
    return lambda report: plugin.written(report, ROOT / "playbooks/templates")
