"""A checklist: what is refused, what is asked, and which points are met."""

from __future__ import annotations

import json
import re
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Iterator

import pytest
import yaml
from ansible.module_utils.netmend import checklist
from ansible.module_utils.netmend.probe import problem

from tests.unit import playbooks
from tests.unit.report import sample

ROOT = Path(__file__).parents[2]
API = {"name": "keybuzz/keybuzz-api", "pods": 2, "host_network": True, "node_port": 30080, "host": "api.example"}
EDGE = {"urls": ["https://shop.example/cart?a=1"], "balancers": ["203.0.113.80", "203.0.113.81"], "requests": 2}


def pod(name: str, owner: str, **more: Any) -> dict[str, Any]:
    return {"namespace": "keybuzz", "name": name, "owner": owner, "ready": True, "host_network": True, **more}


def service(name: str, port: int, *pods: str, ready: bool = True, **more: Any) -> dict[str, Any]:
    endpoints = [{"pod": f"keybuzz/{pod}", "node": "a", "protocol": "TCP", "ready": ready} for pod in pods]
    ports = [{"nodePort": port}]
    return {"namespace": "keybuzz", "name": name, "ports": ports, "endpoints": endpoints,
            "external_traffic_policy": "Cluster", **more}  # fmt: skip


def cluster(**more: Any) -> Any:
    nodes = [{"name": name, "internal_ip": f"10.0.0.{place}", "ready": True} for place, name in enumerate("abc", 1)]
    paths = [{"host": "api.example", "path": "/", "service": "keybuzz-api", "port": 80}]
    return {
        "nodes": nodes,
        "pods": [pod("api-1", "DaemonSet/keybuzz-api"), pod("api-2", "DaemonSet/keybuzz-api"),
                 pod("other", "DaemonSet/keybuzz-api-2")],
        "services": [service("keybuzz-api", 30080, "api-1", "api-2")],
        "ingresses": [{"namespace": "keybuzz", "name": "api", "paths": paths}],
        **more,
    }  # fmt: skip


def judged(asked: dict[str, Any], facts: Any = None, seen: dict[str, Any] | None = None) -> dict[str, tuple[bool, str]]:
    """The points by name, where probes saw ``seen`` by id, and all others were ok."""
    read = checklist.read(asked)
    assert read
    facts, nodes = facts or cluster(), {name: {} for name in "abc"}
    probes = checklist.probes(read, nodes, facts)  # type: ignore[arg-type]  # a plain dict for a TypedDict
    observations: Any = [
        {"id": p["id"], "outcome": "ok", "detail": "", **(seen or {}).get(p["id"], {})} for p in probes
    ]
    points = checklist.points(read, nodes, facts, list("abc"), observations)  # type: ignore[arg-type]  # a plain dict for a TypedDict
    return {point["name"]: (point["met"], point["seen"]) for point in points}


# --- what is declared ---


def test_nothing_is_asked_for() -> None:
    assert checklist.read({}) is None


