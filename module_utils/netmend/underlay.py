"""One node's part of the round that measures the network under the overlays: it sends to its peers and listens to them.

Every node listens from its call on, and sends from a moment that all agreed on. What a sender counts as sent, and its
peer as arrived, tells for each ordered pair what the network between them (the fabric) drops. A packet's sightings are:

- arrived: a packet socket has it, which sees what a device takes in before netfilter and routing decide on it. What an
  XDP program drops is not seen there, and counts as dropped on the way.
- accepted: a raw socket has it, which gets a copy behind INPUT, whatever else the packet is for (raw(7)).
- answered: SYN-ACK, RST or an ICMP error came back, behind INPUT again.

Nothing that runs is disturbed (underlay_packets says how), and no port is bound that others could reach.
"""

from __future__ import annotations

import ctypes
import json
import select
import socket
import struct
import time
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Callable, Dict, Iterable, Iterator, List, NamedTuple, Optional, Sequence, Set

from . import node
from .counters import moved, rulesets
from .model import UnderlayHeard, UnderlayReport, UnderlaySent, UnderlayTo
from .sockets import ERRNO, queued
from .underlay_packets import (
    DF,
    IPIP,
    KINDS,
    ROUNDS,
    ROUTED,
    SNAP,
    TCP,
    UDP,
    Instruction,
    Mark,
    ipip_packet,
    marked,
    marked_datagram,
    packet_filter,
    quoted_sequence,
    quotes_ipip,
    routed_packet,
    segment,
    syn,
    token,
    udp_payload,
)

WINDOW = 0.9  # seconds in which all of them are sent
GRACE = 0.3  # seconds to go on listening when all have sent: for answers and for what is under way
LONGEST_CALL = 4.8  # seconds from the beginning; so long those are waited for who are behind
LONGEST_WAIT = 30.0  # seconds; a moment further ahead is a clock that is wrong

# Bytes of IP packets with DF: the MTU of the device and what is smaller, twice; what frag-needed told, at last.
SIZES = (9001, 8896, 8500, 4000, 2000, 1500, 1492, 1480, 1470, 1460, 1450, 1440, 1430, 1420, 1410, 1400, 1390, 1380,
         1360, 1340, 1320, 1300, 1280)  # fmt: skip
_SIZED_ROUNDS = (0, 2)
_SMALLEST = 576  # bytes that every IPv4 host takes (RFC 791); below that no frag-needed is believed

_IP_RECVERR, _IP_MTU_DISCOVER, _IP_PMTUDISC_PROBE = 11, 10, 3  # linux/in.h
_SO_ATTACH_FILTER, _SO_RCVBUFFORCE, _SO_MEMINFO = 26, 33, 55  # asm-generic/socket.h
_MEMINFO = struct.Struct("=9I")  # the last is SK_MEMINFO_DROPS (linux/sock_diag.h)
_ETH_P_ALL, _ETH_P_IP = 3, 0x0800
_BUFFER = 4 << 20  # bytes; for what a hundred peers send while this process waits for a CPU


class Peer(NamedTuple):
    name: str
    address: str


class Order(NamedTuple):
    """What a node is to do in a round."""

    run: str  # the same for all nodes of a round, and of no other: packets of others are not taken for this one's
    own: Peer
    peers: Sequence[Peer]
    start: float  # seconds since the epoch on this node's clock
    vni: int  # of no VXLAN device of any node


class Route(NamedTuple):
    """How a peer is reached; empty where there is no route."""

    device: str
    gateway: str  # "" where the peer is on the same link
    mtu: int  # of the device, bytes


def measure(order: Order) -> UnderlayReport:
    """Listens at once, sends from the agreed moment on, and says what came.

    It ends GRACE after all peers were heard to the end, and LONGEST_CALL after it began if they are not; where the
    moment is far ahead, as long after it. If it was over already when this began, it sends at once; if it is more than
    LONGEST_WAIT ahead, the clock is not what it was taken for, and it does the same. It does not raise where the
    network is sick: what could not be done stands in ``errors``.
    """
    began = time.time()
    report: UnderlayReport = {
        "node": order.own.name, "address": order.own.address, "run": order.run, "start": order.start,
        "late": max(0.0, round(began - order.start, 3)), "listened": [0.0, 0.0], "sent": [0.0, 0.0],
        "to": {}, "heard": {}, "moved": [], "overflow": 0, "errors": [],
    }  # fmt: skip
    start = max(began, order.start)
    if start - began > LONGEST_WAIT:
        ahead = f"{start - began:.1f} s ahead on this node's clock"
        report["errors"].append(f"the agreed moment was {ahead}: not waited for")
        start = began
    with ExitStack() as stack:
        try:
            ends = _Ends(order.own.address, stack)
        except OSError as error:
            report["errors"].append(f"cannot listen at {order.own.address}: {error.strerror or error}")
            return report
        report["listened"][0] = time.time()
        _Round(order, ends, report).take(start, began + max(LONGEST_CALL, 2 * (start - began)))
    return report


