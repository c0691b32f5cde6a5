from __future__ import annotations

import re
from pathlib import Path

import pytest
from ansible.module_utils.netmend.parse.iptables import parse_rule, parse_save, split

STATES = ("flannel", "flannel-ufw-blocks", "both-overlays", "swapped-leftovers", "swapped-clean")


def saved_again(text: str) -> str:
    """What iptables-save would print for the parsed rules: proof that nothing is lost and that the order is kept."""
    lines = []
    for table, chains in parse_save(text).items():
        lines.append(f"*{table}")
        for name, chain in chains.items():
            lines.append(f":{name} {chain['policy'] or '-'} [{chain['packets']}:{chain['bytes']}]")
        for name, chain in chains.items():
            lines += [f"[{r['packets']}:{r['bytes']}] -A {name} {r['spec']}" for r in chain["rules"]]
        lines.append("COMMIT")
    return "\n".join(lines)


@pytest.mark.parametrize("state", STATES)
@pytest.mark.parametrize("node", ["server0", "agent0", "agent1"])
def test_captured_rule_sets_round_trip(fixtures: Path, state: str, node: str) -> None:
    text = (fixtures / "k3s-1.36.3" / state / node / "iptables-save.txt").read_text()
    without_remarks = "\n".join(line for line in text.splitlines() if not line.startswith("#"))

    def tables(text: str) -> list[list[str]]:
        return [sorted(table.splitlines()) for table in re.split(r"^(?=\*)", text, flags=re.M)]

    assert tables(saved_again(text)) == tables(without_remarks)


def test_policy_counters_and_position(fixtures: Path) -> None:
    text = (fixtures / "k3s-1.36.3/flannel-ufw-blocks/agent0/iptables-save.txt").read_text()
    filters = parse_save(text)["filter"]
    assert filters["FORWARD"]["policy"] == "DROP"
    assert filters["KUBE-FORWARD"]["policy"] is None
    forward = [rule["target"] for rule in filters["FORWARD"]["rules"]]
    assert forward.index("FLANNEL-FWD") < forward.index("ufw-before-forward")


def test_every_rule_has_a_target_or_is_known_to_have_none(fixtures: Path) -> None:
    text = (fixtures / "k3s-1.36.3/swapped-leftovers/agent1/iptables-save.txt").read_text()
    for table in parse_save(text).values():
        for chain in table.values():
            for rule in chain["rules"]:
                assert (rule["target"] is None) == (" -j " not in f" {rule['spec']}" and " -g " not in rule["spec"])


