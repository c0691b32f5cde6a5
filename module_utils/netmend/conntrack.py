"""Asks the kernel's connection tracking where it led a connection, and lets it forget what it led nowhere.

By ctnetlink, as kube-proxy does itself.
"""

from __future__ import annotations

import socket
import struct
from typing import Collection, Dict, Iterator, List, NamedTuple, Sequence, Tuple

_NETLINK_NETFILTER = 12  # linux/netlink.h
_REQUEST, _ACKNOWLEDGE, _DUMP = 0x1, 0x4, 0x300  # NLM_F_*
_ERROR, _DONE = 2, 3  # NLMSG_*
# linux/nfnetlink.h, nfnetlink_conntrack.h: NFNL_SUBSYS_CTNETLINK, IPCTNL_MSG_CT_*; NEW is the kernel's answer
_NEW, _GET, _DELETE = 0x0100, 0x0101, 0x0102
_NESTED = 0x8000  # NLA_F_NESTED
_ORIGINAL, _REPLY, _STATUS = 1, 2, 3  # CTA_TUPLE_ORIG, CTA_TUPLE_REPLY, CTA_STATUS
_SEEN_REPLY = 2  # IPS_SEEN_REPLY (linux/netfilter/nf_conntrack_common.h)
_ADDRESSES, _PROTOCOL = 1, 2  # CTA_TUPLE_IP, CTA_TUPLE_PROTO
_SOURCE, _DESTINATION = 1, 2  # CTA_IP_V4_SRC, CTA_IP_V4_DST
_NUMBER, _SOURCE_PORT, _DESTINATION_PORT = 1, 2, 3  # CTA_PROTO_*
_HEADERS = struct.Struct("=IHHIIBBH")  # nlmsghdr, nfgenmsg
_ATTRIBUTE = struct.Struct("=HH")
_DUMPED = 1 << 16  # bytes; more than the kernel puts into one message of a dump


class Connection(NamedTuple):
    """As whoever opened it sees it."""

    protocol: int  # IPPROTO_TCP, IPPROTO_UDP
    source: Tuple[str, int]
    destination: Tuple[str, int]


def endpoints(connections: Sequence[Connection]) -> List[str]:
    """The address that each connection was led to; "" where it was led nowhere else, or this is not known.

    One entry a question, where a busy node's whole table would take long to read.
    """
    if not connections:
        return []
    try:
        with _opened() as sock:
            return [_endpoint(sock, connection) for connection in connections]
    except OSError:
        return ["" for _ in connections]


def forget(addresses: Collection[str]) -> int:
    """Takes away the entries of connections to these addresses that were led nowhere else and had no answer.

    A connection that began while rules were missing keeps to what was decided then, however often it is tried from the
    same port: for as long as its entry lasts, which is 120 s for a SYN, and as long as it is tried for UDP. Returns how
    many there were; OSError where the kernel cannot be asked.
    """
    with _opened() as sock:
        stuck = [each for each in _unanswered(sock) if each.destination[0] in addresses]
        for connection in stuck:
            sock.send(_question(connection, _DELETE, _REQUEST | _ACKNOWLEDGE))
            sock.recv(_DUMPED)  # that it is gone, or was gone already
    return len(stuck)


def _opened() -> socket.socket:
    sock = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, _NETLINK_NETFILTER)
    sock.settimeout(1.0)  # the kernel answers at once
    return sock


def _unanswered(sock: socket.socket) -> Iterator[Connection]:
    """Of all TCP and UDP connections, those that were led nowhere else and had no answer."""
    sock.send(_HEADERS.pack(_HEADERS.size, _GET, _REQUEST | _DUMP, 0, 0, socket.AF_INET, 0, 0))
    while True:
        data = sock.recv(_DUMPED)
        while data:
            length, kind = struct.unpack_from("=IH", data)
            if kind == _ERROR:
                raise OSError("connection tracking cannot be read")
            if kind == _DONE:
                return
            entry = _attributes(data[_HEADERS.size : length])
            opened, reply = _connection(entry[_ORIGINAL]), _connection(entry[_REPLY])
            answered = int.from_bytes(entry[_STATUS], "big") & _SEEN_REPLY
            if opened.source[1] and not answered and opened.destination == reply.source:
                yield opened
            data = data[(length + 3) & ~3 :]


def _connection(packed: bytes) -> Connection:
    """A CTA_TUPLE_*; without ports where its protocol has none."""
    parts = _attributes(packed)
    addresses, protocol = _attributes(parts[_ADDRESSES]), _attributes(parts[_PROTOCOL])
    source, destination = (
        (socket.inet_ntoa(addresses[address]), int.from_bytes(protocol.get(port, b""), "big"))
        for address, port in ((_SOURCE, _SOURCE_PORT), (_DESTINATION, _DESTINATION_PORT))
    )
    return Connection(protocol[_NUMBER][0], source, destination)


def _endpoint(sock: socket.socket, connection: Connection) -> str:
    sock.send(_question(connection, _GET, _REQUEST))
    answer = sock.recv(8192)
    if _HEADERS.unpack_from(answer)[1] != _NEW:
        return ""
    address, _ = _connection(_attributes(answer[_HEADERS.size :])[_REPLY]).source
    return "" if address == connection.destination[0] else address


def _question(connection: Connection, kind: int, flags: int) -> bytes:
    (source, source_port), (destination, port) = connection.source, connection.destination
    addresses = _attribute(_SOURCE, socket.inet_aton(source)) + _attribute(_DESTINATION, socket.inet_aton(destination))
    protocol = (
        _attribute(_NUMBER, bytes([connection.protocol]))
        + _attribute(_SOURCE_PORT, struct.pack("!H", source_port))
        + _attribute(_DESTINATION_PORT, struct.pack("!H", port))
    )
    both = _attribute(_ADDRESSES | _NESTED, addresses) + _attribute(_PROTOCOL | _NESTED, protocol)
    body = _attribute(_ORIGINAL | _NESTED, both)
    return _HEADERS.pack(_HEADERS.size + len(body), kind, flags, 0, 0, socket.AF_INET, 0, 0) + body


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
