"""One packet's way through a parsed rule set, to the rule that decides about it.

The walk claims no more than the rules say. Where a match is not understood (a limit, an unknown set ...), it follows
both ways. If all of them end alike, that is the verdict; otherwise it is "unknown" and names the rule that it hangs on.
"""

from __future__ import annotations

import ipaddress
import re
from functools import lru_cache
from typing import Callable, Dict, FrozenSet, Iterable, List, Mapping, NamedTuple, Optional, Sequence, Tuple, Union

from .model import Iptables, Rule, Ruleset

BACKENDS = ("nft", "legacy")

# What a packet passes on its way through a node, without nat, which never blocks.
HOOKS: Dict[str, Tuple[Tuple[str, str], ...]] = {
    "INPUT": (("raw", "PREROUTING"), ("mangle", "PREROUTING"), ("mangle", "INPUT"), ("filter", "INPUT")),
    "FORWARD": (("raw", "PREROUTING"), ("mangle", "PREROUTING"), ("mangle", "FORWARD"), ("filter", "FORWARD")),
    "OUTPUT": (("raw", "OUTPUT"), ("mangle", "OUTPUT"), ("filter", "OUTPUT")),
}

Sets = Mapping[str, Sequence[str]]  # the members of the node's ipsets


class Packet(NamedTuple):
    """The first packet of a connection, unless ``states`` says otherwise. Interfaces are "" where there is none."""

    source: str
    destination: str
    protocol: str  # tcp, udp, icmp, ipip
    dport: int = 0
    sport: int = 49152  # any ephemeral one
    interface_in: str = ""
    interface_out: str = ""
    states: Tuple[str, ...] = ("NEW",)  # with "DNAT" for what came by a Service
    mark: int = 0
    from_local: bool = False  # the source is an address of this node
    to_local: bool = False
    bridged: bool = False  # between two ports of one bridge
    icmp_type: str = "8"  # with a code where it matters: "3/4"


class Place(NamedTuple):
    """A rule and where it stands."""

    table: str
    chain: str
    number: int  # 1-based, as iptables counts; 0: the chain's policy
    spec: str  # as saved; of a policy its name
    packets: int

    def __str__(self) -> str:
        if self.number == 0:
            return f"{self.table} {self.chain} policy {self.spec}"
        return f"{self.table} {self.chain} rule {self.number} `{self.spec}`"


class Verdict(NamedTuple):
    action: str  # accept, drop, reject, unknown
    rule: Place  # the one that decides; of "unknown" the one whose match or target is not understood
    path: Tuple[Place, ...] = ()  # the jumps that lead to it, from the built-in chain on
    backend: str = ""  # nft or legacy, where both were asked

    @property
    def blocked(self) -> bool:
        """Surely blocked: "unknown" is not."""
        return self.action in ("drop", "reject")

    @property
    def root(self) -> Place:
        """The rule of the built-in chain that the packet took."""
        return self.path[0] if self.path else self.rule

    def __str__(self) -> str:
        way = "".join(f"{step.chain} rule {step.number} -> " for step in self.path)
        return f"{self.rule.table} {way}{str(self.rule).partition(' ')[2]}"


def walk(ruleset: Ruleset, table: str, chain: str, packet: Packet, sets: Optional[Sets] = None) -> Verdict:
    """The verdict of one built-in chain. A chain that does not exist accepts, as an empty one does."""
    return _Walk(ruleset, packet, sets or {}).through(((table, chain),))


def journey(
    ruleset: Ruleset,
    hook: str,
    packet: Packet,
    sets: Optional[Sets] = None,
    ignoring: FrozenSet[Tuple[str, str, int]] = frozenset(),
) -> Verdict:
    """The verdict of all tables on the way to ``hook`` (INPUT, FORWARD, OUTPUT), as if without the rules to ignore."""
    return _Walk(ruleset, packet, sets or {}, ignoring).through(HOOKS[hook])