class _Round:
    def __init__(self, order: Order, ends: _Ends, report: UnderlayReport) -> None:
        own, self.peers, self.ends, self.report = order.own, order.peers, ends, report
        self.own, self.vni = own, order.vni
        self.by_address = {peer.address: peer for peer in order.peers}
        self.tokens = {peer.name: token(order.run, own.name, peer.name) for peer in order.peers}
        self.senders = {token(order.run, peer.name, own.name): peer for peer in order.peers}
        self.syns_to_come = {mark.sequence(): mark for each in self.senders for mark in _syns(each)}
        self.own_syns = {
            mark.sequence(): (peer, mark.kind) for peer in order.peers for mark in _syns(self.tokens[peer.name])
        }
        self.awaited = set(self.senders)  # who was not yet heard in the last round
        self.arrived: Set[Mark] = set()
        self.accepted: Set[Mark] = set()
        self.devices: Dict[bytes, str] = {}  # by the sender's token
        self.macs: Dict[str, bytes] = {}  # by the address of the next hop

    def take(self, start: float, end: float) -> None:
        routes = _routes(self.by_address)
        for peer in self.peers:
            route = routes.get(peer.address, Route("", "", 0))
            kinds = {kind.name: UnderlaySent(sent=0, answered=0, told={}, kept={}) for kind in KINDS if kind.name != DF}
            self.report["to"][peer.name] = UnderlayTo(
                device=route.device, gateway=route.gateway, mtu=route.mtu, kinds=kinds, sizes={}, frag_needed={}
            )
        before = rulesets()
        start = max(start, time.time())
        self._listen(start)
        sent = self.report["sent"]
        sent[:] = [time.time()] * 2
        steps = list(self._steps())
        for index, step in enumerate(steps, 1):
            step()
            self._listen(start + WINDOW * index / len(steps))
        sent[1] = time.time()
        self._listen(max(end - GRACE, sent[1]), until_all_were_heard=True)
        self._listen(time.time() + GRACE)
        self.report["listened"][1] = time.time()
        self.report["moved"] = moved(before, rulesets())
        self.report["overflow"] = self.ends.overflow()
        for each, peer in self.senders.items():
            self.report["heard"][peer.name] = self._heard(each)

    # --- sending ---

    def _steps(self) -> Iterator[Callable[[], None]]:
        """Each sends one packet; kinds and peers take turns, so that a moment's loss meets all alike."""
        for round_ in range(ROUNDS):
            for index, kind in enumerate(KINDS):
                for peer in self.peers:
                    mark = Mark(self.tokens[peer.name], index, round_)
                    if kind.name != DF:
                        yield partial(self._send, peer, mark)
                    elif round_ in _SIZED_ROUNDS:
                        device = self.report["to"][peer.name]["mtu"]
                        for size in sorted({device, *SIZES}, reverse=True):
                            if _SMALLEST <= size <= device:
                                yield partial(self._send, peer, mark._replace(size=size))
                    elif round_ == ROUNDS - 1:
                        yield partial(self._send_told, peer, mark)

    def _send_told(self, peer: Peer, mark: Mark) -> None:
        for size in set(self.report["to"][peer.name]["frag_needed"].values()):
            if size >= _SMALLEST:
                self._send(peer, mark._replace(size=size))

    def _send(self, peer: Peer, mark: Mark) -> None:
        kind, to = KINDS[mark.kind], self.report["to"][peer.name]
        if kind.name == ROUTED and (to["gateway"] or not to["device"]):
            failure = f"not on the same link, but behind {to['gateway']}" if to["gateway"] else "no route"
        elif kind.name == ROUTED:
            failure = self._send_on_link(routed_packet(self.own.address, mark), peer)
        elif kind.protocol == IPIP:
            failure = self._send_on_link(ipip_packet(self.own.address, peer.address, mark), peer)
        elif kind.protocol == TCP:
            port = self.ends.ports[mark.round]
            failure = self._try(self.ends.tcp, syn(self.own.address, peer.address, port, kind.port, mark), peer, 0)
        else:
            failure = self._try(self.ends.udp, udp_payload(kind.port, mark, self.vni), peer, kind.port)
        if kind.name == DF:
            size = str(mark.size)
            to["sizes"][size] = to["sizes"].get(size, 0) + (not failure)
            return
        counts = to["kinds"][kind.name]
        if failure:
            counts["kept"][failure] = counts["kept"].get(failure, 0) + 1
        else:
            counts["sent"] += 1

    def _try(self, sock: socket.socket, message: bytes, peer: Peer, port: int) -> str:
        """ "" where it left, else why not."""
        failure = ""
        for _ in range(3):  # an ICMP error about an earlier packet is raised by whichever call comes first, once
            self._read_errors(sock)
            try:
                sock.sendto(message, (peer.address, port))
            except OSError as error:
                failure = ERRNO.get(error.errno or 0, ("error", str(error)))[1]
            else:
                return ""
        return failure

    def _send_on_link(self, packet: bytes, peer: Peer) -> str:
        """To the MAC address that leads to the peer: its own, or its gateway's."""
        to = self.report["to"][peer.name]
        next_hop = to["gateway"] or peer.address
        if not to["device"]:
            return "no route"
        try:
            if next_hop not in self.macs:
                self.macs.update((next_hop, mac) for mac in _macs(next_hop, to["device"]))
            if next_hop not in self.macs:
                return "no neighbour answers"
            self.ends.packets.sendto(packet, (to["device"], _ETH_P_IP, 0, 0, self.macs[next_hop]))
        except OSError as error:
            return str(error)
        return ""

    # --- listening ---

    def _listen(self, until: float, until_all_were_heard: bool = False) -> None:
        """Takes what comes until then (seconds since the epoch), and what is there already."""
        deadline = time.monotonic() + until - time.time()
        while self.awaited or not until_all_were_heard:
            for sock in self.ends.ready(deadline - time.monotonic()):
                self._read(sock)
            if time.monotonic() >= deadline:
                return

    def _read(self, sock: socket.socket) -> None:
        self._read_errors(sock)
        for _ in range(64):  # and no more at a time, so that what is due to be sent does not wait for long
            try:
                packet, sender = sock.recvfrom(SNAP)
            except OSError:
                return  # nothing left, or an ICMP error, which the error queue tells more exactly
            if sock is self.ends.packets:
                self._sight(packet, self.arrived, sender[0])
            elif sock is not self.ends.udp:
                self._sight(packet, self.accepted)
                self._take_answer(packet)

    def _sight(self, packet: bytes, seen: Set[Mark], device: str = "") -> None:
        mark, tcp = marked(packet), segment(packet)
        if tcp and not tcp.answer:
            mark = self.syns_to_come.get(tcp.sequence)
            mark = mark if mark and KINDS[mark.kind].port == tcp.port else None
        if mark and mark.token in self.senders:
            seen.add(mark)
            if mark.round == ROUNDS - 1:
                self.awaited.discard(mark.token)
            if device:  # the last one, where several have it in turn: a bridge's port, then the bridge with the address
                self.devices[mark.token] = device

    def _take_answer(self, packet: bytes) -> None:
        tcp = segment(packet)
        if tcp and tcp.answer:
            peer, index = self.own_syns.get(tcp.sequence, (None, 0))
            if peer and KINDS[index].port == tcp.port:
                self._tell(peer, index, tcp.answer)

    def _read_errors(self, sock: socket.socket) -> None:
        if sock is self.ends.packets:
            return
        for told in queued(sock):
            peer = self.by_address.get(told.destination[0])
            if not peer or not told.is_icmp():
                continue
            if told.is_frag_needed() and sock is self.ends.udp:
                self.report["to"][peer.name]["frag_needed"][told.sender] = told.info
                continue
            index = self._subject(sock, told.packet, told.destination[1])
            if index is not None:
                self._tell(peer, index, str(told))

    def _subject(self, sock: socket.socket, packet: bytes, port: int) -> Optional[int]:
        """Which kind an ICMP error is about; a raw socket is told of other sockets' errors, too."""
        if sock is self.ends.udp:
            mark = marked_datagram(packet)
            index = mark.kind if mark else next(i for i, kind in enumerate(KINDS) if kind[1:] == (UDP, port))
            return None if KINDS[index].name == DF else index
        if sock is self.ends.ipip:
            return next(i for i, kind in enumerate(KINDS) if kind.protocol == IPIP) if quotes_ipip(packet) else None
        _, subject = self.own_syns.get(quoted_sequence(packet), (None, None))
        return subject

    def _tell(self, peer: Peer, index: int, what: str) -> None:
        counts = self.report["to"][peer.name]["kinds"][KINDS[index].name]
        counts["answered"] += 1
        counts["told"][what] = counts["told"].get(what, 0) + 1

    def _heard(self, sender: bytes) -> UnderlayHeard:
        accepted = [mark for mark in self.accepted if mark.token == sender]
        # What was accepted did arrive, even where the packet socket was too full to take it.
        arrived = [mark for mark in self.arrived | self.accepted if mark.token == sender]
        heard = UnderlayHeard(device=self.devices.get(sender, ""), rounds=[], kinds={}, sizes={})
        heard["rounds"] = sorted({mark.round for mark in arrived})
        for index, kind in enumerate(KINDS):
            if kind.name != DF:
                heard["kinds"][kind.name] = {
                    "arrived": sum(mark.kind == index for mark in arrived),
                    "accepted": sum(mark.kind == index for mark in accepted),
                }
        for mark in arrived:
            if KINDS[mark.kind].name == DF:
                heard["sizes"][str(mark.size)] = heard["sizes"].get(str(mark.size), 0) + 1
        return heard


