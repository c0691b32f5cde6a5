"""The matrix, planned from facts of small clusters."""

from __future__ import annotations

from typing import Any

import pytest
from ansible.module_utils.netmend.model import ClusterFacts, Matrix, NodeFacts, Pod, Probe, Service, met
from ansible.module_utils.netmend.plan import by_node, coverage, plan_canary, plan_matrix, summarise

SERVER, AGENT1, AGENT2 = "k3s-master-01", "k3s-worker-01", "k3s-worker-02"
ADDRESSES = {SERVER: "10.0.0.100", AGENT1: "10.0.0.110", AGENT2: "10.0.0.111"}
SUBNETS = {SERVER: "10.42.0", AGENT1: "10.42.1", AGENT2: "10.42.2"}


def pod(name: str, node: str, host: int, *ports: int, namespace: str = "keybuzz", **more: Any) -> Pod:
    declared = [{"port": port, "protocol": "TCP", "hostPort": 0} for port in ports]
    return {
        "namespace": namespace, "name": name, "uid": f"uid-{name}", "node": node, "ip": f"{SUBNETS[node]}.{host}",
        "host_network": False, "ready": True, "phase": "Running", "reason": "", "owner": "", "labels": {},
        "ports": declared, **more,
    }  # type: ignore[typeddict-item]  # fmt: skip


def service(name: str, address: str, port: int, *pods: Pod, namespace: str = "keybuzz", **more: Any) -> Service:
    target = more.pop("target", 8080)
    return {
        "namespace": namespace, "name": name, "type": "ClusterIP", "cluster_ip": address, "selector": {},
        "ports": [{"name": "", "port": port, "targetPort": target, "nodePort": 0, "protocol": "TCP"}],
        "external_traffic_policy": "Cluster",
        "endpoints": [
            {"ip": pod["ip"], "node": pod["node"], "port": target, "protocol": "TCP", "ready": True, "pod": pod["name"]}
            for pod in pods
        ],
        **more,
    }  # type: ignore[typeddict-item]  # fmt: skip


def cluster(pods: list[Pod], services: list[Service], **more: Any) -> ClusterFacts:
    nodes = [
        {"name": name, "role": "server" if name == SERVER else "agent", "internal_ip": address, "labels": {}}
        for name, address in ADDRESSES.items()
    ]
    facts = {"nodes": nodes, "pods": pods, "services": services, "network_policies": [], "dns_ip": "10.43.0.10"}
    return {**facts, **more}  # type: ignore[return-value, typeddict-item]  # a plain dict for a TypedDict


def node(name: str, *pods: Pod, **more: Any) -> NodeFacts:
    processes = [{"uid": pod["uid"], "pid": 100 + number, "netns": 1} for number, pod in enumerate(pods)]
    facts = {"name": name, "pods": processes, "interfaces": [], "sockets": [], "k3s": {"config": {}}}
    return {**facts, **more}  # type: ignore[return-value, typeddict-item]  # a plain dict for a TypedDict


API = service("kubernetes", "10.43.0.1", 443, namespace="default")
WEB = [pod(f"web-{number}", name, 5, 8080) for number, name in enumerate(ADDRESSES)]
TOOL = pod("tool", AGENT1, 6)
COREDNS = pod("coredns", SERVER, 2, 53, namespace="kube-system")
DNS = service("kube-dns", "10.43.0.10", 53, COREDNS, namespace="kube-system", target=53)
NODE_PORTS = [{"name": "http", "port": 80, "targetPort": 8080, "nodePort": 31695, "protocol": "TCP"}]
WEB_SERVICE = service("web", "10.43.7.7", 80, *WEB, type="NodePort", ports=NODE_PORTS)
CLUSTER = cluster([*WEB, TOOL, COREDNS], [API, DNS, WEB_SERVICE])
NODES = {SERVER: node(SERVER, WEB[0], COREDNS), AGENT1: node(AGENT1, WEB[1], TOOL), AGENT2: node(AGENT2, WEB[2])}


