"""Every outcome, provoked for real: nodes in network namespaces of their own, with a fabric between them that routes.

What the fabric drops stands in its FORWARD chain, what a node drops in its own INPUT chain. The moment is agreed on as
a run does it, and all nodes take part in processes of their own.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Iterator

import pytest
from ansible.module_utils.netmend.model import Underlay, UnderlayReport
from ansible.module_utils.netmend.overlays import evaluate
from ansible.module_utils.netmend.underlay_packets import ROUNDS

ROOT = Path(__file__).parents[2]
FABRIC, A, B = (f"nmu-{os.getpid()}-{name}" for name in ("fabric", "a", "b"))
NAMES = {A: "a", B: "b"}
ADDRESSES = {A: "10.9.1.2", B: "10.9.2.2"}
GATEWAYS = {A: "10.9.1.1", B: "10.9.2.1"}
DEVICE, MTU, VNI = "enp7s0", 1450, 0xFFFFFF
MEASURE = """
import json, sys
import ansible.module_utils
ansible.module_utils.__path__.append("module_utils")
from ansible.module_utils.netmend import underlay
vars(underlay).update(SETTINGS)
print("ready", flush=True)
reports = []
for line in sys.stdin:
    order = json.loads(line)
    order.update(own=underlay.Peer(*order["own"]), peers=[underlay.Peer(*peer) for peer in order["peers"]])
    reports.append(underlay.measure(underlay.Order(**order)))
print(json.dumps(reports))
"""


def ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True)


def inside(namespace: str, *command: str) -> str:
    return subprocess.run(["ip", "netns", "exec", namespace, *command], check=True, text=True, stdout=-1).stdout


@pytest.fixture(scope="module", autouse=True)
def network() -> Iterator[None]:
    if os.geteuid() != 0:
        pytest.skip("network namespaces need root")
    with ExitStack() as stack:
        for namespace in (FABRIC, A, B):
            ip("netns", "add", namespace)
            stack.callback(ip, "netns", "del", namespace)
            ip("-n", namespace, "link", "set", "lo", "up")
        for namespace, name in NAMES.items():
            ip("-n", FABRIC, "link", "add", f"to-{name}", "mtu", str(MTU), "type", "veth",
               "peer", "name", DEVICE, "mtu", str(MTU), "netns", namespace)  # fmt: skip
            ip("-n", namespace, "addr", "add", f"{ADDRESSES[namespace]}/24", "dev", DEVICE)
            ip("-n", namespace, "link", "set", DEVICE, "up")
            ip("-n", FABRIC, "addr", "add", f"{GATEWAYS[namespace]}/24", "dev", f"to-{name}")
            ip("-n", FABRIC, "link", "set", f"to-{name}", "up")
            ip("-n", namespace, "route", "add", "default", "via", GATEWAYS[namespace])
            inside(namespace, "sysctl", "-qw", "net.ipv4.ip_forward=1")
        inside(FABRIC, "sysctl", "-qw", "net.ipv4.ip_forward=1")
        inside(FABRIC, "sysctl", "-qw", "net.ipv4.icmp_ratelimit=0")
        yield


class Taking:
    """A node that takes part in rounds, one after the other, in a process of its own."""

    def __init__(self, namespace: str, **settings: Any) -> None:
        code = MEASURE.replace("SETTINGS", repr(settings))
        command = ["ip", "netns", "exec", namespace, sys.executable, "-c", code]
        self.process = subprocess.Popen(command, cwd=ROOT, stdin=-1, stdout=-1, text=True)
        assert self.process.stdout
        assert self.process.stdout.readline() == "ready\n"

    def begin(self, *orders: dict[str, Any]) -> None:
        assert self.process.stdin
        self.process.stdin.writelines(json.dumps(order) + "\n" for order in orders)
        self.process.stdin.close()

    def reports(self) -> list[UnderlayReport]:
        assert self.process.stdout
        with self.process.stdout as output:
            found = json.load(output)
        assert self.process.wait(timeout=30) == 0
        return found  # type: ignore[no-any-return]  # JSON is of any type


def order(namespace: str, start: float, run: str = "run") -> dict[str, Any]:
    peers = [(name, ADDRESSES[each]) for each, name in NAMES.items() if each != namespace]
    return {"run": run, "own": (NAMES[namespace], ADDRESSES[namespace]), "peers": peers, "start": start, "vni": VNI}


def take_round(run: str = "run", **sooner: float) -> dict[str, UnderlayReport]:
    """All nodes' reports; ``sooner``: seconds by which a node is told to begin sooner than the others."""
    taking = {namespace: Taking(namespace) for namespace in NAMES}
    start = time.time() + 0.6
    for namespace, node in taking.items():
        node.begin(order(namespace, start - sooner.get(NAMES[namespace], 0.0), run))
    return {NAMES[namespace]: node.reports()[0] for namespace, node in taking.items()}