def _syns(its_token: bytes) -> Iterator[Mark]:
    for index, kind in enumerate(KINDS):
        if kind.protocol == TCP:
            yield from (Mark(its_token, index, round_) for round_ in range(ROUNDS))


class _Ends:
    """The sockets. Those that receive have a filter, so that a busy node's traffic does not wake this process."""

    def __init__(self, address: str, stack: ExitStack) -> None:
        def opened(*arguments: int) -> socket.socket:
            return stack.enter_context(socket.socket(*arguments))

        self.packets = opened(socket.AF_PACKET, socket.SOCK_DGRAM, socket.htons(_ETH_P_ALL))
        self.tcp = opened(socket.AF_INET, socket.SOCK_RAW, TCP)
        self.ipip = opened(socket.AF_INET, socket.SOCK_RAW, IPIP)
        self.accepted_udp = opened(socket.AF_INET, socket.SOCK_RAW, UDP)
        self.udp = opened(socket.AF_INET, socket.SOCK_DGRAM)
        # Ports that SYNs leave from: held, so that nobody else has them; not listened on, so that answers are reset.
        held = [opened(socket.AF_INET, socket.SOCK_STREAM) for _ in range(ROUNDS)]
        self._filtered = (self.packets, self.tcp, self.ipip, self.accepted_udp)
        program = packet_filter()
        for sock in self._filtered:
            _attach(sock, program)
            sock.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, _BUFFER)
        for sock in (self.tcp, self.ipip, self.accepted_udp, self.udp, *held):
            sock.bind((address, 0))
        for sock in (self.tcp, self.ipip, self.udp):
            sock.setsockopt(socket.IPPROTO_IP, _IP_RECVERR, 1)
        self.udp.setsockopt(socket.IPPROTO_IP, _IP_MTU_DISCOVER, _IP_PMTUDISC_PROBE)
        self.ports = [sock.getsockname()[1] for sock in held]
        self._sockets = {sock.fileno(): sock for sock in (*self._filtered, self.udp)}
        self._epoll = stack.enter_context(select.epoll())
        for sock in self._sockets.values():
            sock.setblocking(False)
            self._epoll.register(sock.fileno(), select.EPOLLIN)

    def ready(self, seconds: float) -> List[socket.socket]:
        return [self._sockets[descriptor] for descriptor, _ in self._epoll.poll(max(0.0, seconds))]

    def overflow(self) -> int:
        """How many packets came while a receive buffer was full."""
        counters = (sock.getsockopt(socket.SOL_SOCKET, _SO_MEMINFO, _MEMINFO.size) for sock in self._filtered)
        return sum(_MEMINFO.unpack(each)[-1] for each in counters)


