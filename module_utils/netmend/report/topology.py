"""Where to draw the nodes and the failing paths between them; the page's template draws.

Few nodes stand on an ellipse, where no line between two runs over a third. Many stand in a grid of tiles; there, a node
that fails with many others is marked instead of drawing a line to each of them.
"""

from __future__ import annotations

import math
import os.path
import re
from typing import Collection, Dict, List, NamedTuple, Sequence, Tuple

from ..model import Matrix
from . import Member
from .matrix import Pair, failing, stars

AROUND = 12  # nodes that fit on the ellipse
LABELLED = 12  # lines that can carry a label each
DRAWN = 40  # lines in a grid
HUB = 4  # failing paths that make a mark of a grid's node
WIDTH = 960

# Kind of path -> rows of the matrix that take it, the lower layer first.
KINDS = {"hosts": ("host-host",), "pods": ("host-pod", "pod-pod"), "NodePort": ("node-nodeport",)}


class Box(NamedTuple):
    member: Member
    x: float  # of its centre
    y: float
    label: str  # shortened in a grid
    state: str  # ok, failing (a path that is drawn, or one to a Service), hub (most paths), down (not ready, not asked)
    notes: List[str]  # what fails that is no path to another node


class Link(NamedTuple):
    x1: float
    y1: float
    x2: float
    y2: float
    kind: str  # the lowest layer that fails; "" = nothing does
    label: str
    both: bool  # fails in both directions; otherwise from 1 to 2
    title: str


class Picture(NamedTuple):
    width: int
    height: int
    box_width: int
    box_height: int
    grid: bool
    boxes: List[Box]
    links: List[Link]
    left_out: int  # failing pairs that are neither drawn nor told of by a mark


def picture(members: Sequence[Member], matrix: Matrix) -> Picture:
    names = {member["name"] for member in members}
    kinds: Dict[Pair, List[str]] = {}
    notes: Dict[str, List[str]] = {}
    for row in matrix["rows"]:
        kind = next((kind for kind, rows in KINDS.items() if row in rows), "")
        for source, target in failing(matrix, row):
            if kind and target in names and source != target:
                kinds.setdefault((source, target), [])
                kinds[source, target] += [] if kind in kinds[source, target] else [kind]
            elif row not in notes.setdefault(source, []):
                notes[source].append(row)
    if len(members) <= AROUND:
        return _around(members, kinds, notes)
    return _grid(members, kinds, notes)


def _around(members: Sequence[Member], kinds: Dict[Pair, List[str]], notes: Dict[str, List[str]]) -> Picture:
    width, height = 168, 58
    tall = 90 + 46 * len(members)
    radius_x, radius_y = (WIDTH - width) / 2 - 20, tall / 2 - height / 2 - 10
    centres = {}
    for place, member in enumerate(members):
        angle = 2 * math.pi * place / len(members) - math.pi / 2
        along = 0.0 if len(members) == 1 else 1.0
        centres[member["name"]] = (
            WIDTH / 2 + along * radius_x * math.cos(angle),
            tall / 2 + along * radius_y * math.sin(angle),
        )
    healthy = [
        _link(centres, (one["name"], other["name"]), [], False, (width, height), False)
        for place, one in enumerate(members)
        for other in members[place + 1 :]
        if not {(one["name"], other["name"]), (other["name"], one["name"])} & set(kinds)
    ]
    touched = {name for pair in kinds for name in pair}
    return Picture(
        WIDTH,
        tall,
        width,
        height,
        False,
        [_box(member, centres, member["name"], touched, (), notes) for member in members],
        healthy + _links(centres, kinds, (width, height)),
        0,
    )


