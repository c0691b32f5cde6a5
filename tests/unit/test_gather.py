from __future__ import annotations

import json
import os
import re
import shutil
import time
from pathlib import Path
from typing import Callable

import pytest
from ansible.module_utils.netmend import gather
from ansible.module_utils.netmend.model import NodeFacts
from ansible.module_utils.netmend.node import CommandError

STATES = ("flannel", "flannel-ufw-blocks", "both-overlays", "swapped-leftovers", "swapped-clean")
FILES = {
    "cni": "var/lib/rancher/k3s/agent/etc/cni/net.d",
    "cni-etc": "etc/cni/net.d",
    "containerd-config.toml": "var/lib/rancher/k3s/agent/etc/containerd/config.toml",
    "etc-default-ufw.txt": "etc/default/ufw",
    "flannel-subnet.env": "run/flannel/subnet.env",
    "netstat.txt": "proc/net/netstat",
    "rancher": "etc/rancher/k3s",
    "snmp.txt": "proc/net/snmp",
    "ufw-before.rules.txt": "etc/ufw/before.rules",
    "ufw-user.rules.txt": "etc/ufw/user.rules",
}
COMMANDS = {
    "ip -j -d -s link": "ip-link.json",
    "ip -j addr": "ip-addr.json",
    "ip -j -d route show table all": "ip-route-all.json",
    "ip -j rule": "ip-rule.json",
    "ip -j neigh": "ip-neigh.json",
    "bridge -j fdb": "bridge-fdb.json",
    "iptables-nft-save -c": "iptables-save.txt",
    "nft -j list chains": "nft.json",
    "ss -H -lntup": "ss.txt",
    "/opt/k3s/bin/k3s --version": "k3s-version.txt",
}
STARTED = 5_000_000  # microseconds of the monotonic clock
POD = "b129d998-febc-4b7c-b78d-9e6656ffaa25"


class Machine:
    """A captured node: its files below ``root``, its commands' outputs, and the commands that were asked for."""

    def __init__(self, captured: Path, root: Path) -> None:
        self.root = root
        self.asked: list[str] = []
        role = "server" if captured.name == "server0" else "agent"
        unit = "k3s.service" if role == "server" else "k3s-agent.service"
        self.outputs = {command: (captured / file).read_text() for command, file in COMMANDS.items()}
        self.outputs["ipset save"] = (captured / "ipset.txt").read_text() if (captured / "ipset.txt").exists() else ""
        self.outputs[f"ss -H -tn state connected {gather.BGP}"] = ""
        self.outputs["iptables --version"] = "iptables v1.8.11 (nf_tables)\n"
        for source, target in FILES.items():
            (root / target).parent.mkdir(parents=True, exist_ok=True)
            if (captured / source).is_dir():
                shutil.copytree(captured / source, root / target)
            elif (captured / source).exists():
                shutil.copy(captured / source, root / target)
        for key, value in re.findall(r"^(\S+) = (.*)$", (captured / "sysctl.txt").read_text(), re.M):
            self.write("proc/sys/" + key.translate(str.maketrans("./", "/.")), value)
        for path, text in re.findall(
            r"^# /(\S+)\n(.*?)(?=\n# /|\Z)", (captured / "units.txt").read_text(), re.M | re.S
        ):
            self.write(path, text)
        self.outputs[
            "systemctl show"
            " --property=Id,LoadState,ActiveState,FragmentPath,DropInPaths,ExecMainStartTimestampMonotonic"
            " k3s.service k3s-agent.service chrony.service chronyd.service systemd-timesyncd.service"
        ] = "\n".join(
            f"Id={name}\nLoadState={load}\nActiveState={active}\nFragmentPath=/etc/systemd/system/{name}\nDropInPaths=\n"
            f"ExecMainStartTimestampMonotonic={STARTED if active == 'active' else 0}\n"
            for name, load, active in [
                ("k3s.service", "loaded", "active" if unit == "k3s.service" else "inactive"),
                ("k3s-agent.service", "loaded", "active" if unit == "k3s-agent.service" else "inactive"),
                ("chrony.service", "not-found", "inactive"),
                ("systemd-timesyncd.service", "loaded", "active"),
            ]
        )
        self.write("proc/sys/kernel/hostname", "Debian\n")
        self.write("proc/net/stat/nf_conntrack", "entries insert_failed drop\n0000000b 00000001 00000000\n")
        self.write("proc/self/ns/net", "host")
        self.write(
            "proc/472/cgroup", f"0::/kubepods.slice/kubepods-besteffort-pod{POD.replace('-', '_')}.slice/a.scope\n"
        )
        self.write("proc/472/ns/net", "pod")

    def write(self, path: str, text: str) -> None:
        (self.root / path).parent.mkdir(parents=True, exist_ok=True)
        (self.root / path).write_text(text)

    def run(self, argv: list[str]) -> str:
        self.asked.append(" ".join(argv))
        if self.asked[-1] not in self.outputs:
            raise CommandError(f"{argv[0]}: not found")
        return self.outputs[" ".join(argv)]

    def facts(self) -> NodeFacts:
        return gather.gather_node(self.run, str(self.root))


