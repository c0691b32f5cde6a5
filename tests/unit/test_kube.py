from __future__ import annotations

import json
import socket
import ssl
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
import yaml
from ansible.module_utils.netmend import kube
from ansible.module_utils.netmend.kube import Api, ApiError, gather_cluster, k3s_credentials, kubeconfig_credentials
from ansible.module_utils.netmend.model import ClusterFacts
from ansible.module_utils.netmend.parse import cluster as parse

STATES = ("flannel", "flannel-ufw-blocks", "both-overlays", "swapped-leftovers", "swapped-clean")
LISTS = {
    "/api/v1/nodes": "nodes",
    "/api/v1/pods": "pods",
    "/api/v1/services": "services",
    "/apis/discovery.k8s.io/v1/endpointslices": "endpointslices",
    "/apis/networking.k8s.io/v1/networkpolicies": "networkpolicies",
    "/apis/apps/v1/daemonsets": "daemonsets",
    "/apis/crd.projectcalico.org/v1/ippools": "ippools",
    "/apis/crd.projectcalico.org/v1/felixconfigurations": "felixconfigurations",
    "/apis/crd.projectcalico.org/v1/blockaffinities": "blockaffinities",
}
BUDGETS = "/apis/policy/v1/poddisruptionbudgets"
EMPTY = ("/apis/networking.k8s.io/v1/ingresses", "/apis/networking.k8s.io/v1/ingressclasses", BUDGETS)
TOKEN = "Bearer t0psecret"


class Cluster:
    """An API server that serves captured lists to whoever has a certificate of the authority, or the token."""

    def __init__(self, tls: Path, certificate: str = "server") -> None:
        self.lists: dict[str, list[dict[str, Any]]] = {}
        self.answers = {
            "/version": (200, json.dumps({"gitVersion": "v1.36.3+k3s1"})),
            "/livez": (200, "[+]ping ok\n[+]etcd ok\nlivez check passed\n"),
            "/readyz": (200, "[+]ping ok\n[+]etcd ok\n[+]informer-sync ok\nreadyz check passed\n"),
        }
        self.asked: list[str] = []
        self.connections = 0
        cluster = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def setup(self) -> None:
                cluster.connections += 1
                super().setup()

            def do_GET(self) -> None:
                known = self.connection.getpeercert() or self.headers.get("Authorization") == TOKEN
                status, body = cluster.answer(self.path) if known else (401, '{"reason": "Unauthorized"}')
                self.send_response(status)
                self.send_header("Content-Length", str(len(body.encode())))
                self.end_headers()
                self.wfile.write(body.encode())

            def log_message(self, *_: object) -> None:
                pass

        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(tls / f"{certificate}.crt", tls / f"{certificate}.key")
        context.load_verify_locations(tls / "server-ca.crt")
        context.verify_mode = ssl.CERT_OPTIONAL
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.socket = context.wrap_socket(self.server.socket, server_side=True)
        self.server.handle_error = lambda *_: None  # type: ignore[method-assign] # a refused handshake is expected
        self.url = f"https://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, args=(0.02,), daemon=True).start()

    def load(self, captured: Path) -> None:
        self.lists = {path: [] for path in EMPTY}
        for path, name in LISTS.items():
            file = captured / f"k8s-{name}.json"
            if file.exists() and file.stat().st_size:
                self.lists[path] = json.loads(file.read_text())["items"]

    def answer(self, target: str) -> tuple[int, str]:
        self.asked.append(target)
        url = urlsplit(target)
        query = parse_qs(url.query)
        if url.path in self.answers:
            return self.answers[url.path]
        if url.path not in self.lists:
            return 404, "404 page not found\n"
        start, limit = int(query.get("continue", ["0"])[0]), int(query["limit"][0])
        items = self.lists[url.path]
        more = str(start + limit) if start + limit < len(items) else ""
        return 200, json.dumps({"items": items[start : start + limit], "metadata": {"continue": more}})


