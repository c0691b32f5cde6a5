"""What fails at times: told from chance, from what always fails, and from each other."""

from __future__ import annotations

import random

import pytest
from ansible.module_utils.netmend.diagnose import diagnose

WEB = "default/web"


def sample(bench, rate, attempts=20, seed=1):
    """Asks every probe that ends at one place so often; ``rate(probe)`` is how often it fails."""
    dice = random.Random(seed)
    for probe in bench.run["probes"]:
        if not probe.get("target_service"):
            failed = sum(dice.random() < rate(probe) for _ in range(attempts))
            put(bench, probe, attempts, failed)


def ask_web(bench, rate, *, told=True, again=0.0, seed=1):
    """Asks the Service by its ClusterIP; ``rate(source, address)`` is how often an endpoint fails.

    ``told``: connection tracking says which endpoint it was. ``again``: how often a port that failed fails again.
    """
    dice = random.Random(seed)
    (web,) = [service for service in bench.run["cluster"]["services"] if service["name"] == "web"]
    ends = [end["ip"] for end in web["endpoints"]]
    for probe in bench.run["probes"]:
        if probe.get("target_service") != WEB or probe["row"] == "node-nodeport":
            continue
        tallies, ports = {end: [0, 0] for end in ends}, {}
        for number in range(36):
            end = dice.choice(ends)
            failed = dice.random() < rate(probe["source_node"], end)
            tallies[end][0] += 1
            tallies[end][1] += failed
            if failed:
                ports[str(40000 + number)] = [1, 1]
        for port in list(ports)[:5]:
            ports[port] = [2, 1 + (dice.random() < again)]
        asked_again = [tally[1] - 1 for tally in ports.values() if tally[0] == 2]
        failed = sum(tally[1] for tally in tallies.values()) + sum(asked_again)
        more = {"endpoints": tallies if told else {}, "ports": ports}
        put(bench, probe, 36 + len(asked_again), failed, **more)
    return ends


def put(bench, probe, attempts, failed, **more):
    """As probing has it: what failed once of so many is lost, and no fault."""
    (seen,) = [each for each in observations(bench) if each["id"] == probe["id"]]
    outcome, detail = ("timeout", "no answer to SYN") if failed > 1 else ("ok", "")
    seen.update(outcome=outcome, detail=detail, attempts=attempts, failed=failed, **more)


def observations(bench):
    return [each for result in bench.run["results"].values() for each in result["observations"]]


def only(bench):
    (finding,) = diagnose(bench.run)
    return finding


# --- chance -----------------------------------------------------------------------------------------------------------


def test_single_lost_attempts_are_no_finding(flannel):
    for probe in flannel.run["probes"]:
        put(flannel, probe, 7, 1)
    assert diagnose(flannel.run) == []


# --- where it is lost -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(3))
def test_loss_that_keeps_to_a_node(flannel, seed):
    lost = flannel.crosses("agent1")
    sample(flannel, lambda probe: 0.3 * lost(probe), seed=seed)
    finding = only(flannel)
    assert (finding["fault"], finding["where"]) == ("fails-at-times", ["agent1"])
    assert "They keep to what goes from or to agent1: " in finding["evidence"][1]
    assert "; by chance: " in finding["evidence"][1]


def test_loss_that_keeps_to_one_direction_of_a_pair(flannel):
    def lost(probe):
        return (probe["source_node"], probe["target_node"]) == ("agent0", "agent1") and probe["row"] == "pod-pod"

    sample(flannel, lambda probe: 0.5 * lost(probe), attempts=50)
    finding = only(flannel)
    assert finding["where"] == ["agent0>agent1"]
    assert "from agent0 to agent1" in finding["evidence"][1]


def test_loss_everywhere_keeps_to_nothing_and_has_its_interval(flannel):
    sample(flannel, lambda probe: 0.3)
    finding = only(flannel)
    assert finding["fault"] == "fails-at-times"
    assert finding["where"] == ["agent0, agent1, server0"]
    assert "% with 95 % confidence) attempts of " in finding["evidence"][0]
    assert finding["evidence"][0].endswith(" timeout (no answer to SYN).")
    assert finding["evidence"][1].startswith("They keep to no node, pair of nodes or endpoint, as far as ")
    assert finding["remedy"]["role"] == ""


def test_a_rule_that_drops_at_random_is_among_the_evidence(flannel):
    """Rules of random choice are not understood, and so stop nothing for certain; their counters say that they do."""
    flannel.insert("agent1", "INPUT", "-p udp -m udp --dport 8472 -m statistic --mode random --probability 0.3 -j DROP")
    lost = flannel.crosses("agent1")
    sample(flannel, lambda probe: 0.3 * lost(probe))
    finding = only(flannel)
    assert finding["fault"] == "fails-at-times"
    assert "--probability 0.3 -j DROP" in " ".join(finding["evidence"])