def ids(probes: list[Probe]) -> list[str]:
    return [probe["id"] for probe in probes]


def only(row: str, nodes: dict[str, NodeFacts] = NODES, facts: ClusterFacts = CLUSTER) -> list[Probe]:
    return plan_matrix(nodes, facts, [row])


def test_ids_are_unique_and_planning_is_deterministic() -> None:
    probes = plan_matrix(NODES, CLUSTER)
    assert len(set(ids(probes))) == len(probes)
    shuffled = cluster([*CLUSTER["pods"]][::-1], [*CLUSTER["services"]][::-1])
    assert plan_matrix(dict(reversed(NODES.items())), shuffled) == probes


def test_host_host() -> None:
    assert [identifier for identifier in ids(only("host-host")) if f" {AGENT1}>" in identifier] == [
        "host-host k3s-worker-01>k3s-master-01 icmp",
        "host-host k3s-worker-01>k3s-master-01 mtu",
        "host-host k3s-worker-01>k3s-master-01 tcp/10250",
        "host-host k3s-worker-01>k3s-master-01 tcp/6443",
        "host-host k3s-worker-01>k3s-worker-01 tcp/10250",
        "host-host k3s-worker-01>k3s-worker-02 icmp",
        "host-host k3s-worker-01>k3s-worker-02 mtu",
        "host-host k3s-worker-01>k3s-worker-02 tcp/10250",
    ]


def test_members_of_etcd_ask_each_other_and_nobody_else_asks_them() -> None:
    peers = [{"protocol": "tcp", "address": ADDRESSES[SERVER], "port": 2380, "process": "k3s"}]
    nodes = {**NODES, SERVER: node(SERVER, sockets=peers), AGENT1: node(AGENT1, sockets=peers)}
    etcd = [identifier for identifier in ids(only("host-host", nodes)) if "/23" in identifier]
    assert etcd == [
        f"host-host {source}>{target} tcp/{port}"
        for source, target in ((SERVER, AGENT1), (AGENT1, SERVER))
        for port in (2379, 2380)
    ]


def test_pod_pod_covers_every_pair_and_one_node_by_two_pods() -> None:
    probes = only("pod-pod")
    assert ids(probes) == [
        f"pod-pod {source}>{target} {protocol}"
        for source in ADDRESSES
        for target in ADDRESSES
        if not source == target == AGENT2  # its only pod has nobody else to talk to there
        for protocol in ("tcp/8080", "mtu")
        if not (source == target and protocol == "mtu")
    ]
    assert probes[5] == {
        "id": "pod-pod k3s-worker-01>k3s-master-01 tcp/8080", "row": "pod-pod", "source_node": AGENT1,
        "source_pod": "keybuzz/tool", "source_pid": 101, "target_node": SERVER, "target_pod": "keybuzz/web-0",
        "protocol": "tcp", "address": "10.42.0.5", "port": 8080, "timeout": 2.0, "expect": "ok",
    }  # fmt: skip


def test_a_node_without_facts_is_a_target_and_no_source() -> None:
    probes = plan_matrix({AGENT1: NODES[AGENT1]}, CLUSTER)
    assert {probe["source_node"] for probe in probes} == {AGENT1}
    assert {probe["target_node"] for probe in probes if "target_node" in probe} == set(ADDRESSES)


@pytest.mark.parametrize(
    ("interfaces", "address"),
    [
        ([("flannel.1", ["fe80::1/64", "10.42.2.0/32"]), ("cni0", ["10.42.2.1/24"])], "10.42.2.0"),
        ([("flannel.1", ["10.42.2.0/32"]), ("tunl0", ["10.42.130.64/32"])], "10.42.130.64"),
        ([("tunl0", []), ("cni0", ["10.42.2.1/24"])], "10.42.2.1"),
    ],
)
def test_a_node_without_listening_pods_is_reached_by_its_overlay_address(
    interfaces: list[tuple[str, list[str]]], address: str
) -> None:
    facts = cluster([WEB[0], WEB[1]], [])
    described = [{"name": name, "addresses": addresses} for name, addresses in interfaces]
    probes = only("host-pod", {**NODES, AGENT2: node(AGENT2, interfaces=described)}, facts)
    fallback = [probe for probe in probes if probe["target_node"] == AGENT2]
    assert ids(fallback) == [f"host-pod {source}>{AGENT2} icmp" for source in (SERVER, AGENT1)]
    assert {probe["address"] for probe in fallback} == {address}


