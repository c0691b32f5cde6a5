"""Runs a node's probes, all at once, and says which rules dropped or rejected packets meanwhile. Changes nothing.

One thread and one epoll serve all probes: a hundred threads would cost a small node several times the CPU of the probes
themselves. Each protocol is a generator that reads top down and yields where it waits.
"""

from __future__ import annotations

import os
import re
import selectors
import socket
import ssl
import struct
import time
from collections import deque
from contextlib import contextmanager, suppress
from functools import cache
from itertools import islice
from typing import (
    Any,
    Callable,
    Deque,
    Dict,
    Iterable,
    Iterator,
    List,
    Mapping,
    NamedTuple,
    Optional,
    Sequence,
    Set,
    Tuple,
    cast,
)

from . import conntrack, echo
from .counters import losses, moved, risen, rulesets
from .model import OUTCOMES, Observation, Probe, ProbeResult, met
from .parse import dns, x509
from .sockets import (
    TIMEOUT,
    Ended,
    Steps,
    Timer,
    Waiting,
    accepted_from,
    connect,
    exchange,
    opened,
    queued,
    receive,
    send,
    until_ready,
)

CONCURRENCY = 512  # sockets open at a time; the usual limit is 1024
AGAIN = 5  # attempts at another moment, all of which have to pass before a failure is taken for chance
WAITED_FOR = 10.0  # seconds; an answer that took so long is believed: to ask again would take as long again
SETTLING = 1.0  # seconds until what may yet come right is asked again
ROUNDS = 100  # more would fill the nodes' tables of connections, which keep a closed one for two minutes
PROXY = ("sent", "none", "unknown")
EXPECTATIONS = (*OUTCOMES, "blocked", "any")
_LONGEST_STATUS_LINE = 8192
_PAIR = ("A", "AAAA")  # in the order in which glibc sends them


def measure(source_node: str, probes: Sequence[Probe], rounds: int = 1) -> ProbeResult:
    """Runs the probes of this node, with its rules and its lost packets counted before and after."""
    rules, lost = rulesets(), losses()
    observations = run_probes(probes, rounds)
    return ProbeResult(
        node=source_node, observations=observations, moved=moved(rules, rulesets()), risen=risen(lost, losses())
    )


def run_probes(probes: Sequence[Probe], rounds: int = 1, concurrency: int = CONCURRENCY) -> List[Observation]:
    """Runs the probes concurrently, in rounds, and returns one observation each, in the same order.

    What may yet come right is waited for first. An attempt takes its probe's ``timeout`` at most; up to ``concurrency``
    attempts take the longest of those together. The few that failed are asked once more, which takes as long again at
    most. The probes are valid (``problem`` finds nothing); whatever the network does to them is an outcome.
    """
    _settle([probe for probe in probes if probe.get("settle")], concurrency)
    moments: List[List[_Moment]] = [[] for _ in probes]
    for _ in range(rounds):
        made = _at_once([[probe] * _attempts(probe) for probe in probes], concurrency)
        for of_probe, moment in zip(moments, made):
            of_probe.append(moment)
    failed = [place for place, of_probe in enumerate(moments) if _doubtful(probes[place], of_probe)]
    asked = _again([(probes[place], moments[place]) for place in failed], len(probes), concurrency)
    for place, moment in zip(failed, _at_once(asked, concurrency)):
        moments[place].append(moment)
    return [_observation(probe, of_probe) for probe, of_probe in zip(probes, moments)]


def _settle(probes: Sequence[Probe], concurrency: int) -> None:
    """Waits until all of them are met, or the time that they may take for it is over: nothing tells but asking."""
    until = time.monotonic() + max((probe["settle"] for probe in probes), default=0.0)
    while probes and time.monotonic() < until:
        made = _at_once([[probe] for probe in probes], concurrency)
        probes = [probe for probe, moment in zip(probes, made) if _failed(probe, moment)]
        if probes:
            time.sleep(SETTLING)