def blockers(ruleset: Ruleset, hook: str, packet: Packet, sets: Optional[Sets] = None) -> List[Verdict]:
    """What would have to go for the packet to pass: the rule that blocks it, the one behind that, perhaps a policy."""
    found: List[Verdict] = []
    while True:
        verdict = journey(ruleset, hook, packet, sets, frozenset(each.rule[:3] for each in found))
        if not verdict.blocked:
            return found
        found.append(verdict)
        if verdict.rule.number == 0:
            return found


def judge(iptables: Iptables, hook: str, packet: Packet, sets: Optional[Sets] = None) -> Verdict:
    """The verdict of the node: a packet passes only if both rule sets let it. One that surely blocks is named first."""
    rulesets = {"nft": iptables["nft"], "legacy": iptables["legacy"]}
    verdicts = [journey(rulesets[name], hook, packet, sets)._replace(backend=name) for name in BACKENDS]
    for wanted in (("drop", "reject"), ("unknown",)):
        for verdict in verdicts:
            if verdict.action in wanted:
                return verdict
    return verdicts[0] if rulesets["nft"] else verdicts[1]


class Translation(NamedTuple):
    """What a rule makes of a packet's destination."""

    destination: str  # "10.42.1.2:8080"
    rule: Place


def translations(ruleset: Ruleset, chain: str, packet: Packet, sets: Optional[Sets] = None) -> List[Translation]:
    """All that one of nat's built-in chains may translate the packet's destination to; kube-proxy's rules draw lots."""
    if chain not in ruleset.get("nat", {}):
        return []
    ends = _Walk(ruleset, packet, sets or {}).ends("nat", chain)
    rules = ((end.verdict.rule, ruleset["nat"][end.verdict.rule.chain]["rules"]) for end in ends)
    found = ((place, rules[place.number - 1]["target_options"]) for place, rules in rules if place.number)
    return [Translation(options["to-destination"], place) for place, options in found if "to-destination" in options]


# --- the walk itself ------------------------------------------------------------------------------------------------

_ENDS = {"ACCEPT": "accept", "DROP": "drop", "REJECT": "reject"}
# These end the table, and the packet goes on.
_ENDS.update(dict.fromkeys(("DNAT", "SNAT", "MASQUERADE", "REDIRECT", "NETMAP"), "accept"))
# The next rule is looked at. A new connection's mark is 0, so CONNMARK restores nothing.
_NEUTRAL = (
    *("AUDIT", "CHECKSUM", "CLASSIFY", "CONNMARK", "CONNSECMARK", "CT", "DSCP", "LOG", "NFLOG", "NOTRACK", "SECMARK"),
    *("SET", "TCPMSS", "TOS", "TRACE", "TTL"),
)


class _State(NamedTuple):
    """A packet under way."""

    mark: int
    doubt: Optional[Verdict] = None  # the first rule that may or may not have applied before


class _End(NamedTuple):
    verdict: Verdict
    state: _State


class _Step(NamedTuple):
    """What comes of a rule or a chain, in one of the ways a packet can take."""

    on: List[_State]  # at the next rule
    back: List[_State]  # back in the calling chain
    ends: List[_End]


