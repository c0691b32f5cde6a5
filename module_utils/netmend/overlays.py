"""The round that measures the network under the overlays: who takes part and when, and what it says. Pure.

No provider's name decides which overlay can work, the measurement does: of each kind of packet and each ordered pair of
nodes, how many left, arrived, were let in and answered.
"""

from __future__ import annotations

from typing import Dict, Iterable, Iterator, List, Mapping, NamedTuple, Optional, Sequence, Tuple

from . import sample
from .model import ClusterFacts, Crossing, Moved, NodeFacts, OverlayVerdict, Underlay, UnderlayPair, UnderlayReport
from .parse.iptables import parse_rule
from .underlay_packets import ICMP_ERROR, IPIP, KINDS, ROUNDS, ROUTED, TCP, UDP, Kind

ENOUGH = 0.8  # of the packets: what may get lost by chance without being a fault

# Bytes before what pods send: VXLAN's Ethernet, VXLAN, UDP and IP headers (RFC 7348), IP in IP's one (RFC 2003),
# WireGuard's own (wireguard.com/protocol), UDP and IP headers; Flannel leaves 20 more for IPv6.
OVERLAYS = {
    "vxlan-8472": ("udp-8472", 50),
    "vxlan-4789": ("udp-4789", 50),
    "ipip": ("ipip", 20),
    "wireguard": ("udp-51820", 60),
    "host-gw": (ROUTED, 0),
}
TITLES = {
    "vxlan-8472": "VXLAN on UDP 8472 (Flannel)",
    "vxlan-4789": "VXLAN on UDP 4789 (Calico)",
    "ipip": "IPIP",
    "wireguard": "WireGuard",
    "host-gw": "host-gw",
}
_WORST_FIRST = ("no", "unknown", "host", "works")
_SENTENCES = 6

_EARLIEST, _UNMEASURED, _LONGEST_WAIT = 1.0, 2.0, 3.0  # seconds
_AMPLE = 1.25  # times what calls took that were not all at once
_VNIS = 1 << 24
_KINDS = {kind.name: kind for kind in KINDS}


# --- who, and when --------------------------------------------------------------------------------------------------


class Call(NamedTuple):
    """One module call: between when the controller began and had the result, by its clock, and what the node's said."""

    sent: float  # seconds since the epoch, as all of these are
    received: float
    time: float  # the node's clock when the module began
    took: float  # seconds that it needed from then on


class Clock(NamedTuple):
    """How far a node's clock is ahead of the controller's, and how much that may be off, in seconds."""

    offset: float
    error: float


def clocks(calls: Mapping[str, Call]) -> Dict[str, Clock]:
    """The offsets of the nodes' clocks, each of which one call bounds.

    A node's clock was ``time`` after ``sent``, and ``time + took`` before ``received``: its offset lies between. The
    one that most nodes can have (Marzullo's algorithm, as in NTP's RFC 5905; the nearest to 0 if in doubt) is taken to
    be theirs, as clocks in one cluster agree. Of the others the middle is taken.
    """
    bounds = {name: (call.time + call.took - call.received, call.time - call.sent) for name, call in calls.items()}

    def having(offset: float) -> int:
        return sum(low <= offset <= high for low, high in bounds.values())

    edges = [0.0, *(edge for both in bounds.values() for edge in both)]
    common = max(edges, key=lambda offset: (having(offset), -abs(offset)))
    found = {}
    for name, (low, high) in bounds.items():
        agrees = low <= common <= high
        offset = common if agrees else (low + high) / 2
        found[name] = Clock(offset, max(high - offset, offset - low))
    return found


def lead(calls: Iterable[Call], forks: int, late: float = 0.0) -> float:
    """Seconds from planning to the moment: as long as it took to have a module run on all nodes.

    The calls before were on so many nodes at a time as there are ``forks``, and those of a round are on all. Each takes
    an SSH connection and the start of Python: 0.3 to 3 seconds, by how busy the machines are, and less once the
    connection is there. Who needs longer than last time is late, and what could not be heard of it is unknown; ``late``
    is by how much that happened in a round before, and twice that is added, as machines that are busy differ from call
    to call. Nobody waits longer than _LONGEST_WAIT for one that is slow.
    """
    calls = list(calls)
    if not calls:
        return _UNMEASURED
    starts = [call.received - call.sent - call.took for call in calls]
    in_turn = len(calls) > forks
    launched = max(call.sent for call in calls) - min(call.sent for call in calls)
    before_the_last = _AMPLE * sum(starts) / forks if in_turn else launched
    return max(_EARLIEST, before_the_last + min(max(starts), min(starts) + _LONGEST_WAIT) + 2 * late)