class _Attempt(NamedTuple):
    observation: Observation
    port: int  # the local one; 0 where there is none
    took: float  # seconds
    endpoint: str  # the address that a Service's led to; "" where not known


_Moment = List[_Attempt]  # what was made at once: what one moment loses, it may lose of all of them


def _all(moments: Iterable[_Moment]) -> List[_Attempt]:
    return [attempt for moment in moments for attempt in moment]


def _attempts(probe: Probe) -> int:
    return probe.get("attempts", 1)


def _failed(probe: Probe, attempts: Iterable[_Attempt]) -> List[_Attempt]:
    return [attempt for attempt in attempts if not met(probe, attempt.observation)]


def _doubtful(probe: Probe, moments: List[_Moment]) -> bool:
    """Whether chance may have failed it: no chance lets through what is to be blocked."""
    failed = _failed(probe, _all(moments))
    return probe.get("expect", "ok") == "ok" and any(attempt.took < WAITED_FOR for attempt in failed)


def _again(failed: List[Tuple[Probe, List[_Moment]]], of: int, concurrency: int) -> List[List[Probe]]:
    """The attempts that tell chance from a fault, for each probe that failed; none where there is no doubt of one.

    That is where most of the node's probes failed, or more than can be asked again at once: a network that is sick
    would be measured for longer, and no better. Each probe is asked as often as before, so that every endpoint of a
    Service has its turn again, and from ports that failed: connection tracking treats these as it did then.
    """
    most = concurrency // max(1, len(failed)) - AGAIN
    if 2 * len(failed) > of or most < AGAIN:
        return []
    asked = []
    for probe, moments in failed:
        ports = dict.fromkeys(attempt.port for attempt in _failed(probe, _all(moments)) if attempt.port)
        asked.append([probe] * min(most, max(AGAIN, _attempts(probe))))
        asked[-1] += [{**probe, "source_port": port} for port in list(ports)[:AGAIN]]
    return asked


def _observation(probe: Probe, moments: List[_Moment]) -> Observation:
    """The first that is not as expected stands for all, unless one moment alone had any, and others enough of none.

    Where all are as expected, the slowest does.
    """
    attempts = _all(moments)
    failed = _failed(probe, attempts)
    shown = failed[0] if failed else max(attempts, key=lambda attempt: attempt.observation.get("rtt_ms", 0.0))
    observation: Observation = {**shown.observation, "id": probe["id"]}
    if 0 < len(failed) < len(attempts):
        detail = observation["detail"]
        sound = [moment for moment in moments if not _failed(probe, moment)]
        others = _all(sound)
        if _doubtful(probe, moments) and len(moments) - len(sound) == 1 and len(others) >= AGAIN:
            detail = f"{observation['outcome']}, {detail}"
            observation = {**others[0].observation, "id": probe["id"]}
        observation["detail"] = f"{len(failed)} of {len(attempts)} attempts: {detail}"
    if len(attempts) > 1:
        ports = _tallies(probe, ((str(attempt.port), attempt) for attempt in attempts if attempt.port))
        observation["attempts"], observation["failed"] = len(attempts), len(failed)
        observation["ports"] = {port: tally for port, tally in ports.items() if tally[1]}
        observation["endpoints"] = _tallies(probe, ((each.endpoint, each) for each in attempts if each.endpoint))
    return observation


def _tallies(probe: Probe, named: Iterable[Tuple[str, _Attempt]]) -> Dict[str, List[int]]:
    """Name -> [attempts, failed ones]."""
    tallies: Dict[str, List[int]] = {}
    for name, attempt in named:
        tally = tallies.setdefault(name, [0, 0])
        tally[0] += 1
        tally[1] += not met(probe, attempt.observation)
    return tallies


