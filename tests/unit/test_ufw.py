"""UFW's rules planned: on a real node's files, then on awkward rule sets of operators, one case each."""

from __future__ import annotations

import pytest
from ansible.module_utils.netmend.parse.ufw import user_rules
from ansible.module_utils.netmend.ufw import (
    Conflict,
    Connection,
    State,
    Wanted,
    admits,
    plan,
    rule_of,
    show,
    with_blocks,
    with_setting,
)
from ansible.module_utils.netmend.ufw_required import required_rules

BEFORE = "*filter\n:ufw-before-input - [0:0]\n-A ufw-before-input -i lo -j ACCEPT\nCOMMIT\n"
IPIP = "-A ufw-before-input -p 4 -s 10.0.0.110/32 -j ACCEPT"
KUBELET = {"name": "kubelet", "proto": "tcp", "from": "10.0.0.110", "port": "10250"}
ADD_KUBELET = "allow from 10.0.0.110 to any port 10250 proto tcp comment netmend:kubelet"


def operator(text: str):
    """A rule of somebody else's, as "action [from] [port/proto] [in on IFACE]"."""
    action, *words = text.split()
    option = {"name": "x", "rule": action}
    for word in words:
        if word.startswith("@"):
            option["interface_in"] = word[1:]
        elif word.startswith(">"):
            option["to"] = word[1:]
        elif "." in word:
            option["from"] = word
        else:
            option["port"], _, option["proto"] = word.partition("/")
    return {**rule_of(option), "comment": ""}


def state(*rules, **other) -> State:
    return State(**{"rules": list(rules), "before_rules": BEFORE, "default_ufw": "", "enabled": True, **other})


def wanted(*options, **other) -> Wanted:
    return Wanted(
        **{
            "rules": [rule_of(option) for option in options],
            "before_rules": {},
            "purge": True,
            "manage_builtins": None,
            "enabled": None,
            **other,
        }
    )


def commands(current: State, goal: Wanted) -> list[str]:
    """The plan's commands, once it is seen that a second plan is empty."""
    planned = plan(current, goal)
    again = plan(planned["after"], goal)
    assert (again["commands"], again["after"]) == ([], planned["after"])
    return [" ".join(command[1:]) for command in planned["commands"]]


@pytest.fixture
def blocked(fixtures) -> State:
    """A node whose UFW lets in SSH and the kubelet's port only."""
    files = fixtures / "k3s-1.36.3/flannel-ufw-blocks/agent0"
    return state(
        *user_rules((files / "ufw-user.rules.txt").read_text()),
        before_rules=(files / "ufw-before.rules.txt").read_text(),
        default_ufw=(files / "etc-default-ufw.txt").read_text(),
    )


# --- plan -----------------------------------------------------------------------------------------------------------


def test_a_blocked_agent_gets_what_is_missing_and_keeps_what_it_has(blocked):
    goal = wanted(*required_rules(cluster(), node("agent0"))["rules"])
    assert commands(blocked, goal) == [
        # The nodes' 10250 is open already, from 10.0.0.0/16.
        "allow from 10.42.0.0/16 to any port 10250 proto tcp comment netmend:kubelet-from-pods",
        "allow from 10.0.0.100 to any port 8472 proto udp comment netmend:flannel-vxlan-from-server0",
        "allow from 10.0.0.111 to any port 8472 proto udp comment netmend:flannel-vxlan-from-agent1",
    ]
    after = plan(blocked, goal)["after"]
    assert after["rules"][:2] == blocked["rules"]
    assert (after["before_rules"], after["default_ufw"]) == (blocked["before_rules"], blocked["default_ufw"])


def test_rules_are_shown_as_ufw_shows_them(blocked):
    assert [show(rule) for rule in blocked["rules"]] == [
        "ufw allow 22/tcp",
        "ufw allow from 10.0.0.0/16 to any port 10250 proto tcp comment 'kubelet'",
    ]