@pytest.fixture
def cluster(tls: Path) -> Iterator[Cluster]:
    running = Cluster(tls)
    yield running
    running.server.shutdown()
    running.server.server_close()


def api(cluster: Cluster, tls: Path) -> Api:
    return Api(k3s_credentials(cluster.url, str(tls)), timeout=5)


@pytest.mark.parametrize("state", STATES)
def test_every_captured_cluster(cluster: Cluster, tls: Path, fixtures: Path, state: str) -> None:
    cluster.load(fixtures / "k3s-1.36.3" / state / "server0")
    facts = gather_cluster(api(cluster, tls))
    assert set(facts) == set(ClusterFacts.__annotations__)
    assert json.loads(json.dumps(facts)) == facts
    assert facts["version"] == "v1.36.3+k3s1"
    assert facts["api"] == {"livez": "ok", "readyz": "ok", "etcd": "ok", "server": cluster.url}
    nodes = {node["name"]: node for node in facts["nodes"]}
    assert {name: node["role"] for name, node in nodes.items()} == {
        "server0": "server",
        "agent0": "agent",
        "agent1": "agent",
    }
    assert {name: node["etcd"] for name, node in nodes.items()} == {"server0": "voter", "agent0": "", "agent1": ""}
    assert nodes["agent0"]["internal_ip"] == "10.0.0.110"
    assert nodes["agent0"]["annotations"]["flannel.alpha.coreos.com/public-ip"] == "10.0.0.110"
    assert all(node["ready"] for node in nodes.values())
    assert {pod["owner"] for pod in facts["pods"]} == {"DaemonSet/web"}
    assert {pod["node"] for pod in facts["pods"]} == set(nodes)
    web = next(service for service in facts["services"] if service["name"] == "web")
    assert (web["type"], web["ports"][0]["nodePort"], web["ports"][0]["targetPort"]) == ("NodePort", 31695, 8080)
    assert {(e["ip"], e["port"], e["ready"]) for e in web["endpoints"]} == {
        (pod["ip"], 8080, True) for pod in facts["pods"]
    }
    assert {e["pod"] for e in web["endpoints"]} == {f"{pod['namespace']}/{pod['name']}" for pod in facts["pods"]}
    assert facts["daemonsets"] == [
        {"namespace": "default", "name": "web", "desired": 3, "ready": 3, "host_network": False, "host_ports": []}
    ]
    assert (facts["cluster_cidr"], facts["service_cidr"], facts["dns_ip"]) == (
        "10.42.0.0/16",
        "10.43.0.0/16",
        "10.43.0.10",
    )
    pools = [(pool["cidr"], pool["ipipMode"]) for pool in facts["calico"].get("ippools", [])]
    assert pools == ([] if state.startswith("flannel") else [("10.42.128.0/17", "Always")])
    assert "node" not in facts["calico"]


def calico_node(*environment: dict[str, Any], probe: tuple[str, ...]) -> dict[str, Any]:
    """The parts of Calico's manifest that count."""
    container = {
        "name": "calico-node",
        "image": "registry.example.com:5000/calico/node:v3.32.1@sha256:0",
        "env": [{"name": "WAIT_FOR_DATASTORE", "value": "t0psecret"}, *environment],
        "readinessProbe": {"exec": {"command": ["/bin/calico-node", *probe]}},
    }
    return {
        "metadata": {"namespace": "kube-system", "name": "calico-node"},
        "spec": {"template": {"spec": {"hostNetwork": True, "containers": [container]}}},
        "status": {"desiredNumberScheduled": 3, "numberReady": 1},
    }