def _at_once(asked: Sequence[Sequence[Probe]], concurrency: int) -> List[_Moment]:
    """One attempt for each of the probes, in the same order."""
    tasks = _run([probe for each in asked for probe in each], concurrency)
    connections = [task.connection() for task in tasks]
    led = iter(conntrack.endpoints([connection for connection in connections if connection]))
    attempts = iter(
        _Attempt(task.observation, task.port, task.took, next(led) if connection else "")
        for task, connection in zip(tasks, connections)
    )
    return [list(islice(attempts, len(each))) for each in asked]


def _run(probes: Sequence[Probe], concurrency: int) -> List[_Task]:
    waiting: Deque[Probe] = deque(probes)
    tasks: List[_Task] = []
    running: List[_Task] = []
    with selectors.DefaultSelector() as selector:
        while waiting or running:
            # One start a round: an early answer is then not held up, and its round trip not inflated, by later starts.
            if waiting and len(running) < concurrency:
                tasks.append(_Task(waiting.popleft(), selector))
                running.append(tasks[-1])
            startable = waiting and len(running) < concurrency
            pause = 0.0 if startable else max(0.0, min(task.until for task in running) - time.monotonic())
            ready = {key.data for key, _ in selector.select(pause)}
            now = time.monotonic()
            for task in running:
                if task in ready or (task.until <= now and not task.observation):
                    task.resume(task in ready)
            running = [task for task in running if not task.observation]
    return tasks


def checked(
    option: str, given: Iterable[Mapping[str, Any]], timeout: float = TIMEOUT, expect: str = "ok"
) -> List[Probe]:
    """Declared probes, with what they leave out. Raises ValueError, naming the first of the option that is wrong."""
    probes: List[Probe] = []
    seen: Set[str] = set()
    for place, each in enumerate(given):
        said = {name: value for name, value in each.items() if value is not None}
        probe = cast(Probe, {"timeout": timeout, "expect": expect, **said})
        wrong = problem(probe) or (f"id {probe['id']!r} is there already" if probe["id"] in seen else "")
        if wrong:
            raise ValueError(f"{option}[{place}]: {wrong}")
        seen.add(probe["id"])
        probes.append(probe)
    return probes


def problem(probe: Probe) -> str:
    """What is wrong with a declared probe, as a clause; "" where nothing is."""
    protocol = probe.get("protocol", "")
    name = probe.get("name", "")
    statuses = [*probe.get("statuses", []), *probe.get("unwanted", []), probe.get("status", 0) or 100]
    path = probe.get("path", "/")
    if protocol not in PROTOCOLS:
        return f"protocol {protocol!r} is none of {', '.join(PROTOCOLS)}"
    try:
        socket.inet_pton(socket.AF_INET, probe.get("address", ""))
    except OSError:
        return f"address {probe.get('address', '')!r} is not an IPv4 address"
    if protocol not in PORTLESS and not 1 <= probe.get("port", 0) <= 65535:
        return f"protocol {protocol} needs a port from 1 to 65535"
    if protocol.startswith("dns-") and not name:
        return f"protocol {protocol} needs a name to ask for"
    if re.search(r"[^\w.-]", name, re.ASCII) or not dns.is_name(name):
        return f"name {name!r} is not a domain name"
    if not re.fullmatch(r"/[!-~]*", path):
        return f"path {path!r} is not an absolute path in printable ASCII"
    if not all(100 <= status <= 599 for status in statuses):
        return "status must be from 100 to 599"
    if probe.get("timeout", TIMEOUT) <= 0:
        return "timeout must be more than 0 seconds"
    if "proxy" in probe and probe["proxy"] not in PROXY:
        return f"proxy {probe['proxy']!r} is none of {', '.join(PROXY)}"
    if _attempts(probe) < 1:
        return "attempts must be at least 1"
    if probe.get("expect", "ok") not in EXPECTATIONS:
        return f"expect {probe['expect']!r} is none of {', '.join(EXPECTATIONS)}"
    return ""