@pytest.mark.parametrize(
    ("there", "verb"),
    [
        ([], "allow"),
        (["allow 22/tcp", "deny 3306/tcp"], "allow"),
        (["deny 10250/tcp"], "prepend allow"),
        (["reject 10000:11000/tcp"], "prepend allow"),
        (["deny 10.0.0.0/16"], "prepend allow"),
        (["limit 10250/tcp"], "prepend allow"),
        # Exceptions: for one interface or destination.
        (["deny 10250/tcp @eth0"], "allow"),
        (["deny 10250/tcp >203.0.113.7"], "allow"),
        # Of no use: other protocol, other sources, one interface only, or too late.
        (["allow 10250/udp", "allow 10.0.1.0/24 10250/tcp", "allow 10250/tcp @eth0"], "allow"),
        (["deny 10250/tcp", "allow 10250/tcp"], "prepend allow"),
    ],
)
def test_an_allow_goes_before_a_wider_refusal_and_else_to_the_end(there, verb):
    current = state(*map(operator, there))
    assert commands(current, wanted(KUBELET)) == [verb + ADD_KUBELET[len("allow") :]]
    theirs = [rule for rule in plan(current, wanted(KUBELET))["after"]["rules"] if not rule["comment"]]
    assert theirs == current["rules"]


@pytest.mark.parametrize(
    "there",
    [
        ["allow 10250/tcp"],
        ["allow 10.0.0.0/16"],
        ["allow 10.0.0.110 10000:11000/tcp"],
        ["allow 10.0.0.110 10250/tcp"],
        ["allow 10250/tcp", "deny 10.0.0.110"],
        ["allow 10249,10250/tcp", "deny 10250/tcp"],
    ],
)
def test_nothing_is_added_to_what_the_operator_lets_in(there):
    assert commands(state(*map(operator, there)), wanted(KUBELET)) == []


@pytest.mark.parametrize(
    ("there", "named"),
    [
        (["deny 10.0.0.110"], "ufw deny from 10.0.0.110"),
        (["deny 10.0.0.110 10250/tcp"], "ufw deny from 10.0.0.110 to any port 10250 proto tcp"),
        (["allow 22/tcp", "reject 10.0.0.110 10250/tcp"], "ufw reject from 10.0.0.110 to any port 10250 proto tcp"),
        # UFW would change this rule's comment in place of adding one.
        (["deny 10250/tcp", "allow 10.0.0.110 10250/tcp"], "ufw allow from 10.0.0.110 to any port 10250 proto tcp"),
    ],
)
def test_a_refusal_of_these_very_sources_is_for_a_person_to_decide(there, named):
    with pytest.raises(Conflict, match=f"kubelet: `{named}`"):
        plan(state(*map(operator, there)), wanted(KUBELET))


def test_an_exception_from_the_pods_stays_before_them():
    pods = {"name": "pods", "proto": "tcp", "from": "10.42.0.0/16", "port": "10250"}
    assert commands(state(operator("deny 10.42.7.7")), wanted(pods))[0].startswith("allow from 10.42.0.0/16")
    with pytest.raises(Conflict, match="would have to go before `ufw deny"):
        plan(state(operator("deny 10.42.7.7"), operator("deny 10250/tcp")), wanted(pods))


def test_a_refusal_of_some_ports_is_for_a_person_to_decide():
    etcd = {"name": "etcd", "proto": "tcp", "from": "10.0.0.101", "port": "2379:2380"}
    with pytest.raises(Conflict, match="`ufw deny 2380/tcp` refuses a part"):
        plan(state(operator("deny 2380/tcp")), wanted(etcd))
    assert commands(state(operator("deny 2379,2380/tcp")), wanted(etcd))[0].startswith("prepend")


def test_own_rules_go_when_they_are_not_wanted_and_change_by_being_replaced():
    mine, other = rule_of(KUBELET), rule_of({**KUBELET, "name": "old", "port": "10255"})
    current = state(operator("allow 22/tcp"), mine, other)
    delete_old = "delete allow from 10.0.0.110 to any port 10255 proto tcp comment netmend:old"
    assert commands(current, wanted(KUBELET)) == [delete_old]
    assert commands(current, wanted(KUBELET, purge=False)) == []
    assert commands(current, wanted({**KUBELET, "from": "10.0.0.111"}, purge=False)) == [
        f"delete {ADD_KUBELET}",
        ADD_KUBELET.replace("110", "111"),
    ]
    assert commands(current, wanted()) == [f"delete {ADD_KUBELET}", delete_old]


def test_an_own_rule_that_came_to_stand_behind_a_refusal_moves():
    current = state(operator("deny 10250/tcp"), rule_of(KUBELET))
    assert commands(current, wanted(KUBELET)) == [f"delete {ADD_KUBELET}", f"prepend {ADD_KUBELET}"]
    assert commands(state(rule_of(KUBELET), operator("deny 10250/tcp")), wanted(KUBELET)) == []


