"""Calico's stand-in on the lab's machines is what real Calico 3.32.1 was on real ones, as the captures show it.

Names of nodes and networks of pods are other ones there, so both are brought to one form: a node is what it is called
in the captures, its block is "block of NODE", the pool is "pool".
"""

from __future__ import annotations

import json
import re
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from lab import cluster
from lab.playbooks import Playbooks
from lab.spec import Lab, Machine

CAPTURED = {"10.0.0.100": "server0", "10.0.0.110": "agent0", "10.0.0.111": "agent1"}
WITHIN = 60  # seconds for what a controller is to do

DENY = """
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: netmend-test}
spec:
  podSelector: {matchLabels: {app: web}}
  policyTypes: [Ingress]
  ingress: [{from: [{podSelector: {matchLabels: {app: target}}}], ports: [{port: 8080}]}]
"""


@pytest.fixture(scope="module")
def captures(fixtures: Path) -> Path:
    return fixtures / "k3s-1.36.3/swapped-clean"


def kubernetes(lab: Lab, what: str) -> Any:
    return json.loads(cluster.must(lab, lab.servers[0], f"k3s kubectl get {what} -o json"))["items"]


def owners(affinities: list[dict[str, Any]], names: dict[str, str]) -> dict[str, str]:
    """Block -> whose it is."""
    found = {a["spec"]["cidr"]: f"block of {names[a['spec']['node']]}" for a in affinities}
    assert len(found) == len(affinities) == len(CAPTURED)
    return found


@pytest.fixture(scope="module")
def blocks(lab: Lab) -> dict[str, str]:
    names = {machine.name: CAPTURED[machine.private] for machine in lab.machines}
    return owners(kubernetes(lab, "blockaffinities.crd.projectcalico.org"), names)


@pytest.fixture(scope="module")
def captured_blocks(captures: Path) -> dict[str, str]:
    items = json.loads((captures / "server0/k8s-blockaffinities.json").read_text())["items"]
    return owners(items, {name: name for name in CAPTURED.values()})


def main_table(listing: str) -> list[dict[str, Any]]:
    """Routes of the main table, whether or not the listing is of all tables and names each route's."""
    found = [dict(route) for route in json.loads(listing)]
    return [route for route in found if route.pop("table", "main") == "main"]


def routes(listing: str, blocks: dict[str, str]) -> list[dict[str, Any]]:
    """Those to blocks."""
    found = [{**route, "dst": blocks[route["dst"]]} for route in main_table(listing) if route["dst"] in blocks]
    return sorted(found, key=lambda route: str(route["dst"]))


def test_routes_between_nodes_are_felixs(
    lab: Lab, captures: Path, blocks: dict[str, str], captured_blocks: dict[str, str]
) -> None:
    for machine in lab.machines:
        real = (captures / CAPTURED[machine.private] / "ip-route-all.json").read_text()
        here = cluster.must(lab, machine, "ip -d -j route show table all")
        assert routes(here, blocks) == routes(real, captured_blocks)


def test_routes_to_own_pods_are_felixs(lab: Lab, captures: Path) -> None:
    def form(listing: str) -> set[str]:
        found = [route for route in main_table(listing) if str(route.get("dev", "")).startswith("cali")]
        found = [route for route in found if ":" not in route["dst"]]
        assert found
        return {json.dumps({**route, "dst": "pod", "dev": "cali"}, sort_keys=True) for route in found}

    for machine in lab.machines:
        real = (captures / CAPTURED[machine.private] / "ip-route-all.json").read_text()
        assert form(cluster.must(lab, machine, "ip -d -j route show table all")) == form(real)


def test_the_tunnel_and_pods_interfaces_are_as_calico_makes_them(lab: Lab, captures: Path) -> None:
    def form(listing: str) -> dict[str, Any]:
        links = {re.sub(r"^cali.*", "cali", link["ifname"]): link for link in json.loads(listing)}
        keys = ("mtu", "flags", "link_type", "address", "operstate", "group")
        return {name: {key: links[name][key] for key in keys} for name in ("tunl0", "cali")}

    for machine in lab.machines:
        real = (captures / CAPTURED[machine.private] / "ip-link.json").read_text()
        assert form(cluster.must(lab, machine, "ip -j link")) == form(real)


