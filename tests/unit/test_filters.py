"""What hosts' variables become on their way through the filters."""

from __future__ import annotations

import base64
import json
import ssl
import subprocess
from pathlib import Path
from typing import Any, Callable

import pytest

from tests.unit.loaded import loaded

filters = loaded("plugins/filter/netmend.py")

ANSWERS = (filters.READ, filters.PROBED, filters.ROUND, filters.CHECKED)
ADDRESSES = {"a": "10.0.0.1", "b": "10.0.0.2"}


def test_a_certificate_is_its_own_authority_and_has_its_key(tmp_path: Path) -> None:
    made = filters.FilterModule().filters()["netmend_certificate"]("admission.ingress-nginx.svc")
    for name, content in made.items():
        (tmp_path / name).write_bytes(base64.b64decode(content))
    ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(tmp_path / "cert", tmp_path / "key")
    verify = ["openssl", "verify", "-CAfile", tmp_path / "ca", "-verify_hostname", "admission.ingress-nginx.svc"]
    subprocess.run([*verify, tmp_path / "cert"], check=True, capture_output=True)


class HostVars(dict[str, Any]):
    """As much of Ansible's as the filters use: hosts' variables by name, as they are kept."""

    raw_get = dict.__getitem__


def hostvars(*hosts: dict[str, Any], **of_all: Any) -> tuple[list[str], HostVars]:
    """The first two arguments of a filter; ``of_all``: what tasks that ran once have left.

    Of a host, ``netmend_read`` and its like are its answers.
    """
    names = [each["inventory_hostname"] for each in hosts]
    own = [{key: value for key, value in each.items() if key not in ANSWERS} for each in hosts]
    answers = {
        key: {"answers": {each["inventory_hostname"]: each[key] for each in hosts if key in each}} for key in ANSWERS
    }
    return names, HostVars({name: {**of_all, **answers, **each} for name, each in zip(names, own)})


def host(name: str, skew: float = 0.0) -> dict[str, Any]:
    node = {"name": name, "time": 100.5 + skew, "took": 1.0, "interfaces": [], "k3s": {"role": "agent", "config": {}}}
    call = {"sent": 100.0, "received": 101.7}
    return {"inventory_hostname": name, "netmend_read": {"netmend_node": node, "netmend_call": call}}


@pytest.fixture
def facts() -> dict[str, Any]:
    members = [{"name": name, "internal_ip": address, "labels": {}} for name, address in ADDRESSES.items()]
    return {"expected_nodes": list(ADDRESSES), "cluster": {"nodes": members}}


def test_facts_are_the_clusters_and_who_was_expected() -> None:
    cluster = {"nodes": [], "services": [], "errors": []}
    server = host("a")
    server["netmend_read"]["netmend_cluster"] = cluster
    server["netmend_read"]["netmend_node"]["k3s"] = {"role": "server", "config": {"cluster-cidr": "10.99.0.0/16"}}
    gone = {"inventory_hostname": "b", "netmend_read": {"unreachable": True, "msg": "gone"}}
    found = filters.netmend_facts(*hostvars(server, gone))
    assert (found["expected_nodes"], found["server"], found["silent"]) == (["a", "b"], "a", {"b": "gone"})
    assert found["cluster"]["cluster_cidr"] == "10.99.0.0/16"


def test_servers_that_all_refuse_are_one_error_with_what_each_said() -> None:
    refusing = host("a")
    refusing["netmend_read"]["netmend_cluster_error"] = "no certificate"
    with pytest.raises(filters.AnsibleFilterError, match="a: no certificate"):
        filters.netmend_facts(*hostvars(refusing, host("b")))


def test_of_a_canary_its_node_and_one_server_are_read_again(facts: dict[str, Any]) -> None:
    given = hostvars(host("a"), host("b"), host("c"), netmend_facts={**facts, "server": "a"})
    assert json.loads(filters.netmend_canary_reading(*given, "c")) == {"c": {"cluster": False}, "a": {"cluster": True}}


def test_a_canary_is_planned_by_what_was_read_again(monkeypatch: pytest.MonkeyPatch) -> None:
    def server(*pods: str) -> dict[str, Any]:
        answer: dict[str, Any] = host("a")["netmend_read"]
        return {**answer, "netmend_cluster": {"nodes": [], "services": [], "errors": [], "pods": list(pods)}}

    first = {"inventory_hostname": "a", "netmend_read": server()}
    again = {"answers": {"a": server("canary"), "b": host("b", skew=7.0)["netmend_read"]}}
    seen = {}

    def plan_canary(nodes: Any, cluster: Any, pod: str, **_: Any) -> list[Any]:
        seen.update(times={name: node["time"] for name, node in nodes.items()}, pods=cluster["pods"], pod=pod)
        return []

    monkeypatch.setattr(filters.plan, "plan_canary", plan_canary)
    monkeypatch.setattr(filters.gates, "flannel_passes", lambda *_: True)
    given = hostvars(first, host("b"), netmend_facts={"server": "a"}, netmend_canary_read=again)
    assert filters.netmend_canary_plan(*given, "kube-system/netmend-canary") == {}
    assert seen == {"times": {"a": 100.5, "b": 107.5}, "pods": ["canary"], "pod": "kube-system/netmend-canary"}