def test_routed_and_outgoing_rules_are_apart_from_incoming_ones():
    routed = {"name": "r", "direction": "routed", "interface_in": "eth0", "interface_out": "cni0", "port": "80"}
    outgoing = {"name": "o", "direction": "out", "to": "10.0.0.10", "port": "5432", "proto": "tcp"}
    assert commands(state(operator("deny 80"), operator("deny 5432/tcp")), wanted(routed, outgoing)) == [
        "route allow in on eth0 out on cni0 to any port 80 comment netmend:r",
        "allow out to 10.0.0.10 port 5432 proto tcp comment netmend:o",
    ]


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"name": "it's"}, "a name is made of"),
        ({"name": "a", "from": "10.0.0.300"}, "rule a: .*10.0.0.300"),
        ({"name": "a", "from": "10.0.0.5/16"}, "rule a: .*host bits"),
        ({"name": "a", "port": "ssh"}, "rule a: 'ssh' is neither"),
        ({"name": "a", "port": "90:80", "proto": "tcp"}, "rule a: '90:80' is neither"),
        ({"name": "a", "port": "80,443"}, "rule a: several ports need proto"),
        ({"name": "a", "interface_out": "eth0"}, "rule a: interface eth0"),
    ],
)
def test_what_ufw_would_refuse_is_refused_by_the_rules_name(option, message):
    with pytest.raises(ValueError, match=message):
        rule_of(option)


def test_rules_that_ufw_cannot_keep_apart_are_refused():
    with pytest.raises(Conflict, match="a and b match the same packets"):
        plan(state(), wanted({"name": "a", "port": "80"}, {"name": "b", "port": "80", "rule": "deny"}))
    with pytest.raises(Conflict, match="two rules have the name a"):
        plan(state(), wanted({"name": "a", "port": "80"}, {"name": "a", "port": "81"}))


# --- SSH ------------------------------------------------------------------------------------------------------------

SSH = Connection(source="198.51.100.9", destination="203.0.113.100", port=22, interface="eth0")


@pytest.mark.parametrize(
    ("there", "let_in"),
    [
        ([], False),
        (["allow 22/tcp"], True),
        (["limit 22"], True),
        (["allow 2222/tcp"], False),
        (["allow 198.51.100.0/24 22/tcp"], True),
        (["allow 10.0.0.0/8 22/tcp"], False),
        (["deny 198.51.100.9", "allow 22/tcp"], False),
        (["allow 22/tcp @eth0"], True),
        (["allow 22/tcp @enp7s0"], False),
        (["deny 22/tcp @enp7s0", "allow 22/tcp"], True),
        (["allow 22/tcp >10.0.0.100"], False),
        (["allow 22/udp"], False),
    ],
)
def test_ssh_is_let_in_by_the_first_rule_that_matches(there, let_in):
    assert admits(state(*map(operator, there)), SSH) == let_in


def test_ssh_is_let_in_by_the_policy_and_over_ipv6_only_where_ufw_handles_it():
    assert admits(state(default_ufw='DEFAULT_INPUT_POLICY="ACCEPT"\n'), SSH)
    over_ipv6 = Connection(source="2001:db8::9", destination="2001:db8::1", port=22, interface="eth0")
    assert not admits(state(operator("allow 22/tcp"), default_ufw="IPV6=no\n"), over_ipv6)
    assert admits(state(operator("allow 22/tcp"), default_ufw="IPV6=yes\n"), over_ipv6)


# --- files ----------------------------------------------------------------------------------------------------------


def test_a_block_comes_before_commit_changes_where_it_stands_and_goes(blocked):
    before = blocked["before_rules"]
    with_ipip = with_blocks(before, {"ipip": [IPIP]})
    assert with_ipip == before[: -len("COMMIT\n")] + f"# BEGIN netmend:ipip\n{IPIP}\n# END netmend:ipip\nCOMMIT\n"
    assert with_blocks(with_ipip, {"ipip": [IPIP]}) == with_ipip
    behind = with_ipip.replace("COMMIT\n", "-A ufw-before-input -j ufw-mine\nCOMMIT\n")
    assert with_blocks(behind, {"ipip": [IPIP, IPIP]}) == behind.replace(IPIP, f"{IPIP}\n{IPIP}")
    assert with_blocks(with_ipip, {}, purge=False) == with_ipip
    assert with_blocks(with_ipip, {}) == before


def test_a_nat_table_before_the_filter_table_is_left_alone():
    nat = "*nat\n:POSTROUTING ACCEPT [0:0]\nCOMMIT\n"
    assert with_blocks(nat + BEFORE, {"ipip": [IPIP]}) == nat + with_blocks(BEFORE, {"ipip": [IPIP]})


