"""How many faults are put in, how much is done to what was mended, and the table of what came of it."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from lab import spec
from lab.playbooks import Playbooks
from lab.spec import Lab
from tests.swap import runs

from . import table

ROWS = pytest.StashKey[table.Rows]()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--thorough", action="store_true", help="rare faults, and pairs")
    parser.addoption("--disturb", action="store_true", help="after each repair everything that it has to survive")
    parser.addoption("--table", type=Path, help="file that keeps the table's rows from run to run")
    parser.addoption("--seed", type=int, default=random.randrange(1_000_000), help="chooses the pairs of faults")


def pytest_report_header(config: pytest.Config) -> str:
    return f"pairs of faults: --seed {config.getoption('--seed')}"


def pytest_configure(config: pytest.Config) -> None:
    kept = config.getoption("--table")
    config.stash[ROWS] = table.from_json(kept.read_text()) if kept and kept.exists() else {}


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if config.getoption("--thorough"):
        return
    rare = {name for name, fault in spec.faults().items() if fault.get("rare")}
    out = [item for item in items if isinstance(item, pytest.Function) and takes_long(item, rare)]
    config.hook.pytest_deselected(items=out)
    items[:] = [item for item in items if item not in out]


def takes_long(item: pytest.Function, rare: set[str]) -> bool:
    parameters = item.callspec.params if hasattr(item, "callspec") else {}
    return "pair" in parameters or parameters.get("fault") in rare


@pytest.fixture(scope="session", autouse=True)
def _swapped(lab: Lab, playbooks: Playbooks) -> None:
    if lab.kind == "swapped":
        run = runs.swap(playbooks)
        assert run.code == 0, run.output


@pytest.fixture(scope="session")
def disturb(pytestconfig: pytest.Config) -> bool:
    return bool(pytestconfig.getoption("--disturb"))


@pytest.fixture(scope="session")
def thorough(pytestconfig: pytest.Config) -> bool:
    return bool(pytestconfig.getoption("--thorough"))


@pytest.fixture(scope="session")
def rows(pytestconfig: pytest.Config) -> table.Rows:
    """What the table at the end has; every fault that is put in gets its row."""
    return pytestconfig.stash[ROWS]


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    rows, kept = config.stash[ROWS], config.getoption("--table")
    if rows and kept:
        kept.parent.mkdir(parents=True, exist_ok=True)
        kept.write_text(table.to_json(rows))
    if rows:
        terminalreporter.section("faults")
        for line in table.render(rows):
            terminalreporter.write_line(line)