def measured(**sooner: float) -> Underlay:
    return evaluate(take_round(**sooner), {})


def verdicts(underlay: Underlay, pair: str) -> dict[str, str]:
    """What does not pass, without host-gw's packets, which a fabric that routes never gets."""
    kinds = underlay["pairs"][pair]["kinds"]
    return {kind: each["verdict"] for kind, each in kinds.items() if each["verdict"] != "passes" and kind != "routed"}


@contextmanager
def rule(namespace: str, *spec: str) -> Iterator[None]:
    inside(namespace, "iptables", "-w", "-I", *spec)
    try:
        yield
    finally:
        inside(namespace, "iptables", "-w", "-D", *spec)


# --- what passes ------------------------------------------------------------------------------------------------------


def test_a_network_that_lets_all_pass() -> None:
    underlay = measured()
    for pair in ("a>b", "b>a"):
        assert verdicts(underlay, pair) == {}
        crossings = {kind: each for kind, each in underlay["pairs"][pair]["kinds"].items() if kind != "routed"}
        assert {(each["sent"], each["arrived"], each["accepted"]) for each in crossings.values()} == {(ROUNDS,) * 3}
        assert crossings["tcp-179"]["told"] == ["RST"]
        assert crossings["icmp-error"]["told"] == [f"icmp port-unreachable from {ADDRESSES[B if pair == 'a>b' else A]}"]
        assert (underlay["pairs"][pair]["device"], underlay["pairs"][pair]["mtu"]) == (DEVICE, MTU)
        assert underlay["pairs"][pair]["icmp_errors"] == "come back"
    overlays = {name: (each["verdict"], each["mtu"]) for name, each in underlay["overlays"].items()}
    assert overlays == {
        "vxlan-8472": ("works", 1400), "vxlan-4789": ("works", 1400), "ipip": ("works", 1430),
        "wireguard": ("works", 1390), "host-gw": ("no", 1450),
    }  # fmt: skip


def test_host_gw_on_one_link() -> None:
    """Through a bridge both nodes are on one link, and what is for a pod behind the peer gets there."""
    with ExitStack() as stack:
        ip("-n", FABRIC, "link", "add", "link0", "type", "bridge")
        stack.callback(ip, "-n", FABRIC, "link", "del", "link0")
        ip("-n", FABRIC, "link", "set", "link0", "up")
        for number, (namespace, name) in enumerate(NAMES.items(), 1):
            ip("-n", FABRIC, "link", "add", f"l{name}", "type", "veth", "peer", "name", "eth1", "netns", namespace)
            stack.callback(ip, "-n", FABRIC, "link", "del", f"l{name}")
            ip("-n", FABRIC, "link", "set", f"l{name}", "master", "link0", "up")
            ip("-n", namespace, "addr", "add", f"10.9.9.{number}/24", "dev", "eth1")
            ip("-n", namespace, "link", "set", "eth1", "up")
        old = dict(ADDRESSES)
        stack.callback(ADDRESSES.update, old)
        ADDRESSES.update({A: "10.9.9.1", B: "10.9.9.2"})
        underlay = measured()
        assert underlay["overlays"]["host-gw"] == {"verdict": "works", "mtu": 1500, "why": []}
        with rule(FABRIC, "FORWARD", "-m", "physdev", "--physdev-is-bridged", "-d", "192.0.2.0/24", "-j", "DROP"):
            inside(FABRIC, "sysctl", "-qw", "net.bridge.bridge-nf-call-iptables=1")
            underlay = measured()
    assert underlay["overlays"]["host-gw"]["verdict"] == "no"
    assert underlay["pairs"]["a>b"]["kinds"]["routed"]["verdict"] == "fabric"
    assert underlay["overlays"]["vxlan-8472"]["verdict"] == "works"