@pytest.mark.parametrize(
    ("text", "blocks", "message"),
    [
        ("*nat\nCOMMIT\n", {"ipip": [IPIP]}, "no filter table"),
        (BEFORE, {"ipip": ["-A INPUT -p 4 -j ACCEPT"]}, "ipip: .* does not append to"),
        (BEFORE, {"ipip": ["-F ufw-before-input"]}, "ipip: .* does not append to"),
        (BEFORE.replace("COMMIT", "# BEGIN netmend:ipip\nCOMMIT"), {"ipip": [IPIP]}, "end of block netmend:ipip"),
    ],
)
def test_what_before_rules_cannot_hold_is_refused(text, blocks, message):
    with pytest.raises(ValueError, match=message):
        with_blocks(text, blocks)


def test_manage_builtins_is_touched_only_where_it_is_yes(blocked):
    goal = wanted(manage_builtins=False)
    assert plan(blocked, goal)["after"] == blocked
    assert plan(state(default_ufw=""), goal)["after"]["default_ufw"] == ""
    flushing = with_setting(blocked["default_ufw"], "MANAGE_BUILTINS", "yes")
    assert flushing != blocked["default_ufw"]
    assert plan({**blocked, "default_ufw": flushing}, goal)["after"] == blocked


# --- what the cluster needs -----------------------------------------------------------------------------------------


def cluster(**other):
    """One server and two agents, as in the fixtures, on Flannel's VXLAN."""
    names = {"server0": ("server", "10.0.0.100"), "agent0": ("agent", "10.0.0.110"), "agent1": ("agent", "10.0.0.111")}
    annotations = {"flannel.alpha.coreos.com/backend-type": "vxlan"}
    nodes = [
        {"name": name, "role": role, "internal_ip": address, "annotations": annotations}
        for name, (role, address) in names.items()
    ]
    empty = {"pods": [], "services": [], "calico": {}}
    return {"nodes": nodes, "cluster_cidr": "10.42.0.0/16", **empty, **other}


def node(name: str, config: dict | None = None, interfaces=()):
    links = [{"name": link, "info": {}} for link in interfaces]
    return {"name": name, "k3s": {"config": config or {}}, "interfaces": links}


def needs(facts, here, **sources) -> list[str]:
    """ "port/proto < source", in the order of the rules."""
    rules = required_rules(facts, here, **sources)["rules"]
    return [f"{rule['port']}/{rule['proto']} < {rule['from']}" for rule in rules]


def test_a_server_needs_the_api_and_an_agent_does_not():
    assert needs(cluster(), node("server0")) == [
        "10250/tcp < 10.0.0.110",
        "10250/tcp < 10.0.0.111",
        "10250/tcp < 10.42.0.0/16",
        "6443/tcp < 10.0.0.110",
        "6443/tcp < 10.0.0.111",
        "6443/tcp < 10.42.0.0/16",
        "8472/udp < 10.0.0.110",
        "8472/udp < 10.0.0.111",
    ]
    assert not [need for need in needs(cluster(), node("agent0")) if need.startswith("6443")]


def test_etcd_is_for_servers_only_and_only_where_it_is_embedded():
    facts = cluster()
    facts["nodes"][1]["role"] = "server"
    etcd = "2379:2380/tcp < 10.0.0.110"
    assert [need for need in needs(facts, node("server0")) if need.startswith("2379")] == [etcd]
    assert etcd not in needs(facts, node("server0", {"datastore-endpoint": "(redacted)"}))
    assert not [need for need in needs(facts, node("agent1")) if need.startswith("2379")]


def test_the_overlay_that_is_there_counts():
    pools = {"ippools": [{"spec": {"cidr": "10.42.128.0/17", "ipipMode": "Always", "vxlanMode": "Never"}}]}
    swapped = cluster(calico=pools)
    assert [need[:4] for need in needs(swapped, node("agent0"))[3:]] == ["179/"] * 2
    assert [need[:4] for need in needs(swapped, node("agent0", interfaces=["flannel.1"]))[3:]] == ["8472"] * 2 + [
        "179/"
    ] * 2
    assert required_rules(swapped, node("agent0"))["before_rules"] == [
        {
            "name": "ipip",
            "lines": [
                "-A ufw-before-input -p 4 -s 10.0.0.100/32 -j ACCEPT",
                "-A ufw-before-input -p 4 -s 10.0.0.111/32 -j ACCEPT",
            ],
        }
    ]
    assert required_rules(cluster(), node("agent0"))["before_rules"] == []