class _Task:
    """A probe on its way; ``observation`` is empty until it ends."""

    def __init__(self, probe: Probe, selector: selectors.BaseSelector) -> None:
        self.observation = Observation()
        self.until = 0.0
        self.took = 0.0  # seconds, once it has ended
        self.port = 0  # the local one, once there is one
        self._probe = probe
        self._address = ""
        self._selector = selector
        self._descriptor = -1
        self._started = time.monotonic()
        self._steps = PROTOCOLS[probe["protocol"]](probe)
        self._go_on(None)

    def resume(self, ready: bool) -> None:
        self._selector.unregister(self._descriptor)
        self._go_on(ready)

    def connection(self) -> Optional[conntrack.Connection]:
        """Of a Service, which has led it somewhere. Of two, each may have been led elsewhere."""
        asked = self._probe["protocol"]
        if not self.port or not self._probe.get("target_service") or asked == "dns-apart":
            return None
        protocol = socket.IPPROTO_UDP if asked in ("udp", "dns-udp", "dns-pair") else socket.IPPROTO_TCP
        destination = (self._probe["address"], self._probe["port"])
        return conntrack.Connection(protocol, (self._address, self.port), destination)

    def _go_on(self, ready: Optional[bool]) -> None:
        try:
            sock, events, self.until = self._steps.send(ready)
        except StopIteration as end:
            self._end(end.value)
        except Ended as end:
            self._end(end.observation)
        else:
            if sock.type != socket.SOCK_RAW:
                self._address, self.port = sock.getsockname()
            self._descriptor = sock.fileno()
            self._selector.register(self._descriptor, events, self)

    def _end(self, observation: Observation) -> None:
        self.observation, self.took = observation, time.monotonic() - self._started


# --- protocols --------------------------------------------------------------------------------------------------------


def _tcp(probe: Probe) -> Steps:
    """Ok when the handshake completes; nothing is sent over the connection."""
    timer = Timer(probe)
    with opened(probe, socket.SOCK_STREAM) as sock:
        yield from connect(sock, probe, timer)
        return timer.observation()


def _udp(probe: Probe) -> Steps:
    """Ok when a datagram comes back; silence cannot tell a drop from a server that has nothing to say."""
    timer = Timer(probe)
    nonce = b"netmend " + os.urandom(8).hex().encode()
    with opened(probe, socket.SOCK_DGRAM) as sock:
        sock.connect((probe["address"], probe["port"]))
        answer = yield from exchange(sock, nonce, lambda message: message, timer)
        return timer.observation("" if answer == nonce else f"answered by {len(answer)} bytes that are no echo")


def _http(probe: Probe) -> Steps:
    """Ok when a status below 500 comes: the path works, whatever the application thinks of it; or the one wanted."""
    return (yield from _either_way(probe, _http_once))


def _https(probe: Probe) -> Steps:
    return (yield from _either_way(probe, _https_once))


def _either_way(probe: Probe, ask: Callable[[Probe, bool], Steps]) -> Steps:
    """As asked; and where the answer may be one to a PROXY header (or to none), the other way, too."""
    sent = probe.get("proxy") == "sent"
    seen = yield from _observed(ask(probe, sent))
    if "proxy" not in probe or not _may_be_of_proxy(seen):
        return seen
    other = yield from _observed(ask(probe, not sent))
    if other["outcome"] != "ok" or _may_be_of_proxy(other):
        return seen
    way = f"with{'out' if sent else ''} the PROXY header"
    if probe["proxy"] == "unknown":
        return {**other, "detail": f"{other['detail']} {way}"}
    outcome = "http" if seen["outcome"] == "ok" else seen["outcome"]
    detail = f"{seen['detail']}; {way}: {other['detail']}"
    return {**seen, "outcome": outcome, "detail": detail, "proxied": other["detail"]}


def _observed(steps: Steps) -> Steps:
    """The outcome, however it came about."""
    try:
        return (yield from steps)
    except Ended as end:
        return end.observation


