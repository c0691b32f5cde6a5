"""Plans where own iptables rules stand among the rules of others.

Own rules carry the comment ``netmend:NAME``. Only they are moved or deleted; of foreign rules, only those named one by
one. A step is what follows ``iptables -w``. Planning again after the steps are done gives no steps.
"""

from __future__ import annotations

from fnmatch import fnmatchcase
from ipaddress import ip_network
from typing import Any, Dict, Iterable, List, Mapping, NamedTuple, Sequence, Tuple, TypedDict

from .model import Rule, Ruleset, Table
from .parse.iptables import parse_rule, split

TAG = "netmend:"
DENY = "deny"  # in `before`: the first rule that can drop or reject what an own rule matches
BUILTIN = ("PREROUTING", "INPUT", "FORWARD", "OUTPUT", "POSTROUTING")

Step = List[str]

NONE, PART, ALL = range(3)  # how much of what an own rule matches another rule takes

# In the order in which iptables-save prints them.
_STATES = ("INVALID", "NEW", "RELATED", "ESTABLISHED", "UNTRACKED", "SNAT", "DNAT")
_VERDICTS = ("ACCEPT", "DROP", "REJECT", "RETURN")


class OrderError(Exception):
    """The rules cannot stand where they must."""


class Wanted(TypedDict):
    """The own rules of one name, in order. An empty list of rules: there must be none."""

    name: str
    backend: str  # auto, nft, legacy
    table: str
    chain: str
    rules: List[str]  # as iptables-save prints them, with the comment
    after: List[str]  # globs: jumps to these chains stand before the own rules
    before: List[str]  # globs of chains, or DENY: the first of these stands behind them


class Foreign(TypedDict):
    """A rule that is not ours and is to be taken away; ``spec`` as iptables-save prints it."""

    backend: str
    table: str
    chain: str
    spec: str


class Window(NamedTuple):
    """Numbers of foreign rules that may stand before an own rule, and which of them a new one is given."""

    lowest: int
    highest: int
    preferred: int


def rule_spec(name: str, pieces: Mapping[str, Any]) -> str:
    """The rule as iptables-save prints it, from the module's options. ValueError where it cannot be one."""
    words = split(pieces["rule"]) if pieces.get("rule") else _words_of(pieces)
    at = max((i for i, word in enumerate(words) if word in ("-j", "-g")), default=-1)
    if at < 0 or at + 1 == len(words):
        raise ValueError("a rule needs a target (jump)")
    for word in ("-A", "-I", "-D", "-R", "-t", "-F", "-P", "-X", "--comment"):
        if word in words:
            raise ValueError(f"{word} does not belong into a rule: {' '.join(words)}")
    return " ".join(_quoted(word) for word in (*words[:at], "-m", "comment", "--comment", TAG + name, *words[at:]))


def plan(ruleset: Ruleset, wanted: Wanted, remove: Iterable[Foreign] = ()) -> List[Step]:
    """The fewest steps that leave the own rules where they must stand, and take the named foreign ones away.

    OrderError where a rule that must stay behind the own ones stands before one that must stay before them: policy
    chains come first, so then nothing is right but to move or remove that rule.
    """
    steps = removal(ruleset, remove)
    ruleset = apply(ruleset, steps)
    for table, chains in ruleset.items():
        for chain in chains:
            if (table, chain) != (wanted["table"], wanted["chain"]):
                own = [rule for rule in chains[chain]["rules"] if is_own(rule, wanted["name"])]
                steps += [_delete(table, chain, rule["spec"]) for rule in own]
    return steps + _plan_chain(ruleset.get(wanted["table"], {}), wanted)


def removal(ruleset: Ruleset, remove: Iterable[Foreign]) -> List[Step]:
    """Steps that take away those of the named rules that are there."""
    return [
        _delete(foreign["table"], foreign["chain"], foreign["spec"])
        for foreign in remove
        if _words(foreign["spec"]) in _specs(ruleset, foreign["table"], foreign["chain"])
    ]


def window(table: Table, wanted: Wanted) -> Window:
    """Where the own rules may stand among the foreign ones of their chain."""
    foreign = [rule for rule in _rules(table, wanted["chain"]) if not is_own(rule, wanted["name"])]
    own = [parse_rule(spec) for spec in wanted["rules"]]
    first = [i for i, rule in enumerate(foreign) if _jumps_to(rule, wanted["after"])]
    lowest = first[-1] + 1 if first else 0
    highest = len(foreign)
    for i, rule in enumerate(foreign):
        if i in first:
            continue
        taken = ALL if _jumps_to(rule, wanted["before"]) else NONE
        if DENY in wanted["before"]:
            taken = max([taken, *(_denied(table, rule, one) for one in own)])
        if i < lowest and taken == ALL:
            raise OrderError(
                f"{wanted['chain']}: rule {i + 1} ({rule['spec']}) takes what {TAG}{wanted['name']} is for, and stands "
                f"before rule {lowest} ({foreign[lowest - 1]['spec']}), which must stay before {TAG}{wanted['name']}. "
                f"Nothing was moved: remove rule {i + 1}, or move it behind rule {lowest}."
            )
        if i >= lowest and taken != NONE:
            highest = i
            break
    # Policy chains that are not there yet will be put on top. Further down stands UFW's log of what it blocks.
    return Window(lowest, highest, lowest if wanted["after"] else highest)