def chains(save: str) -> dict[tuple[str, str], list[str]]:
    """Calico's rules by table and chain, in their order, without their hashes' names of interfaces."""
    found: dict[tuple[str, str], list[str]] = {}
    for section in re.split(r"(?m)^\*", save)[1:]:
        table, _, rest = section.partition("\n")
        for chain in re.findall(r"(?m)^:(cali-\S+) ", rest):
            found[table, chain] = []
        for chain, rule in re.findall(r"(?m)^(?:\[\d+:\d+\] )?-A (\S+) (.*cali.*)$", rest):
            found.setdefault((table, chain), []).append(rule)
    return found


def of_any_pod(rules: dict[tuple[str, str], list[str]]) -> dict[tuple[str, str], list[str]]:
    """The chains with the first pod's in the place of all, and without hashes where they are of a pod's name."""
    form: dict[tuple[str, str], list[str]] = {}
    for (table, chain), lines in rules.items():
        name = re.sub(r"cali[0-9a-f]{11}", "POD", chain)
        if name == chain and "wl-dispatch" not in chain:
            form[table, name] = lines
            continue
        plain = [re.sub(r"cali[0-9a-f]{11}", "POD", re.sub(r'"cali:\S{16}"', '""', line)) for line in lines]
        form[table, name] = list(dict.fromkeys(plain))
    return form


def test_chains_and_rules_are_felixs_in_their_order(lab: Lab, captures: Path) -> None:
    """By their hashes: each is of a rule's own text and of all rules before it."""
    for machine in lab.machines:
        real = of_any_pod(chains((captures / CAPTURED[machine.private] / "iptables-save.txt").read_text()))
        ours = of_any_pod(chains(cluster.must(lab, machine, "iptables-save")))
        # Pods outside the namespace default, of which the real machines had none; a long name is a hash.
        other_namespaces = {key for key in ours if re.match(r"cali-pr[io]-(_|(kns|ksa)\.(?!default))", key[1])}
        ours = {key: rules for key, rules in ours.items() if key not in other_namespaces and "POD" not in key[1]}
        assert ours == {key: rules for key, rules in real.items() if "POD" not in key[1]}


def test_a_pods_chains_are_felixs(lab: Lab, captures: Path) -> None:
    machine = lab.machines[-1]
    real = of_any_pod(chains((captures / CAPTURED[machine.private] / "iptables-save.txt").read_text()))
    ours = chains(cluster.must(lab, machine, "iptables-save"))
    default = {key: rules for key, rules in ours.items() if "w-cali" in key[1] and "kns.default" in " ".join(rules)}
    assert len(default) == 4  # web's and target's, either direction
    for key, rules in default.items():
        ((name, plain),) = of_any_pod({key: rules}).items()
        assert plain == real[name]


def test_calico_stands_first_in_the_kernels_chains(lab: Lab) -> None:
    for machine in lab.machines:
        save = cluster.must(lab, machine, "iptables-save -t filter")
        for chain in ("INPUT", "FORWARD", "OUTPUT"):
            first = re.search(rf"(?m)^-A {chain} .*", save)
            assert first
            assert first[0].endswith(f"-j cali-{chain}")


def sets(save: str) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for verb, name, rest in re.findall(r"(?m)^(create|add) (cali40\S+) (.*)$", save):
        found.setdefault(name, []).append(rest.split()[0])
        assert verb == "add" or rest.startswith("hash:")
    return {name: [values[0], *sorted(values[1:])] for name, values in found.items()}


def test_sets_are_felixs(lab: Lab, captures: Path) -> None:
    assert lab.calico
    for machine in lab.machines:
        real = sets((captures / CAPTURED[machine.private] / "ipset.txt").read_text().replace("10.42.128.0/17", "pool"))
        ours = sets(cluster.must(lab, machine, "ipset save").replace(lab.calico["pool"], "pool"))
        # A machine's own addresses are its own.
        for found in (real, ours):
            own = found.pop("cali40this-host")
            assert {"hash:ip", "127.0.0.0", "127.0.0.1", machine.private} <= set(own)
        assert ours == real


