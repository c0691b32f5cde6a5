"""Sockets of probes: opened in the right network namespace, waited for, and asked what the kernel knows of a failure.

A socket stays in the network namespace in which it was created. So the thread enters a pod's namespace for the instant
of socket(2) and comes back, and sockets of many namespaces are waited for in one place.
"""

from __future__ import annotations

import ctypes
import errno
import os
import socket
import struct
import time
from contextlib import contextmanager, suppress
from selectors import EVENT_READ, EVENT_WRITE
from typing import Callable, Generator, Iterator, NamedTuple, Optional, Tuple, Type, TypeVar

from .model import Observation, Probe

TIMEOUT = 2.0  # seconds
RETRANSMIT = 1.0  # seconds; as the kernel does with a SYN, so that one lost datagram is no outage either

T = TypeVar("T")
Wait = Tuple[socket.socket, int, float]  # for these events on this socket, until this time (monotonic)
Waiting = Generator[Wait, Optional[bool], T]  # yields where it waits; is sent whether the socket became ready in time
Steps = Waiting[Observation]

_CLONE_NEWNET = 0x40000000  # linux/sched.h
_IP_RECVERR = 11  # linux/in.h
_EXTENDED_ERROR = struct.Struct("=IBBBxII")  # struct sock_extended_err; a sockaddr_in of the sender follows
_FROM_ICMP = 2  # SO_EE_ORIGIN_ICMP

_UNREACHABLE = {  # code of ICMP type 3 -> outcome, name
    0: ("unreachable", "net-unreachable"),
    1: ("unreachable", "host-unreachable"),
    2: ("refused", "proto-unreachable"),
    3: ("refused", "port-unreachable"),
    4: ("unreachable", "frag-needed"),
    9: ("prohibited", "net-prohibited"),
    10: ("prohibited", "host-prohibited"),
    13: ("prohibited", "admin-prohibited"),
}

ERRNO = {  # without an ICMP error: the peer's TCP or this machine itself
    errno.ECONNREFUSED: ("refused", "RST"),
    errno.ECONNRESET: ("reset", "RST on an open connection"),
    errno.EPIPE: ("reset", "closed by the peer"),
    errno.ETIMEDOUT: ("timeout", "no answer"),
    errno.ENETUNREACH: ("unreachable", "no route"),
    errno.EHOSTUNREACH: ("unreachable", "an unreachable route, or no neighbour answers"),
    errno.ENETDOWN: ("unreachable", "the device is down"),
    errno.EINVAL: ("unreachable", "a blackhole route"),
    errno.EACCES: ("prohibited", "a prohibit route"),
    errno.EPERM: ("prohibited", "dropped by a rule for outgoing packets"),
}


class Ended(Exception):
    """The outcome is known, wherever in a protocol's steps this is."""

    def __init__(self, outcome: str, detail: str) -> None:
        super().__init__(outcome, detail)
        self.observation = Observation(outcome=outcome, detail=detail)


class Timer:
    """A probe's clock, started when it is made."""

    def __init__(self, probe: Probe) -> None:
        self.limit = probe.get("timeout", TIMEOUT)  # seconds
        self._started = time.monotonic()
        self.deadline = self._started + self.limit

    def extend(self, seconds: float) -> None:
        """So long from now, where that is longer."""
        self.deadline = max(self.deadline, time.monotonic() + seconds)

    def observation(self, detail: str = "", outcome: str = "ok") -> Observation:
        milliseconds = round((time.monotonic() - self._started) * 1000, 3)
        return Observation(outcome=outcome, detail=detail, rtt_ms=milliseconds)


@contextmanager
def opened(probe: Probe, kind: int, protocol: int = 0) -> Iterator[socket.socket]:
    """A non-blocking socket in the probe's namespace; an OSError inside becomes the outcome that it stands for."""
    with _socket_of(probe.get("source_pid", 0), kind, protocol) as sock:
        sock.setblocking(False)
        if probe.get("source_port"):
            with suppress(OSError):  # somebody else has it by now
                sock.bind(("", probe["source_port"]))
        sock.setsockopt(socket.IPPROTO_IP, _IP_RECVERR, 1)
        try:
            yield sock
        except OSError as error:
            raise _failure(sock, error) from None


def connect(sock: socket.socket, probe: Probe, timer: Timer) -> Waiting[None]:
    code = sock.connect_ex((probe["address"], probe["port"]))
    if code == errno.EINPROGRESS:
        yield from until_ready(sock, EVENT_WRITE, timer, "no answer to SYN")
        code = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
    if code:
        raise OSError(code, os.strerror(code))


def receive(sock: socket.socket, timer: Timer, again: Type[OSError] = BlockingIOError) -> Waiting[bytes]:
    """The next bytes of a connection, b"" at its end; ``again`` is what the socket raises while there are none."""
    while True:
        try:
            return sock.recv(4096)
        except again:
            yield from until_ready(sock, EVENT_READ, timer, "connected, but no answer")