def plan_round(
    nodes: Mapping[str, NodeFacts],
    cluster: ClusterFacts,
    calls: Mapping[str, Call],
    now: float,
    run: str,
    *,
    forks: int,
    late: float = 0.0,
) -> Dict[str, Dict[str, object]]:
    """Node -> the arguments of its netmend_underlay. Without a call to tell the clock by, it is taken for the same.

    Every node has those for peers that have it, so that both directions of a pair are known: all others, or a sample in
    a large cluster.
    """
    taking = {node["name"]: node for node in cluster["nodes"] if node["name"] in nodes and node["internal_ip"]}
    peers = sample.peers(sample.zones(taking.values()))
    ahead, offsets = lead(calls.values(), forks, late), clocks(calls)
    unused = _unused_vni(nodes.values())
    planned: Dict[str, Dict[str, object]] = {}
    for name, node in taking.items():
        clock = offsets.get(name, Clock(0.0, 0.0))
        planned[name] = {
            "run": run,
            "node": name,
            "address": node["internal_ip"],
            "peers": [{"node": peer, "address": taking[peer]["internal_ip"]} for peer in peers[name]],
            "start": now + ahead + clock.offset,
            "vni": unused,
        }
    return planned


def _unused_vni(nodes: Iterable[NodeFacts]) -> int:
    used = {device["info"].get("id") for facts in nodes for device in facts["interfaces"] if device["kind"] == "vxlan"}
    return next(vni for vni in range(_VNIS - 1, 0, -1) if vni not in used)


# --- what it says ---------------------------------------------------------------------------------------------------


def evaluate(
    reports: Mapping[str, UnderlayReport], clocks_of: Mapping[str, Clock], expected: Iterable[str] = ()
) -> Underlay:
    """What all nodes' reports say together. A node without a report, or that could not listen, is unknown."""
    unknown = {name: "no report" for name in expected if name not in reports}
    unknown.update({name: "; ".join(each["errors"]) for name, each in reports.items() if not each["listened"][0]})
    pairs = {}
    for sender, report in reports.items():
        for receiver in report["to"]:
            other = None if receiver in unknown else reports.get(receiver)
            error = sum(clocks_of[name].error for name in (sender, receiver) if name in clocks_of)
            pairs[f"{sender}>{receiver}"] = _pair(report, receiver, other, error)
    by_pair = {
        f"{one}>{two}": {name: _verdict(pairs, one, two, name) for name in OVERLAYS}
        for one, two in (pair.split(">") for pair in pairs)
        if one < two or f"{two}>{one}" not in pairs
    }
    return Underlay(
        addresses={name: report["address"] for name, report in reports.items()},
        pairs=pairs,
        by_pair=by_pair,
        overlays={name: _of_all([each[name] for each in by_pair.values()], unknown) for name in OVERLAYS},
        unknown=unknown,
    )


def _pair(report: UnderlayReport, receiver: str, other: Optional[UnderlayReport], error: float) -> UnderlayPair:
    sender, to = report["node"], report["to"][receiver]
    heard = other["heard"].get(sender) if other else None
    listened = bool(other and heard and (_in_time(report, other, error) or _throughout(heard["rounds"])))
    kinds = {}
    for name, sent in to["kinds"].items():
        counts = heard["kinds"][name] if heard else {"arrived": 0, "accepted": 0}
        crossing = Crossing(
            verdict="",
            sent=sent["sent"],
            arrived=counts["arrived"],
            accepted=counts["arrived"] if name == ROUTED else counts["accepted"],  # it is for nobody
            answered=min(sent["answered"], sent["sent"]),
            told=sorted({*sent["told"], *sent["kept"]}),
            rules=[],
        )
        crossing["verdict"] = _crossed(crossing, listened and not (other and other["overflow"]))
        if crossing["verdict"] == "host" and other:
            missing = crossing["sent"] - crossing["accepted"]
            crossing["rules"] = [_named(rule) for rule in other["moved"] if _may_stop(rule, _KINDS[name], missing)]
        kinds[name] = crossing
    mtu, larger = _largest(to["sizes"], heard["sizes"] if heard else {}, to["frag_needed"])
    return UnderlayPair(
        kinds=kinds,
        device=heard["device"] if heard else "",
        mtu=mtu,
        larger=larger,
        icmp_errors=_icmp_errors(kinds, other["address"] if other else ""),
        gateway=to["gateway"],
    )