def _may_be_of_proxy(seen: Observation) -> bool:
    """A server that expects the header ends what begins without it; one that does not takes it for a bad request."""
    status = seen.get("status", 0)
    return status == 400 or (not status and seen["outcome"] in ("http", "reset", "tls"))


def _send_proxy_header(sock: socket.socket) -> None:
    """Version 1 (haproxy.org: The PROXY protocol, 2.1), with the connection's own ends."""
    (source, source_port), (destination, port) = sock.getsockname(), sock.getpeername()
    sock.sendall(f"PROXY TCP4 {source} {destination} {source_port} {port}\r\n".encode())


def _http_once(probe: Probe, proxy: bool) -> Steps:
    timer = Timer(probe)
    with opened(probe, socket.SOCK_STREAM) as sock:
        yield from connect(sock, probe, timer)
        timer.extend(probe.get("patience", 0.0))
        if proxy:
            _send_proxy_header(sock)
        return (yield from _get(sock, probe, timer))


def _https_once(probe: Probe, proxy: bool) -> Steps:
    timer = Timer(probe)
    with opened(probe, socket.SOCK_STREAM) as plain:
        yield from connect(plain, probe, timer)
        timer.extend(probe.get("patience", 0.0))
        if proxy:
            _send_proxy_header(plain)
        context = _tls_context(probe.get("verify", True))
        name = probe.get("name") or probe["address"]
        try:
            with context.wrap_socket(plain, server_hostname=name, do_handshake_on_connect=False) as sock:
                yield from _handshake(sock, timer)
                certificate = _certificate(sock)
                seen = yield from _observed(_get(sock, probe, timer, ssl.SSLWantReadError))
                return {**seen, "certificate": certificate} if certificate else seen
        except ssl.SSLCertVerificationError as error:
            raise Ended("tls", error.verify_message) from None
        except ssl.SSLError as error:
            raise Ended("tls", (error.reason or str(error)).lower().replace("_", " ")) from None


def _dns_udp(probe: Probe) -> Steps:
    timer = Timer(probe)
    asked = dns.question(probe["name"], int.from_bytes(os.urandom(2), "big"))

    def answer(message: bytes) -> Optional[dns.Answer]:
        try:
            return dns.answer(message, asked)
        except ValueError:
            return None  # as a resolver does: it may be anybody's, and the answer may still come

    with opened(probe, socket.SOCK_DGRAM) as sock:
        sock.connect((probe["address"], probe["port"]))
        return _resolved((yield from exchange(sock, asked, answer, timer)), timer)


def _dns_pair(probe: Probe) -> Steps:
    """A and AAAA at once from one socket, as glibc asks: ok when both are answered, whatever the answers say.

    Neither is sent again: a resolver does not do so for five seconds (resolv.conf(5), timeout).
    """
    timer = Timer(probe)
    with _asking(probe) as sock:
        return (yield from _both(probe, timer, sock, sock))


def _dns_apart(probe: Probe) -> Steps:
    """The same from two sockets, and so from two ports: what is lost of these, too, is not lost by the port."""
    timer = Timer(probe)
    with _asking(probe) as sock, _asking(probe) as other:
        return (yield from _both(probe, timer, sock, other))


@contextmanager
def _asking(probe: Probe) -> Iterator[socket.socket]:
    with opened(probe, socket.SOCK_DGRAM) as sock:
        sock.connect((probe["address"], probe["port"]))
        yield sock


def _both(probe: Probe, timer: Timer, *sockets: socket.socket) -> Steps:
    first = int.from_bytes(os.urandom(2), "big")
    questions = {
        record: dns.question(probe["name"], (first + place) % 0x10000, record) for place, record in enumerate(_PAIR)
    }
    missing = dict(zip(_PAIR, sockets))
    for record, sock in missing.items():
        send(sock, questions[record])

    def answered(message: bytes) -> Optional[str]:
        for record, asked in questions.items():
            with suppress(ValueError):
                dns.answer(message, asked)
                return record
        return None

    while missing:
        sock = next(iter(missing.values()))
        yield from until_ready(sock, selectors.EVENT_READ, timer, f"no answer to {' and '.join(missing)}")
        for told in queued(sock):
            raise told.ended()
        missing.pop(accepted_from(sock, answered) or "", None)
    return timer.observation(f"{' and '.join(_PAIR)} answered")