def until_ready(sock: socket.socket, events: int, timer: Timer, silence: str) -> Waiting[None]:
    # Asked before the wait: a peer that trickles one byte at a time is ready for ever.
    if time.monotonic() >= timer.deadline or not (yield sock, events, timer.deadline):
        raise Ended("timeout", silence)


def exchange(
    sock: socket.socket,
    message: bytes,
    accept: Callable[[bytes], Optional[T]],
    timer: Timer,
    own: Callable[[bytes], bool] = lambda packet: True,
) -> Waiting[T]:
    """Sends a datagram, and again every second, until ``accept`` makes something of an answer.

    ``own`` tells of a packet that an ICMP error is about whether this probe sent it.
    """
    while time.monotonic() < timer.deadline:
        send(sock, message)
        again = min(time.monotonic() + RETRANSMIT, timer.deadline)
        while (yield sock, EVENT_READ, again):
            for told in queued(sock):
                if own(told.packet):
                    raise told.ended()
            accepted = accepted_from(sock, accept)
            if accepted is not None:
                return accepted
    raise Ended("timeout", "no answer")


def send(sock: socket.socket, message: bytes) -> None:
    try:
        sock.send(message)
    except OSError:
        sock.send(message)  # an ICMP error about an earlier packet is raised by whichever call comes first, once


def accepted_from(sock: socket.socket, accept: Callable[[bytes], Optional[T]]) -> Optional[T]:
    try:
        message = sock.recv(4096)
    except OSError:
        return None  # nothing there, or an ICMP error, which the error queue tells more exactly
    return accept(message)


class Told(NamedTuple):
    """An entry of a socket's error queue (ip(7), IP_RECVERR)."""

    origin: int
    type: int
    code: int
    info: int  # the MTU, where a packet was too large
    sender: str
    packet: bytes  # beginning of the payload of the IP packet that it is about
    destination: Tuple[str, int]  # address and port that this packet was sent to

    def __str__(self) -> str:
        return f"icmp {self._meaning()[1]} from {self.sender}"

    def ended(self) -> Ended:
        return Ended(self._meaning()[0], str(self))

    def is_icmp(self) -> bool:
        """False: this machine's own kernel says so."""
        return self.origin == _FROM_ICMP

    def is_frag_needed(self) -> bool:
        return (self.origin, self.type, self.code) == (_FROM_ICMP, 3, 4)

    def _meaning(self) -> Tuple[str, str]:
        if self.type == 11:
            return "unreachable", "ttl-exceeded"
        return _UNREACHABLE.get(self.code, ("unreachable", f"type {self.type} code {self.code}"))


def queued(sock: socket.socket) -> Iterator[Told]:
    """What stands in the error queue; reading takes it out."""
    while True:
        try:
            packet, ancillary, _, destination = sock.recvmsg(256, 512, socket.MSG_ERRQUEUE)
        except OSError:
            return
        for level, kind, data in ancillary:
            if (level, kind) == (socket.IPPROTO_IP, _IP_RECVERR):
                _, origin, icmp_type, code, info, _ = _EXTENDED_ERROR.unpack_from(data)
                sender = socket.inet_ntoa(data[_EXTENDED_ERROR.size + 4 :][:4])
                yield Told(origin, icmp_type, code, info, sender, packet, destination)


def _failure(sock: socket.socket, error: OSError) -> Ended:
    for told in queued(sock):
        if told.is_icmp():
            return told.ended()
    return Ended(*ERRNO.get(error.errno or 0, ("error", str(error))))


def _socket_of(pid: int, kind: int, protocol: int) -> socket.socket:
    try:
        with _inside(pid):
            return socket.socket(socket.AF_INET, kind, protocol)
    except (FileNotFoundError, ProcessLookupError):
        raise Ended("error", f"process {pid} is gone: its pod was deleted or restarted") from None
    except OSError as error:
        raise Ended("error", f"cannot open a socket: {error.strerror}") from None


@contextmanager
def _inside(pid: int) -> Iterator[None]:
    if not pid:
        yield
        return
    with open("/proc/thread-self/ns/net", "rb") as own, open(f"/proc/{pid}/ns/net", "rb") as pods:
        if os.path.sameopenfile(own.fileno(), pods.fileno()):
            raise Ended("error", f"process {pid} is in the host's network namespace, not in a pod's")
        _setns(pods.fileno())
        try:
            yield
        finally:
            _setns(own.fileno())


def _setns(descriptor: int) -> None:
    if hasattr(os, "setns"):  # Python 3.12
        os.setns(descriptor, _CLONE_NEWNET)
        return
    if ctypes.CDLL(None, use_errno=True).setns(descriptor, _CLONE_NEWNET):
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