def test_a_cell_that_no_fact_supports_is_absent() -> None:
    bare = {SERVER: node(SERVER), AGENT2: node(AGENT2)}
    facts = cluster([], [], dns_ip="")
    assert {probe["row"] for probe in plan_matrix(bare, facts)} == {"host-host"}


@pytest.mark.parametrize(
    "unfit",
    [{"ready": False}, {"host_network": True}, {"ip": ""}, {"ports": []}],
    ids=["not ready", "host network", "no address", "no port"],
)
def test_pods_that_cannot_stand_for_a_node(unfit: dict[str, Any]) -> None:
    first = pod("a-first", AGENT1, 9, 9000, **unfit)
    probes = only("host-pod", facts=cluster([first, *WEB], []))
    assert {probe["target_pod"] for probe in probes if probe["target_node"] == AGENT1} == {"keybuzz/web-1"}


def test_the_most_widely_spread_service_gives_the_pods() -> None:
    lonely = pod("a-first", AGENT1, 9, 9000)
    facts = cluster([lonely, *WEB], [service("a", "10.43.1.1", 80, lonely, target=9000), WEB_SERVICE])
    assert {probe["port"] for probe in only("host-pod", facts=facts)} == {8080}


def test_a_namespace_with_policies_comes_last() -> None:
    shut = [pod(f"a-{number}", name, 9, 9000, namespace="a") for number, name in enumerate(ADDRESSES)]
    policies = [{"namespace": "a", "name": "default-deny"}]
    facts = cluster([*shut, *WEB], [], network_policies=policies)
    assert {probe["port"] for probe in only("host-pod", facts=facts)} == {8080}


def test_no_sweep_of_sizes_where_a_policy_may_forbid_icmp() -> None:
    facts = cluster(WEB, [WEB_SERVICE], network_policies=[{"namespace": "keybuzz", "name": "only-8080"}])
    assert {probe["protocol"] for probe in only("pod-pod", facts=facts)} == {"tcp"}


@pytest.mark.parametrize(
    ("declared", "target", "asked"),
    [([9090, 8080], 8080, 8080), ([9090], 8080, 9090), ([], 8080, 8080)],
    ids=["in both", "wrong targetPort", "not declared"],
)
def test_the_port_of_a_pod(declared: list[int], target: int, asked: int) -> None:
    web = pod("web", AGENT1, 5, *declared)
    probes = only("host-pod", facts=cluster([web], [service("web", "10.43.7.7", 80, web, target=target)]))
    assert {probe["port"] for probe in probes if probe["target_node"] == AGENT1} == {asked}


def test_cluster_ips() -> None:
    probes = [probe for probe in only("pod-clusterip") if probe["source_node"] == AGENT1]
    assert ids(probes) == [
        "pod-clusterip k3s-worker-01>default/kubernetes tcp/443",
        "pod-clusterip k3s-worker-01>kube-system/kube-dns tcp/53",
        "pod-clusterip k3s-worker-01>keybuzz/web tcp/80",
    ]
    # One endpoint answers alike each time; among three, each node's own is to be met.
    assert [probe["attempts"] for probe in probes] == [1, 1, 18]
    assert [identifier.partition(" ")[2] for identifier in ids(probes)] == [
        identifier.partition(" ")[2]
        for identifier in ids(only("host-clusterip"))
        if f" {AGENT1}>" in identifier
    ]  # fmt: skip