@pytest.fixture
def machine(fixtures: Path, tmp_path: Path) -> Callable[[str, str], Machine]:
    return lambda state, node: Machine(fixtures / "k3s-1.36.3" / state / node, tmp_path)


@pytest.mark.parametrize("state", STATES)
@pytest.mark.parametrize("node", ["server0", "agent1"])
def test_every_captured_node(machine: Callable[[str, str], Machine], state: str, node: str) -> None:
    facts = machine(state, node).facts()
    assert facts["errors"] == []
    assert set(facts) == set(NodeFacts.__annotations__)
    assert json.loads(json.dumps(facts)) == facts
    assert facts["name"] == node
    assert facts["k3s"]["role"] == node[:-1]
    assert facts["k3s"]["active"] == "active"
    assert facts["k3s"]["version"] == "v1.36.3+k3s-af977adf"
    assert facts["k3s"]["config"]["flannel-iface"] == "vec0"
    assert facts["sysctls"]["net.ipv4.ip_forward"] == "1"
    assert facts["conntrack"]["max"] == 131072
    assert facts["conntrack"]["insert_failed"] == 1
    assert "KUBE-FORWARD" in facts["iptables"]["nft"]["filter"]
    assert facts["nft_tables"] == []
    assert [(pod["uid"], pod["pid"]) for pod in facts["pods"]] == [(POD, 472)]
    swapped = state.startswith("swapped")
    assert list(facts["cni"]["networks"]) == (["10-calico.conflist"] if swapped else ["10-flannel.conflist"])
    tunnels = {interface["kind"] for interface in facts["interfaces"]} & {"vxlan", "ipip"}
    assert tunnels == ({"ipip"} if state == "swapped-clean" else {"vxlan", "ipip"})


def test_the_swap_is_seen_with_the_file_that_decided_it(machine: Callable[[str, str], Machine]) -> None:
    k3s = machine("swapped-clean", "server0").facts()["k3s"]
    assert (k3s["config"]["flannel-backend"], k3s["config"]["disable-network-policy"]) == ("none", True)
    assert k3s["sources"]["flannel-backend"] == "/etc/rancher/k3s/config.yaml.d/90-cni.yaml"


def test_when_k3s_started_and_its_files_changed(machine: Callable[[str, str], Machine]) -> None:
    node = machine("swapped-clean", "server0")
    drop_in = "etc/rancher/k3s/config.yaml.d/90-cni.yaml"
    os.utime(node.root / drop_in, (1.0, 1795250021.5))
    before = time.time() - time.monotonic()
    k3s = node.facts()["k3s"]
    assert list(k3s["files"]) == ["/etc/rancher/k3s/config.yaml", f"/{drop_in}"]
    assert k3s["files"][f"/{drop_in}"] == 1795250021.5
    assert k3s["started"] == pytest.approx(before + 5, abs=1)


@pytest.mark.parametrize(
    ("state", "unread"),
    [
        ("flannel", []),
        ("both-overlays", ["/etc/cni/net.d/10-calico.conflist"]),
        ("swapped-clean", ["/var/lib/rancher/k3s/agent/etc/cni/net.d/10-flannel.conflist"]),
    ],
)
def test_networks_that_containerd_does_not_read(
    machine: Callable[[str, str], Machine], state: str, unread: list[str]
) -> None:
    assert list(machine(state, "agent0").facts()["cni"]["unread"]) == unread