def test_of_calico_node_only_what_decides_on_addresses_and_routes(cluster: Cluster, tls: Path, fixtures: Path) -> None:
    cluster.load(fixtures / "k3s-1.36.3/swapped-clean/server0")
    reference = {"configMapKeyRef": {"name": "calico-config", "key": "calico_backend"}}
    environment = (
        {"name": "CALICO_NETWORKING_BACKEND", "valueFrom": reference},
        {"name": "IP_AUTODETECTION_METHOD", "value": "cidr=10.0.0.0/16"},
    )
    cluster.lists["/apis/apps/v1/daemonsets"].append(calico_node(*environment, probe=("-felix-ready", "-bird-ready")))
    facts = gather_cluster(api(cluster, tls))
    assert facts["calico"]["node"] == {
        "namespace": "kube-system",
        "name": "calico-node",
        "desired": 3,
        "ready": 1,
        "version": "v3.32.1",
        "backend": "bird",
        "autodetection": "cidr=10.0.0.0/16",
        "program_cluster_routes": "",
    }
    assert "bgpconfigurations" not in facts["calico"]
    assert "t0psecret" not in json.dumps(facts)


def test_a_member_of_etcd_that_does_not_vote_yet(cluster: Cluster, tls: Path, fixtures: Path) -> None:
    cluster.load(fixtures / "k3s-1.36.3/flannel/server0")
    server = next(item for item in cluster.lists["/api/v1/nodes"] if item["metadata"]["name"] == "server0")
    next(each for each in server["status"]["conditions"] if each["type"] == "EtcdIsVoter")["status"] = "False"
    nodes = gather_cluster(api(cluster, tls))["nodes"]
    assert {node["etcd"] for node in nodes} == {"learner", ""}


def test_what_a_network_said_of_itself_at_a_node(cluster: Cluster, tls: Path, fixtures: Path) -> None:
    cluster.load(fixtures / "k3s-1.36.3/flannel/server0")
    server = next(item for item in cluster.lists["/api/v1/nodes"] if item["metadata"]["name"] == "server0")
    server["status"]["conditions"].append({"type": "NetworkUnavailable", "status": "True", "reason": "CalicoIsDown"})
    nodes = gather_cluster(api(cluster, tls))["nodes"]
    assert {node["name"]: node["network"] for node in nodes} == {"server0": "CalicoIsDown", "agent0": "", "agent1": ""}


def test_disruption_budgets_tell_what_is_desired_of_what_is_expected(
    cluster: Cluster, tls: Path, fixtures: Path
) -> None:
    cluster.load(fixtures / "k3s-1.36.3/flannel/server0")
    selector = {"matchLabels": {"app": "web"}}
    budget = {
        "metadata": {"namespace": "default", "name": "web"},
        "spec": {"minAvailable": 3, "selector": selector},
        "status": {"desiredHealthy": 3, "expectedPods": 3, "currentHealthy": 2, "disruptionsAllowed": 0},
    }
    cluster.lists[BUDGETS].append(budget)
    assert gather_cluster(api(cluster, tls))["disruption_budgets"] == [
        {"namespace": "default", "name": "web", "selector": selector, "desired": 3, "expected": 3}
    ]


@pytest.mark.parametrize("said", [{"use-proxy-protocol": "true"}, {"use-proxy-protocol": "false"}, None])
def test_whether_ingress_nginx_expects_the_proxy_header(
    said: dict[str, str] | None, cluster: Cluster, tls: Path, fixtures: Path
) -> None:
    cluster.load(fixtures / "k3s-1.36.3/flannel/server0")
    assert gather_cluster(api(cluster, tls))["ingress_nginx"] == {}
    pod = next(item for item in cluster.lists["/api/v1/pods"])
    pod["metadata"].update(namespace="edge", labels={"app.kubernetes.io/name": "ingress-nginx"})
    pod["spec"]["containers"][0]["ports"] = [{"containerPort": 443}]
    other = {"metadata": {"name": "kube-root-ca.crt"}, "data": {"ca.crt": "planted"}}
    cluster.lists["/api/v1/namespaces/edge/configmaps"] = [other, {"metadata": {"name": "own"}, "data": said}]
    facts = gather_cluster(api(cluster, tls))
    assert facts["ingress_nginx"] == {"proxy_protocol": said == {"use-proxy-protocol": "true"}}
    assert "planted" not in json.dumps(facts)