def test_where_no_server_answers_the_error_says_what_each_node_said() -> None:
    gone = {"inventory_hostname": "a", "netmend_read": {"failed": True, "msg": "no\n  Python"}}
    with pytest.raises(filters.AnsibleFilterError, match="a: no Python"):
        filters.netmend_facts(*hostvars(gone))


def test_all_nodes_get_one_moment_by_their_own_clocks(facts: dict[str, Any]) -> None:
    skewed = hostvars(host("a"), host("b", skew=-20.0), netmend_facts=facts)
    orders = json.loads(filters.netmend_underlay_plan(*skewed, 25))
    assert set(orders) == {"a", "b"}
    assert orders["a"]["run"] == orders["b"]["run"] != ""
    assert orders["b"]["start"] - orders["a"]["start"] == pytest.approx(-20.0, abs=0.7)
    assert json.loads(filters.netmend_underlay_plan(*skewed, 25))["a"]["run"] != orders["a"]["run"]


def test_a_single_node_measures_nothing(facts: dict[str, Any]) -> None:
    alone = hostvars(host("a"), {"inventory_hostname": "b"}, netmend_facts=facts)
    assert filters.netmend_underlay_plan(*alone, 25) == "{}"


def test_a_diagnosis_says_which_overlays_can_work(
    facts: dict[str, Any], underlay_reports: Callable[[dict[str, str]], dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    runs: list[dict[str, Any]] = []
    monkeypatch.setattr(filters, "diagnose", lambda run: runs.append(run) or [])
    monkeypatch.setattr(filters, "walks", lambda run, findings: [])
    stored = {"netmend_facts": facts, "netmend_probes": "{}", "netmend_edge": filters.netmend_edge([])}
    hosts = [{**host(name), "netmend_round": {"netmend_underlay": report, "changed": False}}
             for name, report in underlay_reports(ADDRESSES).items()]  # fmt: skip
    judgement = json.loads(filters.netmend_diagnose(*hostvars(*hosts, **stored)))
    assert (judgement["overlays"]["ipip"]["verdict"], judgement["overlays"]["ipip"]["mtu"]) == ("works", 1430)
    assert runs[0]["underlay"]["overlays"] == judgement["overlays"]
    assert list(runs[0]["nodes"]) == list(ADDRESSES)

    hosts[1]["netmend_round"] = {"unreachable": True, "msg": "gone"}
    assert json.loads(filters.netmend_diagnose(*hostvars(*hosts, **stored)))["overlays"]["ipip"]["verdict"] == "unknown"

    skipped = [{**each, "netmend_round": {"skipped": True}} for each in hosts]
    assert json.loads(filters.netmend_diagnose(*hostvars(*skipped, **stored)))["overlays"] == {}
    assert "underlay" not in runs[-1]


@pytest.mark.parametrize("named", ["k3s-worker-99", [1]])
def test_nodes_that_are_gone_are_a_list_of_names(facts: dict[str, Any], named: Any) -> None:
    stored = {"netmend_facts": facts, "netmend_probes": "{}", "netmend_edge": filters.netmend_edge([])}
    with pytest.raises(filters.AnsibleFilterError, match="netmend_gone_nodes must be a list of names of nodes"):
        filters.netmend_diagnose(*hostvars(host("a"), **stored), False, named)


def test_what_is_declared_of_the_edge_has_its_defaults() -> None:
    service = {"listen_port": 80, "destination_port": 31695, "health": {"port": 31695}}
    said = filters.netmend_edge([{"name": "lb1", "address": "203.0.113.10", "services": [service]}], ["10.0.0.5"])
    (balancer,) = said["balancers"]
    assert (balancer["targets"], balancer["private"], said["sources"]) == ([], False, ["10.0.0.5"])
    assert balancer["services"] == [
        {
            "protocol": "tcp", "listen_port": 80, "destination_port": 31695, "proxy_protocol": None,
            "health": {"protocol": "tcp", "port": 31695, "path": "/", "codes": [200]},
        }
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("balancers", "patience", "message"),
    [
        ([{"name": "lb1"}], 20, r"netmend_balancers\[0\].address is missing"),
        ([{"name": "lb1", "address": "lb1.example"}], 20, r"netmend_balancers\[0\].address: 'lb1.example' is no IPv4"),
        ([{"name": "lb1", "address": "203.0.113.1", "services": [{"listen_port": 0}]}], 20, "listen_port: 0 is no"),
        ([{"name": "lb1", "address": "203.0.113.1", "services": [{"listen_port": 80, "protocol": "udp"}]}], 20,
         r"services\[0\].protocol: 'udp' is none of http, https, tcp"),
        ([{"name": "lb1", "address": "203.0.113.1", "targets": [{"address": "10.0.0.1", "status": {"80": "up"}}]}], 20,
         r"targets\[0\].status.80: 'up' is none of healthy, unhealthy, unknown"),
        ([], "soon", "netmend_patience: 'soon' is no number of seconds from 1 to 300"),
        ([], 0, "netmend_patience: 0 is no number"),
    ],
)  # fmt: skip
def test_what_is_wrongly_declared_of_the_edge_is_named(balancers: Any, patience: Any, message: str) -> None:
    with pytest.raises(filters.AnsibleFilterError, match=message):
        filters.netmend_edge(balancers, patience=patience)