def test_files_of_flannel_and_room_on_disk(machine: Callable[[str, str], Machine]) -> None:
    node = machine("swapped-clean", "agent0")
    node.write("var/lib/cni/networks/cbr0/10.42.1.2", "")
    facts = node.facts()
    assert facts["flannel"] == [
        "/var/lib/rancher/k3s/agent/etc/cni/net.d/10-flannel.conflist",
        "/run/flannel/subnet.env",
        "/var/lib/cni/networks/cbr0",
    ]
    assert set(facts["disk"]) == {"/var/lib/rancher/k3s", "/opt/cni/bin"}
    assert all(0 < space["free"] <= space["size"] for space in facts["disk"].values())


def test_files_of_calico_among_those_of_others(machine: Callable[[str, str], Machine]) -> None:
    node = machine("swapped-clean", "agent0")
    for name in ("calico", "calico-ipam", "portmap"):
        node.write(f"opt/cni/bin/{name}", "")
    node.write("etc/cni/net.d/calico-kubeconfig", "")
    assert node.facts()["calico"] == [
        "/etc/cni/net.d/10-calico.conflist",
        "/etc/cni/net.d/calico-kubeconfig",
        "/opt/cni/bin/calico",
        "/opt/cni/bin/calico-ipam",
    ]


def test_certificates_have_names_and_dates_and_keys_are_not_opened(
    machine: Callable[[str, str], Machine], fixtures: Path
) -> None:
    node = machine("flannel", "server0")
    tls = "var/lib/rancher/k3s/server/tls"
    text = (fixtures / "certificates/until-2027.crt").read_text()
    for path in (f"{tls}/etcd/peer-server-client.crt", f"{tls}/temporary-certs/own.crt", f"{tls}/client-admin.key"):
        node.write(path, text)
    node.write("var/lib/rancher/k3s/agent/serving-kubelet.crt", "nothing\n")
    facts = node.facts()
    (found,) = facts["certificates"]
    assert (found["file"], found["subject"]) == (f"/{tls}/etcd/peer-server-client.crt", "etcd-server")
    assert found["not_after"] - found["not_before"] == 365 * 86400
    assert [error["what"] for error in facts["errors"]] == [
        "certificate /var/lib/rancher/k3s/agent/serving-kubelet.crt"
    ]


def test_changes_that_nobody_has_confirmed(machine: Callable[[str, str], Machine]) -> None:
    node = machine("flannel", "agent0")
    assert node.facts()["unconfirmed"] == []
    for name in ("guard/ufw/state.json", "guard/iptables_forward/rolled_back.json", "undo/bridge_hairpin/state.json"):
        node.write(f"var/lib/netmend/{name}", "{}")
    assert node.facts()["unconfirmed"] == ["ufw"]


def test_ufw(machine: Callable[[str, str], Machine]) -> None:
    node = machine("flannel-ufw-blocks", "agent0")
    node.write("etc/ufw/ufw.conf", "ENABLED=yes\nLOGLEVEL=low\n")
    node.write("usr/sbin/ufw", "")
    facts = node.facts()
    assert (facts["ufw"]["installed"], facts["ufw"]["enabled"], facts["ufw"]["logging"]) == (True, True, "low")
    assert (facts["ufw"]["defaults"]["forward"], facts["ufw"]["manage_builtins"]) == ("DROP", False)
    assert [rule["port"] for rule in facts["ufw"]["rules"]] == ["22", "10250"]
    assert facts["iptables"]["nft"]["filter"]["FORWARD"]["policy"] == "DROP"


def test_legacy_is_asked_only_where_it_has_tables(machine: Callable[[str, str], Machine]) -> None:
    node = machine("flannel", "agent0")
    node.outputs["iptables-legacy-save -c"] = "*filter\n:FORWARD DROP [7:420]\nCOMMIT\n"
    assert node.facts()["iptables"]["legacy"] == {}
    assert "iptables-legacy-save -c" not in node.asked
    node.write("proc/net/ip_tables_names", "filter\n")
    assert node.facts()["iptables"]["legacy"]["filter"]["FORWARD"]["packets"] == 7


