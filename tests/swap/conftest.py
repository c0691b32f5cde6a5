"""Which of a swap's tasks it is killed behind."""

from __future__ import annotations

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--boundaries",
        default="1:300",
        metavar="FIRST:END[:STEP]",
        help="numbers of the tasks behind which a swap is killed, as range takes them; it has fewer than 300",
    )


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "boundary" in metafunc.fixturenames:
        numbers = metafunc.config.getoption("--boundaries").split(":")
        metafunc.parametrize("boundary", range(*map(int, numbers)))


@pytest.fixture(scope="session")
def past_the_end() -> list[int]:
    """Numbers that no task has: once there is one, greater ones are not tried."""
    return []
