"""Where to draw the nodes and the failing paths between them; the page's template draws.

Few nodes stand on an ellipse, where no line between two runs over a third. Many stand in a grid of tiles; there, a node
that fails with many others is marked instead of drawing a line to each of them.
"""

from __future__ import annotations

import itertools
import math
import re
from typing import Collection, Dict, List, NamedTuple, Sequence, Set, Tuple

from ..model import Matrix
from . import Member
from .matrix import Pair, failing, stars

AROUND = 12  # nodes that fit on the ellipse
SIDE_BY_SIDE = 5  # nodes whose pictures have room beside each other
LABELLED = 12  # lines that can carry a label each
DRAWN = 40  # lines in a grid
HUB = 4  # failing paths that make a mark of a grid's node
WIDTH = 960

# Kind of path -> rows of the matrix that take it, the lower layer first.
KINDS = {"hosts": ("host-host",), "pods": ("host-pod", "pod-pod"), "NodePort": ("node-nodeport",)}
Notes = Dict[str, Dict[str, None]]  # node -> words
# Rows whose destination is no node -> what a node's box says of them.
SERVICES = {"pod-clusterip": "Services", "host-clusterip": "Services", "pod-dns": "DNS", "node-nodeport": "NodePort"}


class Box(NamedTuple):
    member: Member
    x: float  # of its centre
    y: float
    label: str  # shortened in a grid
    state: str  # ok, failing (has paths that fail in common), hub (so many that they are not drawn), down
    notes: List[str]  # what fails that is no path to another node


class Link(NamedTuple):
    x1: float
    y1: float
    x2: float
    y2: float
    kind: str  # the lowest layer that fails; "" = nothing does
    label: str
    label_x: float
    label_y: float
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
    notes: Notes = {}
    for row in matrix["rows"]:
        kind = next((kind for kind, rows in KINDS.items() if row in rows), "")
        for source, target in failing(matrix, row):
            if kind and target in names and source != target:
                kinds.setdefault((source, target), [])
                kinds[source, target] += [] if kind in kinds[source, target] else [kind]
            else:
                notes.setdefault(source, {})[SERVICES.get(row, row)] = None
    if len(members) <= AROUND:
        return _around(members, kinds, notes)
    return _grid(members, kinds, notes)


def _around(members: Sequence[Member], kinds: Dict[Pair, List[str]], notes: Notes) -> Picture:
    width = 620 if len(members) <= SIDE_BY_SIDE else WIDTH
    size = 168, 58
    height = 100 + 46 * len(members)
    radius_x, radius_y = (width - size[0]) / 2 - 10, (height - size[1]) / 2 - 10
    centres = {}
    for place, member in enumerate(members):
        angle = 2 * math.pi * place / len(members) - math.pi / 2
        along = 0 if len(members) == 1 else 1
        centres[member["name"]] = (
            width / 2 + along * radius_x * math.cos(angle),
            height / 2 + along * radius_y * math.sin(angle),
        )
    names = [member["name"] for member in members]
    pairs = [(one, other) for place, one in enumerate(names) for other in names[place + 1 :]]
    healthy: Dict[Pair, List[str]] = {pair: [] for pair in pairs if pair not in kinds and pair[::-1] not in kinds}
    links = _links(centres, healthy, size) + _links(centres, kinds, size)
    blamed = _blamed(kinds)
    boxes = [
        _box(member, centres, _fitting(member["name"], 20), blamed=blamed, hubs=(), notes=notes) for member in members
    ]
    return Picture(width, height, *size, False, boxes, links, 0)


