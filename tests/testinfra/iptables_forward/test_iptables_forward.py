"""Pods' packets are accepted behind the policy chains and before anything that denies, now and after a reboot."""

from __future__ import annotations

import json

from testinfra.host import Host


def forward(host: Host) -> list[str]:
    return [line for line in host.check_output("iptables -w -S FORWARD").splitlines() if line.startswith("-A")]


def test_own_accepts_stand_behind_kubernetes_and_before_any_deny(host: Host) -> None:
    rules = forward(host)
    own = [place for place, rule in enumerate(rules) if "netmend:" in rule]
    kubernetes = [place for place, rule in enumerate(rules) if "-j KUBE-" in rule]
    denies = [place for place, rule in enumerate(rules) if "-j REJECT" in rule or "-j DROP" in rule]
    assert own
    assert max(kubernetes) < min(own)
    assert not [place for place in denies if place < max(own)]


def test_what_stopped_all_pods_is_gone(host: Host) -> None:
    assert not [rule for rule in forward(host) if "REJECT" in rule and "10.42.0.0/16" in rule]


def test_a_new_connection_is_accepted_from_pods_and_nodes_only(host: Host) -> None:
    own = [rule for rule in forward(host) if "netmend:" in rule]
    assert not [rule for rule in own if "-s 10." not in rule and "--ctstate RELATED,ESTABLISHED" not in rule]


def test_the_rules_come_back_at_boot(host: Host) -> None:
    assert host.service("netmend-iptables").is_enabled
    kept = json.loads(host.file("/etc/netmend/iptables.d/iptables_forward.json").content_string)
    assert kept


def test_kernel_parameters_are_set_and_kept(host: Host) -> None:
    for name in ("net.ipv4.ip_forward", "net.bridge.bridge-nf-call-iptables"):
        assert host.sysctl(name) == 1
        assert host.file("/etc/sysctl.d/99-netmend.conf").contains(f"^{name}")


def test_every_pod_answers_on_every_node(get, pods: list[dict]) -> None:
    for pod in pods:
        assert get(f"{pod['status']['podIP']}:8080")["node"] == pod["spec"]["nodeName"]
