"""Plans UFW's way to a desired state: own rules come and go by their comment, everyone else's stay as they stand.

UFW takes the first rule that matches. So an own allow that stands behind a refusal does nothing, and one that is put
before it takes something away from whoever wrote it. What is done here:

- A refusal for more sources than the own allow names (``deny 10250/tcp``) was not written against those in particular:
  the allow goes before it.
- A refusal for exactly those sources was meant: Conflict, and a person decides.
- A refusal for some of those sources, for one interface or one destination is an exception: the allow goes behind it.
- A refusal for some of its ports only: Conflict too.
- An operator's own rule that lets in as much is as good: nothing is added.
"""

from __future__ import annotations

import ipaddress
import re
from typing import Any, Dict, List, Mapping, Optional, Sequence, Tuple, TypedDict, Union

from .model import UfwRule
from .parse.ufw import default_policies, settings

TAG = "netmend:"

Network = Union[ipaddress.IPv4Network, ipaddress.IPv6Network]
_EVERYWHERE = (ipaddress.ip_network("0.0.0.0/0"), ipaddress.ip_network("::/0"))
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:+-]*")
_PORTS = re.compile(r"\d+(:\d+)?")
_BEFORE_CHAIN = re.compile(r"-A ufw-before-(input|output|forward) \S")


class Conflict(ValueError):
    """A wanted rule and one that is there contradict each other, and only a person knows which is meant."""


class State(TypedDict):
    """What of UFW is planned here."""

    rules: List[UfwRule]
    before_rules: str  # text of /etc/ufw/before.rules
    default_ufw: str  # text of /etc/default/ufw
    enabled: bool


class Wanted(TypedDict):
    rules: List[UfwRule]
    before_rules: Dict[str, List[str]]  # name -> lines
    purge: bool  # delete what is own and not wanted; without it only what has the name of something wanted
    manage_builtins: Optional[bool]  # None: leave
    enabled: Optional[bool]  # None: leave


class Plan(TypedDict):
    commands: List[List[str]]  # argv that make the rules so, in order
    after: State


class Connection(TypedDict):
    """A TCP connection as the node that it comes in at sees it."""

    source: str
    destination: str
    port: int
    interface: str  # it arrives on


# --- rules ----------------------------------------------------------------------------------------------------------


def rule_of(option: Mapping[str, Any]) -> UfwRule:
    """A rule as netmend_ufw's option ``rules`` has it -> as UFW keeps it.

    Raises ValueError, with the rule's name, for what UFW would refuse or silently change.
    """
    name = option["name"]
    if not _NAME.fullmatch(name):
        raise ValueError(f"rule {name!r}: a name is made of letters, digits and . _ : + - only")
    try:
        rule = UfwRule(
            action=option.get("rule") or "allow",
            direction=option.get("direction") or "in",
            protocol=option.get("proto") or "any",
            source=_address(option.get("from") or "any"),
            source_port=_port(option.get("from_port") or "any"),
            destination=_address(option.get("to") or "any"),
            port=_port(option.get("port") or "any"),
            interface_in=option.get("interface_in") or "",
            interface_out=option.get("interface_out") or "",
            comment=TAG + name,
        )
    except ValueError as error:
        raise ValueError(f"rule {name}: {error}") from None
    several = any(set(rule_port) & set(",:") for rule_port in (rule["port"], rule["source_port"]))
    if several and rule["protocol"] not in ("tcp", "udp"):
        raise ValueError(f"rule {name}: several ports need proto tcp or udp")
    misplaced = {"in": rule["interface_out"], "out": rule["interface_in"]}.get(rule["direction"])
    if misplaced:
        raise ValueError(f"rule {name}: interface {misplaced} does not go with direction {rule['direction']}")
    return rule


def show(rule: UfwRule) -> str:
    """The rule as `ufw show added` has it."""
    comment = f" comment '{rule['comment']}'" if rule["comment"] else ""
    return " ".join(["ufw", *_route(rule), *_words(rule, short=True)]) + comment


def command(rule: UfwRule, *verb: str) -> List[str]:
    """argv that adds the rule; with the verb "prepend" or "delete" as they say."""
    comment = ["comment", rule["comment"]] if rule["comment"] else []
    return ["ufw", *_route(rule), *verb, *_words(rule), *comment]


def own(rule: UfwRule) -> bool:
    return rule["comment"].startswith(TAG)


# --- plan -----------------------------------------------------------------------------------------------------------