def test_the_documented_checklist() -> None:
    """The example in the documentation, which tells of all keys."""
    page = (ROOT / "docs/from-the-scripts.md").read_text()
    example = re.search(r"```yaml\n(.*?)```", page, re.DOTALL)
    assert example
    given = yaml.safe_load(example[1])["netmend_checklist"]
    read = checklist.read(given)
    assert read
    assert read["nodes"] == 8
    assert set(read) == set(given)
    assert [problem(probe) for probe in checklist.probes(read, {name: {} for name in "abc"}, cluster())] == [""] * 66  # type: ignore[arg-type]  # a plain dict for a TypedDict


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ([], None),
        (["a"], "netmend_checklist: ['a'] is no mapping"),
        ({"node": 8}, "netmend_checklist.node: there is only nodes, applications, node_ports, urls, balancers"),
        ({"nodes": "8"}, "netmend_checklist.nodes: '8' is no number from 1 to 10000"),
        ({"nodes": True}, "netmend_checklist.nodes: True is no number"),
        ({"applications": {}}, "netmend_checklist.applications: {} is no list"),
        ({"applications": [{"pods": 1}]}, "netmend_checklist.applications[0].name is missing"),
        ({"applications": [{"name": "api"}]}, "netmend_checklist.applications[0].name: 'api' is no namespace/name"),
        ({"applications": [API, {"name": API["name"]}]},
         "netmend_checklist.applications[1]: 'keybuzz/keybuzz-api' stands in the list already"),
        ({"applications": [{**API, "host_network": "yes"}]}, "netmend_checklist.applications[0].host_network: 'yes'"),
        ({"applications": [{**API, "host": "a b"}]}, "netmend_checklist.applications[0].host: 'a b': name 'a b' is"),
        ({"node_ports": [{"port": 70000}]}, "netmend_checklist.node_ports[0].port: 70000 is no number from 1 to 65535"),
        ({"node_ports": [{"port": 80, "path": "x"}]}, "netmend_checklist.node_ports[0].path: 'x': path 'x' is not an"),
        ({"urls": EDGE["urls"]}, "netmend_checklist.balancers: urls need the addresses"),
        ({"balancers": EDGE["balancers"]}, "netmend_checklist.balancers is of use for urls only, and there are none"),
        ({**EDGE, "balancers": ["lb"]}, "netmend_checklist.balancers[0]: 'lb' is no IPv4 address"),
        ({**EDGE, "urls": ["shop.example"]}, "netmend_checklist.urls[0]: 'shop.example' is not http(s)://name[:port]"),
        ({**EDGE, "urls": ["http://me:word@shop.example"]}, "netmend_checklist.urls[0]: there are credentials in"),
        ({**EDGE, "urls": ["http://shop.example:x"]}, "netmend_checklist.urls[0]: 'http://shop.example:x': Port could"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_named(given: Any, said: str | None) -> None:
    if said is None:
        assert checklist.read(given) is None
        return
    with pytest.raises(ValueError, match=re.escape(said)):
        checklist.read(given)


# --- points ---


def test_all_that_is_asked_for_is_there() -> None:
    assert judged({"nodes": 3, "applications": [API]}) == {
        "at least 3 nodes, all Ready": (True, "3 of 3"),
        "keybuzz/keybuzz-api: at least 2 pods Ready": (True, "2 of 2"),
        "keybuzz/keybuzz-api: on the hosts' network": (True, "2 of 2 pods"),
        "keybuzz/keybuzz-api: by NodePort 30080": (True, "Service keybuzz/keybuzz-api leads to 2 ready pods of it"),
        "keybuzz/keybuzz-api: by Ingress for api.example": (
            True, "Service keybuzz/keybuzz-api leads to 2 ready pods of it",
        ),
    }  # fmt: skip


def test_nodes_that_are_too_few_or_not_ready() -> None:
    assert judged({"nodes": 4})["at least 4 nodes, all Ready"] == (False, "3 of 3")
    nodes = [{**node, "ready": node["name"] != "b"} for node in cluster()["nodes"][:2]]
    assert judged({"nodes": 1}, cluster(nodes=nodes))["at least 1 nodes, all Ready"] == (False, "1 of 3; not b, c")


def test_an_application_that_is_not_as_it_is_to_be() -> None:
    pods = [
        pod("api-1", "Deployment/keybuzz-api"),
        pod("api-2", "Deployment/keybuzz-api", ready=False, host_network=False),
    ]
    said = judged({"applications": [API]}, cluster(pods=pods))
    assert said["keybuzz/keybuzz-api: at least 2 pods Ready"] == (False, "1 of 2")
    assert said["keybuzz/keybuzz-api: on the hosts' network"] == (False, "1 of 2 pods")


def test_an_application_that_is_not_there() -> None:
    said = judged({"applications": [API]}, cluster(pods=[], services=[], ingresses=[]))
    assert [met for met, _ in said.values()] == [True, False, False, False, False]
    assert said["keybuzz/keybuzz-api: at least 2 pods Ready"][1].endswith("of this name has a pod")


@pytest.mark.parametrize("services", [[service("other", 30080, "other")],
                                      [service("keybuzz-api", 30080, "api-1", ready=False)]])  # fmt: skip
def test_a_service_that_leads_elsewhere_or_nowhere(services: Any) -> None:
    said = judged({"applications": [API]}, cluster(services=services))
    assert not said["keybuzz/keybuzz-api: by NodePort 30080"][0]
    assert not said["keybuzz/keybuzz-api: by Ingress for api.example"][0]


HEALTHZ = {"node_ports": [{"port": 30080}]}
HEALTHZ_POINT = "NodePort 30080: 200 from /healthz on every node"


def test_every_node_is_asked_by_another_one() -> None:
    read = checklist.read(HEALTHZ)
    assert read
    probes = checklist.probes(read, {name: {} for name in "abc"}, cluster())  # type: ignore[arg-type]  # a plain dict for a TypedDict
    assert [probe["id"] for probe in probes] == [f"{way} http/30080/healthz" for way in ("b>a", "c>b", "a>c")]
    assert {probe["status"] for probe in probes} == {200}
    alone = checklist.probes(read, {"a": {}}, cluster(nodes=cluster()["nodes"][:1]))  # type: ignore[dict-item]  # a plain dict for a TypedDict
    assert [probe["id"] for probe in alone] == ["a>a http/30080/healthz"]


def test_a_node_that_does_not_answer_on_a_node_port() -> None:
    assert judged(HEALTHZ)[HEALTHZ_POINT] == (True, "3 of 3")
    seen = {"c>b http/30080/healthz": {"outcome": "timeout", "detail": "no answer to SYN"}}
    assert judged(HEALTHZ, seen=seen)[HEALTHZ_POINT] == (False, "2 of 3; c to b: timeout (no answer to SYN)")


def test_with_a_local_policy_only_nodes_with_an_endpoint_answer() -> None:
    services = [service("keybuzz-api", 30080, "api-1", external_traffic_policy="Local")]
    assert judged(HEALTHZ, cluster(services=services))[HEALTHZ_POINT] == (True, "1 of 1")


def test_a_node_port_that_nobody_could_ask_is_not_met() -> None:
    read = checklist.read(HEALTHZ)
    assert read
    assert not checklist.points(read, {}, cluster(), [], [])[1]["met"]


def test_urls_by_each_balancer() -> None:
    wrong = {"outcome": "http", "detail": "status 503"}
    said = judged(EDGE, seen={"https://shop.example/cart?a=1 by 203.0.113.81, 1": wrong})
    assert said["https://shop.example/cart?a=1: 200 by 203.0.113.80"] == (True, "2 of 2")
    assert said["https://shop.example/cart?a=1: 200 by 203.0.113.81"] == (
        False, "1 of 2; the controller to 203.0.113.81: http (status 503)",
    )  # fmt: skip


def test_names_lead_to_the_balancers_and_nowhere_else() -> None:
    asked, point = {**EDGE, "resolver": "192.0.2.53"}, "shop.example: leads to the balancers"
    for addresses, met in (
        ("203.0.113.81, 203.0.113.80", True), ("203.0.113.80", False), ("203.0.113.80, 203.0.113.81, 10.0.0.9", False),
    ):  # fmt: skip
        assert judged(asked, seen={"shop.example": {"detail": addresses}})[point] == (met, addresses)
    silent = {"outcome": "timeout", "detail": "no answer"}
    assert judged(asked, seen={"shop.example": silent})[point] == (False, "timeout (no answer)")


# --- the playbooks ---


@pytest.fixture
def port() -> Iterator[int]:
    """Of a web server that answers 200 to /healthz and 404 to all else."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200 if self.path == "/healthz" else 404)
            self.end_headers()

        def log_message(self, format: str, *args: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server.server_port
        server.shutdown()


@pytest.mark.parametrize(("mark", "code", "said"), [(70, 2, "missed"), (50, 0, "reached")])
def test_the_checklist_counts_for_the_score(port: int, mark: int, code: int, said: str, tmp_path: Path) -> None:
    _, facts = sample.facts(3)
    names = sample.names(3)
    members = [{**node, "internal_ip": "127.0.0.1"} for node in facts["nodes"]]
    asked = checklist.read({
        "node_ports": [{"port": port}], "urls": [f"http://shop.example:{port}/"], "balancers": ["127.0.0.1"],
    })  # fmt: skip
    variables = {
        "ansible_connection": "local",
        "ansible_python_interpreter": sys.executable,
        "netmend_accept_score": mark,
        "netmend_asked": asked,
        "netmend_now": json.dumps(sample.measured(3)),
        "netmend_facts": {
            "expected_nodes": names, "server": names[0], "nodes": {name: {} for name in names},
            "cluster": {**facts, "nodes": members, "ingresses": []},
        },
        "netmend_marks": [{"phase": "Probe", "at": 1.0}],
        "netmend_read": {"answers": {name: {"netmend_node": {"name": name}} for name in names}},
    }  # fmt: skip
    hosts = dict.fromkeys(names, variables)
    inventory = tmp_path / "hosts.json"
    inventory.write_text(json.dumps({"k3s_cluster": {"hosts": hosts}}))
    plays = [{"import_playbook": str(ROOT / f"playbooks/{name}.yml")} for name in ("checklist", "verdict")]
    (tmp_path / "both.yml").write_text(yaml.safe_dump(plays))

    done = playbooks.run(tmp_path / "both.yml", "-i", inventory)
    assert done.returncode == code, done.stdout + done.stderr
    report = json.loads((tmp_path / "reports/report.json").read_text())
    assert [point["met"] for point in report["now"]["checklist"]] == [True, True, False]
    assert report["now"]["checklist"][2]["seen"] == "0 of 10; the controller to 127.0.0.1: http (status 404)"
    assert (report["score"], report["healthy"], report["passed"]) == (66.7, False, code == 0)
    assert report["verdict"].endswith(f"2 of 3 points of the checklist (66.7 %). The pass mark of {mark} % is {said}.")


@pytest.mark.parametrize(
    ("variables", "said"),
    [
        ({"netmend_checklist": {"nodes": 0}}, "netmend_checklist.nodes: 0 is no number from 1 to 10000"),
        ({"netmend_pass_mark": "eighty"}, "netmend_pass_mark eighty is no number from 0 to 100"),
        ({"netmend_pass_mark": 101}, "netmend_pass_mark 101 is no number from 0 to 100"),
    ],
)
def test_nothing_is_measured_for_what_cannot_be_asked(variables: dict[str, Any], said: str, tmp_path: Path) -> None:
    inventory = tmp_path / "hosts.json"
    inventory.write_text(json.dumps({"k3s_cluster": {"hosts": {"a": {"ansible_connection": "local"}}}}))
    done = playbooks.run(ROOT / "validate.yml", "-i", inventory, "-e", json.dumps(variables))
    assert done.returncode not in (0, 2)
    assert said in done.stdout
    assert "Read every node" not in done.stdout
