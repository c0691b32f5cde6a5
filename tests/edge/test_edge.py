"""From the internet to the application on a lab: what is answered, and that no update or conversion loses any."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import pytest

from lab import balancer, cluster, ingress, machines, network
from lab.load import Client, load_at_edge
from lab.playbooks import Outcome, Playbooks
from lab.spec import Lab

HOST = "platform-api.keybuzz.io"
APPLICATION = "--namespace=keybuzz deployment/keybuzz-api"
CONTROLLER = "--namespace=ingress-nginx daemonset/ingress-nginx-controller"
QUICK = ("-e", "ingress_nginx_drain_seconds=10", "-e", "ingress_nginx_ready_seconds=5")
WITHIN = 60  # seconds for what a controller or a balancer is to notice

ASK = """
import http.client, json, ssl, sys, time
address, port, host, path, tls = json.loads(sys.argv[1])
context = ssl.create_default_context()
context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
began, issuer = time.monotonic(), ""
if tls:
    import socket
    with context.wrap_socket(socket.create_connection((address, port)), server_hostname=host) as wrapped:
        issuer = wrapped.getpeercert(binary_form=True).decode("latin-1")
connection = http.client.HTTPConnection(address, port, timeout=100)
if tls:
    connection = http.client.HTTPSConnection(address, port, timeout=100, context=context)