# --- what is dropped, and where ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("match", "kind", "overlay"),
    [
        (("-p", "udp", "--dport", "8472"), "udp-8472", "vxlan-8472"),
        (("-p", "4"), "ipip", "ipip"),
        (("-p", "tcp", "--dport", "179"), "tcp-179", None),
    ],
)
def test_dropped_by_the_fabric(match: tuple[str, ...], kind: str, overlay: str | None) -> None:
    with rule(FABRIC, "FORWARD", "-s", ADDRESSES[A], *match, "-j", "DROP"):
        underlay = measured()
    assert verdicts(underlay, "a>b") == {kind: "fabric"}
    assert verdicts(underlay, "b>a") == {}
    crossing = underlay["pairs"]["a>b"]["kinds"][kind]
    assert (crossing["sent"], crossing["arrived"]) == (ROUNDS, 0)
    no = {name for name, each in underlay["overlays"].items() if each["verdict"] == "no"} - {"host-gw"}
    assert no == ({overlay} if overlay else set())
    if kind == "udp-8472":
        (why,) = underlay["overlays"]["vxlan-8472"]["why"]
        assert why == (
            "a>b: 0 of 5 UDP 8472 packets arrived at b's enp7s0, where UDP 4789, UDP 51820, IP protocol 4, TCP 179, "
            "TCP 6443, TCP 10250, TCP 2379, TCP 2380, TCP 5473 of the same moments did: the network between them drops "
            "these."
        )


def test_rejected_by_the_fabric() -> None:
    udp = ("-p", "udp", "--dport", "8472", "-j", "REJECT", "--reject-with", "icmp-admin-prohibited")
    tcp = ("-p", "tcp", "--dport", "6443", "-j", "REJECT", "--reject-with", "icmp-host-prohibited")
    with rule(FABRIC, "FORWARD", *udp), rule(FABRIC, "FORWARD", *tcp):
        underlay = measured()
    assert verdicts(underlay, "a>b") == {"udp-8472": "fabric", "tcp-6443": "fabric"}
    told = {kind: underlay["pairs"]["a>b"]["kinds"][kind]["told"] for kind in ("udp-8472", "tcp-6443")}
    assert told == {
        "udp-8472": [f"icmp admin-prohibited from {GATEWAYS[A]}"],
        "tcp-6443": [f"icmp host-prohibited from {GATEWAYS[A]}"],
    }


def test_protocol_4_refused_by_the_fabrics_routing() -> None:
    """By a rule of routing: REJECT answers nothing whose checksum it does not know how to tell."""
    refusal = ("ipproto", "4", "iif", "to-a", "prohibit")
    ip("-n", FABRIC, "rule", "add", *refusal)
    try:
        underlay = measured()
    finally:
        ip("-n", FABRIC, "rule", "del", *refusal)
    assert verdicts(underlay, "a>b") == {"ipip": "fabric"}
    assert underlay["pairs"]["a>b"]["kinds"]["ipip"]["told"] == [f"icmp admin-prohibited from {GATEWAYS[A]}"]


def test_dropped_by_the_receivers_own_firewall_and_by_which_rule() -> None:
    udp = "-p udp -m udp --dport 8472 -j DROP"
    ipip = "-s 10.9.1.2/32 -p ipencap -j DROP"
    other = "-p udp --dport 9 -j DROP"
    with rule(B, "INPUT", *udp.split()), rule(B, "INPUT", *ipip.split()), rule(B, "INPUT", *other.split()):
        underlay = measured()
    assert verdicts(underlay, "a>b") == {"udp-8472": "host", "ipip": "host"}
    kinds = underlay["pairs"]["a>b"]["kinds"]
    assert {kind: (kinds[kind]["arrived"], kinds[kind]["accepted"]) for kind in ("udp-8472", "ipip")} == {
        "udp-8472": (ROUNDS, 0), "ipip": (ROUNDS, 0),
    }  # fmt: skip
    assert kinds["udp-8472"]["rules"] == [f"nft filter INPUT rule 3: {udp}"]
    assert kinds["ipip"]["rules"] == [f"nft filter INPUT rule 2: {ipip}"]
    assert underlay["overlays"]["vxlan-8472"]["verdict"] == "host"
    assert verdicts(underlay, "b>a") == {}


