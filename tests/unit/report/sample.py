"""Reports of clusters of any size, planned as a real one's and with outcomes made up."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any, Callable, Iterable

import ansible.module_utils

CORE = str(Path(__file__).parents[3] / "module_utils")
if CORE not in ansible.module_utils.__path__:
    ansible.module_utils.__path__.append(CORE)

from ansible.module_utils.netmend import plan  # noqa: E402  after the path
from ansible.module_utils.netmend.report import judge, members, report, with_checklist  # noqa: E402

TIME = "2026-11-21T03:12:45Z"
Fails = Callable[[Any], str]  # probe -> outcome
Loses = Callable[[Any], int]

DETAILS = {"timeout": "no answer to SYN", "refused": "RST", "prohibited": "icmp admin-prohibited from 10.0.0.111"}


def names(count: int) -> list[str]:
    """One server, or three where there are enough nodes, and agents."""
    servers = 3 if count >= 6 else 1
    return [f"k3s-master-{n:02}" for n in range(1, servers + 1)] + [
        f"k3s-worker-{n:03}" for n in range(1, count - servers + 1)
    ]


def facts(count: int) -> tuple[dict[str, Any], dict[str, Any]]:
    """Facts of nodes with two pods each, and of the cluster, as far as planning needs them."""
    nodes, members_, pods = {}, [], []
    for number, name in enumerate(names(count)):
        high, low = divmod(number, 250)
        address = f"10.0.{high}.{low + 1}"
        role = "server" if "master" in name else "agent"
        members_.append({"name": name, "role": role, "labels": {}, "internal_ip": address, "ready": True})
        own = [
            {
                "namespace": "keybuzz", "name": f"{kind}-{number}", "uid": f"{kind}-{number}", "node": name,
                "ip": f"10.42.{number}.{host}", "host_network": False, "ready": True, "phase": "Running",
                "ports": [{"port": 8080, "protocol": "TCP", "hostPort": 0}] if kind == "web" else [],
            }
            for host, kind in ((5, "web"), (6, "tool"))
        ]  # fmt: skip
        pods += own
        nodes[name] = {
            "name": name, "sockets": [], "interfaces": [], "k3s": {"config": {}},
            "pods": [{"uid": pod["uid"], "pid": 100, "netns": 1} for pod in own],
        }  # fmt: skip
    web = [pod for pod in pods if pod["name"].startswith("web")]
    services = [
        _service("default", "kubernetes", "10.43.0.1", 443, []),
        _service("kube-system", "kube-dns", "10.43.0.10", 53, web[:2]),
        _service("keybuzz", "web", "10.43.7.7", 80, web, node_port=31695),
    ]
    cluster = {
        "version": "v1.36.3+k3s1", "nodes": members_, "pods": pods, "services": services, "network_policies": [],
        "dns_ip": "10.43.0.10",
    }  # fmt: skip
    return nodes, cluster


def _service(
    namespace: str, name: str, address: str, port: int, pods: list[Any], *, node_port: int = 0
) -> dict[str, Any]:
    endpoints = [
        {"ip": pod["ip"], "node": pod["node"], "port": 8080, "protocol": "TCP", "ready": True, "pod": pod["name"]}
        for pod in pods
    ]
    ports = [{"name": "", "port": port, "targetPort": 8080, "nodePort": node_port, "protocol": "TCP"}]
    return {
        "namespace": namespace, "name": name, "type": "ClusterIP", "cluster_ip": address, "selector": {},
        "ports": ports, "external_traffic_policy": "Cluster", "endpoints": endpoints,
    }  # fmt: skip


STOPPED = "a>b: 5 of 5 UDP 8472 packets arrived at b's enp7s0, and 0 got past its own firewall."
OVERLAYS: Any = {
    "vxlan-8472": {"verdict": "host", "mtu": 1400, "why": [STOPPED]},
    "ipip": {"verdict": "works", "mtu": 1430, "why": []},
    "host-gw": {"verdict": "no", "mtu": 1450, "why": ["a>b: b is behind 10.0.0.1."]},
}


def measured(
    count: int, fails: Fails | None = None, findings: Iterable[Any] = (), seed: int = 1, lost: Loses | None = None
) -> Any:
    """A judgement; ``fails`` says what a probe's outcome is, "" for ok, ``lost`` how many of 20 attempts are lost."""
    nodes, cluster = facts(count)
    probes = plan.plan_matrix(nodes, cluster)  # type: ignore[arg-type]  # a plain dict for a TypedDict
    figures = random.Random(seed)
    results: dict[str, Any] = {name: {"node": name, "observations": [], "moved": []} for name in nodes}
    for probe in probes:
        outcome = (fails(probe) if fails else "") or "ok"
        seen: dict[str, Any] = {"id": probe["id"], "outcome": outcome, "detail": DETAILS.get(outcome, "")}
        if outcome == "ok" and probe["protocol"] != "mtu":
            seen["rtt_ms"] = figures.uniform(0.15, 2.4)
        if outcome == "ok" and probe["protocol"] == "mtu":
            seen["mtu"] = 1450
        if lost:
            seen.update(attempts=20, failed=lost(probe))
        results[probe["source_node"]]["observations"].append(seen)
    failed = [probe for probe in probes if fails and fails(probe)]
    explained: Any = [{**finding, "explains": [probe["id"] for probe in failed]} for finding in findings]
    walks = [walk(probe) for probe in failed if explained and probe["protocol"] != "mtu"]
    return judge(plan.summarise(probes, results), explained, overlays=OVERLAYS if count > 1 else {}, walks=walks)


