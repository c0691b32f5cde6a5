"""netmend_ufw with real UFW, in a network namespace that has UFW's files for itself."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import pytest
from ansible.module_utils.netmend import ufw_apply
from ansible.module_utils.netmend.node import CommandError

# The module runs by the tests' Python here; UFW's own code is the distribution's.
RUN = """
import json, runpy, sys
sys.path.append("/usr/lib/python3/dist-packages")
from ansible.module_utils.testing import patch_module_args
with patch_module_args(json.load(sys.stdin)):
    runpy.run_path("library/netmend_ufw.py", run_name="__main__")
"""
SSH = "SSH_CONNECTION=198.51.100.9 50000 203.0.113.100 22"
KUBELET = {"name": "kubelet", "proto": "tcp", "from": "10.0.0.110", "port": "10250"}
VXLAN = {"name": "vxlan", "proto": "udp", "from": "10.0.0.110", "port": "8472"}
IPIP = {"name": "ipip", "lines": ["-A ufw-before-input -p 4 -s 10.0.0.110/32 -j ACCEPT"]}


@pytest.fixture
def node(namespace, fixtures):
    """A node with UFW as it is installed, disabled. `ip netns exec` mounts what is in /etc/netns/NAME over /etc."""
    if shutil.which("ufw") is None:
        pytest.skip("ufw is not installed")
    etc = Path("/etc/netns", namespace.name)
    shutil.copytree("/etc/ufw", etc / "ufw")
    shutil.copytree("/etc/default", etc / "default")
    for pristine in Path("/usr/share/ufw/iptables").glob("*.rules"):
        shutil.copy(pristine, etc / "ufw")
    (etc / "ufw/ufw.conf").write_text("ENABLED=no\nLOGLEVEL=low\n")
    (etc / "ufw/netmend-test").write_text(namespace.name)
    saved = fixtures / "k3s-1.36.3/flannel-ufw-blocks/agent0/etc-default-ufw.txt"
    shutil.copy(saved, etc / "default/ufw")
    try:
        # The machine's own firewall is never what a test changes.
        assert namespace("cat", "/etc/ufw/netmend-test") == namespace.name
        yield namespace
    finally:
        shutil.rmtree(etc)


def module(node, check: bool = False, ok: bool = True, ssh: str = SSH, **options) -> dict:
    """One run of the module: what it returns."""
    code = "import ansible.module_utils; ansible.module_utils.__path__.append('module_utils')\n" + RUN
    arguments = json.dumps({**options, "_ansible_check_mode": check})
    return json.loads(node("env", ssh, ".venv/bin/python", "-c", code, text=arguments, ok=ok))


def shown(node) -> list[str]:
    return node("ufw", "show", "added").splitlines()[1:]


def live(node, chain: str = "ufw-user-input") -> list[str]:
    return [line for line in node("iptables", "-S", chain).splitlines() if line.startswith("-A")]


def etc(node) -> dict[str, str]:
    """Every file of UFW's."""
    files = sorted(Path("/etc/netns", node.name).glob("ufw/*.rules"))
    return {path.name: path.read_text() for path in [*files, Path("/etc/netns", node.name, "default/ufw")]}


def test_check_apply_again_check_again_and_back(node):
    node("ufw", "allow", "22/tcp")
    node("ufw", "deny", "10250/tcp")
    node("ufw", "--force", "enable")
    before, files = shown(node), etc(node)
    options = {"rules": [KUBELET, VXLAN], "before_rules": [IPIP], "manage_builtins": False}

    planned = module(node, check=True, **options)
    assert planned["changed"]
    assert (shown(node), etc(node)) == (before, files)

    done = module(node, **options)
    assert (done["changed"], done["changes"], done["diff"]) == (True, planned["changes"], planned["diff"])
    assert done["diff"][0]["after"].splitlines() == shown(node)
    assert shown(node) == [
        "ufw allow from 10.0.0.110 to any port 10250 proto tcp comment 'netmend:kubelet'",
        *before,
        "ufw allow from 10.0.0.110 to any port 8472 proto udp comment 'netmend:vxlan'",
    ]
    assert live(node) == [
        "-A ufw-user-input -s 10.0.0.110/32 -p tcp -m tcp --dport 10250 -j ACCEPT",
        "-A ufw-user-input -p tcp -m tcp --dport 22 -j ACCEPT",
        "-A ufw-user-input -p tcp -m tcp --dport 10250 -j DROP",
        "-A ufw-user-input -s 10.0.0.110/32 -p udp -m udp --dport 8472 -j ACCEPT",
    ]
    assert [rule for rule in live(node, "ufw-before-input") if "-s 10.0.0.110/32" in rule]

    for check in (False, True):
        again = module(node, check=check, **options)
        assert (again["changed"], again["changes"]) == (False, [])

    assert module(node)["changed"]
    assert (shown(node), etc(node)) == (before, files)
    assert len(live(node)) == 2


def test_ufw_itself_would_have_written_the_same(node):
    """UFW's command line, one call for each rule, and the module leave the same files and the same chains."""
    routed = {"name": "r", "direction": "routed", "interface_in": "eth0", "interface_out": "cni0", "port": "80"}
    everywhere = {"name": "e", "rule": "limit", "port": "2222,3333", "proto": "tcp"}
    options = {"rules": [KUBELET, routed, everywhere, {**VXLAN, "name": "six", "from": "2001:db8::/64"}]}
    chains = ("ufw-user-input", "ufw-user-forward")
    node("ufw", "allow", "22/tcp")
    node("ufw", "--force", "enable")
    for command in module(node, check=True, **options)["changes"]:
        node("sh", "-c", command)
    expected = etc(node), [live(node, chain) for chain in chains], node("ip6tables", "-S", "ufw6-user-input")
    assert not module(node, **options)["changed"]

    module(node)
    assert expected[0] != etc(node)
    module(node, **options)
    assert (etc(node), [live(node, chain) for chain in chains], node("ip6tables", "-S", "ufw6-user-input")) == expected