@pytest.mark.parametrize(
    ("spec", "matches", "opaque"),
    [
        (
            "! -s 10.42.0.0/16 -d 10.43.0.10/32 -j RETURN",
            {"!source": "10.42.0.0/16", "destination": "10.43.0.10/32"},
            [],
        ),
        ("-i eth0 ! -o cali+ -j DROP", {"in": "eth0", "!out": "cali+"}, []),
        ("-p udp -m udp --dport 8472 -j DROP", {"protocol": "udp", "dport": "8472"}, []),
        ("-p udp --sport 67 --dport 68 -j ACCEPT", {"protocol": "udp", "sport": "67", "dport": "68"}, []),
        ("-p tcp -m tcp ! --dport 1:1023 -j DROP", {"protocol": "tcp", "!dport": "1:1023"}, []),
        (
            "-p tcp -m multiport --dports 80,443,8000:8080 -j ACCEPT",
            {"protocol": "tcp", "dport": "80,443,8000:8080"},
            [],
        ),
        ("-m conntrack ! --ctstate RELATED,ESTABLISHED -j DROP", {"!ctstate": "RELATED,ESTABLISHED"}, []),
        ("-m state --state NEW -j DROP", {"ctstate": "NEW"}, []),
        ("-m mark ! --mark 0x10000/0x10000 -j RETURN", {"!mark": "0x10000/0x10000"}, []),
        ("-m connmark --mark 0x1 -j DROP", {}, ["connmark"]),
        ("-m addrtype ! --src-type LOCAL --dst-type LOCAL -j DROP", {"!src-type": "LOCAL", "dst-type": "LOCAL"}, []),
        (
            "-m physdev --physdev-is-bridged --physdev-in veth1 -j X",
            {"physdev-is-bridged": "", "physdev-in": "veth1"},
            [],
        ),
        ("-p icmp -m icmp --icmp-type 3/4 -j DROP", {"protocol": "icmp", "icmp-type": "3/4"}, []),
        ("-p ipv6-icmp -m icmp6 --icmpv6-type 128 -j DROP", {"protocol": "ipv6-icmp", "icmp-type": "128"}, []),
        ("-p tcp -m tcp --dport 22 --tcp-flags SYN,RST SYN -j X", {"protocol": "tcp", "dport": "22"}, ["tcp"]),
        ("-m mark --mark 0x1/0x1 -m mark --mark 0x2/0x2 -j X", {"mark": "0x1/0x1"}, ["mark"]),
        ("-m set ! --match-set peers dst -m limit --limit 3/min -j DROP", {}, ["set", "limit"]),
        (
            "-m addrtype ! --src-type LOCAL --limit-iface-out -m addrtype --src-type LOCAL -j X",
            {"src-type": "LOCAL"},
            ["addrtype"],
        ),
        ("-f -j DROP", {}, ["-f"]),
    ],
)
def test_matches(spec: str, matches: dict[str, str], opaque: list[str]) -> None:
    rule = parse_rule(spec)
    assert (rule["matches"], rule["opaque"]) == (matches, opaque)


@pytest.mark.parametrize(
    ("spec", "target", "options", "goto"),
    [
        ("-j REJECT --reject-with icmp-port-unreachable", "REJECT", {"reject-with": "icmp-port-unreachable"}, False),
        ("-i cali+ -g cali-wl-to-host", "cali-wl-to-host", {}, True),
        ("-j MASQUERADE --random-fully", "MASQUERADE", {"random-fully": ""}, False),
        ('-m limit --limit 3/min -j LOG --log-prefix "[UFW BLOCK] "', "LOG", {"log-prefix": "[UFW BLOCK] "}, False),
        ("-p tcp -j DNAT --to-destination 10.42.0.2:80", "DNAT", {"to-destination": "10.42.0.2:80"}, False),
        ("-s 10.0.0.1/32", None, {}, False),
    ],
)
def test_targets(spec: str, target: str | None, options: dict[str, str], goto: bool) -> None:
    rule = parse_rule(spec)
    assert (rule["target"], rule["target_options"], rule["goto"]) == (target, options, goto)


def test_quotes_end_where_libxtables_ends_them() -> None:
    spec = r'-m comment --comment "the pod\'s \"own\" -j DROP \\" -j ACCEPT'
    assert split(spec) == ["-m", "comment", "--comment", 'the pod\'s "own" -j DROP \\', "-j", "ACCEPT"]
    rule = parse_rule(spec)
    assert rule["comment"] == 'the pod\'s "own" -j DROP \\'
    assert rule["target"] == "ACCEPT"
    assert parse_rule('-m comment --comment "-j" -j RETURN')["comment"] == "-j"
    assert parse_rule("-m comment --comment cali:a -m comment --comment b -j X")["comment"] == "cali:a b"


def test_saved_without_counters() -> None:
    ruleset = parse_save("*nat\n:PREROUTING ACCEPT [0:0]\n-A PREROUTING -j X\nCOMMIT\n")
    assert ruleset["nat"]["PREROUTING"]["rules"][0]["packets"] == 0


@pytest.mark.parametrize("text", ["-A INPUT -j DROP", "*filter\n-A NOWHERE -j DROP", "*filter\nnonsense"])
def test_what_iptables_save_never_prints_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="line"):
        parse_save(text)
