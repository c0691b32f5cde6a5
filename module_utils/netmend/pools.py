"""Where in cluster-cidr there is room for a pool of Calico's. Pure."""

from __future__ import annotations

from ipaddress import IPv4Network as Network
from typing import Iterable


def free(cluster_cidr: str, taken: Iterable[str], block_size: int, nodes: int) -> str:
    """The largest network of cluster-cidr above all networks in it that are taken, with a block of that prefix length
    for each node; "" for none. podCIDRs are given from below, one to each new node."""
    cluster = Network(cluster_cidr)
    inside = [network for network in map(Network, taken) if network.overlaps(cluster)]
    lowest = max((network.broadcast_address for network in inside), default=cluster.network_address)
    for length in range(cluster.prefixlen + 1, block_size + 1):
        size = 1 << (cluster.max_prefixlen - length)
        last = Network((int(cluster.broadcast_address) - size + 1, length))
        if last.network_address > lowest and blocks(last, block_size) >= nodes:
            return str(last)
    return ""


def blocks(network: Network, block_size: int) -> int:
    return int(2 ** (block_size - network.prefixlen))
