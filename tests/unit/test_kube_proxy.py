"""What kube-proxy's rules of a captured node tell."""

from __future__ import annotations

from pathlib import Path

from ansible.module_utils.netmend.kube_proxy import flannel_is_flushed, missing_jumps, service_addresses
from ansible.module_utils.netmend.parse.iptables import parse_save


def test_services_addresses_are_those_that_kube_services_looks_for(fixtures: Path) -> None:
    rules = parse_save((fixtures / "k3s-1.36.3/both-overlays/agent1/iptables-save.txt").read_text())
    assert missing_jumps(rules) == []
    assert service_addresses(rules) == {"10.43.0.1", "10.43.86.176"}


def test_flannels_accepts_are_gone_with_the_jump_or_the_rules_and_never_where_flannel_was_not(fixtures: Path) -> None:
    rules = parse_save((fixtures / "k3s-1.36.3/both-overlays/agent1/iptables-save.txt").read_text())
    assert not flannel_is_flushed(rules)
    forward, own = rules["filter"]["FORWARD"], rules["filter"]["FLANNEL-FWD"]
    kept, forward["rules"] = forward["rules"], [rule for rule in forward["rules"] if rule["target"] != "FLANNEL-FWD"]
    assert flannel_is_flushed(rules)
    forward["rules"], own["rules"] = kept, []
    assert flannel_is_flushed(rules)
    del rules["filter"]["FLANNEL-FWD"]
    assert not flannel_is_flushed(rules)


def test_without_kube_proxy_all_jumps_are_missing_and_no_address_is_known() -> None:
    assert len(missing_jumps({})) == 12
    assert service_addresses({}) == set()
