"""A round over the underlay that one call begins, in a process of its own, and another takes what came.

The second does nothing else, and this imports so little that it costs a node hardly more than Python's own start.
"""

from __future__ import annotations

import json
import os
import time

TYPE_CHECKING = False  # typing's own takes longer to import than all of this
if TYPE_CHECKING:
    from typing import Callable

    from .model import UnderlayReport

GRACE = 0.3  # seconds to go on listening when all have sent: for answers and for what is under way
LONGEST_ROUND = 10.0  # seconds from the moment; so long those are waited for who are behind
LONGEST_WAIT = 300.0  # seconds ahead that a moment may be
STATE = "/run/netmend"


def begin(run: str, node: str, measure: Callable[[], UnderlayReport]) -> None:
    """Measures in a process of its own, and returns at once."""
    path = _path(run, node)
    os.makedirs(STATE, mode=0o700, exist_ok=True)
    if os.fork():
        return
    try:
        os.setsid()
        nowhere = os.open(os.devnull, os.O_RDWR)
        for descriptor in range(3):  # whoever reads them would wait for their end
            os.dup2(nowhere, descriptor)
        part = f"{path}.part"
        with open(part, "w", encoding="ascii") as file:
            json.dump(measure(), file)
        os.replace(part, path)
    finally:
        os._exit(0)


def fetch(run: str, node: str, address: str, start: float) -> UnderlayReport:
    """What the process saw that began with the same order; waits until it is due."""
    path, began = _path(run, node), time.time()
    deadline = time.monotonic() + min(max(0.0, start - began), LONGEST_WAIT) + LONGEST_ROUND + 2 * GRACE
    while not os.path.exists(path) and time.monotonic() < deadline:
        time.sleep(0.05 if time.time() > start else 0.5)  # many wait where nodes share a processor
    try:
        with open(path, encoding="ascii") as file:
            report: UnderlayReport = json.load(file)
        os.unlink(path)
    except OSError as error:
        report = unknown(run, node, address, start, began)
        report["errors"].append(f"what began here left no report: {error.strerror or error}")
    return report


def unknown(run: str, node: str, address: str, start: float, began: float) -> UnderlayReport:
    """The report of a round of which nothing is known yet."""
    return {
        "node": node, "address": address, "run": run, "start": start, "late": max(0.0, round(began - start, 3)),
        "listened": [0.0, 0.0], "sent": [0.0, 0.0], "to": {}, "heard": {}, "moved": [], "overflow": 0, "errors": [],
    }  # fmt: skip


def _path(run: str, node: str) -> str:
    return os.path.join(STATE, f"underlay-{run}-{node}.json".replace("/", "_"))