def test_a_policy_that_drops() -> None:
    """As UFW's: nothing is answered, but it is known that all of it arrived, and how large packets may be."""
    with rule(B, "INPUT", "-m", "conntrack", "--ctstate", "RELATED,ESTABLISHED", "-j", "ACCEPT"):
        inside(B, "iptables", "-w", "-P", "INPUT", "DROP")
        try:
            underlay = measured()
        finally:
            inside(B, "iptables", "-w", "-P", "INPUT", "ACCEPT")
    dropped = verdicts(underlay, "a>b")
    assert set(dropped.values()) == {"host"}
    assert len(dropped) == len(underlay["pairs"]["a>b"]["kinds"]) - 1
    assert underlay["pairs"]["a>b"]["kinds"]["tcp-6443"]["rules"] == ["nft filter INPUT policy DROP"]
    assert underlay["pairs"]["a>b"]["icmp_errors"] == "unknown"
    assert verdicts(underlay, "b>a") == {}
    assert underlay["overlays"]["ipip"] == {
        "verdict": "host",
        "mtu": 1430,
        "why": ["a>b: 5 of 5 IP protocol 4 packets arrived at b's enp7s0, and 0 got past its own firewall: "
                "nft filter INPUT policy DROP."],
    }  # fmt: skip


def test_dropped_by_the_receivers_reverse_path_filter() -> None:
    """It stands behind the device and before INPUT, and counts in no rule."""
    ip("-n", B, "link", "add", "name", "other", "type", "bridge")
    try:
        ip("-n", B, "link", "set", "other", "up")
        ip("-n", B, "route", "add", f"{ADDRESSES[A]}/32", "dev", "other")
        inside(B, "sysctl", "-qw", "net.ipv4.conf.all.rp_filter=1")
        underlay = measured()
    finally:
        inside(B, "sysctl", "-qw", "net.ipv4.conf.all.rp_filter=0")
        ip("-n", B, "link", "del", "other")
    crossing = underlay["pairs"]["a>b"]["kinds"]["ipip"]
    assert (crossing["verdict"], crossing["arrived"], crossing["rules"]) == ("host", ROUNDS, [])
    (why, _) = underlay["overlays"]["ipip"]["why"]
    assert why.endswith("and 0 got past its own firewall, by no iptables rule that counted them.")


def test_kept_back_by_the_senders_own_rules() -> None:
    with rule(A, "OUTPUT", "-p", "udp", "--dport", "8472", "-j", "DROP"):
        underlay = measured()
    assert verdicts(underlay, "a>b") == {"udp-8472": "sender"}
    assert underlay["overlays"]["vxlan-8472"]["why"] == [
        "a>b: no UDP 8472 packets left a (dropped by a rule for outgoing packets)."
    ]


def test_icmp_errors_that_are_filtered() -> None:
    with rule(FABRIC, "FORWARD", "-p", "icmp", "-j", "DROP"):
        underlay = measured()
    crossing = underlay["pairs"]["a>b"]["kinds"]["icmp-error"]
    assert (crossing["verdict"], crossing["accepted"], crossing["answered"]) == ("passes", ROUNDS, 0)
    assert underlay["pairs"]["a>b"]["icmp_errors"] == "none"


# --- sizes ------------------------------------------------------------------------------------------------------------


@contextmanager
def narrow(mtu: int) -> Iterator[None]:
    for name in NAMES.values():
        ip("-n", FABRIC, "link", "set", f"to-{name}", "mtu", str(mtu))
    try:
        yield
    finally:
        for name in NAMES.values():
            ip("-n", FABRIC, "link", "set", f"to-{name}", "mtu", str(MTU))
        for namespace in NAMES:
            ip("-n", namespace, "route", "flush", "cache")


def test_a_smaller_mtu_on_the_way_that_is_told() -> None:
    with narrow(1377):
        underlay = measured()
    pair = underlay["pairs"]["a>b"]
    assert (pair["mtu"], pair["larger"]) == (1377, f"icmp frag-needed from {GATEWAYS[A]}")
    assert underlay["overlays"]["vxlan-8472"]["mtu"] == 1327


def test_a_smaller_mtu_on_the_way_that_nobody_tells() -> None:
    with narrow(1377), rule(FABRIC, "OUTPUT", "-p", "icmp", "-j", "DROP"):
        underlay = measured()
    pair = underlay["pairs"]["a>b"]
    assert (pair["mtu"], pair["larger"]) == (1360, "vanish")


# --- moments, runs, nodes ---------------------------------------------------------------------------------------------