def test_services_that_are_not_asked() -> None:
    services = [
        service("headless", "None", 80, *WEB, namespace="a"),
        service("external", "", 80, *WEB, namespace="b"),
        service("empty", "10.43.2.2", 80, namespace="c"),
        *[service("web", f"10.43.3.{number}", 80, *WEB, namespace=f"d{number}") for number in range(5)],
        service("another", "10.43.4.4", 80, WEB[0], namespace="d0"),
    ]
    probes = only("host-clusterip", facts=cluster(WEB, [API, *services]))
    asked = dict.fromkeys(probe["target_service"] for probe in probes)
    assert list(asked) == ["default/kubernetes", "d0/web", "d1/web", "d2/web"]


def test_dns_in_the_cluster_s_own_domain() -> None:
    configured = {**NODES, SERVER: node(SERVER, WEB[0], k3s={"config": {"cluster-domain": "keybuzz.local"}})}
    probes = [probe for probe in only("pod-dns", configured) if probe["source_node"] == AGENT2]
    assert [(probe["protocol"], probe["address"], probe["port"], probe["name"]) for probe in probes] == [
        ("dns-udp", "10.43.0.10", 53, "kubernetes.default.svc.keybuzz.local"),
        ("dns-tcp", "10.43.0.10", 53, "kubernetes.default.svc.keybuzz.local"),
        ("dns-pair", "10.43.0.10", 53, "kubernetes.default.svc.keybuzz.local"),
        ("dns-apart", "10.43.0.10", 53, "kubernetes.default.svc.keybuzz.local"),
    ]
    assert [probe["attempts"] for probe in probes] == [1, 1, 5, 5]


def test_dns_by_its_pods_own_addresses_on_two_nodes_at_most() -> None:
    pods = [
        pod(f"coredns-{number}", name, 2 + number, 53, namespace="kube-system") for number, name in enumerate(NODES)
    ]
    ends = [
        {"ip": each["ip"], "node": each["node"], "port": 53, "protocol": "UDP", "ready": True, "pod": each["name"]}
        for each in pods
    ]
    dns = service("kube-dns", "10.43.0.10", 53, namespace="kube-system", endpoints=ends)
    probes = [probe for probe in only("pod-dns", facts=cluster(WEB, [dns])) if probe["source_node"] == AGENT2]
    assert [(probe["id"].partition(">")[2], probe["address"], probe["port"]) for probe in probes[4:]] == [
        (f"{SERVER} dns-udp", "10.42.0.2", 53),
        (f"{AGENT1} dns-udp", "10.42.1.3", 53),
    ]


def test_node_ports_of_every_node_from_every_node() -> None:
    probes = only("node-nodeport")
    assert ids(probes) == [f"node-nodeport {source}>{target} tcp/31695" for source in ADDRESSES for target in ADDRESSES]
    assert {probe["address"] for probe in probes} == set(ADDRESSES.values())


def test_a_local_node_port_is_asked_only_where_it_answers() -> None:
    local = service("web", "10.43.7.7", 80, WEB[1], ports=NODE_PORTS, external_traffic_policy="Local")
    probes = only("node-nodeport", facts=cluster(WEB, [local]))
    assert {probe["target_node"] for probe in probes} == {AGENT1}


def test_a_large_cluster_is_measured_by_a_sample_and_servers_among_each_other() -> None:
    names = [f"n{number:03}" for number in range(200)]
    members = [
        {"name": name, "role": "server" if name < "n003" else "agent", "internal_ip": f"10.0.{i}.1", "labels": {}}
        for i, name in enumerate(names)
    ]
    facts = cluster([], [], nodes=members)
    nodes = {name: node(name) for name in names}
    probes = plan_matrix(nodes, facts, ["host-host"])
    assert coverage(probes, facts) == {"peers": 8, "others": 199}
    by_server = {probe["target_node"] for probe in probes if probe["source_node"] == "n000"}
    assert by_server >= {"n000", "n001", "n002"}
    whole = plan_matrix(nodes, facts, ["host-host"], all_pairs=True)
    assert coverage(whole, facts) == {"peers": 199, "others": 199}