def plan(state: State, wanted: Wanted) -> Plan:
    """The way from a state to what is wanted; empty, and ``after`` the same state, where it is so already.

    Raises Conflict where a wanted rule would change, or could not take hold beside, a rule that is there; ValueError
    for what UFW's files cannot hold.
    """
    commands, rules = _plan_rules(state["rules"], wanted["rules"], wanted["purge"])
    default_ufw, managed = state["default_ufw"], wanted["manage_builtins"]
    if managed is not None and managed != (settings(default_ufw).get("MANAGE_BUILTINS") == "yes"):
        default_ufw = with_setting(default_ufw, "MANAGE_BUILTINS", "yes" if managed else "no")
    after = State(
        rules=rules,
        before_rules=with_blocks(state["before_rules"], wanted["before_rules"], wanted["purge"]),
        default_ufw=default_ufw,
        enabled=state["enabled"] if wanted["enabled"] is None else wanted["enabled"],
    )
    return Plan(commands=commands, after=after)


def admits(state: State, connection: Connection) -> bool:
    """Whether UFW, enabled, lets such a new connection in: by the first rule that matches it, else by the policy."""
    files = settings(state["default_ufw"])
    if ipaddress.ip_address(connection["source"]).version == 6 and files.get("IPV6") != "yes":
        return False  # UFW then drops all of IPv6
    packet = UfwRule(
        action="allow",
        direction="in",
        protocol="tcp",
        source=connection["source"],
        source_port="any",
        destination=connection["destination"],
        port=str(connection["port"]),
        interface_in=connection["interface"],
        interface_out="",
        comment="",
    )
    for rule in state["rules"]:
        lets_in = rule["action"] in ("allow", "limit")
        # A rule that matches some source ports only may refuse the next connection, and is no promise to let it in.
        if _contains(rule, packet) if lets_in else _overlaps(rule, packet):
            return lets_in
    return default_policies(files)["input"] == "ACCEPT"


def _plan_rules(
    current: Sequence[UfwRule], wanted: Sequence[UfwRule], purge: bool
) -> Tuple[List[List[str]], List[UfwRule]]:
    """Commands, and the rules in UFW's order when they have been given."""
    _unique(wanted)
    names = {rule["comment"] for rule in wanted}
    rules = [rule for rule in current if not own(rule) or rule in wanted or not (purge or rule["comment"] in names)]
    doomed = [rule for rule in current if rule not in rules]
    added: List[List[str]] = []
    for rule in wanted:
        if rule in rules:
            if not _overruled(rule, rules[: rules.index(rule)]):
                continue
            rules.remove(rule)
            doomed.append(rule)
        elif _provided(rule, rules):
            continue
        if _overruled(rule, rules):
            rules.insert(0, rule)
            added.append(command(rule, "prepend"))
        else:
            rules.append(rule)
            added.append(command(rule))
    return [command(rule, "delete") for rule in doomed] + added, rules


# --- files ----------------------------------------------------------------------------------------------------------


def with_blocks(text: str, blocks: Mapping[str, Sequence[str]], purge: bool = True) -> str:
    """before.rules with own marked blocks of rules, name -> lines, at the end of its filter table.

    A block that is there is changed where it stands. The end of the table is early enough: what comes before it drops
    INVALID packets, and one of a protocol that conntrack does not know is NEW. Raises ValueError for lines that are not
    rules of UFW's before chains, and where the text has no filter table to put them in.
    """
    for name, lines in blocks.items():
        _check_block(name, lines)
    there = re.findall(rf"^# BEGIN {TAG}(\S+)$", text, re.MULTILINE)
    for name in there:
        marks = (rf"^# {mark} {TAG}{re.escape(name)}\n" for mark in ("BEGIN", "END"))
        block = re.search(".*?".join(marks), text, re.MULTILINE | re.DOTALL)
        if not block:
            raise ValueError(f"before.rules: the end of block {TAG}{name} is missing")
        if name in blocks or purge:
            replacement = _block(name, blocks[name]) if name in blocks else ""
            text = text[: block.start()] + replacement + text[block.end() :]
    new = "".join(_block(name, lines) for name, lines in blocks.items() if name not in there)
    if not new:
        return text
    table = re.search(r"^\*filter$.*?^(?=COMMIT$)", text, re.MULTILINE | re.DOTALL)
    if not table:
        raise ValueError("before.rules: there is no filter table that ends in COMMIT")
    return text[: table.end()] + new + text[table.end() :]


