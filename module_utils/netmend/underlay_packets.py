"""The packets of the round that measures the network under the overlays: their marks, and the filter that knows them.

None can be taken for live traffic, and none is answered by what runs on the peer:

- UDP on 8472 and 4789 is VXLAN (RFC 7348) of a VNI that no node has, which the kernel drops (vxlan_rcv in
  drivers/net/vxlan/vxlan_core.c). A device that takes every VNI (``external``) gets a frame for a MAC address that
  nobody has, of an EtherType for experiments (IEEE 802, 0x88B5).
- UDP on 51820 is of message type 0, which WireGuard drops (prepare_skb_header in drivers/net/wireguard/receive.c).
- IP protocol 4 holds an IP header with a wrong checksum. A tunl0 counts it as received and hands it up, and ip_rcv_core
  (net/ipv4/ip_input.c) drops it before it is routed or answered. Its destination, in TEST-NET-1 (RFC 5737), and its
  time to live of 1 would lead nowhere anyhow. It is sent past netfilter: conntrack knows protocol 4 by its two ends,
  and would for ten minutes take the peer's live tunnel packets for answers, and so hide that a firewall drops them.
- A SYN comes from a port that nobody listens on, so the sender's kernel resets what answers it, and no accept(2) of the
  peer sees it. A connection that is made and closed would end BGP sessions: BIRD takes one from its neighbour for the
  neighbour's graceful restart (RFC 4724; bgp_incoming_connection in proto/bgp/bgp.c).
- What is sent to a peer's MAC address, but not to its IP address, is UDP for TEST-NET-1 with a time to live of 1.
"""

from __future__ import annotations

import hashlib
import socket
import struct
from typing import List, NamedTuple, Optional, Tuple

IPIP, TCP, UDP = 4, 6, 17  # IP protocols

ROUNDS = 5  # packets of each kind to each peer, so that loss is a share
CLOSED_PORT = 61453  # UDP; above what Linux hands out by itself (ip_local_port_range ends at 60999), and no NodePort


class Kind(NamedTuple):
    name: str
    protocol: int
    port: int


ICMP_ERROR, ROUTED, DF = "icmp-error", "routed", "df"
KINDS = (
    Kind(ICMP_ERROR, UDP, CLOSED_PORT),  # first: a host sends few ICMP errors a second (icmp(7), icmp_ratelimit)
    Kind("udp-8472", UDP, 8472),
    Kind("udp-4789", UDP, 4789),
    Kind("udp-51820", UDP, 51820),
    Kind("ipip", IPIP, 0),
    Kind("tcp-179", TCP, 179),
    Kind("tcp-6443", TCP, 6443),
    Kind("tcp-10250", TCP, 10250),
    Kind("tcp-2379", TCP, 2379),
    Kind("tcp-2380", TCP, 2380),
    Kind("tcp-5473", TCP, 5473),
    Kind(ROUTED, UDP, CLOSED_PORT),
    Kind(DF, UDP, CLOSED_PORT),
)
VXLAN_PORTS = (8472, 4789)
TCP_PORTS = tuple(kind.port for kind in KINDS if kind.protocol == TCP)

# The mark stands at the same place in every packet but a SYN, whose sequence number is made of it.
MAGIC = b"nmUL"
_MARK = struct.Struct("!4s8sBBH")  # magic, token, index of the kind, round, size of the IP packet
_MARK_AT = 22  # bytes behind the UDP header, which a VXLAN and an Ethernet header take
_ETHERNET = bytes.fromhex("026e6d000001026e6d00000288b5")
_IP_HEADER, _UDP_HEADER = 20, 8
_SYN, _RST, _ACK = 0x02, 0x04, 0x10
_NOWHERE = "192.0.2.2"
SNAP = 128  # bytes of a packet that are looked at


class Mark(NamedTuple):
    token: bytes
    kind: int  # index in KINDS
    round: int
    size: int = 0  # bytes of the IP packet, where that matters

    def pack(self) -> bytes:
        return _MARK.pack(MAGIC, *self)

    def sequence(self) -> int:
        """The sequence number by which a SYN is known: it has no payload."""
        return int.from_bytes(hashlib.blake2b(self.pack(), digest_size=4).digest(), "big")


