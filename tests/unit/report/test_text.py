"""The report on a terminal."""

from __future__ import annotations

from typing import Any

from ansible.module_utils.netmend.report import text

from tests.unit.report import sample
from tests.unit.report.test_report import HEALTHY, SICK, said


def change(node: str, *added: str) -> Any:
    return {"node": node, "role": "ufw", "diff": [{"before": "", "after": "\n".join(added)}]}


def test_the_text_shows_where_it_fails_and_why() -> None:
    shown = text.measured(SICK)
    assert "pod-pod             1 of 2    NOT OK" in shown
    assert "timeout 1/2" in shown
    assert "1. Dropped [dropped, 90% sure]" in shown
    assert "remedy: Allow it; role ufw on a" in shown


def test_a_change_that_all_nodes_share_stands_once() -> None:
    shown = text.render(said(HEALTHY, SICK, [change("a", "all", "one"), change("b", "all")]))
    assert "Changed\n  ufw on a, b\n    + all\n    + one  [a]\n" in shown


def test_what_check_mode_would_change() -> None:
    assert "Would change\n" in text.render(said(SICK, None, [change("a", "rule")], check_mode=True))


def test_what_is_lost_now_and_then_is_told_even_where_all_is_as_expected() -> None:
    assert "Lost now and then" not in text.measured(HEALTHY)
    shown = text.measured(sample.measured(3, lost=lambda probe: int(probe["protocol"] == "icmp")))
    assert "\nLost now and then\n  host-host k3s-master-01 to k3s-worker-001 (icmp): 1 of 20 (5 %, " in shown


def test_overlays_are_named_where_one_does_not_pass() -> None:
    sick = sample.measured(3, findings=[sample.finding(["a"])])
    shown = text.measured(sick)
    assert "Overlays that can pass between all nodes\n  VXLAN on UDP 8472 (Flannel) (MTU 1400, once the" in shown
    assert "\n  IPIP (MTU 1430)\n" in shown
    assert "host-gw" not in shown
    assert "Overlays" not in text.measured(sample.measured(3))


def test_the_way_of_a_failing_packet_is_told_with_what_was_seen() -> None:
    sick = sample.measured(3, sample.overlay_to("k3s-worker-002"), [sample.finding(["k3s-worker-002"])])
    shown = text.measured(sick)
    assert (
        "\n  host-pod k3s-master-01 to k3s-worker-002 (tcp/8080): 10.42.0.6 to 10.42.2.5, tcp/8080"
        "\n      k3s-master-01   route     10.42.2.5 by 10.42.0.0/16 dev flannel.1 (vxlan)"
        "\n      k3s-worker-002  firewall  DROPS: INPUT: nft filter INPUT policy DROP"
        "\n      seen: timeout, as by these hops"
    ) in shown
    assert shown.count("seen: timeout") == text.WALKS < len(sick["walks"])
    for agrees, words in ((False, "AGAINST what these hops say: drops"), (None, "can neither confirm nor deny")):
        assert words in text.measured({**sick, "walks": [{**sick["walks"][0], "agrees": agrees}]})
    assert "The way of" not in text.measured(HEALTHY)


def test_a_sample_says_how_sure_it_is() -> None:
    assert "A sample" not in text.measured({**HEALTHY, "coverage": {"peers": 2, "others": 2}})
    said = text.measured({**HEALTHY, "coverage": {"peers": 8, "others": 199}})
    assert "each node probed 8 of 199 others" in said
    assert "what is wrong with a single pair by 4%" in said


def test_a_checklist_says_what_is_not_met() -> None:
    shown = text.render(sample.checked(3))
    assert "\nChecklist\n  ok      at least 3 nodes, all Ready (3 of 3)\n  NOT OK  https://shop.example/: 200" in shown
    assert "Checklist" not in text.measured(HEALTHY)


def test_many_nodes_fit_the_terminal() -> None:
    sick = sample.sick(40, sample.overlay_to("k3s-worker-020"), [sample.finding([f"n{n}" for n in range(200)])])
    shown = text.render(sick)
    assert max(map(len, shown.partition("\n\n")[0].splitlines())) <= 120
    assert len(shown.splitlines()) < 60
    assert "k3s-worker-020 to k3s-master-01" in shown
    assert "and 188 more" in shown