def test_calico_without_bird_and_with_a_pool_of_its_own():
    calico = {
        "ippools": [{"spec": {"cidr": "10.233.0.0/16", "vxlanMode": "Always", "ipipMode": "Never"}}],
        "felixconfigurations": [{"spec": {"programClusterRoutes": "Enabled"}}],
    }
    assert needs(cluster(calico=calico), node("agent0")) == [
        "10250/tcp < 10.0.0.100",
        "10250/tcp < 10.0.0.111",
        "10250/tcp < 10.42.0.0/16",
        "10250/tcp < 10.233.0.0/16",
        "4789/udp < 10.0.0.100",
        "4789/udp < 10.0.0.111",
    ]


def service(name: str, kind: str, ip: str, port: int, target: str = "http"):
    return {
        "namespace": "ingress",
        "name": name,
        "type": kind,
        "ports": [{"name": target, "port": 80, "targetPort": target, "nodePort": 31695, "protocol": "TCP"}],
        "endpoints": [{"ip": ip, "node": "agent0", "port": port, "protocol": "TCP", "ready": True, "pod": ""}],
    }


def test_a_nodeport_meets_input_only_where_its_pod_is_on_the_host():
    def opened(ip: str, name: str) -> list[str]:
        facts = cluster(services=[service("web", "NodePort", ip, 8080)])
        rules = needs(facts, node(name), balancers=["10.0.0.5"], nodeports_from=["192.0.2.0/24"])
        return [rule for rule in rules if rule.startswith("8080")]

    assert opened("10.42.1.2", "agent0") == []
    assert opened("10.0.0.110", "agent1") == []
    assert opened("10.0.0.110", "agent0") == [
        f"8080/tcp < {source}" for source in ("10.0.0.100", "10.0.0.111", "10.42.0.0/16", "10.0.0.5", "192.0.2.0/24")
    ]


def test_an_ingress_on_the_host_is_for_balancers_and_its_webhook_for_servers():
    ports = [{"port": port, "protocol": "TCP", "hostPort": port} for port in (80, 443, 8443)]
    ingress = {"node": "agent0", "host_network": True, "ports": ports, "labels": {}}
    webhook = service("admission", "ClusterIP", "10.0.0.110", 8443, "https-webhook")
    facts = cluster(pods=[ingress], services=[webhook])
    rules = needs(facts, node("agent0"), balancers=["10.0.0.5", "10.0.0.6/32"])
    assert [rule for rule in rules if rule[:4] in ("80/t", "443/", "8443")] == [
        "8443/tcp < 10.0.0.100",
        "80/tcp < 10.0.0.5",
        "80/tcp < 10.0.0.6",
        "443/tcp < 10.0.0.5",
        "443/tcp < 10.0.0.6",
    ]


def test_an_endpoint_without_a_port_needs_none():
    facts = cluster(services=[service("admission", "ClusterIP", "10.0.0.110", 0)])
    assert needs(facts, node("agent0")) == needs(cluster(), node("agent0"))


def test_of_nodeports_alone_nothing_else_is_let_in():
    ports = [{"port": port, "protocol": "TCP", "hostPort": port} for port in (80, 443)]
    ingress = {"node": "agent0", "host_network": True, "ports": ports, "labels": {}}
    services = [service("web", "NodePort", "10.0.0.110", 8080), service("inner", "ClusterIP", "10.0.0.110", 9090)]
    facts = cluster(pods=[ingress], services=services)
    assert needs(facts, node("agent0"), balancers=["10.0.0.5"], scope="nodeports") == [
        *(f"8080/tcp < {source}" for source in ("10.0.0.100", "10.0.0.111", "10.42.0.0/16", "10.0.0.5")),
        "80/tcp < 10.0.0.5",
        "443/tcp < 10.0.0.5",
    ]


def test_a_port_that_two_things_need_gets_one_rule():
    kubelet = service("kubelet", "ClusterIP", "10.0.0.110", 10250)
    assert needs(cluster(services=[kubelet]), node("agent0")) == needs(cluster(), node("agent0"))


def test_what_is_missing_is_named():
    facts = cluster()
    with pytest.raises(ValueError, match="node agent9 is not in the cluster: its nodes are agent0, agent1, server0"):
        required_rules(facts, node("agent9"))
    facts["nodes"][2]["internal_ip"] = ""
    with pytest.raises(ValueError, match="no InternalIP is known for node agent1"):
        required_rules(facts, node("agent0"))