def test_enabling_is_refused_where_it_would_cut_ssh(node):
    refused = module(node, ok=False, enabled=True, rules=[KUBELET])
    assert "would not let in SSH from 198.51.100.9 to 203.0.113.100 port 22" in refused["msg"]
    assert node("ufw", "status") == "Status: inactive\n"
    assert shown(node) == ["(None)"]

    done = module(node, enabled=True, rules=[{"name": "ssh", "port": "22", "proto": "tcp", "from": "198.51.100.0/24"}])
    assert (done["changed"], done["enabled"]) == (True, True)
    assert node("ufw", "status").startswith("Status: active\n")
    assert not module(node, enabled=True, purge=False)["changed"]

    assert "would not let in SSH" in module(node, ok=False)["msg"]
    assert module(node, enabled=False)["changed"]
    assert node("ufw", "status") == "Status: inactive\n"


def test_the_ssh_connection_is_found_behind_sudo(node):
    code = "from ansible.module_utils.netmend.ufw_apply import ssh_connection; print(ssh_connection())"
    script = "import ansible.module_utils; ansible.module_utils.__path__.append('module_utils')\n" + code
    argv = ("env", SSH, "sh", "-c", 'env -u SSH_CONNECTION .venv/bin/python -c "$0"; true', script)
    assert "'source': '198.51.100.9'" in node(*argv)


def test_a_rule_that_iptables_refuses_changes_nothing(node):
    node("ufw", "allow", "22/tcp")
    node("ufw", "--force", "enable")
    before = shown(node), etc(node), live(node)
    broken = {"name": "ipip", "lines": ["-A ufw-before-input -p nonsense -j ACCEPT"]}
    assert "nonsense" in module(node, ok=False, rules=[KUBELET], before_rules=[broken])["msg"]
    assert (shown(node), etc(node), live(node)) == before


def test_a_failing_ufw_is_named_with_its_rule_and_put_back(node):
    node("ufw", "allow", "22/tcp")
    node("ufw", "--force", "enable")
    before = shown(node), etc(node), live(node)
    long = {**VXLAN, "name": "long", "port": ",".join(str(port) for port in range(100, 116))}
    message = module(node, ok=False, rules=[KUBELET, long])["msg"]
    assert "netmend:long" in message
    assert "put back as it was" in message
    assert (shown(node), etc(node), live(node)) == before


def test_a_conflict_names_the_operators_rule(node):
    node("ufw", "deny", "from", "10.0.0.110")
    assert "`ufw deny from 10.0.0.110`" in module(node, ok=False, rules=[KUBELET])["msg"]
    assert shown(node) == ["ufw deny from 10.0.0.110"]


def test_ipip_passes_from_the_named_node_only(node):
    """Protocol 4 on the wire: conntrack does not know it, and the block's place in before.rules is early enough."""
    peer = f"{node.name}-p"
    subprocess.run(["ip", "netns", "add", peer], check=True)
    try:
        node("ip", "link", "add", "enp7s0", "type", "veth", "peer", "name", "enp7s0", "netns", peer)
        for name, addresses in ((node.name, ["10.0.0.100"]), (peer, ["10.0.0.110", "10.0.0.112"])):
            for address in addresses:
                subprocess.run(["ip", "-n", name, "addr", "add", f"{address}/24", "dev", "enp7s0"], check=True)
            subprocess.run(["ip", "-n", name, "link", "set", "enp7s0", "up"], check=True)
        node("ufw", "--force", "enable")
        module(node, before_rules=[IPIP])
        assert arrived(node, peer, "10.0.0.112") == 0
        assert arrived(node, peer, "10.0.0.110") == 3
    finally:
        subprocess.run(["ip", "netns", "del", peer], check=True)


def arrived(node, peer: str, source: str) -> int:
    """How many of three IPIP packets the own rule accepts."""
    send = "import socket as s; p = s.socket(s.AF_INET, s.SOCK_RAW, 4); p.bind(({!r}, 0)); "
    send = send.format(source) + "[p.sendto(b'E' * 20, ('10.0.0.100', 0)) for _ in range(3)]"
    node("iptables", "-Z", "ufw-before-input")
    subprocess.run(["ip", "netns", "exec", peer, "python3", "-c", send], check=True)
    listed = node("iptables", "-vnxL", "ufw-before-input").splitlines()
    (rule,) = (line.split() for line in listed if "10.0.0.110" in line)
    return int(rule[0])


@pytest.mark.parametrize(("failures", "calls"), [(0, 1), (2, 3)])
def test_a_reload_that_meets_another_programs_change_is_done_again(monkeypatch, failures, calls):
    made = reloads(monkeypatch, failures)
    ufw_apply._reload()
    assert made == [["ufw", "reload"]] * calls


def test_a_reload_that_fails_for_good_is_said(monkeypatch):
    reloads(monkeypatch, failures=3)
    with pytest.raises(CommandError, match="Could not load logging rules"):
        ufw_apply._reload()


def reloads(monkeypatch, failures):
    """The commands that are run, of which the first ones fail."""
    made = []

    def run(argv):
        made.append(argv)
        if len(made) <= failures:
            raise CommandError("ufw reload: ERROR: Could not load logging rules")

    monkeypatch.setattr(ufw_apply.node, "run", run)
    return made
