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
from collections import Counter, deque
from contextlib import suppress
from functools import cache
from itertools import islice
from pathlib import Path
from typing import Callable, Deque, Dict, Iterator, List, Optional, Sequence, Tuple

from . import echo, node
from .model import OUTCOMES, Moved, Observation, Probe, ProbeResult, Ruleset
from .parse import dns, proc
from .parse.iptables import parse_save
from .sockets import TIMEOUT, Ended, Steps, Timer, Waiting, connect, exchange, opened, receive, until_ready

CONCURRENCY = 512  # sockets open at a time; the usual limit is 1024
EXPECTATIONS = (*OUTCOMES, "blocked")
_LONGEST_STATUS_LINE = 8192


def measure(source_node: str, probes: Sequence[Probe]) -> ProbeResult:
    """Runs the probes of this node, with its rules and its lost packets counted before and after."""
    rules, lost = rulesets(), losses()
    observations = run_probes(probes)
    return ProbeResult(
        node=source_node, observations=observations, moved=moved(rules, rulesets()), risen=risen(lost, losses())
    )


def run_probes(probes: Sequence[Probe], concurrency: int = CONCURRENCY) -> List[Observation]:
    """Runs the probes concurrently and returns one observation each, in the same order.

    An attempt takes its probe's ``timeout`` at most; up to ``concurrency`` attempts take the longest of those together.
    The probes are valid (``problem`` finds nothing); whatever the network does to them is an outcome.
    """
    attempts = iter(_run([probe for probe in probes for _ in range(_attempts(probe))], concurrency))
    return [_all_of(probe["id"], list(islice(attempts, _attempts(probe)))) for probe in probes]


def _attempts(probe: Probe) -> int:
    return probe.get("attempts", 1)


def _all_of(identifier: str, attempts: List[Observation]) -> Observation:
    """The first that is not ok stands for all, with how many there were."""
    failed = [attempt for attempt in attempts if attempt["outcome"] != "ok"]
    if not failed or len(attempts) == 1:
        return {**attempts[0], "id": identifier}
    detail = f"{len(failed)} of {len(attempts)} attempts: {failed[0]['detail']}"
    return {**failed[0], "id": identifier, "detail": detail}


def _run(probes: Sequence[Probe], concurrency: int) -> List[Observation]:
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
    return [task.observation for task in tasks]


def problem(probe: Probe) -> str:
    """What is wrong with a declared probe, as a clause; "" where nothing is."""
    protocol = probe.get("protocol", "")
    name = probe.get("name", "")
    path = probe.get("path", "/")
    if protocol not in PROTOCOLS:
        return f"protocol {protocol!r} is none of {', '.join(PROTOCOLS)}"
    try:
        socket.inet_pton(socket.AF_INET, probe.get("address", ""))
    except OSError:
        return f"address {probe.get('address', '')!r} is not an IPv4 address"
    if protocol not in PORTLESS and not 1 <= probe.get("port", 0) <= 65535:
        return f"protocol {protocol} needs a port from 1 to 65535"
    if protocol in ("dns-udp", "dns-tcp") and not name:
        return f"protocol {protocol} needs a name to ask for"
    if re.search(r"[^\w.-]", name, re.ASCII) or not dns.is_name(name):
        return f"name {name!r} is not a domain name"
    if not re.fullmatch(r"/[!-~]*", path):
        return f"path {path!r} is not an absolute path in printable ASCII"
    if probe.get("status", 0) and not 100 <= probe["status"] <= 599:
        return "status must be from 100 to 599"
    if probe.get("timeout", TIMEOUT) <= 0:
        return "timeout must be more than 0 seconds"
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
        self._selector = selector
        self._descriptor = -1
        self._steps = PROTOCOLS[probe["protocol"]](probe)
        self._go_on(None)

    def resume(self, ready: bool) -> None:
        self._selector.unregister(self._descriptor)
        self._go_on(ready)

    def _go_on(self, ready: Optional[bool]) -> None:
        try:
            sock, events, self.until = self._steps.send(ready)
        except StopIteration as end:
            self.observation = end.value
        except Ended as end:
            self.observation = end.observation
        else:
            self._descriptor = sock.fileno()
            self._selector.register(self._descriptor, events, self)


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
    timer = Timer(probe)
    with opened(probe, socket.SOCK_STREAM) as sock:
        yield from connect(sock, probe, timer)
        return (yield from _get(sock, probe, timer))


