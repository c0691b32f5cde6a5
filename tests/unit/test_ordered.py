"""Where own rules go among others: on rule sets of real machines, then in a small chain for each single case."""

from __future__ import annotations

from pathlib import Path

import pytest
from ansible.module_utils.netmend.ordered import OrderError, Wanted, apply, plan, put_back, rule_spec, window
from ansible.module_utils.netmend.parse.iptables import parse_save

POLICY = ["cali-*", "KUBE-*"]
PIECES = [
    {"source": "10.42.0.0/16", "jump": "ACCEPT"},
    {"destination": "10.42.0.0/16", "ctstate": ["ESTABLISHED", "RELATED"], "jump": "ACCEPT"},
]
SPECS = [rule_spec("pods", one) for one in PIECES]
REAL = sorted((Path(__file__).parents[1] / "fixtures" / "k3s-1.36.3").glob("*/*/iptables-save.txt"))


def wanted(**other) -> Wanted:
    return Wanted(
        **{
            "name": "pods",
            "backend": "nft",
            "table": "filter",
            "chain": "FORWARD",
            "rules": SPECS,
            "after": POLICY,
            "before": ["deny"],
            **other,
        }
    )


def chains(forward: list[str], policy: str = "DROP", **user: list[str]):
    """A filter table; underscores in names of user chains stand for dashes."""
    user = {name.replace("_", "-"): rules for name, rules in user.items()}
    heads = [f":FORWARD {policy} [0:0]", *(f":{name} - [0:0]" for name in user)]
    rules = [f"-A FORWARD {rule}" for rule in forward]
    rules += [f"-A {name} {rule}" for name, inner in user.items() for rule in inner]
    return parse_save("\n".join(["*filter", *heads, *rules, "COMMIT"]))


def forward(ruleset) -> list[str]:
    return [rule["spec"] for rule in ruleset["filter"]["FORWARD"]["rules"]]


def targets(ruleset) -> list[str]:
    """FORWARD by what its rules jump to; own rules as "own"."""
    return [
        "own" if rule["comment"] == "netmend:pods" else rule["target"] for rule in ruleset["filter"]["FORWARD"]["rules"]
    ]


@pytest.mark.parametrize("path", REAL, ids=lambda path: "-".join(path.parts[-3:-1]))
def test_real_rule_sets(path):
    ruleset = parse_save(path.read_text())
    after = apply(ruleset, plan(ruleset, wanted()))
    assert [rule for rule in forward(after) if rule not in SPECS] == forward(ruleset)
    order = targets(after)
    own = order.index("own")
    policies = [i for i, target in enumerate(order) if target.startswith(("KUBE-", "cali-"))]
    assert order[own : own + 2] == ["own", "own"]
    assert max(policies) + 1 == own
    assert plan(after, wanted()) == []
    assert apply(after, plan(after, wanted(rules=[]))) == ruleset


def test_exact_commands(fixtures):
    ruleset = parse_save((fixtures / "k3s-1.36.3/flannel-ufw-blocks/agent0/iptables-save.txt").read_text())
    tagged = ["-m", "comment", "--comment", "netmend:pods", "-j", "ACCEPT"]
    states = ["-m", "conntrack", "--ctstate", "RELATED,ESTABLISHED"]
    steps = plan(ruleset, wanted())
    assert steps == [
        ["-t", "filter", "-I", "FORWARD", "5", "-s", "10.42.0.0/16", *tagged],
        ["-t", "filter", "-I", "FORWARD", "6", "-d", "10.42.0.0/16", *states, *tagged],
    ]
    assert plan(apply(ruleset, steps), wanted(rules=[])) == [
        ["-t", "filter", "-D", "FORWARD", "-s", "10.42.0.0/16", *tagged],
        ["-t", "filter", "-D", "FORWARD", "-d", "10.42.0.0/16", *states, *tagged],
    ]


def test_accept_before_policy_moves_behind_it():
    ruleset = chains([SPECS[0], "-j cali-FORWARD", SPECS[1]], cali_FORWARD=["-j DROP"])
    steps = plan(ruleset, wanted())
    assert [step[2] for step in steps] == ["-D", "-I"]
    assert forward(apply(ruleset, steps)) == ["-j cali-FORWARD", *SPECS]


