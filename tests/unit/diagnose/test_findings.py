"""What a finding says: its evidence in figures, and a remedy that takes nothing that is not ours without asking."""

from __future__ import annotations

import re
import subprocess

from ansible.module_utils.netmend.diagnose import diagnose

CLUSTER_WIDE = "-d 10.42.0.0/16 -j DROP"


def test_evidence_has_the_deciding_rule_its_counter_and_what_was_seen(captured):
    bench = captured("flannel-ufw-blocks")
    bench.fail(bench.crosses("agent0", "agent1"))
    bench.run["results"]["agent0"]["moved"] = [
        {"backend": "nft", "table": "filter", "chain": "INPUT", "index": 0, "spec": "DROP", "packets": 38}
    ]
    (finding,) = diagnose(bench.run)
    assert finding["evidence"][0] == (
        "agent0 stops VXLAN (UDP 8472) from agent1, server0: nft filter INPUT policy DROP, 40 packets, 38 of them "
        "while probing. "
        "0 of 12 probes to pods that cross the overlay there, and 4 of 4 node pings, came out as expected."
    )
    assert finding["remedy"]["nodes"] == ["agent0", "agent1"]


def forward_rule(bench, spec, number=1):
    bench.insert("agent0", "FORWARD", spec, number=number)
    bench.fail(bench.forwarded_at("agent0"))
    return diagnose(bench.run)[0]


def test_a_rule_that_stops_all_pods_before_kubernetes_chains_is_removed(flannel):
    finding = forward_rule(flannel, CLUSTER_WIDE)
    assert finding["fault"] == "reject-before-accept"
    assert finding["remedy"]["role"] == "iptables_forward"
    assert finding["remedy"]["vars"]["iptables_forward_remove_rules"] == [
        {"backend": "nft", "table": "filter", "chain": "FORWARD", "spec": CLUSTER_WIDE}
    ]


def test_a_rule_behind_kubernetes_chains_stays_and_gets_accepts_before_it(flannel):
    remedy = forward_rule(flannel, CLUSTER_WIDE, number=5)["remedy"]
    assert (remedy["role"], remedy["vars"]) == ("iptables_forward", {"iptables_forward_accepts": True})


def test_a_rule_that_somebody_may_have_meant_is_left_to_the_operator(flannel):
    remedy = forward_rule(flannel, "-s 10.42.1.2/32 -p tcp -j DROP")["remedy"]
    assert (remedy["role"], remedy["command"]) == (
        "",
        "iptables-nft -w -t filter -D FORWARD -s 10.42.1.2/32 -p tcp -j DROP",
    )


def test_an_early_accept_of_our_own_is_put_right_by_its_role(flannel):
    flannel.insert("agent1", "FORWARD", '-s 10.42.0.0/16 -m comment --comment "netmend:forward" -j ACCEPT')
    (finding,) = diagnose(flannel.run)
    assert (finding["fault"], finding["remedy"]["role"]) == ("accept-before-policy", "iptables_forward")


def test_a_rule_and_the_policy_behind_it_are_both_found(flannel):
    flannel.drop_by_policy("agent0", "FORWARD")
    flannel.insert("agent0", "FLANNEL-FWD", "-j RETURN")
    forward_rule(flannel, "-d 10.42.0.0/16 -j REJECT --reject-with icmp-port-unreachable")
    found = [finding["fault"] for finding in diagnose(flannel.run)]
    assert found == ["reject-before-accept", "forward-drop-without-accept"]


def test_what_the_operators_had(captured):
    """UFW without VXLAN and the kubelet on every node, and a DROP for all pods before everything else."""
    bench = captured("flannel-ufw-blocks")
    for node in ("agent0", "agent1"):
        bench.deny(node, "10250")
        bench.insert(node, "FORWARD", CLUSTER_WIDE)
    bench.fail(bench.crosses("agent0", "agent1"))
    bench.fail(lambda probe: re.fullmatch(r"host-host (\w+)>(?!\1)agent\d tcp/10250", probe["id"]))
    bench.fail(lambda probe: probe["row"].startswith("pod-") and probe["source_node"] != "server0")
    findings = {finding["fault"]: finding for finding in diagnose(bench.run)}
    assert set(findings) == {"vxlan-dropped-by-host", "reject-before-accept", "kubelet-dropped-by-host"}
    assert all(finding["where"] == ["agent0", "agent1"] for finding in findings.values())


def test_the_command_takes_the_policy_controllers_chains_and_nothing_else(captured, fixtures, tmp_path):
    bench = captured("flannel")
    bench.node("server0")["k3s"]["config"]["disable-network-policy"] = True
    command = next(each["remedy"]["command"] for each in diagnose(bench.run) if each["fault"] == "stale-network-policy")
    saved = fixtures / "k3s-1.36.3/flannel/agent1/iptables-save.txt"
    script = f"set -e; iptables-nft-restore -c < {saved}; {command.replace('/root', str(tmp_path))}; iptables-nft-save"
    done = subprocess.run(["unshare", "-n", "sh", "-c", script], capture_output=True, text=True, check=True)

    def rules(text):
        """Chains and rules without counters and policies of built-in chains."""
        lines = (re.sub(r"^\[.*?\] ", "", line) for line in text.splitlines())
        return [line.split(" ")[0] if line.startswith(":") else line for line in lines if line[:1] in (":", "-", "*")]

    before, after = rules(saved.read_text()), rules(done.stdout)
    of_the_controller = re.compile("KUBE-(ROUTER|POD-FW|NWPLCY)-|KUBE-ROUTER rule")
    assert sum(bool(of_the_controller.search(line)) for line in before) > 30
    assert sorted(after) == sorted(line for line in before if not of_the_controller.search(line))


def test_a_hundred_nodes_make_one_finding_with_few_sentences(captured):
    bench = captured("flannel-ufw-blocks")
    bench.fail(bench.crosses("agent0", "agent1"))
    nodes = bench.run["nodes"]
    for number in range(2, 100):
        ufw = {"enabled": True, "manage_builtins": True}
        nodes[f"agent{number}"] = {**nodes["agent1"], "name": f"agent{number}", "ufw": ufw}
    flush = next(finding for finding in diagnose(bench.run) if finding["fault"] == "firewall-flush")
    assert len(flush["where"]) == 98
    assert len(flush["evidence"]) == 6
    assert flush["evidence"][-1] == "93 more of the kind."