def test_a_late_sender_is_heard_and_says_so() -> None:
    reports = take_round(a=0.8)
    assert reports["a"]["late"] > 0.1
    assert reports["b"]["late"] == 0
    underlay = evaluate(reports, {})
    assert verdicts(underlay, "a>b") == verdicts(underlay, "b>a") == {}


def test_who_sends_when_nobody_listens_any_more_says_nothing_about_the_network() -> None:
    taking = {namespace: Taking(namespace) for namespace in NAMES}
    now = time.time()
    taking[A].begin(order(A, now))
    first = taking[A].reports()[0]
    taking[B].begin(order(B, now))
    underlay = evaluate({"a": first, "b": taking[B].reports()[0]}, {})
    assert {each["verdict"] for each in underlay["pairs"]["b>a"]["kinds"].values()} <= {"unknown", "passes", "sender"}
    assert underlay["pairs"]["b>a"]["kinds"]["udp-8472"]["verdict"] == "unknown"
    assert underlay["overlays"]["vxlan-8472"]["verdict"] == "unknown"


def test_who_is_behind_is_waited_for_as_long_as_the_moment_was() -> None:
    begun = {namespace: Taking(namespace, LONGEST_CALL=1.0) for namespace in NAMES}
    start = time.time() + 4
    begun[A].begin(order(A, start))
    begun[B].begin(order(B, start + 2))
    underlay = evaluate({NAMES[namespace]: node.reports()[0] for namespace, node in begun.items()}, {})
    assert verdicts(underlay, "b>a") == {}


def test_a_moment_that_is_far_off_is_not_waited_for() -> None:
    node = Taking(A)
    node.begin(order(A, time.time() + 3600))
    (report,) = node.reports()
    assert "s ahead on this node's clock: not waited for" in report["errors"][0]
    assert report["to"]["b"]["kinds"]["udp-8472"]["sent"] == ROUNDS


def test_a_node_without_its_address() -> None:
    node = Taking(A)
    node.begin({**order(A, time.time()), "own": ("a", "10.9.9.9")})
    (report,) = node.reports()
    assert report["errors"] == ["cannot listen at 10.9.9.9: Cannot assign requested address"]
    assert evaluate({"a": report}, {}, expected=["a", "b"])["unknown"] == {
        "a": "cannot listen at 10.9.9.9: Cannot assign requested address", "b": "no report",
    }  # fmt: skip


def test_two_runs_at_the_same_time_are_not_mixed_up() -> None:
    """One of them drops nothing by itself: what it hears of the other would be counted twice."""
    taking = [(Taking(namespace), namespace, run) for run in ("one", "two") for namespace in NAMES]
    start = time.time() + 0.4
    for node, namespace, run in taking:
        node.begin(order(namespace, start, run))
    reports = {(run, NAMES[namespace]): node.reports()[0] for node, namespace, run in taking}
    for run in ("one", "two"):
        for here, there in (("a", "b"), ("b", "a")):
            report = reports[run, here]
            counts = report["heard"][there]["kinds"]
            assert {kind: each["arrived"] for kind, each in counts.items() if kind != "routed"} == {
                kind: ROUNDS for kind in counts if kind != "routed"
            }
            answered = {kind: sent["answered"] for kind, sent in report["to"][there]["kinds"].items()}
            assert {answered[kind] for kind in answered if kind.startswith("tcp-")} == {ROUNDS}


def test_packets_of_another_run_are_none_of_this_one() -> None:
    taking = {namespace: Taking(namespace) for namespace in NAMES}
    start = time.time() + 0.4
    for namespace, node in taking.items():
        node.begin(order(namespace, start, run=f"run of {namespace}"))
    reports = {NAMES[namespace]: node.reports()[0] for namespace, node in taking.items()}
    assert {each["arrived"] for each in reports["a"]["heard"]["b"]["kinds"].values()} == {0}


# --- nothing that runs is disturbed -----------------------------------------------------------------------------------

ECHO = """
import socket, sys
with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
    sock.bind((sys.argv[1], 7))
    print("ready", flush=True)
    while True:
        message, sender = sock.recvfrom(2048)
        sock.sendto(message, sender)
"""
ASK = """
import select, socket, sys
lost = asked = 0
with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
    sock.connect((sys.argv[1], 7))
    sock.settimeout(5)
    print("ready", flush=True)
    while not select.select([sys.stdin], [], [], 0.001)[0]:
        message = b"%d" % asked
        sock.send(message)
        asked += 1
        try:
            lost += sock.recv(2048) != message
        except TimeoutError:
            lost += 1
print(asked, lost)
"""
ACCEPT = """
import select, socket, sys
servers = [socket.create_server((sys.argv[1], port)) for port in (179, 6443, 10250)]
print("ready", flush=True)
accepted = 0
while True:
    ready = select.select([sys.stdin, *servers], [], [])[0]
    if sys.stdin in ready:
        break
    for server in ready:
        server.accept()
        accepted += 1
print(accepted)
"""


