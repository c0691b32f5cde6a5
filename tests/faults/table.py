"""What came of each fault, as the table that ends a run of the suite. Pure."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import NamedTuple

from lab.playbooks import Outcome

FIRST, AMONG, MISSED = "first", "among the first three", "missed"
LEFT_ALONE, FALSE_ALARM = "left alone", "false alarm"
NOT_MEASURED = "not measured"


class Row(NamedTuple):
    wanted: list[str]  # what is in, as the diagnosis names it; nothing: it is odd, and healthy
    named: list[str]
    seconds: float  # until this was known
    changed: int  # tasks


Rows = dict[str, "Row | None"]  # by fault, or by faults with + in between; None: there is no report of it


def to_json(rows: Rows) -> str:
    return json.dumps(rows, indent=2)


def from_json(text: str) -> Rows:
    return {name: row and Row(*row) for name, row in json.loads(text).items()}


def row(wanted: list[str], run: Outcome) -> Row | None:
    return Row(wanted, run.named, run.seconds, run.changed) if run.report else None


def render(rows: Mapping[str, Row | None]) -> Iterator[str]:
    """The table's lines, the totals last."""
    width = max(map(len, rows), default=0)
    yield f"{'fault':<{width}}  {'named':<21}  {'seconds':>7}  changes"
    for name, row in rows.items():
        measured = f"{row.seconds:7.1f}  {row.changed:7}" if row else f"{'-':>7}  {'-':>7}"
        yield f"{name:<{width}}  {place(row):<21}  {measured}"
    yield _totals(Counter(map(place, rows.values())))


def place(row: Row | None) -> str:
    """Where what is in stands among what was named; several are first where nothing else is before one of them."""
    if row is None:
        return NOT_MEASURED
    if not row.wanted:
        return FALSE_ALARM if row.named or row.changed else LEFT_ALONE
    if set(row.named[: len(row.wanted)]) == set(row.wanted):
        return FIRST
    return AMONG if set(row.wanted) <= set(row.named[:3]) else MISSED


def _totals(places: Counter[str]) -> str:
    faults = places[FIRST] + places[AMONG] + places[MISSED]
    said = [f"{places[FIRST]} of {faults} first"] if faults else []
    said += [f"{places[name]} {name}" for name in (AMONG, MISSED, NOT_MEASURED) if places[name]]
    healthy = places[LEFT_ALONE] + places[FALSE_ALARM]
    said += [f"{places[LEFT_ALONE]} of {healthy} that are healthy, if odd, left alone"] if healthy else []
    return ", ".join(said)