def _dns_tcp(probe: Probe) -> Steps:
    timer = Timer(probe)
    asked = dns.question(probe["name"], int.from_bytes(os.urandom(2), "big"))
    with opened(probe, socket.SOCK_STREAM) as sock:
        yield from connect(sock, probe, timer)
        sock.sendall(struct.pack("!H", len(asked)) + asked)
        received = b""
        while len(received) < 2 or len(received) < 2 + int.from_bytes(received[:2], "big"):
            part = yield from receive(sock, timer)
            if not part:
                raise Ended("dns", "closed without an answer")
            received += part
        try:
            return _resolved(dns.answer(received[2:], asked), timer)
        except ValueError as error:
            raise Ended("dns", f"malformed answer: {error}") from None


PROTOCOLS: Dict[str, Callable[[Probe], Steps]] = {
    "tcp": _tcp,
    "udp": _udp,
    "icmp": echo.icmp,
    "http": _http,
    "https": _https,
    "dns-udp": _dns_udp,
    "dns-tcp": _dns_tcp,
    "dns-pair": _dns_pair,
    "dns-apart": _dns_apart,
    "mtu": echo.mtu,
}
PORTLESS = ("icmp", "mtu")


def _get(sock: socket.socket, probe: Probe, timer: Timer, again: type[OSError] = BlockingIOError) -> Steps:
    lines = (
        f"GET {probe.get('path', '/')} HTTP/1.1",
        f"Host: {probe.get('name') or probe['address']}",
        "User-Agent: netmend",
        "Accept: */*",
        "Connection: close",
    )
    sock.sendall("\r\n".join((*lines, "", "")).encode())
    head = b""
    while b"\n" not in head and len(head) < _LONGEST_STATUS_LINE:
        part = yield from receive(sock, timer, again)
        if not part:
            break
        head += part
    status = re.match(rb"HTTP/\d(?:\.\d)? (\d{3})\b", head)
    if not status:
        raise Ended("http", "not an HTTP answer" if head else "closed without an answer")
    found, wanted = int(status[1]), [*probe.get("statuses", []), *filter(None, [probe.get("status", 0)])]
    is_ok = found in wanted if wanted else found < 500 and found not in probe.get("unwanted", [])
    return {**timer.observation(f"status {found}", "ok" if is_ok else "http"), "status": found}


def _certificate(sock: ssl.SSLSocket) -> Dict[str, Any]:
    try:
        return x509.identity(sock.getpeercert(binary_form=True) or b"")._asdict()
    except ValueError:
        return {}


def _handshake(sock: ssl.SSLSocket, timer: Timer) -> Waiting[None]:
    silence = "connected, but no answer to the TLS handshake"
    while True:
        try:
            return sock.do_handshake()
        except ssl.SSLWantReadError:
            yield from until_ready(sock, selectors.EVENT_READ, timer, silence)
        except ssl.SSLWantWriteError:
            yield from until_ready(sock, selectors.EVENT_WRITE, timer, silence)


@cache  # reading the system's authorities takes 30 ms
def _tls_context(verify: bool) -> ssl.SSLContext:
    context = ssl.create_default_context()
    if not verify:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    return context


def _resolved(answer: dns.Answer, timer: Timer) -> Observation:
    if answer.code != "NOERROR":
        return timer.observation(answer.code, "dns")
    if answer.truncated:  # the path works, and this is all that UDP can say; a resolver would ask again by TCP
        return timer.observation(f"truncated after {len(answer.addresses)} addresses")
    if not answer.addresses:
        return timer.observation("no address", "dns")
    return timer.observation(", ".join(answer.addresses))
