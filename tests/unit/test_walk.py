from __future__ import annotations

import pytest
from ansible.module_utils.netmend.parse.iptables import parse_save
from ansible.module_utils.netmend.parse.proc import ipsets
from ansible.module_utils.netmend.walk import Packet, blockers, journey, judge, walk

VXLAN = Packet("10.0.0.100", "10.0.0.110", "udp", 8472, interface_in="vec0", to_local=True)
POD = Packet("10.42.1.2", "10.42.3.2", "tcp", 8080, interface_in="flannel.1", interface_out="cni0")


def table(name, chains, rules):
    """A rule set of one table from chains as "INPUT DROP" and rules as "INPUT -p tcp -j ACCEPT"."""
    lines = [f"*{name}"]
    for chain in chains:
        hook, _, policy = chain.partition(" ")
        lines.append(f":{hook} {policy or '-'} [7:700]")
    lines += [f"[{number}:0] -A {rule}" for number, rule in enumerate(rules, 1)]
    return parse_save("\n".join([*lines, "COMMIT"]))


def filter_input(*rules, chains=()):
    return table("filter", ["INPUT DROP", *chains], [f"INPUT {rule}" if rule[0] in "-!" else rule for rule in rules])


@pytest.mark.parametrize(
    ("match", "packet"),
    [
        ("-s 10.0.0.0/16", VXLAN),
        ("! -s 10.1.0.0/16", VXLAN),
        ("-d 10.0.0.110/32", VXLAN),
        ("-i vec0", VXLAN),
        ("-i vec+", VXLAN),
        ("! -i eth0", VXLAN),
        ("-p udp", VXLAN),
        ("-p udp -m udp --dport 8472", VXLAN),
        ("-p udp -m udp --dport 8000:9000", VXLAN),
        ("-p udp -m multiport --dports 53,8470:8480", VXLAN),
        ("-p udp -m udp ! --dport 53", VXLAN),
        ("-m conntrack --ctstate RELATED,NEW", VXLAN),
        ("-m conntrack ! --ctstate INVALID", VXLAN),
        ("-m addrtype --dst-type LOCAL", VXLAN),
        ("-m mark --mark 0x4000/0x4000", VXLAN._replace(mark=0x4001)),
        ("-p 4", VXLAN._replace(protocol="ipip")),
        ("-p ipencap", VXLAN._replace(protocol="ipip")),
        ("-p icmp -m icmp --icmp-type 8", VXLAN._replace(protocol="icmp")),
        ("-p icmp -m icmp --icmp-type 3", VXLAN._replace(protocol="icmp", icmp_type="3/4")),
        ("-p icmp -m icmp --icmp-type 3/4", VXLAN._replace(protocol="icmp", icmp_type="3/4")),
    ],
)
def test_a_match_applies_and_its_opposite_does_not(match, packet):
    assert walk(filter_input(f"{match} -j ACCEPT"), "filter", "INPUT", packet).action == "accept"
    opposite = Packet("10.1.0.1", "10.1.0.2", "tcp", 53, interface_in="eth0", states=("INVALID",))
    assert walk(filter_input(f"{match} -j ACCEPT"), "filter", "INPUT", opposite).action == "drop"


def test_the_verdict_names_the_rule_and_the_jumps_that_lead_to_it():
    user = ["USER -p tcp -j ACCEPT", "USER -p udp -j REJECT"]
    ruleset = filter_input("-p tcp -j ACCEPT", "-j USER", *user, chains=["USER"])
    verdict = walk(ruleset, "filter", "INPUT", VXLAN)
    assert (verdict.action, verdict.rule[:3], verdict.rule.packets) == ("reject", ("filter", "USER", 2), 4)
    assert verdict.root[:3] == ("filter", "INPUT", 2)
    assert str(verdict) == "filter INPUT rule 2 -> USER rule 2 `-p udp -j REJECT`"


def test_a_policy_decides_where_no_rule_does():
    verdict = walk(filter_input("-p tcp -j ACCEPT"), "filter", "INPUT", VXLAN)
    assert (verdict.action, str(verdict), verdict.rule.packets) == ("drop", "filter INPUT policy DROP", 7)
    assert walk({}, "filter", "INPUT", VXLAN).action == "accept"


def test_return_goes_back_to_the_caller_and_goto_does_not_come_back():
    jump = ["-j USER", "-j ACCEPT", "USER -j RETURN", "USER -j REJECT"]
    assert walk(filter_input(*jump, chains=["USER"]), "filter", "INPUT", VXLAN).rule[1:3] == ("INPUT", 2)
    goto = ["-g USER", "-j ACCEPT", "USER -j RETURN"]
    assert str(walk(filter_input(*goto, chains=["USER"]), "filter", "INPUT", VXLAN)) == "filter INPUT policy DROP"


def test_marks_set_in_one_table_are_seen_in_the_next():
    ruleset = table("mangle", ["PREROUTING ACCEPT"], ["PREROUTING -j MARK --set-xmark 0x20000/0x20000"])
    ruleset.update(filter_input("-m mark --mark 0x20000/0x20000 -j ACCEPT"))
    assert journey(ruleset, "INPUT", VXLAN._replace(mark=0x1)).action == "accept"
    assert walk(ruleset, "filter", "INPUT", VXLAN).action == "drop"


