"""A sample of pairs is balanced, joins all zones, and is the same each time."""

from __future__ import annotations

from collections import Counter

import pytest
from ansible.module_utils.netmend import sample


def cluster(*sizes: int) -> dict[str, str]:
    """So many nodes in each of several zones."""
    return {f"z{zone}-{index:03}": f"zone-{zone}" for zone, size in enumerate(sizes) for index in range(size)}


@pytest.mark.parametrize("zones", [{}, cluster(1), cluster(8), cluster(20, 29)])
def test_a_small_cluster_is_measured_as_a_whole(zones):
    found = sample.peers(zones)
    assert {node: set(others) for node, others in found.items()} == {node: set(zones) - {node} for node in zones}


def test_all_pairs_on_request():
    zones = cluster(60)
    assert all(len(others) == 59 for others in sample.peers(zones, everything=True).values())


@pytest.mark.parametrize("zones", [cluster(50), cluster(51), cluster(200), cluster(70, 70, 60), cluster(150, 3, 1, 46)])
def test_a_sample_is_balanced_and_joins_all_zones(zones):
    found = sample.peers(zones)
    pairs = {(source, target) for source, targets in found.items() for target in targets}
    assert all(source != target for source, target in pairs)
    assert pairs == {(target, source) for source, target in pairs}
    as_source, as_target = (Counter(pair[end] for pair in pairs) for end in (0, 1))
    assert set(as_source) == set(as_target) == set(zones)
    assert min(as_source.values()) == min(as_target.values()) == sample.PEERS
    # A node is in more pairs only where it has to join zones that no other pair joins.
    assert max(as_source.values()) <= sample.PEERS + len(set(zones.values())) - 1
    wanted = {(one, other) for one in zones.values() for other in zones.values() if one != other}
    assert {(zones[source], zones[target]) for source, target in pairs} >= wanted


def test_the_order_in_which_nodes_come_is_no_matter():
    zones = cluster(30, 30)
    assert sample.peers(dict(reversed(zones.items()))) == sample.peers(zones)