def _grid(members: Sequence[Member], kinds: Dict[Pair, List[str]], notes: Dict[str, List[str]]) -> Picture:
    """Servers in rows of their own, the others below."""
    columns = max(8, min(20, math.ceil(math.sqrt(len(members) * 2))))
    gap_x, gap_y = WIDTH / columns, 46
    servers = [member for member in members if member["role"] == "server"]
    others = [member for member in members if member["role"] != "server"]
    centres: Dict[str, Tuple[float, float]] = {}
    top = gap_y / 2 + 4
    for group in (servers, others):
        for place, member in enumerate(group):
            row, column = divmod(place, columns)
            centres[member["name"]] = gap_x * (column + 0.5), top + gap_y * row
        top += gap_y * math.ceil(len(group) / columns) + (10 if group else 0)
    width, height = int(gap_x - 8), 26
    hubs = [star for star in stars(kinds) if len(star.others) >= HUB]
    marked = {(hub.node, other) if hub.outwards else (other, hub.node) for hub in hubs for other in hub.others}
    rest = {pair: kind for pair, kind in kinds.items() if pair not in marked}
    merged = _links(centres, rest, (width, height))
    touched = {name for pair in rest for name in pair}
    named = {hub.node for hub in hubs}
    prefixes = [_prefix(group) for group in (servers, others)]
    return Picture(
        WIDTH,
        int(top),
        width,
        height,
        True,
        [
            _box(member, centres, member["name"][len(prefix) :], touched, named, notes)
            for group, prefix in zip((servers, others), prefixes)
            for member in group
        ],
        merged[:DRAWN],
        max(0, len(merged) - DRAWN),
    )


def _box(
    member: Member,
    centres: Dict[str, Tuple[float, float]],
    label: str,
    touched: Collection[str],
    hubs: Collection[str],
    notes: Dict[str, List[str]],
) -> Box:
    name = member["name"]
    state = "failing" if name in touched or name in notes else "ok"
    state = "hub" if name in hubs else state
    state = state if member["ready"] and member["asked"] else "down"
    x, y = centres[name]
    return Box(member, round(x, 1), round(y, 1), label, state, notes.get(name, []))


def _links(
    centres: Dict[str, Tuple[float, float]], kinds: Dict[Pair, List[str]], size: Tuple[int, int]
) -> List[Link]:
    """One line a pair of nodes, whichever directions fail."""
    lines: Dict[Pair, Tuple[List[str], bool]] = {}
    for (source, target), of_pair in kinds.items():
        if (target, source) in lines:
            there, _ = lines[target, source]
            lines[target, source] = there + [kind for kind in of_pair if kind not in there], True
        else:
            lines[source, target] = list(of_pair), False
    labelled = len(lines) <= LABELLED
    return [_link(centres, pair, of_pair, both, size, labelled) for pair, (of_pair, both) in lines.items()]


def _link(
    centres: Dict[str, Tuple[float, float]],
    pair: Pair,
    kinds: List[str],
    both: bool,
    size: Tuple[int, int],
    labelled: bool,
) -> Link:
    (x1, y1), (x2, y2) = centres[pair[0]], centres[pair[1]]
    start, end = _edge((x1, y1), (x2, y2), size), _edge((x2, y2), (x1, y1), size)
    ordered = [kind for kind in KINDS if kind in kinds]
    said = ", ".join(ordered)
    arrow = "and back" if both else "one way"
    return Link(
        *(round(value, 1) for value in (*start, *end)),
        kind=ordered[0] if ordered else "",
        label=said if labelled else "",
        both=both,
        title=f"{pair[0]} to {pair[1]}, {arrow}: {said} fail" if said else "",
    )


def _edge(at: Tuple[float, float], towards: Tuple[float, float], size: Tuple[int, int]) -> Tuple[float, float]:
    """Where the line from a box's centre leaves the box, and a little further, so that an arrow's head shows."""
    across, down = towards[0] - at[0], towards[1] - at[1]
    half_width, half_height = size[0] / 2 + 5, size[1] / 2 + 5
    scale = min(half_width / abs(across) if across else math.inf, half_height / abs(down) if down else math.inf)
    return at[0] + across * scale, at[1] + down * scale


def _prefix(group: Sequence[Member]) -> str:
    """What all names of a group begin with, up to a punctuation; "" for one name."""
    common = os.path.commonprefix([member["name"] for member in group]) if len(group) > 1 else ""
    return re.sub(r"[^-_.]*$", "", common)