class _Walk:
    def __init__(
        self, ruleset: Ruleset, packet: Packet, sets: Sets, ignoring: FrozenSet[Tuple[str, str, int]] = frozenset()
    ) -> None:
        self.ruleset, self.packet, self.sets, self.ignoring = ruleset, packet, sets, ignoring

    def through(self, stops: Iterable[Tuple[str, str]]) -> Verdict:
        states = [_State(self.packet.mark)]
        last = Verdict("accept", Place(*list(stops)[-1], 0, "ACCEPT", 0))
        blocked: List[_End] = []
        accepted = [_End(last, states[0])]
        for table, chain in stops:
            if chain in self.ruleset.get(table, {}):
                ends = self._builtin(table, chain, states)
                accepted = [end for end in ends if end.verdict.action == "accept"]
                blocked += [end for end in ends if end.verdict.action != "accept"]
                states = _merged(end.state for end in accepted)
        return _summed_up(blocked, accepted)

    def ends(self, table: str, chain: str) -> List[_End]:
        return self._builtin(table, chain, [_State(self.packet.mark)])

    def _builtin(self, table: str, name: str, states: List[_State]) -> List[_End]:
        chain = self.ruleset[table][name]
        policy = chain["policy"] or "ACCEPT"
        verdict = Verdict(_ENDS[policy], Place(table, name, 0, policy, chain["packets"]))
        fell, _, ends = self._chain(table, name, states, ())
        return ends + [_End(verdict, state) for state in fell]

    def _chain(self, table: str, name: str, states: List[_State], path: Tuple[Place, ...]) -> _Step:
        """``on`` of the result: what comes out at the chain's end or by RETURN."""
        back: List[_State] = []
        ends: List[_End] = []
        for number, rule in enumerate(self.ruleset[table][name]["rules"], 1):
            if not states:
                break
            if (table, name, number) in self.ignoring:
                continue
            place = Place(table, name, number, rule["spec"], rule["packets"])
            steps = [self._rule(rule, place, state, path) for state in states]
            states = _merged(state for step in steps for state in step.on)
            back += [state for step in steps for state in step.back]
            ends += [end for step in steps for end in step.ends]
        return _Step(_merged(states + back), [], ends)

    def _rule(self, rule: Rule, place: Place, state: _State, path: Tuple[Place, ...]) -> _Step:
        applies = self._applies(rule, state.mark)
        if applies is False:
            return _Step([state], [], [])
        step = self._target(rule, place, state, path)
        if applies or step == _Step([state], [], []):
            return step
        doubt = state._replace(doubt=state.doubt or Verdict("unknown", place, path))
        on, back, ends = self._target(rule, place, doubt, path)
        return _Step([*on, doubt], back, ends)

    def _target(self, rule: Rule, place: Place, state: _State, path: Tuple[Place, ...]) -> _Step:
        target = rule["target"]
        if target is None or target in _NEUTRAL:
            return _Step([state], [], [])
        if target == "MARK":
            return _Step([state._replace(mark=_marked(state.mark, rule["target_options"]))], [], [])
        if target == "RETURN":
            return _Step([], [state], [])
        if target in self.ruleset[place.table]:
            fell, _, ends = self._chain(place.table, target, [state], (*path, place))
            return _Step([], fell, ends) if rule["goto"] else _Step(fell, [], ends)
        return _Step([], [], [_End(Verdict(_ENDS.get(target, "unknown"), place, path), state)])

    def _applies(self, rule: Rule, mark: int) -> Optional[bool]:
        """None: it cannot be told."""
        answers = [_matches(key, value, self.packet, mark) for key, value in rule["matches"].items()]
        for extension in rule["opaque"]:
            answers += self._in_sets(rule["spec"]) if extension == "set" else [None]
        if False in answers:
            return False
        return None if None in answers else True

    def _in_sets(self, spec: str) -> List[Optional[bool]]:
        answers: List[Optional[bool]] = []
        for negated, name, side in re.findall(r"(! )?--match-set (\S+) (\S+)", spec):
            address = {"src": self.packet.source, "dst": self.packet.destination}.get(side)
            if address is None or name not in self.sets:
                answers.append(None)
            else:
                answers.append(_among(address, tuple(self.sets[name])) != bool(negated))
        return answers


def _summed_up(blocked: List[_End], accepted: List[_End]) -> Verdict:
    """The verdict that all ends share. Of several rules that agree it names the last: no unclear match leads there."""
    if not blocked:
        return accepted[-1].verdict
    if not accepted and all(end.verdict.blocked for end in blocked):
        return blocked[-1].verdict
    for end in blocked + accepted:
        if end.state.doubt:
            return end.state.doubt
    return next(end.verdict for end in blocked if end.verdict.action == "unknown")


