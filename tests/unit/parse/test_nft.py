from __future__ import annotations

import json
from pathlib import Path

import pytest
from ansible.module_utils.netmend.parse import nft

FOREIGN = {
    "nftables": [
        {"metainfo": {"json_schema_version": 1}},
        {"table": {"family": "inet", "name": "site", "handle": 1}},
        {"chain": {"family": "inet", "table": "site", "name": "pods", "hook": "forward", "prio": -5, "policy": "drop"}},
        {"rule": {"family": "inet", "table": "site", "chain": "pods", "expr": []}},
        {"table": {"family": "ip", "name": "filter", "handle": 2}},
        {
            "chain": {
                "family": "ip",
                "table": "filter",
                "name": "forward",
                "hook": "forward",
                "prio": 0,
                "policy": "accept",
            }
        },
        {"chain": {"family": "ip", "table": "filter", "name": "own"}},
    ]
}


@pytest.mark.parametrize("state", ["flannel", "flannel-ufw-blocks", "swapped-leftovers"])
def test_iptables_tables_are_known(fixtures: Path, state: str) -> None:
    tables = nft.tables((fixtures / "k3s-1.36.3" / state / "agent0/nft.json").read_text())
    assert {(table["family"], table["name"]) for table in tables} >= {("ip", "filter"), ("ip", "nat"), ("ip", "mangle")}
    assert all(nft.is_iptables(table) for table in tables)
    forward = next(table for table in tables if (table["family"], table["name"]) == ("ip", "filter"))["chains"][
        "FORWARD"
    ]
    assert forward["hook"] == "forward"
    assert forward["policy"] == ("drop" if state == "flannel-ufw-blocks" else "accept")
    assert forward["rules"] > 0


def test_foreign_tables() -> None:
    site, own = nft.tables(json.dumps(FOREIGN))
    assert site["chains"] == {"pods": {"hook": "forward", "priority": -5, "policy": "drop", "rules": 1}}
    assert own["chains"]["own"] == {"hook": "", "priority": 0, "policy": "", "rules": 0}
    assert not nft.is_iptables(site)
    assert not nft.is_iptables(own)
