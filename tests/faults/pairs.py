"""Pairs of faults that can be in at the same time, and some of them by chance. Pure."""

from __future__ import annotations

import random
from collections.abc import Mapping
from itertools import combinations
from typing import Any

Pair = tuple[str, str]


def possible(faults: Mapping[str, Mapping[str, Any]]) -> list[Pair]:
    """All pairs of what faults.yml lets be in with another, in the order in which they are to go in."""
    takes = {
        name: set(fault.get("takes", ()))
        for name, fault in faults.items()
        if not fault.get("alone") and not fault.get("healthy")
    }

    def goes_in(name: str) -> int:
        return 0 if "api" in takes[name] else 1

    pairs = (sorted(pair, key=goes_in) for pair in combinations(takes, 2) if takes[pair[0]].isdisjoint(takes[pair[1]]))
    return [(first, second) for first, second in pairs]


def choose(faults: Mapping[str, Mapping[str, Any]], count: int, seed: int) -> list[Pair]:
    """So many of the possible pairs, or all where there are fewer; the same for the same seed."""
    pairs = possible(faults)
    return random.Random(seed).sample(pairs, min(count, len(pairs)))
