"""Reads iproute2's JSON: ``ip -j -d link|addr|route|rule|neigh`` and ``bridge -j fdb``."""

from __future__ import annotations

import json
from typing import Any, Dict, List

from ..model import Fdb, Interface, Neighbour, Route


def interfaces(links: str, addresses: str) -> List[Interface]:
    """From ``ip -j -d -s link`` (kinds and counters) and ``ip -j addr``."""
    held = {item["ifname"]: item.get("addr_info", []) for item in _items(addresses)}
    return [_interface(item, held.get(item["ifname"], [])) for item in _items(links)]


def routes(text: str) -> List[Route]:
    """From ``ip -j -d route show table all``: both families, all tables."""
    return [
        Route(
            destination=item["dst"],
            type=item.get("type", "unicast"),
            gateway=item.get("gateway", ""),
            device=item.get("dev", ""),
            table=str(item.get("table", "main")),
            protocol=str(item.get("protocol", "")),
            scope=str(item.get("scope", "")),
            metric=item.get("metric", 0),
            source=item.get("prefsrc", ""),
            mtu=_mtu(item),
            flags=item.get("flags", []),
        )
        for item in _items(text)
    ]


def rules(text: str) -> List[Dict[str, Any]]:
    """From ``ip -j rule``, as it stands: priority, src, table, fwmark ..."""
    return _items(text)


def neighbours(text: str) -> List[Neighbour]:
    """From ``ip -j neigh``."""
    return [
        Neighbour(
            address=item["dst"],
            device=item.get("dev", ""),
            mac=item.get("lladdr", ""),
            state=" ".join(item.get("state", [])),
        )
        for item in _items(text)
    ]


def fdb(text: str) -> List[Fdb]:
    """From ``bridge -j fdb``: only the entries of tunnels, which name the peer that a MAC is behind."""
    return [
        Fdb(mac=item["mac"], device=item["ifname"], destination=item["dst"], state=item.get("state", ""))
        for item in _items(text)
        if "dst" in item
    ]


def _interface(item: Dict[str, Any], addresses: List[Dict[str, Any]]) -> Interface:
    kind = item.get("linkinfo", {})
    received = item.get("stats64", {}).get("rx", {})
    sent = item.get("stats64", {}).get("tx", {})
    return Interface(
        name=item["ifname"],
        index=item["ifindex"],
        mtu=item["mtu"],
        state=item.get("operstate", "UNKNOWN"),
        mac=item.get("address", ""),
        kind=kind.get("info_kind", ""),
        master=item.get("master", ""),
        addresses=[f"{entry['local']}/{entry['prefixlen']}" for entry in addresses if "local" in entry],
        info=kind.get("info_data", {}),
        hairpin=kind.get("info_slave_data", {}).get("hairpin"),
        rx_packets=received.get("packets", 0),
        tx_packets=sent.get("packets", 0),
        rx_dropped=received.get("dropped", 0),
        tx_dropped=sent.get("dropped", 0),
    )


def _mtu(route: Dict[str, Any]) -> int:
    return next((int(metric["mtu"]) for metric in route.get("metrics", []) if "mtu" in metric), 0)


def _items(text: str) -> List[Dict[str, Any]]:
    """The objects of a listing. Nothing at all stands for none; ip fills its listings up with empty objects."""
    items = json.loads(text) if text.strip() else []
    if not isinstance(items, list):
        raise ValueError("a JSON list was expected")
    return [item for item in items if item]