def _attach(sock: socket.socket, program: Sequence[Instruction]) -> None:
    code = b"".join(struct.pack("=HBBI", *instruction) for instruction in program)
    buffer = ctypes.create_string_buffer(code, len(code))
    sock.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, struct.pack("@HP", len(program), ctypes.addressof(buffer)))


def _routes(addresses: Iterable[str]) -> Dict[str, Route]:
    """Address -> how it is reached, where there is a route. One command for all: its start is what it takes."""
    asked = "".join(f"route get {address}\n" for address in addresses)
    found = {}
    try:
        for line in node.run(["ip", "-j", "-4", "-force", "-batch", "-"], check=False, given=asked).splitlines():
            for route in json.loads(line):
                mtu = int(Path(f"/sys/class/net/{route['dev']}/mtu").read_text(encoding="ascii"))
                found[route["dst"]] = Route(route["dev"], route.get("gateway", ""), mtu)
    except (node.CommandError, OSError, ValueError, KeyError):
        pass  # what is not known has none
    return found


def _macs(address: str, device: str) -> Iterator[bytes]:
    if Path(f"/sys/class/net/{device}/addr_len").read_text(encoding="ascii").strip() == "0":
        yield b""  # a tunnel
        return
    for line in Path("/proc/net/arp").read_text(encoding="ascii").splitlines()[1:]:
        neighbour, _, flags, mac, _, its_device = line.split()
        if (neighbour, its_device) == (address, device) and int(flags, 16):  # 0: no answer yet
            yield bytes.fromhex(mac.replace(":", ""))
