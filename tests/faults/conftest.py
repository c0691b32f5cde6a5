"""How many faults are put in, and how much is done to what was mended."""

from __future__ import annotations

import pytest

from lab import spec


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--thorough", action="store_true", help="rare faults too; after each repair all disturbances")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if config.getoption("--thorough"):
        return
    rare = {name for name, fault in spec.faults().items() if fault.get("rare")}
    out = [item for item in items if isinstance(item, pytest.Function) and fault_of(item) in rare]
    config.hook.pytest_deselected(items=out)
    items[:] = [item for item in items if item not in out]


def fault_of(item: pytest.Function) -> str:
    return str(item.callspec.params.get("fault", "")) if hasattr(item, "callspec") else ""


@pytest.fixture(scope="session")
def thorough(pytestconfig: pytest.Config) -> bool:
    return bool(pytestconfig.getoption("--thorough"))
