"""Constructed reports, and the files that are written of one."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any, Callable

import pytest

ROOT = Path(__file__).parents[3]
PLUGIN = ROOT / "plugins/action/netmend_report.py"


@pytest.fixture(scope="session")
def written() -> Callable[[Any], dict[str, str]]:
    """A report -> its files, as the action plugin writes them."""
    spec = importlib.util.spec_from_file_location("netmend_report", PLUGIN)
    assert spec
    assert spec.loader
    plugin = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(plugin)
    return lambda report: plugin.written(report, ROOT / "playbooks/templates")  # type: ignore[no-any-return]