def _merged(states: Iterable[_State]) -> List[_State]:
    """States that differ only in how they came about are one."""
    by_mark: Dict[int, _State] = {}
    for state in states:
        if state.mark not in by_mark or state.doubt is None:
            by_mark[state.mark] = state
    return list(by_mark.values())


# --- matches --------------------------------------------------------------------------------------------------------


def _matches(key: str, value: str, packet: Packet, mark: int) -> Optional[bool]:
    """None: it cannot be told, for want of knowing the match or of reading its value."""
    name = key.lstrip("!")
    try:
        return _MATCHES[name](value, packet, mark) != key.startswith("!")
    except (KeyError, ValueError):
        return None


_MATCHES: Dict[str, Callable[[str, Packet, int], bool]] = {
    "source": lambda value, packet, _: _inside(packet.source, value),
    "destination": lambda value, packet, _: _inside(packet.destination, value),
    "in": lambda value, packet, _: _interface(packet.interface_in, value),
    "out": lambda value, packet, _: _interface(packet.interface_out, value),
    "protocol": lambda value, packet, _: _protocol(value) in ("all", _protocol(packet.protocol)),
    "dport": lambda value, packet, _: _port(packet.dport, value),
    "sport": lambda value, packet, _: _port(packet.sport, value),
    "ctstate": lambda value, packet, _: not set(value.split(",")).isdisjoint(packet.states),
    "mark": lambda value, _, mark: _mark(mark, value),
    "src-type": lambda value, packet, _: _type(packet.source, packet.from_local) in value.split(","),
    "dst-type": lambda value, packet, _: _type(packet.destination, packet.to_local) in value.split(","),
    "icmp-type": lambda value, packet, _: value in ("any", "255") or _icmp(value, packet.icmp_type),
    "physdev-is-bridged": lambda _value, packet, _: packet.bridged,
}

_PROTOCOLS = {"0": "all", "1": "icmp", "4": "ipip", "ipencap": "ipip", "6": "tcp", "17": "udp"}


def _protocol(name: str) -> str:
    return _PROTOCOLS.get(name, name)


def _icmp(value: str, sent: str) -> bool:
    """A type alone means all of its codes."""
    (type_, _, code), (sent_type, _, sent_code) = value.partition("/"), sent.partition("/")
    return type_ == sent_type and (not code or code == (sent_code or "0"))


def _interface(name: str, pattern: str) -> bool:
    return name.startswith(pattern[:-1]) if pattern.endswith("+") else name == pattern


def _port(port: int, ranges: str) -> bool:
    for each in ranges.split(","):
        low, _, high = each.partition(":")
        if int(low) <= port <= int(high or low):
            return True
    return False


def _mark(mark: int, value: str) -> bool:
    wanted, _, mask = value.partition("/")
    return mark & int(mask or "0xffffffff", 0) == int(wanted, 0)


def _marked(mark: int, options: Mapping[str, str]) -> int:
    value, _, mask = options["set-xmark"].partition("/")
    return (mark & ~int(mask or "0xffffffff", 0)) ^ int(value, 0)


def _type(address: str, local: bool) -> str:
    if local:
        return "LOCAL"
    if address == "255.255.255.255":
        return "BROADCAST"
    return "MULTICAST" if _address(address).is_multicast else "UNICAST"


def _among(address: str, members: Tuple[str, ...]) -> bool:
    """As a hash:net or hash:ip has it, where "nomatch" members were left out when they were read."""
    return any(_inside(address, member) for member in members)


def _inside(address: str, network: str) -> bool:
    return _address(address) in _network(network)


@lru_cache(maxsize=65536)
def _address(text: str) -> Union[ipaddress.IPv4Address, ipaddress.IPv6Address]:
    return ipaddress.ip_address(text)


@lru_cache(maxsize=65536)
def _network(text: str) -> Union[ipaddress.IPv4Network, ipaddress.IPv6Network]:
    return ipaddress.ip_network(text, strict=False)