def apply(ruleset: Ruleset, steps: Iterable[Step]) -> Ruleset:
    """The rule set after the steps, on paper."""
    after: Ruleset = {
        table: {name: {**chain, "rules": list(chain["rules"])} for name, chain in chains.items()}
        for table, chains in ruleset.items()
    }
    for _, table, action, chain, *rest in steps:
        place = after.setdefault(table, {}).setdefault(chain, {"policy": None, "packets": 0, "bytes": 0, "rules": []})
        if action == "-I":
            place["rules"].insert(int(rest[0]) - 1, parse_rule(" ".join(map(_quoted, rest[1:]))))
        else:
            del place["rules"][[_words(rule["spec"]) for rule in place["rules"]].index(tuple(rest))]
    return after


def put_back(saved: Ruleset, current: Ruleset, removed: Iterable[Foreign] = ()) -> List[Step]:
    """Steps that put own rules, and the named foreign ones, back to where they stood in ``saved``.

    Rules of others may have come and gone meanwhile and stay as they are.
    """
    foreign = {(rule["table"], rule["chain"], _words(rule["spec"])) for rule in removed}
    steps: List[Step] = []
    for table, chain in sorted({(t, c) for rules in (saved, current) for t in rules for c in rules[t]}):

        def mine(rule: Rule, table: str = table, chain: str = chain) -> bool:
            return is_own(rule) or (table, chain, _words(rule["spec"])) in foreign

        now = _rules(current.get(table, {}), chain)
        target = [rule for rule in now if not mine(rule)]
        old = _rules(saved.get(table, {}), chain)
        for i, rule in enumerate(old):
            if mine(rule):
                target.insert(_place(target, old[:i], old[i + 1 :]), rule)
        if [rule["spec"] for rule in target] == [rule["spec"] for rule in now]:
            continue
        steps += [_delete(table, chain, rule["spec"]) for rule in now if mine(rule)]
        steps += [_insert(table, chain, i + 1, rule["spec"]) for i, rule in enumerate(target) if mine(rule)]
    return steps


def is_own(rule: Rule, name: str = "") -> bool:
    """Whether the rule is of this name, or of any."""
    return rule["comment"] == TAG + name if name else rule["comment"].startswith(TAG)


def lines(ruleset: Ruleset, places: Iterable[Tuple[str, str]]) -> str:
    """The chains (table, chain), as iptables-save prints them, without counters."""
    text = []
    for table, chain in sorted(set(places)):
        text.append(f"*{table}")
        text += [f"-A {chain} {rule['spec']}" for rule in _rules(ruleset.get(table, {}), chain)]
    return "\n".join(text) + "\n" if text else ""


def _plan_chain(table: Table, wanted: Wanted) -> List[Step]:
    name, chain = wanted["table"], wanted["chain"]
    if wanted["rules"] and chain not in table and chain not in BUILTIN:
        raise OrderError(f"there is no chain {chain} in table {name}")
    current: List[Tuple[str, int]] = []  # own rules that are there, with the number of foreign rules before each
    before = 0
    for rule in _rules(table, chain):
        if is_own(rule, wanted["name"]):
            current.append((rule["spec"], before))
        else:
            before += 1
    if not wanted["rules"]:
        return [_delete(name, chain, spec) for spec, _ in current]

    room = window(table, wanted)
    kept = _kept(wanted["rules"], current, room)
    stays = set(kept.values())
    steps = [_delete(name, chain, spec) for j, (spec, _) in enumerate(current) if j not in stays]
    gap = None
    for i, spec in enumerate(wanted["rules"]):
        if i in kept:
            gap = current[kept[i]][1]
            continue
        if gap is None:
            gap = next((current[kept[k]][1] for k in sorted(kept)), room.preferred)
        steps.append(_insert(name, chain, gap + i + 1, spec))
    return steps


def _kept(wanted: Sequence[str], current: Sequence[Tuple[str, int]], room: Window) -> Dict[int, int]:
    """Most own rules that may stay: index in ``wanted`` -> index in ``current``, rising in both."""
    # iptables deletes the first of equal rules: only the last of them can stay while the others go.
    last = {_words(spec): j for j, (spec, _) in enumerate(current)}
    best: Dict[Tuple[int, int], List[Tuple[int, int]]] = {}
    for i, spec in enumerate(wanted):
        j = last.get(_words(spec))
        if j is not None and room.lowest <= current[j][1] <= room.highest:
            chains = [chain for (a, b), chain in best.items() if a < i and b < j]
            best[i, j] = [*(max(chains, key=len) if chains else []), (i, j)]
    longest: List[Tuple[int, int]] = max(best.values(), key=len, default=[])
    return dict(longest)