def test_a_counter_that_rose_is_among_the_evidence(flannel):
    flannel.lose("agent1", "conntrack.insert_failed", 12)
    sample(flannel, lambda probe: 0.3 * flannel.crosses("agent1")(probe))
    assert "agent1: the kernel's counter conntrack.insert_failed rose by 12" in " ".join(only(flannel)["evidence"])


def test_a_resolver_is_named(flannel):
    flannel.with_dns()
    at_coredns = "kube-system/coredns-1"
    sample(flannel, lambda probe: 0.5 * (probe.get("target_pod") == at_coredns))
    finding = only(flannel)
    assert finding["where"][0].startswith("kube-system/coredns-1 (10.42.")


def test_loss_between_nodes_is_not_called_a_tunnel_that_is_dropped(flannel):
    lost = flannel.between("agent0", "agent1")
    sample(flannel, lambda probe: 0.6 * lost(probe))
    assert only(flannel)["fault"] == "fails-at-times"
    for probe in flannel.run["probes"]:
        if lost(probe) and not probe.get("target_service"):
            put(flannel, probe, 20, 20)
    assert only(flannel)["fault"] == "vxlan-dropped-by-fabric"


# --- one endpoint, or all ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(3))
def test_one_endpoint_that_always_fails_is_told_from_all_that_fail_a_third_of_the_time(captured, seed):
    one, everyone = captured("flannel"), captured("flannel")
    ends = ask_web(one, lambda source, end: end == end_on(one, "agent1"), seed=seed)
    assert len(ends) == 3
    finding = only(one)
    assert (finding["fault"], finding["where"]) == ("endpoint-fails", [WEB])
    assert finding["evidence"][0].startswith("default/web has 3 endpoints: ")
    assert f"({end_on(one, 'agent1')}) on agent1 failed, 0 of " in finding["evidence"][0]
    ask_web(everyone, lambda source, end: 1 / 3, seed=seed)
    finding = only(everyone)
    assert finding["fault"] == "fails-at-times"
    assert finding["evidence"][1].endswith("Of 3 endpoints 3 failed at times.")


def end_on(bench, node):
    return next(pod["ip"] for pod in bench.pods if pod["node"] == node and pod["name"].startswith("web"))


def test_the_endpoint_and_its_node_are_both_named_where_nothing_tells_them_apart(flannel):
    """No other pod was asked on that node."""
    ask_web(flannel, lambda source, end: end == end_on(flannel, "agent1"))
    finding = only(flannel)
    assert finding["fault"] == "endpoint-fails"
    assert "to agent1" in finding["evidence"][1]
    assert "another pod on that node, asked by its own address" in finding["evidence"][1]
    assert finding["confidence"] < 0.9


def test_the_endpoint_alone_is_named_where_another_pod_on_its_node_answers(flannel):
    flannel.with_dns()
    ask_web(flannel, lambda source, end: end == end_on(flannel, "server0"))
    sample(flannel, lambda probe: 0)
    finding = only(flannel)
    assert (finding["fault"], finding["confidence"]) == ("endpoint-fails", 0.9)
    assert len(finding["evidence"]) == 1


def test_probes_of_the_endpoints_own_address_are_explained_by_it(flannel):
    ask_web(flannel, lambda source, end: end == end_on(flannel, "agent1"))
    direct = flannel.fail(lambda probe: probe["address"] == end_on(flannel, "agent1"), "refused")
    finding = only(flannel)
    assert finding["fault"] == "endpoint-fails"
    assert set(direct) <= set(finding["explains"])


# --- ports ------------------------------------------------------------------------------------------------------------


def test_ports_that_fail_again_are_said_with_all_that_it_may_be(flannel):
    ask_web(flannel, lambda source, end: end == end_on(flannel, "agent1"), told=False, again=1.0)
    finding = only(flannel)
    said = " ".join(finding["evidence"])
    assert finding["fault"] == "fails-at-times"
    assert "Asked again from ports that had failed, 30 of 30 attempts failed, " in said
    assert (
        "an entry of connection tracking that is stuck, the endpoint that it leads to, or one path of several" in said
    )
    assert "`conntrack -D --orig-port-src 400" in said
    assert "one of its 3 endpoints that always fails would give 33%, which fits" in said


def test_ports_that_pass_again_do_not_matter(flannel):
    ask_web(flannel, lambda source, end: 0.1, told=False, again=0.1)
    said = " ".join(only(flannel)["evidence"])
    assert "That does not show that ports matter." in said
    assert "which does not fit" in said