def _icmp_errors(kinds: Mapping[str, Crossing], receiver: str) -> str:
    if any(
        told.startswith("icmp ") and told.endswith(f" {receiver}") for each in kinds.values() for told in each["told"]
    ):
        return "come back"
    return "none" if kinds[ICMP_ERROR]["accepted"] else "unknown"


def _in_time(report: UnderlayReport, other: UnderlayReport, error: float) -> bool:
    """Whether the other listened all the while, by two clocks that may be off: the agreed moment is both's origin."""
    began, ended = (moment - report["start"] for moment in report["sent"])
    since, until = (moment - other["start"] for moment in other["listened"])
    return since <= began - error and ended + error <= until


def _throughout(rounds: Sequence[int]) -> bool:
    """Whether the other was heard from the first round to the last: then it listened, whatever the clocks say."""
    return bool(rounds) and rounds[0] == 0 and rounds[-1] == ROUNDS - 1


def _crossed(crossing: Crossing, listened: bool) -> str:
    sent, arrived, accepted = crossing["sent"], crossing["arrived"], crossing["accepted"]
    if not sent:
        return "sender" if crossing["told"] else "unknown"
    # A refusal may be anybody's; and what is redirected on arrival is answered without having been accepted as it was.
    if accepted >= ENOUGH * sent or "SYN-ACK" in crossing["told"]:
        return "passes"
    if not listened:
        return "unknown"
    if arrived >= ENOUGH * sent:
        return "host"
    return "lossy" if arrived else "fabric"


def _largest(sent: Mapping[str, int], arrived: Mapping[str, int], told: Mapping[str, int]) -> Tuple[int, str]:
    """The largest packet that arrived, and what became of larger ones."""
    passed = max((int(size) for size, count in arrived.items() if count), default=0)
    larger = [size for size, count in sent.items() if count and int(size) > passed]
    if not passed or not larger:
        return passed, ""
    return passed, next((f"icmp frag-needed from {sender}" for sender in sorted(told)), "vanish")


def _may_stop(rule: Moved, kind: Kind, packets: int) -> bool:
    """Whether a rule whose counter rose may have stopped these packets, as far as its own text tells."""
    if rule["packets"] < packets:
        return False
    if not rule["index"]:
        return rule["chain"] == "INPUT"
    matches = parse_rule(rule["spec"])["matches"]
    names = {UDP: ("udp", "17"), TCP: ("tcp", "6"), IPIP: ("4", "ipencap", "ipip")}[kind.protocol]
    if matches.get("protocol", "all") not in (*names, "all"):
        return False
    return "dport" not in matches or any(_within(kind.port, part) for part in matches["dport"].split(","))


def _within(port: int, ports: str) -> bool:
    first, _, last = ports.partition(":")
    return int(first or 0) <= port <= int(last or first)


def _named(rule: Moved) -> str:
    place = f"{rule['backend']} {rule['table']} {rule['chain']}"
    return f"{place} policy DROP" if not rule["index"] else f"{place} rule {rule['index']}: {rule['spec']}"


# --- overlays -------------------------------------------------------------------------------------------------------


def _verdict(pairs: Mapping[str, UnderlayPair], one: str, two: str, overlay: str) -> OverlayVerdict:
    """Of both directions the worse one, and the smaller MTU."""
    kind, overhead = OVERLAYS[overlay]
    verdicts, why, sizes = [], [], []
    for here, there in ((one, two), (two, one)):
        pair = pairs.get(f"{here}>{there}")
        verdicts.append(_carries(pair, kind) if pair else "unknown")
        sizes.append(pair["mtu"] if pair else 0)
        if verdicts[-1] != "works":
            why.append(sentence(pairs, here, there, kind) if pair else f"{here}>{there}: nothing is known.")
    mtu = min(sizes) - overhead if all(sizes) else 0
    return OverlayVerdict(verdict=min(verdicts, key=_WORST_FIRST.index), mtu=mtu, why=why)