class Segment(NamedTuple):
    """A SYN, or an answer to one."""

    answer: str  # "SYN-ACK", "RST"; "" for a SYN
    port: int  # the probed one
    sequence: int  # of the SYN


def token(run: str, sender: str, receiver: str) -> bytes:
    """What tells a packet from those of other rounds, senders and receivers."""
    return hashlib.blake2b("\0".join((run, sender, receiver)).encode(), digest_size=8).digest()


# --- to be sent -------------------------------------------------------------------------------------------------------


def udp_payload(port: int, mark: Mark, vni: int) -> bytes:
    head = struct.pack("!II", 0x08000000, vni << 8) + _ETHERNET if port in VXLAN_PORTS else bytes(_MARK_AT)
    return (head + mark.pack()).ljust(mark.size - _IP_HEADER - _UDP_HEADER, b"\0")


def ipip_packet(source: str, destination: str, mark: Mark) -> bytes:
    payload = _ipip_payload(mark)
    return _ip_header(source, destination, IPIP, 64, len(payload)) + payload


def _ipip_payload(mark: Mark) -> bytes:
    behind = bytes(_UDP_HEADER + _MARK_AT - _IP_HEADER) + mark.pack()
    inner = _ip_header("192.0.2.1", _NOWHERE, UDP, 1, len(behind))
    wrong = struct.pack("!H", int.from_bytes(inner[10:12], "big") ^ 0x5555)
    return inner[:10] + wrong + inner[12:] + behind


def routed_packet(source: str, mark: Mark) -> bytes:
    payload = bytes(_MARK_AT) + mark.pack()
    datagram = struct.pack("!HHHH", CLOSED_PORT, CLOSED_PORT, _UDP_HEADER + len(payload), 0) + payload  # no checksum
    return _ip_header(source, _NOWHERE, UDP, 1, len(datagram)) + datagram


def syn(source: str, destination: str, sport: int, dport: int, mark: Mark) -> bytes:
    head = struct.pack("!HHIIBBHHH", sport, dport, mark.sequence(), 0, 5 << 4, _SYN, 1024, 0, 0)
    pseudo = socket.inet_aton(source) + socket.inet_aton(destination) + struct.pack("!BBH", 0, TCP, len(head))
    return head[:16] + struct.pack("!H", _checksum(pseudo + head)) + head[18:]


def _ip_header(source: str, destination: str, protocol: int, ttl: int, payload: int) -> bytes:
    ends = socket.inet_aton(source) + socket.inet_aton(destination)
    head = struct.pack("!BBHHHBBH", 0x45, 0, _IP_HEADER + payload, 0, 0, ttl, protocol, 0) + ends
    return head[:10] + struct.pack("!H", _checksum(head)) + head[12:]


def _checksum(data: bytes) -> int:
    total: int = sum(struct.unpack(f"!{len(data) // 2}H", data))
    total = (total & 0xFFFF) + (total >> 16)
    return ~(total + (total >> 16)) & 0xFFFF


# --- received ---------------------------------------------------------------------------------------------------------


def marked(packet: bytes) -> Optional[Mark]:
    """The mark of a packet of UDP or protocol 4, which begins with its IP header."""
    at = (packet[0] & 0xF) * 4 + _UDP_HEADER + _MARK_AT
    return _mark(packet[at:]) if _is_of(packet, UDP, IPIP) else None


def segment(packet: bytes) -> Optional[Segment]:
    header = (packet[0] & 0xF) * 4
    if not _is_of(packet, TCP) or len(packet) < header + 20:
        return None
    source, destination, sequence, acknowledged = struct.unpack_from("!HHII", packet, header)
    flags = packet[header + 13] & (_SYN | _RST | _ACK)
    if flags == _SYN:
        return Segment("", destination, sequence)
    if flags in (_SYN | _ACK, _RST | _ACK):
        return Segment("RST" if flags & _RST else "SYN-ACK", source, (acknowledged - 1) & 0xFFFFFFFF)
    return None