def test_nodes_say_of_themselves_what_calico_has_them_say(lab: Lab, captures: Path, blocks: dict[str, str]) -> None:
    real = json.loads((captures / "server0/k8s-nodes.json").read_text())["items"]
    by_address = {machine.private: machine.name for machine in lab.machines}

    def form(node: dict[str, Any]) -> dict[str, str]:
        keys = ("projectcalico.org/IPv4Address", "projectcalico.org/IPv4IPIPTunnelAddr")
        return {key: node["metadata"]["annotations"][key] for key in keys}

    ours = {node["metadata"]["name"]: form(node) for node in kubernetes(lab, "nodes")}
    for node in real:
        address, tunnel = form(node).values()
        # The tunnel's end is the first address of the node's first block.
        name = by_address[address.partition("/")[0]]
        assert ours[name]["projectcalico.org/IPv4Address"] == address
        own = next(block for block, owner in blocks.items() if owner.endswith(node["metadata"]["name"]))
        assert ours[name]["projectcalico.org/IPv4IPIPTunnelAddr"] == own.partition("/")[0]
        assert tunnel


def test_affinities_are_written_as_calico_writes_them(lab: Lab, captures: Path) -> None:
    def form(item: dict[str, Any]) -> dict[str, Any]:
        node, cidr = item["spec"]["node"], item["spec"]["cidr"]
        assert item["metadata"]["name"] == f"{node}-{re.sub('[./]', '-', cidr)}"
        labels = {**item["metadata"]["labels"], "projectcalico.org/hostname-hash": "hash"}
        return {"labels": labels, "spec": {**item["spec"], "node": "node", "cidr": "cidr"}}

    real = json.loads((captures / "server0/k8s-blockaffinities.json").read_text())["items"]
    ours = kubernetes(lab, "blockaffinities.crd.projectcalico.org")
    assert [form(item) for item in ours] == [form(item) for item in real]


def test_the_conflist_is_the_manifests(lab: Lab, captures: Path) -> None:
    """The capture has bandwidth besides, which its hand-made conflist had and Calico's manifest has not."""
    for machine in lab.machines:
        real = json.loads((captures / CAPTURED[machine.private] / "cni-etc/10-calico.conflist").read_text())
        ours = json.loads(cluster.must(lab, machine, "cat /etc/cni/net.d/10-calico.conflist"))
        assert [plugin["type"] for plugin in ours["plugins"]] == ["calico", "portmap"]
        for key in ("datastore_type", "ipam", "policy", "container_settings"):
            assert ours["plugins"][0][key] == real["plugins"][0][key]
        assert (ours["name"], ours["plugins"][0]["nodename"]) == (real["name"], machine.name)


def test_a_healthy_lab_is_found_healthy_and_left_alone(lab: Lab, playbooks: Playbooks) -> None:
    run = playbooks.run("diagnose.yml")
    assert run.code == 0, run.output
    assert (run.named, run.changed) == ([], 0), run.output
    assert run.report["now"]["matrix"]["ok"] == run.report["now"]["matrix"]["total"] > 0


def answers(lab: Lab, machine: Machine, app: str, address: str) -> bool:
    """Whether a pod of an application on this machine gets an answer from another pod."""
    inside = f"nsenter --net --target $(pgrep --full '^/pod {app}' | head -1)"
    argv = f"{inside} curl --silent --max-time 2 --output /dev/null http://{address}:8080/health; echo $?"
    return cluster.must(lab, machine, argv).strip() == "0"


def test_a_policy_lets_in_only_whom_it_names(lab: Lab) -> None:
    server, client = lab.machines[0], lab.machines[-1]
    pods = kubernetes(lab, "pods -l app=web")
    address = next(pod["status"]["podIP"] for pod in pods if pod["spec"]["nodeName"] == server.name)

    def settles(app: str, answer: bool) -> bool:
        deadline = time.monotonic() + WITHIN
        while answers(lab, client, app, address) != answer:
            if time.monotonic() > deadline:
                return False
        return True

    assert settles("app", True)
    cluster.must(lab, server, "k3s kubectl apply -f -", text=DENY)
    try:
        assert settles("app", False)
        assert settles("target", True)
    finally:
        cluster.must(lab, server, "k3s kubectl delete -f -", text=DENY)
    assert settles("app", True)


def test_everything_runs_across_nodes_through_the_tunnel(lab: Lab) -> None:
    def sent(machine: Machine) -> int:
        (link,) = json.loads(cluster.must(lab, machine, "ip -j -s link show tunl0"))
        return int(link["stats64"]["tx"]["packets"])

    with ThreadPoolExecutor(len(lab.machines)) as pool:
        before = list(pool.map(sent, lab.machines))
        for machine in lab.machines:
            for pod in kubernetes(lab, "pods -l app=web"):
                assert answers(lab, machine, "target", pod["status"]["podIP"])
        after = list(pool.map(sent, lab.machines))
    assert all(later > sooner for sooner, later in zip(before, after))