def test_without_bird_in_its_probe_calico_has_no_bgp() -> None:
    found = parse.calico_node([calico_node(probe=("-felix-ready",))])["node"]
    assert (found["backend"], found["autodetection"]) == ("none", "first-found")
    named = calico_node({"name": "CALICO_NETWORKING_BACKEND", "value": "vxlan"}, probe=("-felix-ready",))
    assert parse.calico_node([named])["node"]["backend"] == "vxlan"


def test_nothing_else_is_kept(cluster: Cluster, tls: Path, fixtures: Path) -> None:
    cluster.load(fixtures / "k3s-1.36.3/flannel/server0")
    for items in cluster.lists.values():
        for item in items:
            item["metadata"].setdefault("annotations", {})["kubectl.kubernetes.io/last-applied-configuration"] = (
                "t0psecret"
            )
            item["metadata"]["managedFields"] = [{"manager": "t0psecret"}]
    node = cluster.lists["/api/v1/nodes"][0]
    node["metadata"]["annotations"]["k3s.io/node-args"] = '["server","--kubelet-arg","t0psecret"]'
    pod = cluster.lists["/api/v1/pods"][0]
    pod["spec"]["containers"][0].update(env=[{"name": "PASSWORD", "value": "t0psecret"}], args=["t0psecret"])
    facts = gather_cluster(api(cluster, tls))
    assert facts["pods"]
    assert "t0psecret" not in json.dumps(facts)