def marked_datagram(payload: bytes) -> Optional[Mark]:
    """The mark in what an ICMP error quotes of a UDP packet; None where it quotes too little."""
    return _mark(payload[_MARK_AT:])


def quotes_ipip(payload: bytes) -> bool:
    """Whether an ICMP error is about protocol 4 of such a round, as far as it quotes the packet."""
    own = _ipip_payload(Mark(b"", 0, 0))[:_IP_HEADER]
    return payload[:_IP_HEADER] == own[: len(payload)]


def quoted_sequence(payload: bytes) -> int:
    """The sequence number of the SYN that an ICMP error is about."""
    return int.from_bytes(payload[4:8], "big")


def _is_of(packet: bytes, *protocols: int) -> bool:
    """The first packets can be of anything: they came before their socket had its filter."""
    return len(packet) >= _IP_HEADER and packet[0] >> 4 == 4 and packet[9] in protocols


def _mark(data: bytes) -> Optional[Mark]:
    if len(data) < _MARK.size:
        return None
    magic, *fields = _MARK.unpack_from(data)
    mark = Mark(*fields)
    return mark if magic == MAGIC and mark.kind < len(KINDS) else None


# --- the filter -------------------------------------------------------------------------------------------------------

Instruction = Tuple[int, int, int, int]  # code, jump if true, jump if false, operand (linux/filter.h)
_LD_W, _LD_H, _LD_B = 0x20, 0x28, 0x30  # A = packet[k]
_LD_W_X, _LD_H_X, _LD_B_X = 0x40, 0x48, 0x50  # A = packet[X + k]
_LDX_HEADER = 0xB1  # X = 4 * (packet[k] & 0xf): the length of the IP header
_JEQ, _JSET, _RET = 0x15, 0x45, 0x06
_AD_PROTOCOL, _AD_PKTTYPE = 0xFFFFF000, 0xFFFFF004  # SKF_AD_OFF + what the kernel knows beside the packet's bytes
_ETH_P_IP, _PACKET_HOST = 0x0800, 0
_PASS, _DROP = 255, 254  # jumps; they become the distances to the two returns


def packet_filter() -> List[Instruction]:
    """Lets pass, of what came in for this host: marked UDP and protocol 4, and SYNs and RSTs of the probed TCP ports.

    Offsets are those of a packet that begins with its IP header, as on raw sockets and on packet sockets of SOCK_DGRAM.
    A packet that is too short for an offset is dropped.
    """
    ports = [(_JEQ, _PASS, 0, port) for port in TCP_PORTS]
    program = [
        (_LD_W, 0, 0, _AD_PROTOCOL),
        (_JEQ, 0, _DROP, _ETH_P_IP),
        (_LD_W, 0, 0, _AD_PKTTYPE),
        (_JEQ, 0, _DROP, _PACKET_HOST),
        (_LD_H, 0, 0, 6),
        (_JSET, _DROP, 0, 0x1FFF),  # a fragment behind the first
        (_LDX_HEADER, 0, 0, 0),
        (_LD_B, 0, 0, 9),
        (_JEQ, 4, 0, TCP),
        (_JEQ, 1, 0, UDP),
        (_JEQ, 0, _DROP, IPIP),
        (_LD_W_X, 0, 0, _UDP_HEADER + _MARK_AT),
        (_JEQ, _PASS, _DROP, int.from_bytes(MAGIC, "big")),
        (_LD_B_X, 0, 0, 13),  # TCP: its flags
        (_JSET, 0, _DROP, _SYN | _RST),
        (_LD_H_X, 0, 0, 2),  # its destination port
        *ports,
        (_LD_H_X, 0, 0, 0),  # its source port
        *ports,
        (_RET, 0, 0, 0),
        (_RET, 0, 0, SNAP),
    ]
    drop, allow = len(program) - 2, len(program) - 1

    def distance(jump: int, here: int) -> int:
        return {_DROP: drop - here - 1, _PASS: allow - here - 1}.get(jump, jump)

    return [(code, distance(yes, at), distance(no, at), operand) for at, (code, yes, no, operand) in enumerate(program)]
