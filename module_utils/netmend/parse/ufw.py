"""Reads UFW's files. Their formats are those of ufw/backend_iptables.py: _read_rules and _write_rules."""

from __future__ import annotations

import re
from typing import Dict, List

from ..model import UfwRule

_TUPLE = "### tuple ###"
_ASSIGNMENT = re.compile(r"\s*([A-Z0-9_]+)=(?:\"([^\"]*)\"|'([^']*)'|([^\s#]*))")
_ANY = ("0.0.0.0/0", "::/0")


def user_rules(*texts: str) -> List[UfwRule]:
    """Rules of user.rules and user6.rules, in order; one that stands in both is one rule, as in `ufw show added`."""
    rules: List[UfwRule] = []
    for text in texts:
        for number, line in enumerate(text.splitlines(), 1):
            if line.startswith(_TUPLE):
                rule = _rule(line[len(_TUPLE) :], number)
                if rule not in rules:
                    rules.append(rule)
    return rules


def before_rules(text: str) -> List[str]:
    """The rules of before.rules (lines that append or insert), in order, without remarks."""
    return [line.strip() for line in text.splitlines() if re.match(r"\s*-[AI] ", line)]


def settings(text: str) -> Dict[str, str]:
    """Shell assignments, as in /etc/default/ufw and /etc/ufw/ufw.conf; the last one of a name counts."""
    found = filter(None, map(_ASSIGNMENT.match, text.splitlines()))
    return {match[1]: match[2] or match[3] or match[4] or "" for match in found}


def default_policies(default_ufw: Dict[str, str]) -> Dict[str, str]:
    """input, output, forward -> ACCEPT, DROP or REJECT; UFW's own defaults where the file is silent."""
    fallback = {"input": "DROP", "output": "ACCEPT", "forward": "DROP"}
    return {name: default_ufw.get(f"DEFAULT_{name.upper()}_POLICY", policy) for name, policy in fallback.items()}


def _rule(text: str, number: int) -> UfwRule:
    text, _, comment = text.partition(" comment=")
    fields = text.split()
    if not 6 <= len(fields) <= 9:
        raise ValueError(f"user.rules, line {number}: a tuple has 6 to 9 fields, not {len(fields)}")
    action, protocol, port, destination, source_port, source = fields[:6]
    kind, _, action = action.rpartition(":")
    # A direction follows in all but the oldest files; before it, application names where either port has one.
    direction, _, _ = (way := fields[-1] if len(fields) in (7, 9) else "in").partition("_")
    interfaces = dict(part.split("_", 1) for part in way.split("!") if "_" in part)
    try:
        remark = bytes.fromhex(comment.strip()).decode()
    except ValueError:
        raise ValueError(f"user.rules, line {number}: the comment is not hexadecimal UTF-8") from None
    return UfwRule(
        action=action.split("_")[0],
        direction="routed" if kind == "route" else direction,
        protocol=protocol,
        source="any" if source in _ANY else source,
        source_port=source_port,
        destination="any" if destination in _ANY else destination,
        port=port,
        interface_in=interfaces.get("in", ""),
        interface_out=interfaces.get("out", ""),
        comment=remark,
    )
