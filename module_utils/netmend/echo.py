"""Probes by ICMP echo: whether a host answers, and the largest packet that reaches it.

By raw sockets: ping sockets would need net.ipv4.ping_group_range, which is empty in a new network namespace.
"""

from __future__ import annotations

import errno
import os
import socket
import struct
import time
from contextlib import contextmanager
from selectors import EVENT_READ
from typing import Iterator, NamedTuple, Optional, Set

from .model import Observation, Probe
from .sockets import Ended, Steps, Timer, Told, Waiting, accepted_from, exchange, opened, queued, send

_PING = 84  # bytes of an IP packet, as ping(8) sends it
_SMALLEST = 576  # bytes that every IPv4 host takes (RFC 791)
_LARGEST = 65535
_AT_ONCE = 32  # sizes tried together: an Ethernet's MTU is then found in two rounds of silence
_IP_HEADER = 20

_SOL_RAW = 255
_ICMP_FILTER = 1  # linux/icmp.h
_ONLY_ECHO_REPLY = struct.pack("=I", ~(1 << 0) & 0xFFFFFFFF)
_IP_MTU_DISCOVER = 10  # linux/in.h
_IP_PMTUDISC_PROBE = 3  # DF is set, and what frag-needed taught this machine about the path before is not used


def icmp(probe: Probe) -> Steps:
    timer = Timer(probe)
    echo = _Echo()
    with _opened_for(probe) as sock:
        yield from exchange(sock, echo.request(_PING), echo.answered, timer, echo.asked)
        return timer.observation()


def mtu(probe: Probe) -> Steps:
    """Finds the largest IP packet that passes with DF set.

    "ok" when it is the device's MTU, or when frag-needed answers larger ones, so that senders adapt. "timeout" when
    larger ones vanish without a word (a path-MTU black hole), or all do (then without ``mtu``).
    """
    timer = Timer(probe)
    echo = _Echo()
    with _opened_for(probe) as sock:
        sock.setsockopt(socket.IPPROTO_IP, _IP_MTU_DISCOVER, _IP_PMTUDISC_PROBE)
        device = _device_mtu(sock, echo)
        passes, limit, told = 0, device, None
        sizes = {min(_SMALLEST, device), device}
        while passes < limit and time.monotonic() < timer.deadline:
            volley = yield from _volley(sock, echo, sizes, timer)
            told = volley.told or told
            passes = max(passes, volley.passed)
            if not passes:
                raise Ended("timeout", "no answer to ICMP echo")
            limit = min([limit, *(size - 1 for size in volley.failed if size > passes)])
            if volley.told and passes < volley.told.info <= limit:
                limit = volley.told.info
                sizes = {limit}
            else:
                sizes = _spread(passes, limit)
    return _swept(device, passes, limit, told)


def _swept(device: int, passes: int, limit: int, told: Optional[Told]) -> Observation:
    if passes == device:
        return Observation(outcome="ok", detail="", mtu=passes)
    if told and told.info == passes:
        return Observation(outcome="ok", detail=f"{told} above {passes} bytes; device MTU {device}", mtu=passes)
    edge = f"{passes} bytes" if passes == limit else f"{passes} to {limit} bytes (no time to look closer)"
    return Observation(outcome="timeout", detail=f"packets over {edge} vanish; device MTU {device}", mtu=passes)


class _Volley(NamedTuple):
    passed: int  # the largest size that was answered, 0 if none
    failed: Set[int]  # sizes that were not
    told: Optional[Told]  # the last frag-needed


def _volley(sock: socket.socket, echo: _Echo, sizes: Set[int], timer: Timer) -> Waiting[_Volley]:
    """Sends an echo request of each size, and once more where nothing came back."""
    passed, silent, told = 0, set(sizes), None
    refused: Set[int] = set()
    for _ in range(2):
        for size in sorted(silent):
            send(sock, echo.request(size))
        until = min(time.monotonic() + timer.limit / 8, timer.deadline)
        while silent and passed < max(sizes) and (yield sock, EVENT_READ, until):
            for error in queued(sock):
                if not echo.asked(error.packet):
                    continue
                if not error.is_frag_needed():
                    raise error.ended()
                told = error
                refused.add(echo.size(error.packet))
            answered = accepted_from(sock, echo.answered)
            passed = max(passed, answered or 0)
            silent -= refused | {answered or 0}
    return _Volley(passed, silent | refused, told)


def _device_mtu(sock: socket.socket, echo: _Echo) -> int:
    """The MTU of the device that leads there: the kernel tells it as it refuses a packet that is too large."""
    try:
        send(sock, echo.request(_LARGEST))
    except OSError as error:
        if error.errno != errno.EMSGSIZE:
            raise
        return max(told.info for told in queued(sock))
    return _LARGEST


def _spread(passes: int, limit: int) -> Set[int]:
    """Up to _AT_ONCE sizes above ``passes`` and up to ``limit``, evenly."""
    return {passes + -(-(limit - passes) * step // _AT_ONCE) for step in range(1, _AT_ONCE + 1)}


class _Echo:
    """Echo requests of one probe; the sequence number is the size of the IP packet."""

    def __init__(self) -> None:
        self._identifier = os.urandom(2)
        self._nonce = os.urandom(8)

    def request(self, size: int) -> bytes:
        body = self._identifier + struct.pack("!H", size) + self._nonce
        total = 0x0800 + sum(struct.unpack("!6H", body))  # the padding is zeros and adds nothing to the checksum
        total = (total & 0xFFFF) + (total >> 16)
        checksum = ~(total + (total >> 16)) & 0xFFFF
        return struct.pack("!BBH", 8, 0, checksum) + body + bytes(size - _IP_HEADER - 4 - len(body))

    def answered(self, packet: bytes) -> Optional[int]:
        """The size of the request that this packet, which begins with its IP header, answers."""
        reply = packet[(packet[0] & 0xF) * 4 :]
        if reply[4:6] == self._identifier and reply[8:16] == self._nonce:
            return self.size(reply)
        return None

    def asked(self, request: bytes) -> bool:
        """Whether this ICMP message is one of these requests: a raw socket is told of other sockets' errors too."""
        return request[:1] == b"\x08" and request[4:6] == self._identifier

    @staticmethod
    def size(message: bytes) -> int:
        return int.from_bytes(message[6:8], "big")


@contextmanager
def _opened_for(probe: Probe) -> Iterator[socket.socket]:
    with opened(probe, socket.SOCK_RAW, socket.IPPROTO_ICMP) as sock:
        sock.setsockopt(_SOL_RAW, _ICMP_FILTER, _ONLY_ECHO_REPLY)
        sock.connect((probe["address"], 0))
        yield sock