def _place(target: Sequence[Rule], before: Sequence[Rule], behind: Sequence[Rule]) -> int:
    """The index next to the nearest rule that stood before it and still does, or else behind it."""
    specs = [rule["spec"] for rule in target]
    for rule in reversed(before):
        if rule["spec"] in specs:
            return specs.index(rule["spec"]) + 1
    for rule in behind:
        if rule["spec"] in specs:
            return specs.index(rule["spec"])
    return len(target)


def _denied(table: Table, rule: Rule, own: Rule, seen: Tuple[str, ...] = ()) -> int:
    """How much of what ``own`` matches can be dropped or rejected by the rule, or where it jumps to."""
    cover = _cover(rule, own)
    target = rule["target"] or ""
    if cover == NONE or target in ("DROP", "REJECT"):
        return cover
    if target not in table or target in seen:
        return NONE
    worst = NONE
    for inner in table[target]["rules"]:
        taken = _denied(table, inner, own, (*seen, target))
        worst = max(worst, min(cover, taken))
        if inner["target"] in ("ACCEPT", "RETURN") and _cover(inner, own) != NONE:
            cover = PART  # what comes later gets no more than the rest
    return worst


def _cover(rule: Rule, own: Rule) -> int:
    """How much of what ``own`` matches the rule matches, too. PART where it cannot be told."""
    cover = PART if rule["opaque"] else ALL
    for key, value in rule["matches"].items():
        mine = own["matches"].get(key)
        cover = min(cover, PART if mine is None else _COMPARE.get(key, _compare_words)(value, mine))
    return cover


def _compare_networks(theirs: str, mine: str) -> int:
    try:
        their, my = ip_network(theirs), ip_network(mine)
    except ValueError:  # a mask with holes
        return PART
    if not their.overlaps(my):
        return NONE
    return ALL if their.prefixlen <= my.prefixlen else PART


def _compare_interfaces(theirs: str, mine: str) -> int:
    if mine == theirs or (theirs.endswith("+") and mine.startswith(theirs[:-1])):
        return ALL
    return PART if mine.endswith("+") and theirs.startswith(mine[:-1]) else NONE


def _compare_states(theirs: str, mine: str) -> int:
    their, my = set(theirs.split(",")), set(mine.split(","))
    if my <= their:
        return ALL
    # A translated connection has a state beside SNAT or DNAT.
    return PART if their & my or (their | my) & {"SNAT", "DNAT"} else NONE


def _compare_words(theirs: str, mine: str) -> int:
    return ALL if theirs == mine else PART


def _compare_protocols(theirs: str, mine: str) -> int:
    return ALL if theirs == mine else NONE


_COMPARE = {
    "source": _compare_networks,
    "destination": _compare_networks,
    "in": _compare_interfaces,
    "out": _compare_interfaces,
    "protocol": _compare_protocols,
    "ctstate": _compare_states,
}


def _words_of(pieces: Mapping[str, Any]) -> List[str]:
    words: List[str] = []
    for option, key in (("-s", "source"), ("-d", "destination")):
        if pieces.get(key):
            words += [option, str(ip_network(pieces[key], strict=False))]
    for option, key in (("-i", "in_interface"), ("-o", "out_interface"), ("-p", "protocol")):
        if pieces.get(key):
            words += [option, pieces[key]]
    port = pieces.get("destination_port")
    if port:
        if pieces.get("protocol") not in ("tcp", "udp", "sctp"):
            raise ValueError("destination_port needs protocol tcp, udp or sctp")
        words += ["-m", "multiport", "--dports", port] if "," in port else ["-m", pieces["protocol"], "--dport", port]
    states = pieces.get("ctstate") or []
    if states:
        words += ["-m", "conntrack", "--ctstate", ",".join(sorted(states, key=_STATES.index))]
    jump = pieces.get("jump") or ""
    return [*words, "-j", jump, *(["--reject-with", "icmp-port-unreachable"] if jump == "REJECT" else [])]


def _quoted(word: str) -> str:
    plain = word.replace("_", "").replace("-", "")
    if plain.isascii() and plain.isalnum():
        return word
    if all(c.isalnum() or c in "./:,+!-_" for c in word) and not word.startswith(TAG):
        return word
    return '"' + word.replace("\\", "\\\\").replace('"', '\\"') + '"'


def _insert(table: str, chain: str, number: int, spec: str) -> Step:
    return ["-t", table, "-I", chain, str(number), *_words(spec)]


def _delete(table: str, chain: str, spec: str) -> Step:
    return ["-t", table, "-D", chain, *_words(spec)]


def _jumps_to(rule: Rule, globs: Sequence[str]) -> bool:
    target = rule["target"] or ""
    return target not in _VERDICTS and any(fnmatchcase(target, glob) for glob in globs)


def _rules(table: Table, chain: str) -> List[Rule]:
    return table[chain]["rules"] if chain in table else []


def _specs(ruleset: Ruleset, table: str, chain: str) -> List[Tuple[str, ...]]:
    return [_words(rule["spec"]) for rule in _rules(ruleset.get(table, {}), chain)]


def _words(spec: str) -> Tuple[str, ...]:
    return tuple(split(spec))
