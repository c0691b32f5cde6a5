"""Asks the kernel's connection tracking where it led a connection: to which endpoint of a Service. Changes nothing.

By ctnetlink, as kube-proxy does itself: one entry a question, where a busy node's whole table would take long to read.
"""

from __future__ import annotations

import socket
import struct
from typing import Dict, Iterator, List, NamedTuple, Sequence, Tuple

_NETLINK_NETFILTER = 12  # linux/netlink.h
_REQUEST = 1  # NLM_F_REQUEST
_GET = 0x0101  # linux/nfnetlink.h, nfnetlink_conntrack.h: NFNL_SUBSYS_CTNETLINK, IPCTNL_MSG_CT_GET
_NEW = 0x0100  # the kernel's answer
_NESTED = 0x8000  # NLA_F_NESTED
_ORIGINAL, _REPLY = 1, 2  # CTA_TUPLE_ORIG, CTA_TUPLE_REPLY
_ADDRESSES, _PROTOCOL = 1, 2  # CTA_TUPLE_IP, CTA_TUPLE_PROTO
_SOURCE, _DESTINATION = 1, 2  # CTA_IP_V4_SRC, CTA_IP_V4_DST
_NUMBER, _SOURCE_PORT, _DESTINATION_PORT = 1, 2, 3  # CTA_PROTO_*
_HEADERS = struct.Struct("=IHHIIBBH")  # nlmsghdr, nfgenmsg
_ATTRIBUTE = struct.Struct("=HH")


class Connection(NamedTuple):
    """As whoever opened it sees it."""

    protocol: int  # IPPROTO_TCP, IPPROTO_UDP
    source: Tuple[str, int]
    destination: Tuple[str, int]


def endpoints(connections: Sequence[Connection]) -> List[str]:
    """The address that each connection was led to; "" where it was led nowhere else, or this is not known."""
    if not connections:
        return []
    try:
        with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, _NETLINK_NETFILTER) as sock:
            sock.settimeout(1.0)  # the kernel answers at once
            return [_endpoint(sock, connection) for connection in connections]
    except OSError:
        return ["" for _ in connections]


def _endpoint(sock: socket.socket, connection: Connection) -> str:
    sock.send(_question(connection))
    answer = sock.recv(8192)
    if _HEADERS.unpack_from(answer)[1] != _NEW:
        return ""
    reply = _attributes(_attributes(answer[_HEADERS.size :])[_REPLY])
    address = socket.inet_ntoa(_attributes(reply[_ADDRESSES])[_SOURCE])
    return "" if address == connection.destination[0] else address


def _question(connection: Connection) -> bytes:
    (source, source_port), (destination, port) = connection.source, connection.destination
    addresses = _attribute(_SOURCE, socket.inet_aton(source)) + _attribute(_DESTINATION, socket.inet_aton(destination))
    protocol = (
        _attribute(_NUMBER, bytes([connection.protocol]))
        + _attribute(_SOURCE_PORT, struct.pack("!H", source_port))
        + _attribute(_DESTINATION_PORT, struct.pack("!H", port))
    )
    both = _attribute(_ADDRESSES | _NESTED, addresses) + _attribute(_PROTOCOL | _NESTED, protocol)
    body = _attribute(_ORIGINAL | _NESTED, both)
    return _HEADERS.pack(_HEADERS.size + len(body), _GET, _REQUEST, 0, 0, socket.AF_INET, 0, 0) + body


def _attribute(kind: int, value: bytes) -> bytes:
    padding = -len(value) % 4
    return _ATTRIBUTE.pack(_ATTRIBUTE.size + len(value), kind) + value + bytes(padding)


def _attributes(data: bytes) -> Dict[int, bytes]:
    return dict(_each(data))


def _each(data: bytes) -> Iterator[Tuple[int, bytes]]:
    while len(data) >= _ATTRIBUTE.size:
        length, kind = _ATTRIBUTE.unpack_from(data)
        yield kind & ~_NESTED, data[_ATTRIBUTE.size : length]
        data = data[(length + 3) & ~3 or len(data) :]