class Running:
    """A program in a node's namespace, until it is asked for what it says at its end."""

    def __init__(self, namespace: str, code: str, *arguments: str) -> None:
        command = ["ip", "netns", "exec", namespace, sys.executable, "-c", code, *arguments]
        self.process = subprocess.Popen(command, stdin=-1, stdout=-1, text=True)
        assert self.process.stdout
        assert self.process.stdout.readline() == "ready\n"

    def end(self) -> list[int]:
        output, _ = self.process.communicate("end\n", timeout=30)
        return [int(word) for word in output.split()]


def counters(namespace: str, device: str) -> dict[str, int]:
    (link,) = json.loads(inside(namespace, "ip", "-j", "-s", "link", "show", "dev", device))
    return {key: link["stats64"]["rx"][key] for key in ("packets", "errors", "dropped")}


@pytest.mark.parametrize("kind", [("id", str(VNI)), ("external",)], ids=" ".join)
def test_what_looks_like_vxlan_is_valid_and_is_for_nobody(kind: tuple[str, ...]) -> None:
    """A device that had its VNI, or takes every one, gets its frames, which are for no address that it has."""
    ip("-n", B, "link", "add", "vxlan0", "type", "vxlan", *kind, "dstport", "8472")
    try:
        ip("-n", B, "link", "set", "vxlan0", "addrgenmode", "none", "up")
        underlay = measured()
        (link,) = json.loads(inside(B, "ip", "-j", "-s", "link", "show", "dev", "vxlan0"))
    finally:
        ip("-n", B, "link", "del", "vxlan0")
    assert verdicts(underlay, "a>b") == {}
    assert (link["stats64"]["rx"]["packets"], link["stats64"]["tx"]["packets"]) == (ROUNDS, 0)


def test_a_hundred_rounds_beside_live_traffic() -> None:
    """Five runs at a time, twenty times, while requests cross a VXLAN device and servers listen on probed ports."""
    inner = {A: "10.42.1.1", B: "10.42.2.1"}
    with ExitStack() as stack:
        for here, there in ((A, B), (B, A)):
            ip("-n", here, "link", "add", "flannel.1", "type", "vxlan", "id", "1", "local", ADDRESSES[here],
               "remote", ADDRESSES[there], "dstport", "8472", "dev", DEVICE)  # fmt: skip
            stack.callback(ip, "-n", here, "link", "del", "flannel.1")
            ip("-n", here, "addr", "add", f"{inner[here]}/16", "dev", "flannel.1")
            ip("-n", here, "link", "set", "flannel.1", "up")
        echo = Running(B, ECHO, inner[B])
        stack.callback(echo.process.wait)
        stack.callback(echo.process.kill)
        ask, accept = Running(A, ASK, inner[B]), Running(B, ACCEPT, ADDRESSES[B])
        taking = [(Taking(each, WINDOW=0.3, LONGEST_CALL=1.0), each, run) for run in range(5) for each in NAMES]
        start = time.time() + 0.5
        for node, namespace, run in taking:
            node.begin(*(order(namespace, start + 1.0 * number, f"{run} {number}") for number in range(20)))
        reports = [(NAMES[namespace], report) for node, namespace, _ in taking for report in node.reports()]
        asked, lost = ask.end()
        (accepted,) = accept.end()
        received = counters(B, "flannel.1")
    sent = [report["to"]["b"]["kinds"]["udp-8472"]["sent"] for name, report in reports if name == "a"]
    assert sent == [ROUNDS] * 100
    answers = {told for name, report in reports if name == "a"
               for told in report["to"]["b"]["kinds"]["tcp-179"]["told"]}  # fmt: skip
    assert answers == {"SYN-ACK"}
    assert accepted == 0
    assert lost == 0
    assert asked > 1000
    # Each request, and ARP and the like: no marked packet came out of the device.
    assert asked <= received["packets"] <= asked + 50
    assert (received["errors"], received["dropped"]) == (0, 0)