def with_setting(text: str, name: str, value: str) -> str:
    """Shell assignments with one of them set, where it stands or at the end."""
    line = f"{name}={value}"
    text, count = re.subn(rf"^\s*{name}=.*$", line, text, flags=re.MULTILINE)
    return text if count else f"{text.rstrip()}\n{line}\n".lstrip()


# --- details --------------------------------------------------------------------------------------------------------


def _route(rule: UfwRule) -> List[str]:
    return ["route"] if rule["direction"] == "routed" else []


def _words(rule: UfwRule, short: bool = False) -> List[str]:
    """Action and selectors; ``short``: as 22/tcp where UFW itself shortens them."""
    words, ports = [rule["action"]], rule["port"] != "any" and rule["direction"] != "routed"
    rest = (rule["source"], rule["source_port"], rule["destination"], rule["interface_in"], rule["interface_out"])
    protocol = "" if rule["protocol"] == "any" else rule["protocol"]
    if short and ports and rest == ("any", "any", "any", "", ""):
        words += ["out"] if rule["direction"] == "out" else []
        return [*words, f"{rule['port']}/{protocol}".rstrip("/")]
    if rule["interface_in"]:
        words += ["in", "on", rule["interface_in"]]
    if rule["interface_out"]:
        words += ["out", "on", rule["interface_out"]]
    elif rule["direction"] == "out":
        words += ["out"]
    ends = [*_end("from", rule["source"], rule["source_port"]), *_end("to", rule["destination"], rule["port"])]
    if not ends and not (rule["interface_in"] or rule["interface_out"]):
        ends = ["to", "any"]
    return [*words, *ends, *(["proto", protocol] if protocol else [])]


def _end(side: str, address: str, port: str) -> List[str]:
    if (address, port) == ("any", "any"):
        return []
    return [side, address] + ([] if port == "any" else ["port", port])


def _unique(wanted: Sequence[UfwRule]) -> None:
    names: Dict[str, UfwRule] = {}
    selectors: Dict[Tuple[str, ...], UfwRule] = {}
    for rule in wanted:
        if rule["comment"] in names:
            raise Conflict(f"two rules have the name {_name(rule)}")
        twin = selectors.setdefault(_selectors(rule), rule)
        if twin is not rule:
            raise Conflict(f"rules {_name(twin)} and {_name(rule)} match the same packets: UFW keeps only one of them")
        names[rule["comment"]] = rule


def _provided(rule: UfwRule, rules: Sequence[UfwRule]) -> bool:
    """Whether a rule of somebody else's does already what this one would."""
    for index, other in enumerate(rules):
        if own(other) or other["action"] != rule["action"] or not _contains(other, rule):
            continue
        if not _overruled(rule, rules[:index]):
            return True
    for other in rules:
        # UFW would not add the rule but change this one: it knows rules by what they match.
        if _selectors(other) == _selectors(rule):
            raise Conflict(
                f"rule {_name(rule)}: {_theirs(other)} is for the same packets, to another effect; delete it first"
            )
    return False


def _overruled(rule: UfwRule, earlier: Sequence[UfwRule]) -> bool:
    """Whether an allow is refused by earlier rules that were not written against its sources in particular."""
    if rule["action"] != "allow":
        return False
    overruled, exceptions = False, []
    for other in earlier:
        if other["action"] == "allow" or not _overlaps(other, rule):
            continue
        if _exception(other, rule):
            exceptions.append(other)
            continue
        if _network(other["source"]) == _network(rule["source"]):
            raise Conflict(f"rule {_name(rule)}: {_theirs(other)} refuses these very sources; delete it to let them in")
        if not _ports_cover(other["port"], rule["port"]) or other["protocol"] not in ("any", rule["protocol"]):
            raise Conflict(
                f"rule {_name(rule)}: {_theirs(other)} refuses a part of what it lets in; narrow one of them"
            )
        overruled = True
    if overruled and exceptions:
        raise Conflict(f"rule {_name(rule)} would have to go before {_theirs(exceptions[0])}, which is narrower")
    return overruled


def _exception(other: UfwRule, rule: UfwRule) -> bool:
    """Whether another rule is for a part of this one's sources, destinations or interfaces only."""
    return (
        (other["interface_in"] != "" and rule["interface_in"] == "")
        or (other["interface_out"] != "" and rule["interface_out"] == "")
        or not _covers(other["source"], rule["source"])
        or not _covers(other["destination"], rule["destination"])
    )


def _name(rule: UfwRule) -> str:
    return rule["comment"][len(TAG) :]


def _theirs(rule: UfwRule) -> str:
    return f"`{show(rule)}`"