def walk(probe: Any) -> Any:
    """Of a packet that the destination's own firewall drops, or, where it is a ping, that should arrive."""
    source, to = probe["source_node"], plan.destination(probe)
    route = f"{probe['address']} by 10.42.0.0/16 dev flannel.1 (vxlan)"
    end = {"node": to, "place": "firewall", "said": "INPUT: nft filter INPUT policy DROP", "verdict": "drops"}
    drops = probe["protocol"] != "icmp"
    return {
        "row": probe["row"], "source": source, "to": to, "protocol": probe["protocol"], "port": probe.get("port", 0),
        "packet": f"10.42.0.6 to {probe['address']}, {probe['protocol']}/{probe.get('port', 0)}",
        "hops": [{"node": source, "place": "route", "said": route, "verdict": "passes"}, *([end] if drops else [])],
        "says": "drops" if drops else "arrives", "saw": "timeout", "agrees": drops,
    }  # fmt: skip


def finding(where: list[str], fault: str = "vxlan-dropped-by-host", **remedy: Any) -> Any:
    return {
        "fault": fault,
        "number": 2,
        "title": "The node's own firewall drops VXLAN",
        "where": where,
        "confidence": 0.95,
        "evidence": [
            f"UDP 8472 from 10.0.0.1 ends on {where[0]} at `-j DROP` (filter/INPUT, policy), 214 packets meanwhile.",
            "0 of 14 probes that need the overlay there came through; 14 of 14 pings between the hosts did.",
        ],
        "ruled_out": ["The fabric: the packets arrive, the INPUT policy counts them."],
        "remedy": remedy
        or {"role": "ufw", "nodes": where, "vars": {}, "text": "Allow UDP 8472 from the nodes' addresses."},
    }


def overlay_to(node: str) -> Fails:
    """What fails where a node drops VXLAN: everything between its pods and others, in both directions."""

    def fails(probe: Any) -> str:
        crosses = probe["row"] in ("host-pod", "pod-pod") and probe["source_node"] != probe["target_node"]
        if crosses and node in (probe["source_node"], probe["target_node"]):
            return "timeout"
        if probe.get("attempts", 1) > 1:
            return "timeout" if probe["source_node"] == node else ""
        return ""

    return fails


CHANGE = {
    "before": "To Action From\n22/tcp ALLOW Anywhere\n10250/tcp ALLOW 10.0.0.0/24\n",
    "after": "To Action From\n22/tcp ALLOW Anywhere\n8472/udp ALLOW 10.0.0.1 # netmend: vxlan\n"
    "8472/udp ALLOW 10.0.0.2 # netmend: vxlan\n10250/tcp ALLOW 10.0.0.0/24\n",
}
MARKS = [
    ("Read nodes and cluster", 0), ("Plan and probe", 3.4), ("Diagnose", 6.1), ("Mend", 6.6),
    ("Read nodes and cluster", 14.9), ("Plan and probe", 18.0), ("Diagnose", 20.4), ("end", 20.9),
]  # fmt: skip


def whole(now: Any, before: Any, count: int, changes: Iterable[Any] = (), **more: Any) -> Any:
    _, cluster = facts(count)
    marks = [{"phase": phase, "at": at} for phase, at in MARKS]
    nodes = members(cluster, names(count), names(count))  # type: ignore[arg-type]  # a plain dict for a TypedDict
    return report(now, before, list(changes), nodes, marks, time=TIME, version="v1.36.3+k3s1", **more)  # type: ignore[arg-type]  # a plain dict for a TypedDict


POINTS: Any = [
    {"name": "at least 3 nodes, all Ready", "met": True, "seen": "3 of 3"},
    {"name": "https://shop.example/: 200 by 203.0.113.81", "met": False,
     "seen": "7 of 10; controller to 203.0.113.81: http (status 503)"},
]  # fmt: skip


def checked(count: int) -> Any:
    """All passes but a point of the checklist, and so the pass mark."""
    return whole(with_checklist(measured(count), POINTS), None, count, pass_mark=80.0)


def mended(count: int, node: str = "") -> Any:
    """A node dropped VXLAN, and does so no more."""
    node = node or names(count)[-1]
    found = finding([node])
    changes = [{"node": node, "role": "ufw", "diff": [CHANGE]}]
    return whole(measured(count, seed=2), measured(count, overlay_to(node), [found]), count, changes)


def lossy(count: int) -> Any:
    """From the last node to the others an attempt in five is lost, and one at all of another node's Services."""
    *_, other, last = names(count)

    def lost(probe: Any) -> int:
        if probe["row"] == "pod-pod" and probe["source_node"] == last != probe["target_node"]:
            return 4
        return int(probe["row"] == "pod-clusterip" and probe["source_node"] == other)

    return whole(measured(count, lambda probe: "timeout" if lost(probe) > 1 else "", lost=lost), None, count)


def sick(count: int, fails: Fails, findings: Iterable[Any] = ()) -> Any:
    """One measurement, in which something fails."""
    return whole(measured(count, fails, findings), None, count)


def healthy(count: int) -> Any:
    return whole(measured(count), None, count)