connection.request("GET", path, headers={"Host": host})
answer = connection.getresponse()
body = answer.read().decode()
print(json.dumps([answer.status, dict(answer.getheaders()), body, time.monotonic() - began, issuer]))
"""

# The controller as ingress-nginx's own manifest for bare metal has it: a Deployment on the pods' network.
OLD_LABELS = {
    "app.kubernetes.io/name": "ingress-nginx",
    "app.kubernetes.io/instance": "ingress-nginx",
    "app.kubernetes.io/component": "controller",
}


class Answer(NamedTuple):
    status: int
    headers: dict[str, str]
    body: str
    seconds: float
    certificate: str  # DER, byte by byte


Ask = Callable[..., Answer]


@pytest.fixture
def ask(lab: Lab) -> Ask:
    """Asks from the internet, by default the first balancer over HTTP."""

    def ask(host: str = HOST, path: str = "/", *, tls: bool = False, address: str = "", port: int = 0) -> Answer:
        target = [address or lab.balancers[0].public, port or (443 if tls else 80), host, path, tls]
        argv = network.inside(lab.name, sys.executable, "-c", ASK, json.dumps(target), outside=True)
        return Answer(*json.loads(subprocess.run(argv, capture_output=True, text=True, check=True).stdout))

    return ask


def kubectl(lab: Lab, command: str, text: str = "") -> str:
    return cluster.must(lab, lab.machines[0], f"k3s kubectl {command}", text=text)


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + WITHIN
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(1)


def converge(playbooks: Playbooks, *arguments: str) -> Outcome:
    return playbooks.run(ingress.PLAYBOOK, *arguments, limit=600)


def assert_nothing_lost(clients: dict[str, Client], at_least: int) -> None:
    (client,) = clients.values()
    assert client.asked > at_least
    assert client.lost == []


def test_every_host_answers_by_every_balancer_over_http_and_tls(lab: Lab) -> None:
    with load_at_edge(lab) as clients:
        time.sleep(5)
    assert_nothing_lost(clients, 100)


def test_both_pods_of_an_application_are_asked_for_its_host(ask: Ask) -> None:
    said = [json.loads(ask().body) for _ in range(8)]
    assert len({each["pod"] for each in said}) == 2
    assert {each["host"] for each in said} == {HOST}


def test_a_host_that_no_ingress_has_is_not_found_at_once(ask: Ask) -> None:
    answer = ask("nobody.keybuzz.io")
    assert (answer.status, answer.seconds < 2) == (404, True)


def test_the_balancers_checks_see_every_target(lab: Lab) -> None:
    healthy = {"80": "healthy", "443": "healthy"}
    assert [[target["status"] for target in each["targets"]] for each in balancer.seen(lab)] == [[healthy] * 2] * 2


def test_without_pods_the_answer_is_503_at_once(lab: Lab, ask: Ask) -> None:
    kubectl(lab, f"scale {APPLICATION} --replicas=0")
    try:
        until(lambda: ask().status == 503)
        assert ask().seconds < 2
        log = kubectl(lab, f"logs {CONTROLLER} --tail=200")
        assert 'Service "keybuzz/keybuzz-api" does not have any active Endpoint.' in log
    finally:
        kubectl(lab, f"scale {APPLICATION} --replicas=2")
        kubectl(lab, f"rollout status {APPLICATION} --timeout=120s")
    until(lambda: ask().status == 200)


def test_addresses_that_keep_silent_are_given_up_after_three_tries_of_five_seconds(lab: Lab, ask: Ask) -> None:
    drop = "iptables -{} FORWARD -p tcp --dport 8080 -j DROP; iptables -{} OUTPUT -p tcp --dport 8080 -j DROP"
    for machine in lab.agents:
        cluster.must(lab, machine, drop.format("I", "I"))
    try:
        answer = ask()
    finally:
        for machine in lab.agents:
            cluster.must(lab, machine, drop.format("D", "D"))
    assert (answer.status, round(answer.seconds)) == (504, 15)
    assert ask().status == 200


def test_the_time_to_answer_is_the_annotations(lab: Lab, ask: Ask) -> None:
    annotate = "annotate --namespace=keybuzz ingress/keybuzz-api nginx.ingress.kubernetes.io/proxy-read-timeout"
    kubectl(lab, f"{annotate}=1")
    try:
        until(lambda: ask(path="/?ms=2000").status == 504)
        assert ask().status == 200
    finally:
        kubectl(lab, f"{annotate}-")
    until(lambda: ask(path="/?ms=2000").status == 200)


def test_a_missing_secret_is_seen_in_the_certificate(lab: Lab, ask: Ask) -> None:
    secret = kubectl(lab, "get secret --namespace=keybuzz keybuzz-tls -o json")
    assert "netmend lab's authority" in ask(tls=True).certificate
    kubectl(lab, "delete secret --namespace=keybuzz keybuzz-tls")
    try:
        until(lambda: "Kubernetes Ingress Controller Fake Certificate" in ask(tls=True).certificate)
    finally:
        kubectl(lab, "create -f -", text=secret)
    until(lambda: "netmend lab's authority" in ask(tls=True).certificate)


def test_a_balancer_that_sends_the_proxy_header_alone_has_no_healthy_target(lab: Lab, ask: Ask) -> None:
    first, second = lab.balancers
    balancer.change(lab, ["proxy", "on", first.name])
    try:
        until(lambda: ask().status == 503)
        statuses = [target["status"]["80"] for target in balancer.seen(lab)[0]["targets"]]
        assert statuses == ["unhealthy", "unhealthy"]
        assert ask(address=second.public).status == 200
        inventory = (machines.state(lab.name) / "inventory.yml").read_text()
        assert "proxy_protocol: true" in inventory
    finally:
        balancer.reset(lab)
    until(lambda: ask().status == 200)


def test_pods_come_and_go_without_a_lost_request(lab: Lab) -> None:
    with load_at_edge(lab) as clients:
        kubectl(lab, f"rollout restart {APPLICATION}")
        kubectl(lab, f"rollout status {APPLICATION} --timeout=120s")
        time.sleep(3)
    assert_nothing_lost(clients, 100)


def test_a_second_run_changes_nothing(playbooks: Playbooks) -> None:
    for arguments in (["--check"], []):
        run = converge(playbooks, *arguments)
        assert (run.code, run.changed) == (0, 0), run.output


def test_an_update_takes_one_node_after_the_other_and_loses_no_request(lab: Lab, playbooks: Playbooks) -> None:
    before = pods(lab)
    with load_at_edge(lab) as clients:
        run = converge(playbooks, *QUICK)
    assert run.code == 0, run.output
    assert not pods(lab) & before
    assert_nothing_lost(clients, 500)


def test_what_holds_the_ports_is_named_and_nothing_is_changed(lab: Lab, playbooks: Playbooks) -> None:
    server = lab.servers[0]
    cluster.must(lab, server, "systemd-run --unit=in-the-way python3 -m http.server 80")
    try:
        run = converge(playbooks, "-e", json.dumps({"ingress_nginx_nodes": [server.name]}))
    finally:
        cluster.must(lab, server, "systemctl stop in-the-way")
    assert run.code != 0
    assert f"listens on 0.0.0.0:80 of {server.name}" in run.output
    assert run.changed == 0


def test_with_the_webhook_a_path_is_served_for_one_ingress_only(lab: Lab, playbooks: Playbooks) -> None:
    taken = json.loads(kubectl(lab, "get ingress --namespace=keybuzz keybuzz-api -o json"))
    taken["metadata"] = {"namespace": "keybuzz", "name": "taken"}
    run = converge(playbooks, "-e", "ingress_nginx_webhook=true", *QUICK)
    assert run.code == 0, run.output
    try:
        again = converge(playbooks, "-e", "ingress_nginx_webhook=true", *QUICK)
        assert (again.code, again.changed) == (0, 0), again.output
        with pytest.raises(cluster.ClusterError, match="is already defined in ingress keybuzz/keybuzz-api"):
            kubectl(lab, "create --dry-run=server -f -", text=json.dumps(taken))
    finally:
        run = converge(playbooks, *QUICK)
    assert run.code == 0, run.output
    kubectl(lab, "create --dry-run=server -f -", text=json.dumps(taken))


@pytest.fixture
def deployment(lab: Lab) -> Iterator[str]:
    """The controller as a Deployment behind the same NodePorts, in the place of the role's DaemonSet."""
    daemonset = json.loads(kubectl(lab, f"get {CONTROLLER} -o json"))
    kubectl(lab, f"delete {CONTROLLER} --wait=true --cascade=foreground")
    template = daemonset["spec"]["template"]
    template["metadata"]["labels"] = OLD_LABELS
    template["spec"]["hostNetwork"] = False
    template["spec"]["dnsPolicy"] = "ClusterFirst"
    for port in template["spec"]["containers"][0]["ports"]:
        del port["hostPort"]
    old: dict[str, Any] = {
        "apiVersion": "apps/v1", "kind": "Deployment",
        "metadata": {"namespace": "ingress-nginx", "name": "old-controller"},
        "spec": {"replicas": 2, "selector": {"matchLabels": OLD_LABELS}, "template": template},
    }  # fmt: skip
    kubectl(lab, "apply -f -", text=json.dumps(old))
    patch = json.dumps([{"op": "replace", "path": "/spec/selector", "value": OLD_LABELS}])
    kubectl(lab, f"patch service --namespace=ingress-nginx ingress-nginx-controller --type=json -p '{patch}'")
    kubectl(lab, "rollout status --namespace=ingress-nginx deployment/old-controller --timeout=180s")
    yield "old-controller"
    kubectl(lab, "delete deployment --namespace=ingress-nginx old-controller --ignore-not-found")


def test_a_deployment_gives_way_to_the_daemonset_without_a_lost_request(
    lab: Lab, playbooks: Playbooks, deployment: str, ask: Ask
) -> None:
    until(lambda: ask().status == 200)
    healthy = [{"80": "healthy", "443": "healthy"}] * 2
    until(lambda: all([t["status"] for t in each["targets"]] == healthy for each in balancer.seen(lab)))
    with load_at_edge(lab) as clients:
        run = converge(playbooks, *QUICK)
        time.sleep(5)
    assert run.code == 0, run.output
    assert deployment not in kubectl(lab, "get deployments --namespace=ingress-nginx -o name")
    assert_nothing_lost(clients, 500)
    again = converge(playbooks, *QUICK)
    assert (again.code, again.changed) == (0, 0), again.output


def pods(lab: Lab) -> set[str]:
    return set(kubectl(lab, "get pods --namespace=ingress-nginx -o name").split())
