"""Which ordered pairs of nodes are measured: all of them, or in a large cluster a balanced sample. Pure.

All pairs of n nodes are n(n-1): what a node has to do would grow with the cluster. In a sample every node is a source
and a target equally often, both directions of a pair are in or out together, and every two zones are joined. The same
nodes give the same sample, so that two runs can be compared.
"""

from __future__ import annotations

from itertools import permutations, zip_longest
from typing import Dict, Iterable, List, Mapping, Sequence, Set, Tuple

from .model import Node

ZONE = "topology.kubernetes.io/zone"  # a node's label
ALL_UP_TO = 49  # nodes
PEERS = 8  # of each node in a sample; an even number


def zones(nodes: Iterable[Node]) -> Dict[str, str]:
    return {node["name"]: node["labels"].get(ZONE, "") for node in nodes}


def peers(zones: Mapping[str, str], everything: bool = False) -> Dict[str, List[str]]:
    """Node -> the other nodes that it measures, in order. ``zones``: node -> its zone, "" where it has none."""
    ring = _interleaved(zones)
    if everything or len(ring) <= ALL_UP_TO:
        pairs = set(permutations(ring, 2))
    else:
        pairs = _circulant(ring)
        pairs |= _joining(zones, ring, pairs)
    found: Dict[str, List[str]] = {node: [] for node in sorted(ring)}
    for source, target in sorted(pairs):
        found[source].append(target)
    return found


def _interleaved(zones: Mapping[str, str]) -> List[str]:
    """The nodes, each zone's in turn, so that neighbours are of different zones as long as there are any."""
    by_zone: Dict[str, List[str]] = {}
    for node in sorted(zones):
        by_zone.setdefault(zones[node], []).append(node)
    turns = zip_longest(*(by_zone[zone] for zone in sorted(by_zone)))
    return [node for turn in turns for node in turn if node is not None]


def _circulant(ring: Sequence[str]) -> Set[Tuple[str, str]]:
    """Every node with those at the same distances on the ring, near and far ones."""
    half = PEERS // 2
    distances = [1 + step * (len(ring) // 2 - 1) // half for step in range(half)]
    found = set()
    for index, node in enumerate(ring):
        for distance in distances:
            other = ring[(index + distance) % len(ring)]
            found |= {(node, other), (other, node)}
    return found


def _joining(zones: Mapping[str, str], ring: Sequence[str], pairs: Set[Tuple[str, str]]) -> Set[Tuple[str, str]]:
    """A pair for every two zones that have none yet, as can be where zones differ much in size."""
    joined = {(zones[one], zones[other]) for one, other in pairs}
    first: Dict[str, str] = {}
    for node in ring:
        first.setdefault(zones[node], node)
    return {(first[one], first[other]) for one, other in permutations(first, 2) if (one, other) not in joined}