def test_by_node() -> None:
    probes = plan_matrix(NODES, CLUSTER)
    shares = by_node(probes)
    assert list(shares) == list(ADDRESSES)
    assert sorted(identifier for share in shares.values() for identifier in ids(share)) == sorted(ids(probes))


def test_summary() -> None:
    probes = only("node-nodeport")
    outcomes = [
        {"id": probe["id"], "outcome": "timeout" if probe["target_node"] == AGENT2 else "ok"}
        for probe in probes
        if probe["source_node"] != SERVER
    ]
    matrix = summarise(probes, {"any": {"node": "any", "observations": outcomes, "moved": []}})  # type: ignore[typeddict-item]  # a plain dict for a TypedDict
    row = matrix["rows"]["node-nodeport"]
    assert (matrix["ok"], matrix["total"], row["ok"], row["total"]) == (4, 9, 4, 9)
    assert [(check["to"], check["address"], check["port"]) for check in row["checks"]] == [
        (name, address, 31695) for name, address in ADDRESSES.items()
    ]
    assert seen(matrix, "node-nodeport", AGENT1) == ["ok", "ok", "timeout"]
    assert seen(matrix, "node-nodeport", SERVER) == ["error"] * 3  # that node brought nothing back
    assert [outcome["met"] for outcome in matrix["outcomes"]] == [False, True, False]


def test_summary_says_what_was_asked_of_whom_and_what_came_back() -> None:
    probes = plan_matrix(NODES, CLUSTER)
    observations = [
        {"id": probe["id"], "outcome": "ok", **({"mtu": 1450} if probe["protocol"] == "mtu" else {"rtt_ms": 0.12345})}
        for probe in probes
    ]
    matrix = summarise(probes, {"any": {"node": "any", "observations": observations, "moved": []}})  # type: ignore[typeddict-item]  # a plain dict for a TypedDict
    assert (matrix["ok"], matrix["total"]) == (len(probes), len(probes))
    assert matrix["outcomes"] == [
        {"outcome": "ok", "detail": "", "met": True},
        {"outcome": "ok", "detail": "1450 bytes pass", "met": True},
    ]
    hosts = matrix["rows"]["host-host"]
    assert list(dict.fromkeys(check["to"] for check in hosts["checks"])) == list(ADDRESSES)  # as the sources are
    itself = [check["to"] == SERVER and check["protocol"] in ("icmp", "mtu") for check in hosts["checks"]]
    assert [place is None for place in hosts["sources"][SERVER]["seen"]] == itself
    assert set(hosts["sources"][AGENT1]["rtt_ms"]) == {0.12, None}
    pods = matrix["rows"]["pod-pod"]
    assert {line["pod"] for line in pods["sources"].values()} >= {"keybuzz/tool"}
    assert {check["pod"] for check in pods["checks"]} >= {"keybuzz/web-0"}


def test_summary_has_the_loss_of_each_check_and_its_bounds() -> None:
    probes = plan_matrix(NODES, CLUSTER, ["pod-pod"])
    lossy = probes[-1]
    observations: Any = [{"id": probe["id"], "outcome": "ok", "attempts": 20, "failed": 0} for probe in probes]
    observations[-1].update(outcome="timeout", failed=4)
    observations[0].update(outcome="timeout", failed=20)  # that is no loss, but an outage
    matrix = summarise(probes, {"any": {"node": "any", "observations": observations, "moved": []}})  # type: ignore[typeddict-item]  # a plain dict for a TypedDict
    row = matrix["rows"]["pod-pod"]
    (loss,) = row["losses"]
    check = row["checks"][loss["check"]]
    asked = (lossy["source_node"], lossy["target_node"], lossy["protocol"])
    assert (loss["source"], check["to"], check["protocol"]) == asked
    assert (loss["attempts"], loss["failed"], loss["low"], loss["high"]) == (20, 4, 0.0807, 0.416)


