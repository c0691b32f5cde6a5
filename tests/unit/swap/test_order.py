"""What comes next in a swap; of what was planned and done, nothing is planned again."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, Callable

import pytest
from ansible.module_utils.netmend.parse.iptables import parse_save
from ansible.module_utils.netmend.parse.k3s import parse_config
from ansible.module_utils.netmend.swap.order import canary, clean, drop_in, flip, mtu, old_annotations
from ansible.module_utils.netmend.swap.state import WANTED, read

from .conftest import DROP_IN, NODES, STARTED, Captured


def steps(cluster: Captured, batch: int = 2, canary: str = "") -> list[list[str]]:
    return flip(read(cluster.nodes, cluster.cluster), cluster.cluster, batch, canary)


# --- the flip ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def larger(both: Captured) -> Captured:
    """Three servers and five agents."""
    for number in (1, 2):
        both.join(f"server{number}", 100 + number)
    for number in (2, 3, 4):
        both.join(f"agent{number}", 110 + number, like="agent0")
    return both


def test_servers_one_by_one_then_one_agent_then_the_others_in_batches(larger: Captured) -> None:
    assert steps(larger) == [
        ["server0"],
        ["server1"],
        ["server2"],
        ["agent0"],
        ["agent1", "agent2"],
        ["agent3", "agent4"],
    ]
    assert steps(larger, batch=10, canary="agent3")[3:] == [["agent3"], ["agent0", "agent1", "agent2", "agent4"]]


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
    assert steps(larger)[3] == ["agent1"]


def test_what_is_done_is_not_done_again(larger: Captured) -> None:
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
    assert (clean(found), old_annotations(found)) == ({}, [])


def test_one_pod_of_before_keeps_flannel_on_every_node(leftovers: Captured) -> None:
    leftovers.cluster["pods"][0]["ip"] = "10.42.1.7"
    found = read(leftovers.nodes, leftovers.cluster)
    assert (clean(found), old_annotations(found)) == ({}, [])


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
    assert names
    assert all(name.startswith("flannel.alpha.coreos.com/") for name in names)
    for member in leftovers.cluster["nodes"]:
        member["annotations"] = {k: v for k, v in member["annotations"].items() if k not in names}
        assert "projectcalico.org/IPv4Address" in member["annotations"]
    found = read(leftovers.nodes, leftovers.cluster)
    assert (found["phase"], clean(found), old_annotations(found)) == ("done", {}, [])


def carry_out(facts: Any, command: Any) -> None:
    """What the command does, on paper."""
    argv = command["argv"]
    if argv[:3] == ["ip", "link", "del"]:
        facts["interfaces"] = [each for each in facts["interfaces"] if each["name"] != argv[3]]
        facts["routes"] = [each for each in facts["routes"] if each["device"] != argv[3]]
        facts["fdb"] = [each for each in facts["fdb"] if each["device"] != argv[3]]
    elif argv[0] == "rm":
        facts["flannel"].remove(argv[3])
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