def _carries(pair: UnderlayPair, kind: str) -> str:
    verdict = pair["kinds"][kind]["verdict"]
    if kind == ROUTED and pair["gateway"]:
        return "no"  # a route by way of the peer needs it on the same link
    return {"passes": "works", "host": "host", "sender": "host", "fabric": "no"}.get(verdict, "unknown")


def is_unknown(underlay: Optional[Underlay]) -> bool:
    """Whether another round might tell more: nodes that are busy do not all listen in time."""
    return not underlay or any(overlay["verdict"] == "unknown" for overlay in underlay["overlays"].values())


def _of_all(pairs: Sequence[OverlayVerdict], unknown: Mapping[str, str]) -> OverlayVerdict:
    """Of all pairs the worst, and the smallest MTU."""
    nothing = [OverlayVerdict(verdict="unknown", mtu=0, why=[f"{node}: {why}."]) for node, why in unknown.items()]
    verdicts = [*pairs, *nothing] or [OverlayVerdict(verdict="unknown", mtu=0, why=[])]
    sizes = [each["mtu"] for each in verdicts if each["mtu"]]
    worst = min((each["verdict"] for each in verdicts), key=_WORST_FIRST.index)
    why = [sentence for each in verdicts if each["verdict"] == worst for sentence in each["why"]]
    if len(why) > _SENTENCES:
        why[_SENTENCES - 1 :] = [f"{len(why) - _SENTENCES + 1} more of the kind."]
    return OverlayVerdict(verdict=worst, mtu=min(sizes, default=0), why=why)


# --- in words -------------------------------------------------------------------------------------------------------


def label(kind: str) -> str:
    """ "UDP 8472", "IP protocol 4" """
    if kind == ROUTED:
        return "packets for an address behind the peer"
    number = f" {_KINDS[kind].port}" if _KINDS[kind].port else ""
    return {UDP: "UDP", TCP: "TCP", IPIP: "IP protocol 4"}[_KINDS[kind].protocol] + number + " packets"


def sentence(pairs: Mapping[str, UnderlayPair], here: str, there: str, kind: str) -> str:
    """What became of one kind between two nodes, with figures."""
    pair = pairs[f"{here}>{there}"]
    crossing = pair["kinds"][kind]
    sent, arrived = crossing["sent"], crossing["arrived"]
    place = f"{there}'s {pair['device']}" if pair["device"] else there
    start = f"{here}>{there}: {arrived} of {sent} {label(kind)} arrived at {place}"
    told = f" ({', '.join(crossing['told'])})" if crossing["told"] else ""
    if crossing["verdict"] == "sender":
        return f"{here}>{there}: no {label(kind)} left {here}{told}."
    if crossing["verdict"] == "host":
        rules = f": {'; '.join(crossing['rules'])}" if crossing["rules"] else ", by no iptables rule that counted them"
        return f"{start}, and {crossing['accepted']} got past its own firewall{rules}{told}."
    if crossing["verdict"] == "fabric":
        others = ", ".join(_arrived(pair))
        beside = f", where {others} of the same moments did" if others else ""
        return f"{start}{beside}: the network between them drops these{told}."
    if crossing["verdict"] == "unknown":
        return f"{start}, but it is not known whether {there} listened at the time{told}."
    return f"{start}{told}."


def passing(overlays: Mapping[str, OverlayVerdict]) -> List[str]:
    """Those that can work between all nodes, with the MTU that pods would have."""
    found = []
    for name, overlay in overlays.items():
        if overlay["verdict"] in ("works", "host"):
            size = f"MTU {overlay['mtu'] or 'unknown'}"
            once = "" if overlay["verdict"] == "works" else ", once the nodes' firewalls let it in"
            found.append(f"{TITLES[name]} ({size}{once})")
    return found


def _arrived(pair: UnderlayPair) -> Iterator[str]:
    for name, crossing in pair["kinds"].items():
        if crossing["sent"] and crossing["arrived"] == crossing["sent"] and name not in (ICMP_ERROR, ROUTED):
            yield label(name)[: -len(" packets")]
