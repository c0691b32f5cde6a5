"""Reads ``iptables-save -c``, as both iptables-nft and iptables-legacy print it."""

from __future__ import annotations

import re
from typing import Dict, Iterator, List, NamedTuple, Optional, Tuple

from ..model import Chain, Rule, Ruleset, Table

_CHAIN = re.compile(r":(\S+) (\S+) \[(\d+):(\d+)\]$")
_RULE = re.compile(r"(?:\[(\d+):(\d+)\] )?-A (\S+)(?: (.*))?$")
# Quoted as libxtables' xtables_save_string does it: only in double quotes, where a backslash takes the next character.
_TOKEN = re.compile(r'"((?:[^"\\]|\\.)*)"|(\S+)')
_ESCAPE = re.compile(r"\\(.)")

_HEAD = {
    "-s": "source",
    "--source": "source",
    "--src": "source",
    "-d": "destination",
    "--destination": "destination",
    "--dst": "destination",
    "-i": "in",
    "--in-interface": "in",
    "-o": "out",
    "--out-interface": "out",
    "-p": "protocol",
    "--protocol": "protocol",
    "--proto": "protocol",
}
_MATCH = ("-m", "--match")
_JUMP = ("-j", "--jump")
_GOTO = ("-g", "--goto")

_PORTS = {
    "dport": "dport",
    "destination-port": "dport",
    "sport": "sport",
    "source-port": "sport",
    "dports": "dport",
    "destination-ports": "dport",
    "sports": "sport",
    "source-ports": "sport",
}
_ICMP6 = {"icmpv6-type": "icmp-type"}
# match extension -> its options that the packet walk understands -> their keys in Rule["matches"]
_UNDERSTOOD: Dict[str, Dict[str, str]] = {
    "tcp": _PORTS,
    "udp": _PORTS,
    "sctp": _PORTS,
    "multiport": _PORTS,
    "icmp": {"icmp-type": "icmp-type"},
    "icmp6": _ICMP6,
    "icmpv6": _ICMP6,
    "ipv6-icmp": _ICMP6,
    "conntrack": {"ctstate": "ctstate"},
    "state": {"state": "ctstate"},
    "mark": {"mark": "mark"},
    "addrtype": {"src-type": "src-type", "dst-type": "dst-type"},
    "physdev": {
        name: name for name in ("physdev-in", "physdev-out", "physdev-is-in", "physdev-is-out", "physdev-is-bridged")
    },
}


# These make addrtype ask about one interface's addresses, so its types no longer mean what they say.
_LIMITS = ("--limit-iface-in", "--limit-iface-out")


class _Option(NamedTuple):
    negated: bool
    name: str
    value: str  # the arguments, joined by blanks; "" for a flag


def parse_save(text: str) -> Ruleset:
    """Tables in the order of the text. Rules keep their chain's order; counters are 0 where -c was not given."""
    ruleset: Ruleset = {}
    table: Optional[Table] = None
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip() or line.startswith("#") or line == "COMMIT":
            continue
        if line.startswith("*"):
            table = ruleset.setdefault(line[1:].strip(), {})
        elif table is None or not _add(table, line.rstrip()):
            raise ValueError(f"iptables-save, line {number}: cannot read {line!r}")
    return ruleset


def split(spec: str) -> List[str]:
    """The words of a saved rule as iptables takes them in argv: quotes and escapes removed."""
    return [text for text, _quoted in _words(spec)]


def parse_rule(spec: str, packets: int = 0, size: int = 0) -> Rule:
    """One rule from its spec: what follows ``-A CHAIN``."""
    rule = Rule(
        spec=spec,
        target=None,
        target_options={},
        goto=False,
        packets=packets,
        bytes=size,
        matches={},
        opaque=[],
        comment="",
    )
    owner = ""  # the extension that options belong to: the last of -p, -m and -j
    for option in _options(spec):
        if option.name in _HEAD:
            key = _HEAD[option.name]
            _put(rule, key, key, option)
            if key == "protocol":
                owner = option.value
        elif option.name in _MATCH:
            owner = option.value
            if owner not in _UNDERSTOOD and owner != "comment":
                _hide(rule, owner)
        elif option.name in _JUMP + _GOTO:
            rule["target"] = option.value
            rule["goto"] = option.name in _GOTO
            owner = ""
        elif rule["target"] is not None and owner == "":
            rule["target_options"][option.name.lstrip("-")] = option.value
        elif owner == "comment":
            rule["comment"] = f"{rule['comment']} {option.value}".lstrip()
        else:
            if option.name in _LIMITS:
                for key in ("src-type", "!src-type", "dst-type", "!dst-type"):
                    rule["matches"].pop(key, None)
            key = _UNDERSTOOD.get(owner, {}).get(option.name.lstrip("-"), "")
            _put(rule, key, owner or option.name, option)
    return rule


def _add(table: Table, line: str) -> bool:
    chain = _CHAIN.match(line)
    if chain:
        name, policy, packets, size = chain.groups()
        table[name] = Chain(policy=None if policy == "-" else policy, packets=int(packets), bytes=int(size), rules=[])
        return True
    rule = _RULE.match(line)
    if not rule or rule[3] not in table:
        return False
    table[rule[3]]["rules"].append(parse_rule(rule[4] or "", int(rule[1] or 0), int(rule[2] or 0)))
    return True


def _put(rule: Rule, key: str, extension: str, option: _Option) -> None:
    """Files a match, or its extension as opaque where one key cannot say it: an unknown option, or a second value."""
    key = f"!{key}" if key and option.negated else key
    if key and rule["matches"].setdefault(key, option.value) == option.value:
        return
    _hide(rule, extension)


def _hide(rule: Rule, extension: str) -> None:
    if extension not in rule["opaque"]:
        rule["opaque"].append(extension)


def _options(spec: str) -> Iterator[_Option]:
    negated, name = False, ""
    values: List[str] = []
    for text, quoted in _words(spec):
        if not quoted and (text == "!" or re.match(r"--?[A-Za-z]", text)):
            if name:
                yield _Option(negated, name, " ".join(values))
                negated, name, values = False, "", []
            if text == "!":
                negated = True
            else:
                name = text
        elif name:
            values.append(text)
        else:
            raise ValueError(f"iptables rule: {text!r} belongs to no option in {spec!r}")
    if name:
        yield _Option(negated, name, " ".join(values))


def _words(spec: str) -> Iterator[Tuple[str, bool]]:
    for word in _TOKEN.finditer(spec):
        quoted = word[1] is not None
        yield (_ESCAPE.sub(r"\1", word[1]) if quoted else word[2]), quoted
