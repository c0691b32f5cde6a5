"""Reads ``nft -j list ruleset`` (or ``list chains``) as far as it concerns us: which tables stand beside iptables'."""

from __future__ import annotations

import json
from typing import Any, Dict, List, Tuple

_IPTABLES = {"filter", "nat", "mangle", "raw", "security"}


def tables(text: str) -> List[Dict[str, Any]]:
    """``{"family", "name", "chains": {name: {"hook", "priority", "policy", "rules"}}}``; hook is "" in ordinary chains.

    ``rules`` counts a chain's rules; it is 0 throughout where the listing has none (``list chains``).
    """
    found: Dict[Tuple[str, str], Dict[str, Any]] = {}
    for entry in json.loads(text)["nftables"]:
        if "table" in entry:
            _table(found, entry["table"]["family"], entry["table"]["name"])
        elif "chain" in entry:
            chain = entry["chain"]
            _table(found, chain["family"], chain["table"])["chains"][chain["name"]] = {
                "hook": chain.get("hook", ""),
                "priority": chain.get("prio", 0),
                "policy": chain.get("policy", ""),
                "rules": 0,
            }
        elif "rule" in entry:
            rule = entry["rule"]
            _table(found, rule["family"], rule["table"])["chains"][rule["chain"]]["rules"] += 1
    return list(found.values())


def is_iptables(table: Dict[str, Any]) -> bool:
    """Whether iptables-nft made the table, so that its rules are seen by iptables-nft-save."""
    hooked = [name for name, chain in table["chains"].items() if chain["hook"]]
    return (
        table["family"] in ("ip", "ip6", "arp", "bridge")
        and table["name"] in _IPTABLES
        and all(name == table["chains"][name]["hook"].upper() for name in hooked)
    )


def _table(found: Dict[Tuple[str, str], Dict[str, Any]], family: str, name: str) -> Dict[str, Any]:
    return found.setdefault((family, name), {"family": family, "name": name, "chains": {}})