def test_a_match_that_is_not_understood_makes_the_outcome_unknown_and_is_named():
    verdict = walk(filter_input("-m limit --limit 3/min -j ACCEPT"), "filter", "INPUT", VXLAN)
    assert (verdict.action, verdict.blocked) == ("unknown", False)
    assert verdict.rule.spec == "-m limit --limit 3/min -j ACCEPT"


def test_a_match_that_is_not_understood_does_not_matter_where_both_ways_end_alike():
    ruleset = filter_input(
        "-m limit --limit 3/min -j LOGGED", "-m limit --limit 3/min -j DROP", "LOGGED -j LOG", chains=["LOGGED"]
    )
    assert str(walk(ruleset, "filter", "INPUT", VXLAN)) == "filter INPUT policy DROP"


def test_a_doubtful_mark_that_decides_later_makes_the_outcome_unknown():
    perhaps, surely = "-m recent --rcheck -j MARK --set-xmark 0x1/0x1", "-j MARK --set-xmark 0x1/0x1"
    accept = "-m mark --mark 0x1/0x1 -j ACCEPT"
    verdict = walk(filter_input(perhaps, accept), "filter", "INPUT", VXLAN)
    assert (verdict.action, verdict.rule.number) == ("unknown", 1)
    assert walk(filter_input(perhaps, surely, accept), "filter", "INPUT", VXLAN).action == "accept"


def test_a_target_that_is_not_understood_is_not_taken_for_a_verdict():
    verdict = walk(filter_input("-j NFQUEUE --queue-num 0"), "filter", "INPUT", VXLAN)
    assert (verdict.action, verdict.rule.number) == ("unknown", 1)


def test_sets_count_where_their_members_are_known():
    ruleset = filter_input("-p udp -m set --match-set nodes src -j ACCEPT", "-j DROP")
    assert walk(ruleset, "filter", "INPUT", VXLAN, {"nodes": ["10.0.0.0/24"]}).action == "accept"
    assert walk(ruleset, "filter", "INPUT", VXLAN, {"nodes": ["10.0.0.9"]}).action == "drop"
    assert walk(ruleset, "filter", "INPUT", VXLAN).action == "unknown"


def test_blockers_look_behind_the_first_one():
    ruleset = filter_input("-s 10.0.0.0/8 -j REJECT", "-p udp -j DROP", "-p tcp -j DROP")
    assert [verdict.rule.number for verdict in blockers(ruleset, "INPUT", VXLAN)] == [1, 2, 0]
    assert blockers(filter_input("-j ACCEPT"), "INPUT", VXLAN) == []


def test_a_packet_passes_only_if_both_rule_sets_let_it():
    accepts, drops = filter_input("-j ACCEPT"), filter_input()
    node = {"backend": "nft", "version": "", "nft": accepts, "legacy": drops}
    assert (judge(node, "INPUT", VXLAN).action, judge(node, "INPUT", VXLAN).backend) == ("drop", "legacy")
    assert judge({**node, "legacy": accepts}, "INPUT", VXLAN).action == "accept"
    assert judge({**node, "legacy": {}}, "INPUT", VXLAN).backend == "nft"


@pytest.fixture
def captured(fixtures):
    return lambda state, node: parse_save((fixtures / f"k3s-1.36.3/{state}/{node}/iptables-save.txt").read_text())


def test_ufw_drops_vxlan_and_accepts_the_kubelets_port(captured):
    ruleset = captured("flannel-ufw-blocks", "agent0")
    assert str(journey(ruleset, "INPUT", VXLAN)) == "filter INPUT policy DROP"
    kubelet = journey(ruleset, "INPUT", VXLAN._replace(protocol="tcp", dport=10250))
    assert kubelet.rule[1:3] == ("ufw-user-input", 2)


def test_ufws_forward_policy_is_never_reached_where_flannel_accepts_first(captured):
    assert journey(captured("flannel-ufw-blocks", "agent0"), "FORWARD", POD).rule[1:3] == ("FLANNEL-FWD", 1)


def test_kube_router_accepts_by_a_mark_after_its_policy_chain(captured):
    verdict = journey(captured("flannel-ufw-blocks", "agent1"), "FORWARD", POD)
    assert (verdict.action, verdict.rule[1:3]) == ("accept", ("FORWARD", 6))


def test_calico_accepts_ipip_from_the_nodes_of_its_set_only(captured, fixtures):
    ruleset = captured("swapped-clean", "agent0")
    sets = ipsets((fixtures / "k3s-1.36.3/swapped-clean/agent0/ipset.txt").read_text())
    packet = VXLAN._replace(protocol="ipip")
    assert journey(ruleset, "INPUT", packet, sets).rule[1:3] == ("cali-INPUT", 1)
    assert journey(ruleset, "INPUT", packet._replace(source="10.0.0.9"), sets).rule[1:3] == ("cali-INPUT", 2)
    assert journey(ruleset, "INPUT", packet).action == "unknown"


def test_calico_accepts_to_its_workloads_and_nothing_to_others(captured):
    ruleset = captured("swapped-clean", "agent0")
    packet = Packet("10.42.147.193", "10.42.191.193", "tcp", 8080, interface_in="tunl0", interface_out="cali0")
    assert journey(ruleset, "FORWARD", packet).rule.chain == "cali-to-wl-dispatch"
    known = packet._replace(interface_out="cali7df05913c2e")
    assert journey(ruleset, "FORWARD", known).rule[1:3] == ("FORWARD", 12)