def _selectors(rule: UfwRule) -> Tuple[str, ...]:
    return (
        rule["direction"],
        rule["protocol"],
        rule["source"],
        rule["source_port"],
        rule["destination"],
        rule["port"],
        rule["interface_in"],
        rule["interface_out"],
    )


def _contains(wide: UfwRule, narrow: UfwRule) -> bool:
    """Whether every packet that ``narrow`` matches is matched by ``wide``."""
    return (
        wide["direction"] == narrow["direction"]
        and wide["protocol"] in ("any", narrow["protocol"])
        and _covers(wide["source"], narrow["source"])
        and _covers(wide["destination"], narrow["destination"])
        and _ports_cover(wide["source_port"], narrow["source_port"])
        and _ports_cover(wide["port"], narrow["port"])
        and wide["interface_in"] in ("", narrow["interface_in"])
        and wide["interface_out"] in ("", narrow["interface_out"])
    )


def _overlaps(one: UfwRule, other: UfwRule) -> bool:
    """Whether a packet can match both."""
    return (
        one["direction"] == other["direction"]
        and _meet(one["protocol"], other["protocol"], "any")
        and _networks_overlap(one["source"], other["source"])
        and _networks_overlap(one["destination"], other["destination"])
        and _ports_overlap(one["source_port"], other["source_port"])
        and _ports_overlap(one["port"], other["port"])
        and _meet(one["interface_in"], other["interface_in"], "")
        and _meet(one["interface_out"], other["interface_out"], "")
    )


def _meet(one: str, other: str, anything: str) -> bool:
    return one == other or anything in (one, other)


def _network(address: str) -> Network | None:
    return None if address == "any" else ipaddress.ip_network(address, strict=False)


def _covers(wide: str, narrow: str) -> bool:
    one, other = _network(wide), _network(narrow)
    if one is None:
        return True
    return other is not None and one.version == other.version and other.subnet_of(one)  # type: ignore[arg-type]  # of one version


def _networks_overlap(wide: str, narrow: str) -> bool:
    one, other = _network(wide), _network(narrow)
    return one is None or other is None or one.overlaps(other)


def _ranges(port: str) -> List[Tuple[int, int]]:
    """First and last of each run of ports; those that touch are one."""
    if port == "any":
        return [(0, 65535)]
    runs: List[Tuple[int, int]] = []
    for first, last in sorted((int(part.split(":")[0]), int(part.split(":")[-1])) for part in port.split(",")):
        if runs and first <= runs[-1][1] + 1:
            runs[-1] = (runs[-1][0], max(last, runs[-1][1]))
        else:
            runs.append((first, last))
    return runs


def _ports_cover(wide: str, narrow: str) -> bool:
    return all(any(low <= first and last <= high for low, high in _ranges(wide)) for first, last in _ranges(narrow))


def _ports_overlap(one: str, other: str) -> bool:
    return any(low <= last and first <= high for low, high in _ranges(one) for first, last in _ranges(other))


def _address(text: str) -> str:
    """As UFW writes it: no prefix for a single address, "any" for all of them."""
    if text == "any":
        return text
    network = ipaddress.ip_network(text)
    if network in _EVERYWHERE:
        return "any"
    return str(network.network_address) if network.num_addresses == 1 else str(network)


def _port(text: Any) -> str:
    """As UFW sorts it. Service names are left to the caller: UFW keeps numbers."""
    if text == "any":
        return "any"
    parts = str(text).replace(" ", "").split(",")
    for part in parts:
        numbers = [int(bound) for bound in part.split(":")] if _PORTS.fullmatch(part) else []
        if not numbers or numbers != sorted(numbers) or not 0 < numbers[0] <= numbers[-1] < 65536:
            raise ValueError(f"{part!r} is neither a port nor a range of ports as 30000:32767")
    return ",".join(sorted(parts, key=lambda part: [int(bound) for bound in part.split(":")]))


def _check_block(name: str, lines: Sequence[str]) -> None:
    if not _NAME.fullmatch(name):
        raise ValueError(f"before_rules {name!r}: a name is made of letters, digits and . _ : + - only")
    for line in lines:
        if not _BEFORE_CHAIN.match(line) or "\n" in line:
            raise ValueError(f"before_rules {name}: {line!r} does not append to ufw-before-input, -output or -forward")


def _block(name: str, lines: Sequence[str]) -> str:
    return "".join(f"{line}\n" for line in (f"# BEGIN {TAG}{name}", *lines, f"# END {TAG}{name}"))
