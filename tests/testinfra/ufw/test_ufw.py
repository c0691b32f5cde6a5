"""UFW lets in what the cluster needs, from the nodes and pods only, and keeps what the operator wrote."""

from __future__ import annotations

import pytest
from testinfra.host import Host


@pytest.fixture
def added(host: Host) -> list[str]:
    return host.check_output("ufw show added").splitlines()


@pytest.fixture
def own(added: list[str]) -> list[str]:
    return [line for line in added if "netmend:" in line]


def test_vxlan_is_let_in_from_every_other_node(own: list[str], pods: list[dict]) -> None:
    rules = [line for line in own if "port 8472 proto udp" in line]
    assert len([line for line in rules if " from 10.0.0." in line]) == len(pods) - 1, own


def test_what_the_operator_lets_in_is_not_let_in_twice(added: list[str]) -> None:
    kubelet = [line for line in added if "10250" in line and " from 10.0.0." in line]
    theirs = [line for line in kubelet if "netmend:" not in line]
    assert kubelet
    assert not theirs or kubelet == theirs


def test_nothing_is_let_in_from_anywhere(own: list[str]) -> None:
    assert own
    assert not [line for line in own if " from " not in line or " from any " in line]


def test_the_operators_rules_stand_as_they_did(host: Host, added: list[str]) -> None:
    if "Status: active" not in host.check_output("ufw status"):
        pytest.skip("UFW is off on this node: it has no rules of an operator")
    theirs = [line for line in added if line.startswith("ufw ") and "netmend:" not in line]
    assert theirs == [
        "ufw allow 22/tcp",
        "ufw allow from 10.0.0.0/16 to any port 6443,10250 proto tcp comment 'API and kubelet'",
        "ufw allow 443/tcp comment 'the operators own'",
    ]


def test_a_reload_does_not_flush_kubernetes_rules(host: Host) -> None:
    assert host.file("/etc/default/ufw").contains("^MANAGE_BUILTINS=no$")


def test_every_pod_answers_on_every_node(get, pods: list[dict]) -> None:
    for pod in pods:
        assert get(f"{pod['status']['podIP']}:8080")["node"] == pod["spec"]["nodeName"]