def test_lists_are_read_page_by_page_over_few_connections(
    cluster: Cluster, tls: Path, fixtures: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cluster.load(fixtures / "k3s-1.36.3/flannel/server0")
    monkeypatch.setattr(kube, "PAGE", 1)
    facts = gather_cluster(api(cluster, tls))
    assert len(facts["nodes"]) == 3
    assert sum(target.startswith("/api/v1/nodes") for target in cluster.asked) == 3
    assert cluster.connections < len(cluster.asked)


def test_an_unhealthy_api_is_a_fact(cluster: Cluster, tls: Path, fixtures: Path) -> None:
    cluster.load(fixtures / "k3s-1.36.3/flannel/server0")
    cluster.answers["/readyz"] = (500, "[+]ping ok\n[-]etcd failed: reason withheld\n[-]informer-sync failed: x\n")
    facts = gather_cluster(api(cluster, tls))
    assert facts["api"]["readyz"] == "500: etcd, informer-sync"
    assert facts["api"]["etcd"] == "failed"


def test_a_resource_that_the_api_lacks_is_an_error_entry(cluster: Cluster, tls: Path, fixtures: Path) -> None:
    cluster.load(fixtures / "k3s-1.36.3/flannel/server0")
    del cluster.lists["/apis/discovery.k8s.io/v1/endpointslices"]
    facts = gather_cluster(api(cluster, tls))
    assert "endpointslices" in {error["what"] for error in facts["errors"]}
    assert facts["calico"] == {}


def kubeconfig(place: Path, cluster: Cluster, tls: Path, user: dict[str, str]) -> str:
    config = {
        "apiVersion": "v1",
        "kind": "Config",
        "current-context": "c",
        "contexts": [{"name": "c", "context": {"cluster": "c", "user": "u"}}],
        "clusters": [
            {"name": "c", "cluster": {"server": cluster.url, "certificate-authority": f"{tls}/server-ca.crt"}}
        ],
        "users": [{"name": "u", "user": user}],
    }
    (place / "kubeconfig").write_text(yaml.safe_dump(config))
    return str(place / "kubeconfig")


@pytest.mark.parametrize("way", ["certificate", "token"])
def test_a_kubeconfig_will_do(cluster: Cluster, tls: Path, fixtures: Path, tmp_path: Path, way: str) -> None:
    cluster.load(fixtures / "k3s-1.36.3/flannel/server0")
    certificate = {"client-certificate": f"{tls}/client-admin.crt", "client-key": f"{tls}/client-admin.key"}
    user = certificate if way == "certificate" else {"token": TOKEN.split()[1]}
    credentials = kubeconfig_credentials(kubeconfig(tmp_path, cluster, tls, user))
    assert len(gather_cluster(Api(credentials, timeout=5))["nodes"]) == 3


def test_unknown_credentials_are_refused_in_plain_words(cluster: Cluster, tls: Path, tmp_path: Path) -> None:
    credentials = kubeconfig_credentials(kubeconfig(tmp_path, cluster, tls, {"token": "hunter2"}))
    with pytest.raises(ApiError, match=r"refuses /version \(401\).*k3s certificate check") as refusal:
        gather_cluster(Api(credentials, timeout=5))
    assert "hunter2" not in str(refusal.value)


def test_an_expired_certificate_is_named(tls: Path) -> None:
    expired = Cluster(tls, "expired")
    try:
        with pytest.raises(ApiError, match=r"certificate has expired.*k3s certificate check"):
            gather_cluster(api(expired, tls))
    finally:
        expired.server.shutdown()
        expired.server.server_close()


def test_nobody_there(cluster: Cluster, tls: Path) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        server = f"https://127.0.0.1:{closed.getsockname()[1]}"
        with pytest.raises(ApiError, match=r"cannot be reached: .*refused.*Is K3s running"):
            gather_cluster(Api(k3s_credentials(server, str(tls)), timeout=5))
        closed.listen()  # takes the connection, says nothing
        with pytest.raises(ApiError, match=r"does not answer within 0\.2 s"):
            gather_cluster(Api(k3s_credentials(server, str(tls)), timeout=0.2))


@pytest.fixture
def failing(monkeypatch: pytest.MonkeyPatch) -> list[OSError]:
    """What the next requests fail with, one each, the last one first."""
    ask, errors = Api._ask, []  # type: Any, list[OSError]

    def answer(self: Api, *arguments: Any) -> tuple[int, str]:
        if errors:
            raise errors.pop()
        return ask(self, *arguments)  # type: ignore[no-any-return]  # it is Api's own

    monkeypatch.setattr(Api, "_ask", answer)
    monkeypatch.setattr(kube, "AGAIN", 0)
    return errors


def test_a_server_that_restarts_is_asked_again_where_there_is_patience(
    cluster: Cluster, tls: Path, failing: list[OSError]
) -> None:
    failing += [ConnectionResetError(), ConnectionRefusedError(), ConnectionRefusedError()]
    credentials = k3s_credentials(cluster.url, str(tls))
    with pytest.raises(ApiError, match="cannot be reached"):
        Api(credentials).get("/none")
    assert Api(credentials, patience=60).get("/none")[0] == 404
    assert failing == []


def test_a_server_that_does_not_answer_in_time_is_asked_again_only_for_what_may_be_done_twice(
    cluster: Cluster, tls: Path, failing: list[OSError]
) -> None:
    failing += [socket.timeout(), socket.timeout(), socket.timeout()]
    api = Api(k3s_credentials(cluster.url, str(tls)), patience=60)
    with pytest.raises(ApiError, match="does not answer within"):
        api.send("POST", "/none", {})
    assert api.get("/none")[0] == 404
    assert failing == []


def test_a_machine_that_is_no_server(tmp_path: Path) -> None:
    with pytest.raises(ApiError, match=r"server-ca.crt: No such file.*name a kubeconfig"):
        k3s_credentials("", str(tmp_path))
    with pytest.raises(ApiError, match="cannot use the kubeconfig"):
        kubeconfig_credentials(str(tmp_path / "none"))


def networks(facts: ClusterFacts) -> tuple[str, str, str]:
    return facts["cluster_cidr"], facts["service_cidr"], facts["dns_ip"]


def bare(pod_cidrs: list[str], cluster_ip: str) -> ClusterFacts:
    service = {"namespace": "default", "name": "kubernetes", "cluster_ip": cluster_ip}
    return {"nodes": [{"pod_cidr": cidr} for cidr in pod_cidrs], "services": [service], "errors": []}  # type: ignore  # a plain dict for a TypedDict


def server(**config: Any) -> Any:
    return {"k3s": {"role": "server", "config": {key.replace("_", "-"): value for key, value in config.items()}}}


def test_networks_are_the_servers_word() -> None:
    cluster = bare(["10.233.1.0/24"], "10.110.0.1")
    config = {"cluster_cidr": ["10.233.0.0/16", "2001:db8::/56"], "service_cidr": ["10.110.0.0/16"]}
    facts = kube.with_config(cluster, {"a": server(**config), "b": {"k3s": {"role": "agent", "config": {}}}})  # type: ignore  # a plain dict for a TypedDict
    assert networks(facts) == ("10.233.0.0/16", "10.110.0.0/16", "10.110.0.10")
    assert facts["errors"] == []
    assert kube.with_config(facts, {"a": server(**config)}) == facts
    assert kube.with_config(cluster, {"a": server(**config, cluster_dns=["10.110.0.53"])})["dns_ip"] == "10.110.0.53"


def test_servers_that_say_nothing_have_k3s_defaults() -> None:
    facts = kube.with_config(bare(["10.42.1.0/24"], "10.43.0.1"), {"a": server(node_name="a")})
    assert networks(facts) == ("10.42.0.0/16", "10.43.0.0/16", "10.43.0.10")
    assert facts["errors"] == []


def test_servers_that_disagree_are_named() -> None:
    facts = kube.with_config(bare([], ""), {"a": server(node_name="a"), "b": server(cluster_cidr=["10.9.0.0/16"])})
    assert [error["what"] for error in facts["errors"]] == ["cluster_cidr"]
    assert "a: 10.42.0.0/16, b: 10.9.0.0/16" in facts["errors"][0]["message"]


def test_what_is_deduced_is_said_to_be() -> None:
    facts = kube.with_config(bare(["10.233.1.0/24", "10.233.4.0/24"], "10.110.0.1"), {})
    assert networks(facts) == ("10.233.0.0/21", "10.110.0.0/16", "10.110.0.10")
    assert [error["what"] for error in facts["errors"]] == ["cluster_cidr", "service_cidr"]


def table(kind: str) -> str:
    columns = [{"name": name} for name in ("Name", "Type", "Data", "Age")]
    return json.dumps({"kind": "Table", "columnDefinitions": columns, "rows": [{"cells": ["tls", kind, 2, "5d"]}]})


def test_of_secrets_that_ingresses_name_the_type_alone_is_asked(cluster: Cluster, tls: Path, fixtures: Path) -> None:
    cluster.load(fixtures / "k3s-1.36.3" / "flannel" / "server0")
    hosts = [{"hosts": [f"{name}.example"], "secretName": name} for name in ("tls", "gone")]
    ingress = {"metadata": {"namespace": "shop", "name": "shop"}, "spec": {"tls": [*hosts, {"hosts": ["x.example"]}]}}
    cluster.lists["/apis/networking.k8s.io/v1/ingresses"] = [ingress]
    secrets = "/api/v1/namespaces/shop/secrets"
    cluster.answers[f"{secrets}/tls"] = (200, table("kubernetes.io/tls"))
    facts = gather_cluster(api(cluster, tls))
    assert facts["secrets"] == {"shop/tls": "kubernetes.io/tls", "shop/gone": ""}
    asked = [target for target in cluster.asked if "secrets" in target]
    assert asked == [f"{secrets}/gone?includeObject=None", f"{secrets}/tls?includeObject=None"]

    cluster.answers[f"{secrets}/gone"] = (403, "forbidden")
    facts = gather_cluster(api(cluster, tls))
    assert facts["secrets"] == {}
    assert "refuses" in next(error["message"] for error in facts["errors"] if error["what"] == "secrets")