def test_foreign_nft_tables_are_listed_in_full(machine: Callable[[str, str], Machine]) -> None:
    node = machine("flannel", "agent0")
    table = {"table": {"family": "inet", "name": "site"}}
    chain = {"chain": {"family": "inet", "table": "site", "name": "f", "hook": "forward", "prio": 0, "policy": "drop"}}
    rule = {"rule": {"family": "inet", "table": "site", "chain": "f", "expr": []}}
    node.outputs["nft -j list chains"] = json.dumps({"nftables": [table, chain]})
    node.outputs["nft -j -t list table inet site"] = json.dumps({"nftables": [table, chain, rule]})
    assert node.facts()["nft_tables"] == [
        {
            "family": "inet",
            "name": "site",
            "chains": {"f": {"hook": "forward", "priority": 0, "policy": "drop", "rules": 1}},
        }
    ]


def test_what_is_missing_is_named_and_the_rest_is_there(machine: Callable[[str, str], Machine]) -> None:
    node = machine("flannel", "agent0")
    del node.outputs["ipset save"], node.outputs["iptables-nft-save -c"]
    node.outputs["ss -H -lntup"] = "nonsense"
    node.write("etc/rancher/k3s/config.yaml.d/50.yaml", "disable: {traefik: hunter2}\n")
    (node.root / "proc/net/snmp").unlink()
    facts = node.facts()
    assert {error["what"] for error in facts["errors"]} == {"ipsets", "iptables-nft", "sockets", "k3s config", "snmp"}
    assert "hunter2" not in str(facts)
    assert (facts["ipsets"], facts["iptables"]["nft"], facts["sockets"], facts["snmp"]) == ({}, {}, [], {})
    assert (facts["k3s"]["config"], facts["name"]) == ({}, "debian")
    assert facts["routes"]


def test_a_machine_with_nothing_on_it(tmp_path: Path) -> None:
    def nothing(argv: list[str]) -> str:
        raise CommandError(f"{argv[0]}: not found")

    facts = gather.gather_node(nothing, str(tmp_path))
    assert facts["errors"]
    assert facts["interfaces"] == []
    assert facts["k3s"]["role"] == ""
    assert facts["ufw"]["installed"] is False


def test_no_secret_of_the_node_is_in_its_facts(machine: Callable[[str, str], Machine]) -> None:
    node = machine("flannel", "server0")
    (node.root / "etc/rancher/k3s/config.yaml").write_text(
        "token: K10::server:t0psecret\nagent-token: t0psecret\netcd-s3-secret-key: t0psecret\n"
        "datastore-endpoint: 'mysql://u:t0psecret@tcp(db)/k3s'\nvpn-auth: name=tailscale,joinKey=t0psecret\n"
        "etcd-s3-proxy: http://u:t0psecret@proxy\netcd-arg: [client-password=t0psecret]\n"
    )
    node.write("etc/default/k3s", "K3S_TOKEN=t0psecret\nAWS_ACCESS_KEY_ID=t0psecret\nK3S_AGENT_TOKEN='t0psecret'\n")
    unit = (node.root / "etc/systemd/system/k3s.service").read_text()
    node.write("etc/systemd/system/k3s.service", f"{unit} --token t0psecret '--vpn-auth=joinKey=t0psecret'\n")
    node.write("var/lib/rancher/k3s/server/token", "t0psecret")
    node.write("etc/rancher/node/password", "t0psecret")
    node.write(
        "var/lib/rancher/k3s/agent/etc/cni/net.d/90-calico.conf",
        json.dumps({"name": "x", "policy": {"type": "k8s", "k8s_auth_token": "t0psecret"}}),
    )
    facts = node.facts()
    assert facts["errors"] == []
    assert facts["cni"]["networks"]["90-calico.conf"]["policy"]["type"] == "k8s"
    assert facts["k3s"]["config"]["token"] == "(redacted)"
    assert "t0psecret" not in json.dumps(facts)
