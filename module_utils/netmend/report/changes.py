"""What roles changed, gathered: nodes on which a role did the same are told of once."""

from __future__ import annotations

import difflib
from typing import Dict, Iterator, List, NamedTuple, Tuple

from . import Change

CONTEXT = 2  # lines around what changed


class Same(NamedTuple):
    """What one role did on some nodes alike."""

    role: str
    nodes: List[str]
    lines: List[
        Tuple[str, str]
    ]  # sign and text: "+" added, "-" taken away, " " as it was, "@" where lines are left out


def gathered(changes: List[Change]) -> List[Same]:
    alike: Dict[Tuple[str, Tuple[Tuple[str, str], ...]], List[str]] = {}
    for change in changes:
        alike.setdefault((change["role"], tuple(diff_lines(change))), []).append(change["node"])
    return [Same(role, nodes, list(lines)) for (role, lines), nodes in alike.items()]


def diff_lines(change: Change) -> Iterator[Tuple[str, str]]:
    """The change line by line, as a unified diff has it; its headings have the sign "@"."""
    for part in change["diff"]:
        header = part.get("after_header") or part.get("before_header")
        if header:
            yield "@", header
        before, after = str(part.get("before", "")).splitlines(), str(part.get("after", "")).splitlines()
        hunks = list(difflib.unified_diff(before, after, lineterm="", n=CONTEXT))[2:]
        for place, line in enumerate(hunks):
            if not line.startswith("@@"):
                yield line[0], line[1:]
            elif place:
                yield "@", "…"