def _grid(members: Sequence[Member], kinds: Dict[Pair, List[str]], notes: Notes) -> Picture:
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
    blamed = _blamed(rest)
    named = {hub.node for hub in hubs}
    prefixes = [_prefix(group) for group in (servers, others)]
    return Picture(
        WIDTH,
        int(top),
        width,
        height,
        True,
        [
            _box(member, centres, label, blamed=blamed, hubs=named, notes=notes)
            for group, prefix in zip((servers, others), prefixes)
            for member in group
            for label in [_fitting(member["name"][len(prefix) :], (width - 20) // 5)]
        ],
        merged[:DRAWN],
        max(0, len(merged) - DRAWN),
    )


def _box(
    member: Member,
    centres: Dict[str, Tuple[float, float]],
    label: str,
    *,
    blamed: Collection[str],
    hubs: Collection[str],
    notes: Notes,
) -> Box:
    name = member["name"]
    state = "failing" if name in blamed or name in notes else "ok"
    state = "hub" if name in hubs else state
    state = state if member["ready"] and member["asked"] else "down"
    x, y = centres[name]
    return Box(member, round(x, 1), round(y, 1), label, state, list(notes.get(name, {})))


def _blamed(pairs: Collection[Pair]) -> Set[str]:
    """The nodes that failing paths have in common; both ends of a path that stands alone."""
    return {name for star in stars(pairs) for name in [star.node, *(star.others if len(star.others) == 1 else [])]}


def _links(centres: Dict[str, Tuple[float, float]], kinds: Dict[Pair, List[str]], size: Tuple[int, int]) -> List[Link]:
    """One line a pair of nodes, whichever directions fail."""
    lines: Dict[Pair, Tuple[List[str], bool]] = {}
    for (source, target), of_pair in kinds.items():
        if (target, source) in lines:
            there, _ = lines[target, source]
            lines[target, source] = there + [kind for kind in of_pair if kind not in there], True
        else:
            lines[source, target] = list(of_pair), False
    taken = list(centres.values())
    links = []
    for (source, target), (of_pair, both) in lines.items():
        start = _edge(centres[source], centres[target], size)
        end = _edge(centres[target], centres[source], size)
        ordered = [kind for kind in KINDS if kind in of_pair]
        said = ", ".join(ordered)
        label = said if len(lines) <= LABELLED else ""
        at = _free(start, end, taken, size) if label else start
        taken += [at] if label else []
        title = f"{source} to {target}{', and back' if both else ''}, fails: {said}" if said else ""
        links.append(
            Link(
                *(round(start[0], 1), round(start[1], 1), round(end[0], 1), round(end[1], 1)),
                kind=ordered[0] if ordered else "",
                label=label,
                label_x=round(at[0], 1),
                label_y=round(at[1], 1),
                both=both,
                title=title,
            )
        )
    return links


def _free(
    start: Tuple[float, float], end: Tuple[float, float], taken: Collection[Tuple[float, float]], size: Tuple[int, int]
) -> Tuple[float, float]:
    """A point of the line where a label covers no box and no label; its middle where there is none."""
    places = [
        (start[0] + share * (end[0] - start[0]), start[1] + share * (end[1] - start[1]))
        for share in (0.5, 0.42, 0.58, 0.34, 0.66, 0.26, 0.74)
    ]
    apart = size[0] / 2 + 24, size[1] / 2 + 8
    return next(
        (
            place
            for place in places
            if all(abs(place[0] - x) > apart[0] or abs(place[1] - y) > apart[1] for x, y in taken)
        ),
        places[0],
    )


def _edge(at: Tuple[float, float], towards: Tuple[float, float], size: Tuple[int, int]) -> Tuple[float, float]:
    """Where the line from a box's centre leaves the box, and a little further, so that an arrow's head shows."""
    across, down = towards[0] - at[0], towards[1] - at[1]
    half_width, half_height = size[0] / 2 + 5, size[1] / 2 + 5
    scale = min(half_width / abs(across) if across else math.inf, half_height / abs(down) if down else math.inf)
    return at[0] + across * scale, at[1] + down * scale


def _fitting(name: str, letters: int) -> str:
    """The name, without its middle where it is longer; its end tells nodes apart."""
    if len(name) <= letters:
        return name
    return f"{name[: letters // 3]}…{name[-(letters - letters // 3 - 1) :]}"


def _prefix(group: Sequence[Member]) -> str:
    """What all names of a group begin with, up to a punctuation; "" for one name."""
    names = sorted(member["name"] for member in group)
    alike = itertools.takewhile(lambda pair: pair[0] == pair[1], zip(names[0], names[-1])) if len(names) > 1 else ()
    return re.sub(r"[^-_.]*$", "", "".join(letter for letter, _ in alike))
