from __future__ import annotations

from pathlib import Path

import pytest
from ansible.module_utils.netmend.parse import ufw


@pytest.fixture
def node(fixtures: Path) -> Path:
    return fixtures / "k3s-1.36.3/flannel-ufw-blocks/agent0"


def test_captured_rules(node: Path) -> None:
    ssh, kubelet = ufw.user_rules((node / "ufw-user.rules.txt").read_text())
    assert (ssh["action"], ssh["direction"], ssh["protocol"], ssh["port"]) == ("allow", "in", "tcp", "22")
    assert (ssh["source"], ssh["destination"], ssh["comment"]) == ("any", "any", "")
    assert (kubelet["port"], kubelet["source"], kubelet["comment"]) == ("10250", "10.0.0.0/16", "kubelet")


# As ufw 0.36.2 writes them after `ufw route allow in on cni0 out on flannel.1 to 10.42.0.0/16`,
# `ufw limit log 2222/tcp`, `ufw allow out on eth0 to any port 53`, `ufw allow OpenSSH`, `ufw deny from 192.0.2.7`.
TUPLES = """\
### tuple ### route:allow any any 10.42.0.0/16 any 0.0.0.0/0 in_cni0!out_flannel.1 comment=6e65746d656e643a20706f6473
### tuple ### limit_log tcp 2222 0.0.0.0/0 any 0.0.0.0/0 in
### tuple ### allow any 53 0.0.0.0/0 any 0.0.0.0/0 out_eth0
### tuple ### allow tcp 22 0.0.0.0/0 any 0.0.0.0/0 OpenSSH - in
### tuple ### deny any any 0.0.0.0/0 any 192.0.2.7 in
"""


def test_every_form_of_a_tuple() -> None:
    routed, limit, out, app, deny = ufw.user_rules(TUPLES)
    assert (routed["direction"], routed["interface_in"], routed["interface_out"]) == ("routed", "cni0", "flannel.1")
    assert (routed["action"], routed["destination"], routed["comment"]) == ("allow", "10.42.0.0/16", "netmend: pods")
    assert (limit["action"], limit["port"]) == ("limit", "2222")
    assert (out["direction"], out["interface_out"], out["interface_in"]) == ("out", "eth0", "")
    assert (app["direction"], app["port"]) == ("in", "22")
    assert (deny["action"], deny["source"], deny["port"]) == ("deny", "192.0.2.7", "any")


def test_a_rule_for_both_families_is_one_rule() -> None:
    four = "### tuple ### allow tcp 22 0.0.0.0/0 any 0.0.0.0/0 in\n"
    six = "### tuple ### allow tcp 22 ::/0 any ::/0 in\n### tuple ### allow tcp 22 ::/0 any 2001:db8::/32 in\n"
    assert [rule["source"] for rule in ufw.user_rules(four, six)] == ["any", "2001:db8::/32"]


@pytest.mark.parametrize("line", ["### tuple ### allow tcp 22", "### tuple ### allow any any a any b in comment=zz"])
def test_damaged_tuples_are_refused(line: str) -> None:
    with pytest.raises(ValueError, match="line 1"):
        ufw.user_rules(line)


def test_before_rules_keep_their_order(node: Path) -> None:
    rules = ufw.before_rules((node / "ufw-before.rules.txt").read_text())
    assert rules[0] == "-A ufw-before-input -i lo -j ACCEPT"
    assert rules[-1] == "-A ufw-before-input -p udp -d 239.255.255.250 --dport 1900 -j ACCEPT"


def test_settings(node: Path) -> None:
    default = ufw.settings((node / "etc-default-ufw.txt").read_text())
    assert default["MANAGE_BUILTINS"] == "no"
    assert ufw.default_policies(default) == {"input": "DROP", "output": "ACCEPT", "forward": "DROP"}
    assert ufw.default_policies({"DEFAULT_FORWARD_POLICY": "ACCEPT"})["forward"] == "ACCEPT"
    assert ufw.settings("# x\nENABLED=yes # on\nLOGLEVEL='low'\n") == {"ENABLED": "yes", "LOGLEVEL": "low"}
