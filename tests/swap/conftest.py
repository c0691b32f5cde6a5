"""Which of Calico's backends pods are swapped to."""

from __future__ import annotations

import pytest

from . import runs


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--backend", default="felix", choices=["felix", "bird", "vxlan"], help="Calico's backend")


def pytest_configure(config: pytest.Config) -> None:
    runs.wanted["backend"] = config.getoption("--backend")