def test_summary_keeps_probes_apart_that_ask_alike() -> None:
    probe = {"row": "", "source_node": AGENT1, "protocol": "icmp", "address": "10.0.0.1"}
    probes: Any = [{**probe, "id": "one"}, {**probe, "id": "two"}]
    observations = [{"id": "one", "outcome": "ok"}, {"id": "two", "outcome": "timeout"}]
    matrix = summarise(probes, {"any": {"node": "any", "observations": observations, "moved": []}})  # type: ignore[typeddict-item]  # a plain dict for a TypedDict
    assert seen(matrix, "", AGENT1) == ["ok", "timeout"]
    assert (matrix["ok"], matrix["total"]) == (1, 2)


def seen(matrix: Matrix, row: str, source: str) -> list[str]:
    line = matrix["rows"][row]["sources"][source]
    return [matrix["outcomes"][place]["outcome"] for place in line["seen"] if place is not None]


@pytest.mark.parametrize(
    ("expect", "outcome", "is_met"),
    [
        ("ok", "ok", True), ("ok", "refused", False), ("blocked", "ok", False), ("blocked", "prohibited", True),
        ("blocked", "timeout", True), ("blocked", "error", False), ("refused", "timeout", False),
    ],
)  # fmt: skip
def test_expectations(expect: str, outcome: str, is_met: bool) -> None:
    assert met({"expect": expect}, {"outcome": outcome}) is is_met


def test_a_canary_asks_what_pods_ask_and_is_pinged_by_everybody():
    canary = pod("canary", AGENT2, 9, namespace="kube-system")
    nodes = {SERVER: node(SERVER, WEB[0]), AGENT1: node(AGENT1, TOOL), AGENT2: node(AGENT2, WEB[2], canary)}
    everything = cluster([*WEB, TOOL, COREDNS, canary], [API, DNS, WEB_SERVICE])
    probes = plan_canary(nodes, everything, "kube-system/canary")
    asked = [probe for probe in probes if probe.get("source_pod") == "kube-system/canary"]
    assert {(probe["source_node"], probe["source_pid"]) for probe in asked} == {(AGENT2, 101)}
    assert {probe["protocol"] for probe in asked} == {"tcp", "mtu", "dns-udp", "dns-tcp", "dns-pair", "dns-apart"}
    assert {probe["address"] for probe in asked} >= {"10.42.0.5", "10.42.1.5", "10.43.0.1", "10.43.7.7", "10.43.0.10"}
    pings = {probe["id"]: probe["address"] for probe in probes if probe["protocol"] == "icmp"}
    assert pings == dict.fromkeys(
        [
            *(f"host-pod {name}>{AGENT2} icmp" for name in ADDRESSES),
            *(f"pod-pod {name}>{AGENT2} icmp" for name in (SERVER, AGENT1, AGENT2)),
        ],
        "10.42.2.9",
    )


def test_where_the_other_pods_overlay_is_down_a_canary_asks_the_api_and_nodes_ask_it():
    canary = pod("canary", AGENT2, 9, namespace="kube-system")
    nodes = {SERVER: node(SERVER, WEB[0]), AGENT1: node(AGENT1, TOOL), AGENT2: node(AGENT2, WEB[2], canary)}
    everything = cluster([*WEB, TOOL, COREDNS, canary], [API, DNS, WEB_SERVICE])
    probes = plan_canary(nodes, everything, "kube-system/canary", others_reached=False)
    asked = [probe for probe in probes if probe.get("source_pod") == "kube-system/canary"]
    assert {probe["target_service"] for probe in asked} == {"default/kubernetes"}
    pings = [probe for probe in probes if probe.get("target_pod") == "kube-system/canary"]
    assert {probe["source_node"] for probe in pings} == {SERVER, AGENT1, AGENT2}
    assert not any(probe.get("source_pod") for probe in pings)
    assert len(asked) + len(pings) == len(probes)


def test_a_canary_that_does_not_run_is_named():
    with pytest.raises(LookupError, match="no pod kube-system/canary runs"):
        plan_canary({SERVER: node(SERVER)}, cluster(WEB, [API]), "kube-system/canary")
