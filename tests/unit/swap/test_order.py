"""What comes next in a swap; of what was planned and done, nothing is planned again."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, Callable

import pytest
from ansible.module_utils.netmend.parse.iptables import parse_save
from ansible.module_utils.netmend.parse.k3s import parse_config
from ansible.module_utils.netmend.swap import order
from ansible.module_utils.netmend.swap.order import (
    canary,
    clean,
    clean_back,
    conditions_back,
    flip,
    flip_back,
    mtu,
    old_annotations,
    old_annotations_back,
)
from ansible.module_utils.netmend.swap.state import read
from ansible.module_utils.netmend.without_flannel import WANTED, drop_in, would_decide

from .conftest import DROP_IN, NODES, STARTED, Captured


def steps(cluster: Captured, batch: int = 2) -> list[list[str]]:
    return flip(read(cluster.nodes, cluster.cluster), cluster.nodes, cluster.cluster, batch)


# --- the flip ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def larger(both: Captured) -> Captured:
    return enlarged(both, agents=5)


def enlarged(cluster: Captured, agents: int) -> Captured:
    """With three servers, and so many agents."""
    for number in (1, 2):
        cluster.join(f"server{number}", 100 + number)
    for number in range(2, agents):
        cluster.join(f"agent{number}", 110 + number, like="agent0")
    return cluster


def test_servers_one_by_one_then_agents_in_batches_as_one_tries_it_before(larger: Captured) -> None:
    assert steps(larger) == [
        ["server0"],
        ["server1"],
        ["server2"],
        ["agent0", "agent1"],
        ["agent2", "agent3"],
        ["agent4"],
    ]


def test_where_none_has_tried_it_one_agent_comes_before_the_others(larger: Captured) -> None:
    for name in ("server0", "server1", "server2"):
        larger.flip(name)
        larger.drop_in(name)
    assert steps(larger) == [["agent0"], ["agent1", "agent2"], ["agent3", "agent4"]]
    larger.nodes["agent3"]["k3s"]["config"]["flannel-cni-conf"] = "/etc/cni/net.d/10-calico.conflist"
    assert steps(larger, batch=5) == [["agent0", "agent1", "agent2", "agent3", "agent4"]]


def test_one_agent_tries_it_before_anything_is_flipped(larger: Captured) -> None:
    def tries(wanted: str = "") -> str:
        return canary(read(larger.nodes, larger.cluster), larger.nodes, larger.cluster, wanted)

    assert tries() == "agent0"
    assert tries("agent3") == "agent3"
    assert tries("server1") == "agent0"
    larger.nodes["agent4"]["k3s"]["config"]["flannel-cni-conf"] = "/etc/cni/net.d/10-calico.conflist"
    assert tries("agent3") == "agent4"
    larger.flip("server0")
    assert tries() == ""


def test_the_first_agent_has_pods_and_few_of_them(larger: Captured) -> None:
    pod = next(each for each in larger.cluster["pods"] if each["node"] == "agent0")
    larger.cluster["pods"].append({**pod, "name": "web-2"})
    assert canary(read(larger.nodes, larger.cluster), larger.nodes, larger.cluster) == "agent1"


def test_what_is_done_is_not_done_again(larger: Captured) -> None:
    larger.nodes["agent0"]["k3s"]["config"]["flannel-cni-conf"] = "/etc/cni/net.d/10-calico.conflist"
    order = steps(larger)
    while order:
        for name in order[0]:
            larger.flip(name)
            if name.startswith("server"):
                larger.drop_in(name)
        order = order[1:]
        assert steps(larger) == order


def test_a_server_whose_drop_in_waits_is_started_once_more(larger: Captured) -> None:
    larger.flip("server0")
    larger.drop_in("server0", changed=STARTED + 1)
    assert steps(larger)[0] == ["server0"]
    larger.drop_in("server0")
    assert steps(larger)[0] == ["server1"]


def test_a_swap_that_other_files_made_has_no_next_step(leftovers: Captured) -> None:
    assert steps(leftovers) == []


def test_the_drop_in_says_what_is_wanted_beside_k3ss_own_file(flannel: Captured) -> None:
    path, text = drop_in(flannel.nodes["server0"])
    assert path == DROP_IN
    assert parse_config(text, path) == [("flannel-backend", "none"), ("disable-network-policy", True)]
    assert {key for key, _ in parse_config(text, path)} == set(WANTED)
    flannel.configure("server0", "environment", config="/srv/k3s.yaml")
    assert drop_in(flannel.nodes["server0"])[0] == "/srv/k3s.yaml.d/90-netmend-cni.yaml"


@pytest.mark.parametrize(
    ("source", "decides"),
    [
        ("", True),
        ("/etc/rancher/k3s/config.yaml", True),
        ("/etc/rancher/k3s/config.yaml.d/10-site.yaml", True),
        ("/etc/rancher/k3s/config.yaml.d/95-later.yaml", False),
        ("ExecStart", False),
    ],
)
def test_what_is_read_after_the_drop_in_wins_over_it(flannel: Captured, source: str, decides: bool) -> None:
    facts = flannel.nodes["server0"]
    facts["k3s"]["sources"] = {"flannel-backend": source} if source else {}
    assert would_decide(facts) is decides


def test_of_one_nodes_leftovers_what_is_asked_for_goes_and_nothing_in_use(leftovers: Captured) -> None:
    found = read(leftovers.nodes, leftovers.cluster)["nodes"]["agent0"]["leftovers"]
    assert found["chains"]
    everything = order.leftovers(found, ["flannel"])
    assert ["ip", "link", "del", "flannel.1"] in [each["argv"] for each in everything]
    policies = order.leftovers(found, ["policy"])
    text = "".join(each["stdin"] for each in policies)
    assert "FLANNEL" not in text
    assert all("KUBE-ROUTER" in line or "KUBE-POD-FW" in line or "KUBE-NWPLCY" in line
               for line in text.splitlines() if line[:1] == "-")  # fmt: skip
    assert order.leftovers(found, []) == []
    assert order.leftovers({**found, "attached": ["veth1"]}, ["flannel"]) == []


def test_pods_get_what_the_narrowest_path_leaves(flannel: Captured) -> None:
    def narrow(reports: dict[str, Any]) -> None:
        reports["agent1"]["heard"]["agent0"]["sizes"].update({"1450": 0, "1440": 0})

    assert (mtu(flannel.underlay, "felix"), mtu(flannel.underlay, "bird"), mtu(flannel.underlay, "vxlan")) == (
        1430,
        1430,
        1400,
    )
    flannel.measure(narrow)
    assert (mtu(flannel.underlay, "felix"), mtu(flannel.underlay, "vxlan")) == (1380, 1350)


def test_of_a_path_that_nothing_is_known_of_there_is_no_mtu(flannel: Captured) -> None:
    def deaf(reports: dict[str, Any]) -> None:
        reports["agent1"]["heard"]["agent0"]["sizes"].clear()

    flannel.measure(deaf)
    assert mtu(flannel.underlay, "felix") == 0


# --- cleaning ---------------------------------------------------------------------------------------------------------


def test_what_is_cleaned_on_a_node(leftovers: Captured) -> None:
    leftovers.nodes["agent0"]["ipsets"]["KUBE-DST-XYZ"] = ["10.42.1.2"]
    route = next(each for each in leftovers.nodes["agent0"]["routes"] if each["destination"] == "10.42.3.0/24")
    route.update(gateway="10.0.0.111", device="vec0")
    commands = clean(read(leftovers.nodes, leftovers.cluster))["agent0"]
    assert commands[0]["argv"] == ["iptables-nft-restore", "-w", "--noflush"]
    assert commands[0]["stdin"] == (
        '*filter\n-D FORWARD -m comment --comment "flanneld forward" -j FLANNEL-FWD\n-F FLANNEL-FWD\n-X FLANNEL-FWD\n'
        "COMMIT\n"
        '*nat\n-D POSTROUTING -m comment --comment "flanneld masq" -j FLANNEL-POSTRTG\n-F FLANNEL-POSTRTG\n'
        "-X FLANNEL-POSTRTG\nCOMMIT\n"
    )
    assert [" ".join(command["argv"]) for command in commands[1:]] == [
        "ipset destroy KUBE-DST-XYZ",
        "ip route del 10.42.3.0/24 via 10.0.0.111 dev vec0",
        "ip link del flannel.1",
        "ip link del cni0",
        "rm -r -- /var/lib/rancher/k3s/agent/etc/cni/net.d/10-flannel.conflist",
        "rm -r -- /run/flannel/subnet.env",
    ]


@pytest.mark.parametrize("state", ["flannel", "both-overlays"])
def test_nothing_is_cleaned_that_is_in_use(captured: Callable[[str], Captured], state: str) -> None:
    found = read(captured(state).nodes, captured(state).cluster)
    assert (clean(found), old_annotations(found)) == ({}, {})


def test_one_pod_of_before_keeps_flannel_on_every_node(leftovers: Captured) -> None:
    leftovers.cluster["pods"][0]["ip"] = "10.42.1.7"
    found = read(leftovers.nodes, leftovers.cluster)
    assert (clean(found), old_annotations(found)) == ({}, {})


def test_a_bridge_that_something_hangs_on_is_kept(leftovers: Captured) -> None:
    leftovers.nodes["agent0"]["interfaces"].append({**leftovers.nodes["agent0"]["interfaces"][-1], "master": "cni0"})
    assert set(clean(read(leftovers.nodes, leftovers.cluster))) == {"server0", "agent1"}


def rules(text: str) -> list[str]:
    """Chains and rules without counters."""
    lines = (re.sub(r"^\[.*?\] |\[\d+:\d+\]$", "", line) for line in text.splitlines())
    return [line for line in lines if line[:1] in (":", "-", "*")]


@pytest.mark.parametrize("node", NODES)
def test_the_kernel_takes_the_plan_and_nothing_else_is_gone(
    leftovers: Captured, fixtures: Path, namespace: Any, node: str
) -> None:
    saved = (fixtures / f"k3s-1.36.3/swapped-leftovers/{node}/iptables-save.txt").read_text()
    # The sets that Calico's rules match are not in a new namespace.
    text = "".join(line for line in saved.splitlines(keepends=True) if "--match-set" not in line)
    namespace("iptables-nft-restore", "-c", text=text)
    before = namespace("iptables-nft-save")
    command = clean(read(leftovers.nodes, leftovers.cluster))[node][0]
    namespace(*command["argv"], text=command["stdin"])
    after = namespace("iptables-nft-save")

    theirs = re.compile(r"FLANNEL-|KUBE-(ROUTER|POD-FW|NWPLCY)-|KUBE-ROUTER rule|flanneld (masq|forward)")
    assert sum(bool(theirs.search(line)) for line in rules(before)) >= 12
    assert rules(after) == [line for line in rules(before) if not theirs.search(line)]
    leftovers.nodes[node]["iptables"]["nft"] = parse_save(after)
    found = read(leftovers.nodes, leftovers.cluster)
    assert (found["nodes"][node]["leftovers"]["chains"], found["nodes"][node]["leftovers"]["rules"]) == ({}, {})
    assert all(command["stdin"] == "" for command in clean(found)[node])


def test_of_what_is_cleaned_nothing_is_planned_again(leftovers: Captured) -> None:
    found = read(leftovers.nodes, leftovers.cluster)
    for name, commands in clean(found).items():
        for command in commands:
            carry_out(leftovers.nodes[name], command)
    names = old_annotations(found)
    assert set(names) == set(NODES)
    assert all(name.startswith("flannel.alpha.coreos.com/") for of_node in names.values() for name in of_node)
    for member in leftovers.cluster["nodes"]:
        member["annotations"] = {k: v for k, v in member["annotations"].items() if k not in names[member["name"]]}
        assert "projectcalico.org/IPv4Address" in member["annotations"]
    found = read(leftovers.nodes, leftovers.cluster)
    assert (found["phase"], clean(found), old_annotations(found)) == ("done", {}, {})


def carry_out(facts: Any, command: Any) -> None:
    """What the command does, on paper."""
    argv = command["argv"]
    if argv[:3] == ["ip", "link", "del"]:
        facts["interfaces"] = [each for each in facts["interfaces"] if each["name"] != argv[3]]
        facts["routes"] = [each for each in facts["routes"] if each["device"] != argv[3]]
        facts["fdb"] = [each for each in facts["fdb"] if each["device"] != argv[3]]
    elif argv[:3] == ["ip", "link", "set"]:
        assert argv[4:] == ["down"]
        facts["routes"] = [each for each in facts["routes"] if each["device"] != argv[3]]
    elif argv[:3] == ["ip", "address", "del"]:
        next(each for each in facts["interfaces"] if each["name"] == argv[5])["addresses"].remove(argv[3])
    elif argv[:4] == ["ip", "route", "del", "blackhole"]:
        facts["routes"].remove(next(each for each in facts["routes"] if each["destination"] == argv[4]))
    elif argv[:2] == ["ipset", "destroy"]:
        del facts["ipsets"][argv[2]]
    elif argv[0] == "rm":
        next(files for files in (facts["flannel"], facts["calico"]) if argv[3] in files).remove(argv[3])
    else:
        assert argv == ["iptables-nft-restore", "-w", "--noflush"]
        chains: Any = {}
        for line in command["stdin"].splitlines():
            action, _, rest = line.partition(" ")
            if line.startswith("*"):
                chains = facts["iptables"]["nft"][line[1:]]
            elif action == "-D":
                chain, _, spec = rest.partition(" ")
                content = chains[chain]["rules"]
                content.remove(next(rule for rule in content if rule["spec"] == spec))
            elif action == "-X":
                del chains[rest]


# --- the way back -----------------------------------------------------------------------------------------------------


def steps_back(cluster: Captured, batch: int = 2, canary: str = "") -> list[list[str]]:
    return flip_back(read(cluster.nodes, cluster.cluster), cluster.cluster, batch, canary)


@pytest.fixture
def larger_swapped(swapped: Captured) -> Captured:
    return enlarged(swapped, agents=4)


def test_back_go_servers_one_by_one_then_one_agent_then_the_others(larger_swapped: Captured) -> None:
    assert steps_back(larger_swapped) == [
        ["server0"],
        ["server1"],
        ["server2"],
        ["agent0"],
        ["agent1", "agent2"],
        ["agent3"],
    ]


def test_what_has_gone_back_does_not_go_again(larger_swapped: Captured) -> None:
    order = steps_back(larger_swapped)
    while order:
        larger_swapped.go_back(*order[0])
        order = order[1:]
        assert steps_back(larger_swapped) == order


def test_a_server_without_its_drop_in_is_yet_to_be_started(swapped: Captured) -> None:
    swapped.take_drop_in("server0")
    assert steps_back(swapped)[0] == ["server0"]


def test_of_a_swap_that_had_just_begun_only_that_goes_back(larger: Captured) -> None:
    assert steps_back(larger) == []
    larger.nodes["agent4"]["k3s"]["config"]["flannel-cni-conf"] = "/etc/cni/net.d/10-calico.conflist"
    assert steps_back(larger) == [["agent4"]]
    larger.drop_in("server0", changed=STARTED + 1)
    assert steps_back(larger) == [["server0"], ["agent4"]]


def planned_back(cluster: Captured) -> tuple[Any, Any, Any]:
    found = read(cluster.nodes, cluster.cluster)
    return clean_back(found), old_annotations_back(found), conditions_back(found)


def test_what_is_cleaned_of_calico_on_a_node(returned: Captured) -> None:
    facts = returned.nodes["agent0"]
    facts["ipsets"] = {"cali40all-hosts-net": [], "KUBE-SRC-ABC": []}
    facts["calico"] = ["/etc/cni/net.d/10-calico.conflist", "/opt/cni/bin/calico"]
    facts["iptables"]["nft"] = parse_save(
        "*nat\n:POSTROUTING ACCEPT [0:0]\n:FLANNEL-POSTRTG - [0:0]\n:cali-POSTROUTING - [0:0]\n"
        '-A POSTROUTING -m comment --comment "cali:O3lYWMrLQYEMJtB5" -j cali-POSTROUTING\n'
        '-A POSTROUTING -m comment --comment "flanneld masq" -j FLANNEL-POSTRTG\n'
        '-A FLANNEL-POSTRTG -s 10.42.0.0/16 -m comment --comment "netmend:calico-beside-flannel" -j RETURN\n'
        '-A FLANNEL-POSTRTG -s 10.42.0.0/16 -m comment --comment "netmend:other" -j RETURN\nCOMMIT\n'
    )
    facts["iptables"]["legacy"] = parse_save(
        "*filter\n:INPUT ACCEPT [0:0]\n:cali-INPUT - [0:0]\n-A INPUT -j cali-INPUT\nCOMMIT\n"
    )
    nft, legacy, *others = clean_back(read(returned.nodes, returned.cluster))["agent0"]
    assert nft["argv"] == ["iptables-nft-restore", "-w", "--noflush"]
    assert nft["stdin"] == (
        '*nat\n-D POSTROUTING -m comment --comment "cali:O3lYWMrLQYEMJtB5" -j cali-POSTROUTING\n'
        '-D FLANNEL-POSTRTG -s 10.42.0.0/16 -m comment --comment "netmend:calico-beside-flannel" -j RETURN\n'
        "-F cali-POSTROUTING\n-X cali-POSTROUTING\nCOMMIT\n"
    )
    assert legacy["argv"] == ["iptables-legacy-restore", "-w", "--noflush"]
    assert legacy["stdin"] == "*filter\n-D INPUT -j cali-INPUT\n-F cali-INPUT\n-X cali-INPUT\nCOMMIT\n"
    assert [" ".join(command["argv"]) for command in others] == [
        "ipset destroy cali40all-hosts-net",
        "ip route del blackhole 10.42.191.192/26 proto 80",
        "ip link set tunl0 down",
        "ip address del 10.42.191.192/32 dev tunl0",
        "rm -r -- /etc/cni/net.d/10-calico.conflist",
        "rm -r -- /opt/cni/bin/calico",
    ]


@pytest.mark.parametrize("state", ["flannel", "both-overlays", "swapped-leftovers", "swapped-clean"])
def test_nothing_of_calico_is_cleaned_before_it_has_gone(captured: Callable[[str], Captured], state: str) -> None:
    assert planned_back(captured(state)) == ({}, {}, {})


def test_one_pod_of_the_pool_keeps_calico_on_every_node(returned: Captured) -> None:
    assert set(planned_back(returned)[0]) == set(NODES)
    returned.cluster["pods"][0]["ip"] = "10.42.130.5"
    assert planned_back(returned) == ({}, {}, {})


def test_a_node_where_a_pods_interface_is_calicos_is_kept(returned: Captured) -> None:
    interfaces = returned.nodes["agent0"]["interfaces"]
    interfaces.append({**interfaces[-1], "name": "cali7df05913c2e", "kind": "veth"})
    assert set(planned_back(returned)[0]) == {"server0", "agent1"}


def test_nodes_are_given_new_pods_again(returned: Captured) -> None:
    returned.member("agent0")["network"] = ""
    kinds = ["NetworkUnavailable"]
    assert conditions_back(read(returned.nodes, returned.cluster)) == {"server0": kinds, "agent1": kinds}


@pytest.mark.parametrize("state", ["both-overlays", "swapped-leftovers", "swapped-clean"])
def test_of_what_is_cleaned_of_calico_nothing_is_planned_again(captured: Callable[[str], Captured], state: str) -> None:
    cluster = captured(state)
    cluster.own_drop_in()
    cluster.go_back(*NODES)
    cluster.move_pods_back()
    cluster.end_calico()
    flannels = [name for name in cluster.nodes["agent0"]["iptables"]["nft"]["filter"] if "cali-" not in name]
    commands, annotations, conditions = planned_back(cluster)
    assert set(commands) == set(annotations) == set(conditions) == set(NODES)
    for name, planned in commands.items():
        for command in planned:
            carry_out(cluster.nodes[name], command)
    for member in cluster.cluster["nodes"]:
        names = annotations[member["name"]]
        member["annotations"] = {k: v for k, v in member["annotations"].items() if k not in names}
        member["network"] = ""
    assert planned_back(cluster) == ({}, {}, {})
    assert read(cluster.nodes, cluster.cluster)["back"] == "done"
    assert list(cluster.nodes["agent0"]["iptables"]["nft"]["filter"]) == flannels


@pytest.mark.parametrize("node", NODES)
def test_the_kernel_takes_the_plan_and_nothing_but_calicos_is_gone(
    returned: Captured, fixtures: Path, namespace: Any, node: str
) -> None:
    saved = (fixtures / f"k3s-1.36.3/swapped-leftovers/{node}/iptables-save.txt").read_text()
    # The sets that Calico's rules match are not in a new namespace.
    text = "".join(line for line in saved.splitlines(keepends=True) if "--match-set" not in line)
    namespace("iptables-nft-restore", "-c", text=text)
    before = namespace("iptables-nft-save")
    returned.nodes[node]["iptables"]["nft"] = parse_save(before)
    command = clean_back(read(returned.nodes, returned.cluster))[node][0]
    namespace(*command["argv"], text=command["stdin"])
    after = namespace("iptables-nft-save")
    assert sum("cali" in line for line in rules(before)) >= 50
    assert rules(after) == [line for line in rules(before) if "cali" not in line]
    assert any("FLANNEL-POSTRTG" in line for line in rules(after))


@pytest.mark.parametrize("node", NODES)
def test_the_kernel_takes_tunnel_and_routes_away(returned: Captured, namespace: Any, node: str) -> None:
    found = read(returned.nodes, returned.cluster)["nodes"][node]["calico"]
    commands = [c["argv"] for c in clean_back(read(returned.nodes, returned.cluster))[node] if c["argv"][0] == "ip"]
    # Where IPIP is loaded, each namespace has one already.
    namespace("ip", "link", "add", "tunl0", "type", "veth", "peer", "name", "peer0", ok=False)
    namespace("ip", "link", "set", "lo", "up")
    namespace("ip", "link", "set", "tunl0", "up")
    for address in found["addresses"]:
        namespace("ip", "address", "add", *address.split())
    for route in found["routes"]:
        way = route.split()
        namespace("ip", "route", "add", *(way if "blackhole" in way else [way[0], "dev", "tunl0", "proto", "80"]))
    namespace("ip", "route", "add", "192.0.2.0/24", "dev", "lo")
    for argv in commands:
        namespace(*argv)
    assert "10.42." not in namespace("ip", "route", "show", "table", "all")
    assert "192.0.2.0/24" in namespace("ip", "route", "show")
    assert "inet " not in namespace("ip", "address", "show", "tunl0")