def _https(probe: Probe) -> Steps:
    timer = Timer(probe)
    with opened(probe, socket.SOCK_STREAM) as plain:
        yield from connect(plain, probe, timer)
        context = _tls_context(probe.get("verify", True))
        name = probe.get("name") or probe["address"]
        try:
            with context.wrap_socket(plain, server_hostname=name, do_handshake_on_connect=False) as sock:
                yield from _handshake(sock, timer)
                return (yield from _get(sock, probe, timer, ssl.SSLWantReadError))
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
    found, wanted = int(status[1]), probe.get("status", 0)
    is_ok = found == wanted if wanted else found < 500
    return timer.observation(f"status {found}", "ok" if is_ok else "http")


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


# --- counters ---------------------------------------------------------------------------------------------------------

_LEGACY_TABLES = Path("/proc/net/ip_tables_names")
_PROC_NET = Path("/proc/net")
# Packets that the kernel gave up without any rule: damaged, by the reverse path filter, or in tracking connections.
_LOSSES = (
    "Udp.InCsumErrors",
    "TcpExt.IPReversePathFilter",
    "conntrack.drop",
    "conntrack.early_drop",
    "conntrack.insert_failed",
)


def rulesets() -> Dict[str, Ruleset]:
    """The rule sets with their counters, by backend ("nft", "legacy"); one that cannot be read is left out."""
    found = {}
    for backend in ("nft", "legacy"):
        # Without tables there is nothing to read, and iptables-legacy-save would load the kernel's modules to say so.
        if backend == "legacy" and not (_LEGACY_TABLES.exists() and _LEGACY_TABLES.read_text().strip()):
            continue
        with suppress(node.CommandError):
            found[backend] = parse_save(node.run([f"iptables-{backend}-save", "-c"]))
    return found


def moved(before: Dict[str, Ruleset], after: Dict[str, Ruleset]) -> List[Moved]:
    """The DROP and REJECT rules and DROP policies whose counters rose, of the backends that were read both times.

    A rule is the same one when table, chain and text are, wherever it stands by now; a new one counts from 0.
    """
    rises = []
    for backend in (backend for backend in after if backend in before):
        old = {key: packets for key, _, packets in _blocking(before[backend])}
        for key, index, packets in _blocking(after[backend]):
            table, chain, spec, _ = key
            rise = packets - old.get(key, 0)
            if rise > 0:
                rises.append(Moved(backend=backend, table=table, chain=chain, index=index, spec=spec, packets=rise))
    return rises


def losses(directory: Path = _PROC_NET) -> Dict[str, int]:
    """The counters of lost packets, as "group.name"; one that cannot be read is left out."""
    groups: Dict[str, Dict[str, int]] = {}
    for file in ("snmp", "netstat"):
        with suppress(OSError, ValueError):
            groups.update(proc.snmp((directory / file).read_text()))
    with suppress(OSError, ValueError):
        groups["conntrack"] = proc.conntrack((directory / "stat/nf_conntrack").read_text())
    found = {f"{group}.{name}": value for group, counters in groups.items() for name, value in counters.items()}
    return {name: found[name] for name in _LOSSES if name in found}


def risen(before: Dict[str, int], after: Dict[str, int]) -> Dict[str, int]:
    """By how much each counter rose that did; of those that were read both times."""
    return {name: after[name] - before[name] for name in after if after[name] > before.get(name, after[name])}


_Key = Tuple[str, str, str, int]  # table, chain, spec, and which one of those that read alike


def _blocking(ruleset: Ruleset) -> Iterator[Tuple[_Key, int, int]]:
    """Key, index and packets of everything that drops or rejects."""
    for table, chains in ruleset.items():
        for name, chain in chains.items():
            if chain["policy"] == "DROP":
                yield (table, name, "-P DROP", 1), 0, chain["packets"]
            alike: Counter[str] = Counter()
            for index, rule in enumerate(chain["rules"], start=1):
                if rule["target"] in ("DROP", "REJECT"):
                    alike[rule["spec"]] += 1
                    yield (table, name, rule["spec"], alike[rule["spec"]]), index, rule["packets"]