def test_accept_behind_a_deny_moves_before_it():
    ruleset = chains(
        ["-j KUBE-FORWARD", "-j ufw-reject-forward", *SPECS], KUBE_FORWARD=[], ufw_reject_forward=["-j REJECT"]
    )
    assert targets(apply(ruleset, plan(ruleset, wanted()))) == ["KUBE-FORWARD", "own", "own", "ufw-reject-forward"]


def test_anywhere_between_policy_and_deny_is_right():
    ruleset = chains(
        ["-j KUBE-FORWARD", "-j FLANNEL-FWD", *SPECS, "-j DROP"], KUBE_FORWARD=[], FLANNEL_FWD=["-j ACCEPT"]
    )
    assert plan(ruleset, wanted()) == []


@pytest.mark.parametrize(
    ("deny", "first"),
    [
        ("-j DROP", 1),
        ("-s 10.42.7.0/24 -j DROP", 1),  # a part of what is accepted
        ("-i eth1 -j DROP", 1),
        ("-m set --match-set bad src -j DROP", 1),
        ("-s 10.0.0.0/8 -j deep", 1),
        ("-s 192.0.2.0/24 -d 198.51.100.0/24 -j DROP", 2),  # nothing of it
        ("-s 192.0.2.1/32 -d 198.51.100.1/32 -j deep", 2),
        ("-j LOG", 2),
        ("-j ring", 2),
    ],
)
def test_first_deny_is_found_through_jumps(deny, first):
    ruleset = chains(
        ["-j KUBE-FORWARD", deny, "-j REJECT"],
        KUBE_FORWARD=["-j DROP"],
        deep=["-j deeper"],
        deeper=["-p tcp -j REJECT"],
        ring=["-j ring"],
    )
    assert window(ruleset["filter"], wanted()).highest == first


def test_policy_wins_over_a_reject_before_it():
    ruleset = chains(["-d 10.42.0.0/16 -j REJECT", "-j cali-FORWARD"], cali_FORWARD=[])
    with pytest.raises(OrderError, match=r"rule 1 \(-d 10.42.0.0/16 -j REJECT\).*rule 2 \(-j cali-FORWARD\)"):
        plan(ruleset, wanted())
    reject = {"backend": "nft", "table": "filter", "chain": "FORWARD", "spec": "-d 10.42.0.0/16 -j REJECT"}
    steps = plan(ruleset, wanted(), [reject])
    assert steps[0] == ["-t", "filter", "-D", "FORWARD", "-d", "10.42.0.0/16", "-j", "REJECT"]
    assert targets(apply(ruleset, steps)) == ["cali-FORWARD", "own", "own"]
    assert plan(apply(ruleset, steps), wanted(), [reject]) == []


def test_narrow_deny_before_policy_stays_effective():
    ban = "-s 198.51.100.7/32 -j DROP"
    ruleset = chains([ban, "-j KUBE-FORWARD"], KUBE_FORWARD=[])
    assert forward(apply(ruleset, plan(ruleset, wanted()))) == [ban, "-j KUBE-FORWARD", *SPECS]


def test_jump_to_a_chain_that_accepts_first_takes_only_a_part():
    ruleset = chains(
        ["-j operators", "-j KUBE-FORWARD"],
        operators=["-p tcp -m tcp --dport 80 -j ACCEPT", "-j DROP"],
        KUBE_FORWARD=[],
    )
    assert window(ruleset["filter"], wanted()).lowest == 2


def test_duplicates_wrong_order_and_rules_no_longer_wanted():
    old = rule_spec("pods", {"source": "10.233.0.0/16", "jump": "ACCEPT"})
    ruleset = chains([SPECS[1], SPECS[0], old, SPECS[0], "-j DROP"])
    after = apply(ruleset, plan(ruleset, wanted()))
    assert forward(after) == [*SPECS, "-j DROP"]
    assert plan(after, wanted()) == []


def test_smallest_plan_keeps_the_longest_right_run():
    many = [rule_spec("pods", {"source": f"10.0.0.{i}", "jump": "ACCEPT"}) for i in range(4)]
    ruleset = chains([many[3], *many[:3], "-j DROP"])
    steps = plan(ruleset, wanted(rules=many))
    assert [step[2] for step in steps] == ["-D", "-I"]
    assert forward(apply(ruleset, steps)) == [*many, "-j DROP"]


def test_before_kubernetes_has_started():
    ruleset = chains(["-j ufw-after-logging-forward", "-j ufw-reject-forward"], ufw_reject_forward=["-j REJECT"])
    after = apply(ruleset, plan(ruleset, wanted()))
    assert targets(after) == ["own", "own", "ufw-after-logging-forward", "ufw-reject-forward"]
    prepended = [["-t", "filter", "-I", "FORWARD", "1", "-j", "KUBE-FORWARD"]]
    assert plan(apply(after, prepended), wanted()) == []


def test_own_rules_of_other_names_and_chains():
    other = rule_spec("pods-too", {"jump": "ACCEPT"})
    ruleset = parse_save(
        f"*filter\n:INPUT ACCEPT [0:0]\n:FORWARD DROP [0:0]\n-A INPUT {SPECS[0]}\n-A FORWARD {other}\nCOMMIT"
    )
    after = apply(ruleset, plan(ruleset, wanted()))
    assert after["filter"]["INPUT"]["rules"] == []
    assert forward(after) == [*SPECS, other]


def test_missing_chains():
    assert plan({}, wanted())[0][2:5] == ["-I", "FORWARD", "1"]
    with pytest.raises(OrderError, match="no chain DOCKER-USER"):
        plan({}, wanted(chain="DOCKER-USER"))


def test_put_back_leaves_what_others_changed_meanwhile():
    foreign = "-s 10.42.0.0/16 -j REJECT"
    named = {"backend": "nft", "table": "filter", "chain": "FORWARD", "spec": foreign}
    saved = chains(["-j KUBE-FORWARD", foreign, SPECS[1], "-j ufw-before-forward"])
    now = chains(["-j KUBE-ROUTER-FORWARD", "-j KUBE-FORWARD", *SPECS, "-j ufw-before-forward", "-j FLANNEL-FWD"])
    steps = put_back(saved, now, [named])
    assert forward(apply(now, steps)) == [
        "-j KUBE-ROUTER-FORWARD",
        "-j KUBE-FORWARD",
        foreign,
        SPECS[1],
        "-j ufw-before-forward",
        "-j FLANNEL-FWD",
    ]
    assert put_back(saved, apply(now, steps), [named]) == []


@pytest.mark.parametrize(
    ("pieces", "spec"),
    [
        ({"source": "10.42.3.1", "jump": "ACCEPT"}, "-s 10.42.3.1/32 {} -j ACCEPT"),
        ({"protocol": "tcp", "destination_port": "80", "jump": "DROP"}, "-p tcp -m tcp --dport 80 {} -j DROP"),
        (
            {"protocol": "udp", "destination_port": "53,5353", "jump": "X"},
            "-p udp -m multiport --dports 53,5353 {} -j X",
        ),
        ({"in_interface": "cni0", "jump": "REJECT"}, "-i cni0 {} -j REJECT --reject-with icmp-port-unreachable"),
        ({"rule": '-m string --string "a b" --algo bm -j DROP'}, '-m string --string "a b" --algo bm {} -j DROP'),
    ],
)
def test_rule_spec(pieces, spec):
    assert rule_spec("web", pieces) == spec.format('-m comment --comment "netmend:web"')


@pytest.mark.parametrize(
    "pieces",
    [
        {"source": "10.42.0.0/33", "jump": "ACCEPT"},
        {"destination_port": "80", "jump": "ACCEPT"},
        {"rule": "-s 10.42.0.0/16"},
        {"rule": "-A FORWARD -j ACCEPT"},
        {"rule": "-t nat -j ACCEPT"},
    ],
)
def test_rule_spec_refuses(pieces):
    with pytest.raises(ValueError, match=r"\S"):
        rule_spec("web", pieces)
