"""What is wrong with Hetzner's balancers, by what the cluster serves; and that what mends it leaves nothing to mend."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any, Callable, NamedTuple

import pytest
from ansible.module_utils.netmend import balancers, hetzner
from ansible.module_utils.netmend.parse.cluster import ingress_nginx
from ansible.module_utils.netmend.parse.iptables import parse_rule

from tests.hetzner import ADDRESSES, AGENTS, HTTP, HTTPS, service, with_ingress
from tests.unit.diagnose.conftest import Bench

PUBLIC = {"agent0": "198.51.100.2", "agent1": "198.51.100.3", "server0": "198.51.100.1"}
APP = 30080  # NodePort of another Service


class Scene:
    """A healthy cluster and a project with one balancer before it, in the shapes of the collection's modules."""

    def __init__(self, captured: Path) -> None:
        bench = Bench(captured)
        self.bench, self.nodes, self.cluster = bench, bench.run["nodes"], bench.run["cluster"]
        self.cluster["services"][1]["ports"][0]["nodePort"] = APP
        with_ingress(self.cluster)
        self.servers = [server(name, private, PUBLIC[name]) for name, private in ADDRESSES.items()]
        self.balancer = {
            "name": "lb-1",
            "ipv4_address": "203.0.113.80",
            "private_ipv4_address": "10.0.0.5",
            "services": [told(service("http", 80, HTTP)), told(service("tcp", 443, HTTPS))],
            "targets": [target("server", name) for name in AGENTS],
        }
        self.selected: dict[str, list[str]] = {}

    @property
    def http(self) -> dict[str, Any]:
        return self.balancer["services"][0]

    @property
    def https(self) -> dict[str, Any]:
        return self.balancer["services"][1]

    def be(self, status: str) -> None:
        for each in self.balancer["targets"]:
            for health in each["health_status"]:
                health["status"] = status

    def let_in(self, source: str, *nodes: str) -> None:
        """UFW lets in TCP from a source and nothing else; packets to the nodes' public addresses come by eth0."""
        for name in nodes:
            public = {**self.nodes[name]["interfaces"][-1], "name": "eth0", "addresses": [f"{PUBLIC[name]}/32"]}
            self.nodes[name]["interfaces"].append(public)
            rules = [parse_rule(f"-s {source} -p tcp -j ACCEPT", 0), parse_rule("-j DROP", 0)]
            self.bench.chain(name, "INPUT")["rules"][:] = rules

    def project(self) -> hetzner.Project:
        return hetzner.Project([self.balancer], self.servers, self.selected)

    def compare(self, **more: bool) -> balancers.Comparison:
        return balancers.compare(self.project(), self.nodes, self.cluster, **more)

    def apply(self, comparison: balancers.Comparison) -> None:
        """As the modules do, after which the targets are not known to be healthy yet."""
        for change in comparison["services"]:
            there = next(each for each in self.balancer["services"] if each["listen_port"] == change["listen_port"])
            there.update({key: change[key] for key in ("protocol", "destination_port", "proxyprotocol")})
            there["health_check"] = copy.deepcopy(change["health_check"] or there["health_check"])
        for change in comparison["targets"]:
            name = change[change["type"]]
            kept = [each for each in self.balancer["targets"] if each[each["type"]] != name]
            put = [target(change["type"], name, private=change["after"])] if change["after"] is not None else []
            self.balancer["targets"] = kept + put
        self.be("unknown")


def server(name: str, private: str, public: str) -> dict[str, Any]:
    networks = [{"name": "cluster", "ip": private}]
    return {"name": name, "ipv4_address": public, "private_networks_info": networks}


def target(kind: str, name: str, *, private: bool = True) -> dict[str, Any]:
    status = [{"listen_port": port, "status": "healthy"} for port in (80, 443)]
    return {"type": kind, kind: name, "use_private_ip": private, "health_status": status}


def told(each: dict[str, Any]) -> dict[str, Any]:
    """A service as load_balancer_info tells it: the statuses of its health check go by the name of certificates."""
    http = each["health_check"]["http"]
    http["certificates"] = http.pop("status_codes")
    return each


@pytest.fixture
def scene(fixtures: Path) -> Scene:
    return Scene(fixtures / "k3s-1.36.3/flannel")


# --- faults -----------------------------------------------------------------------------------------------------------


def nobody_at_the_destination(scene: Scene) -> None:
    scene.http["destination_port"] = 30999


def tls_to_the_http_port(scene: Scene) -> None:
    scene.https["destination_port"] = HTTP
    scene.https["health_check"]["port"] = HTTP
    scene.https["health_check"]["protocol"] = "http"


def https_that_ends_at_the_balancer(scene: Scene) -> None:
    scene.https.update(protocol="https", destination_port=HTTPS)


def header_that_is_not_expected(scene: Scene) -> None:
    scene.https["proxyprotocol"] = True


def header_that_is_lacking(scene: Scene) -> None:
    scene.cluster["ingress_nginx"] = ingress_nginx([{"data": None}, {"data": {"use-proxy-protocol": "true"}}])
    scene.http["proxyprotocol"] = True


def check_where_nobody_is(scene: Scene) -> None:
    scene.be("unhealthy")
    scene.http["health_check"]["port"] = 8080


def check_of_another(scene: Scene) -> None:
    scene.be("unhealthy")
    scene.http["health_check"]["port"] = APP


def check_in_the_clear(scene: Scene) -> None:
    scene.be("unhealthy")
    scene.https["health_check"]["protocol"] = "http"


def check_of_a_path_that_is_404(scene: Scene) -> None:
    scene.be("unhealthy")
    scene.http["health_check"]["http"]["path"] = "/"


def check_that_takes_no_200(scene: Scene) -> None:
    scene.be("unhealthy")
    scene.http["health_check"]["http"]["certificates"] = ["204", "3??"]


def no_such_target(scene: Scene) -> None:
    del scene.balancer["targets"][0]


def machine_of_another_cluster(scene: Scene) -> None:
    scene.servers.append(server("old", "10.1.0.9", "198.51.100.9"))
    scene.balancer["targets"].append(target("server", "old"))


def dedicated_machine(scene: Scene) -> None:
    scene.balancer["targets"].append(target("ip", "192.0.2.9", private=False))


def public_side_that_is_shut(scene: Scene) -> None:
    scene.be("unhealthy")
    scene.balancer["targets"][1]["use_private_ip"] = False
    scene.let_in("10.0.0.0/16", "agent1")


def check_that_does_not_tell_who_has_an_endpoint(scene: Scene) -> None:
    scene.cluster["services"][-1]["external_traffic_policy"] = "Local"
    all_nodes(scene)
    scene.http["health_check"].update(protocol="tcp", port=22)


class Case(NamedTuple):
    put_in: Callable[[Scene], None]
    faults: list[str]
    evidence: str
    changes: list[str]  # of services, and of targets


CASES = [
    Case(check_that_does_not_tell_who_has_an_endpoint, ["external-traffic-policy-local"],
         "where server0 drop them (externalTrafficPolicy Local", ["health_check.port: 22 -> 31695"]),
    Case(nobody_at_the_destination, ["balancer-wrong-destination"], "leads to port 30999, which is no NodePort",
         ["destination_port: 30999 -> 31695"]),
    Case(tls_to_the_http_port, ["balancer-wrong-destination"], "HTTPS to port 31695, where ingress-nginx speaks HTTP",
         ["destination_port: 31695 -> 32720"]),
    Case(https_that_ends_at_the_balancer, ["balancer-wrong-destination"], "leads HTTP to port 32720",
         ["destination_port: 32720 -> 31695"]),
    Case(header_that_is_not_expected, ["proxy-protocol-mismatch"], "sends the PROXY header, and ingress-nginx does not",
         ["proxyprotocol: True -> False"]),
    Case(header_that_is_lacking, ["proxy-protocol-mismatch"], "does not send the PROXY header",
         ["proxyprotocol: False -> True"]),
    Case(check_where_nobody_is, ["balancer-checks-wrong-port", "balancer-target-unhealthy"], "port 8080, which is no",
         ["health_check.port: 8080 -> 31695"]),
    Case(check_of_another, ["balancer-checks-wrong-port", "balancer-target-unhealthy"],
         "asks port 30080, Service default/web, and requests go to port 31695", ["health_check.port: 30080 -> 31695"]),
    Case(check_in_the_clear, ["balancer-checks-wrong-protocol", "balancer-target-unhealthy"],
         "speaks HTTP to port 32720, where ingress-nginx speaks HTTPS", ["health_check.protocol: http -> https"]),
    Case(check_of_a_path_that_is_404, ["balancer-checks-wrong-path", "balancer-target-unhealthy"],
         "asks for /, which ingress-nginx answers with 404; well is 2??, 3??",
         ["health_check.http.path: / -> /healthz"]),
    Case(check_that_takes_no_200, ["balancer-checks-wrong-path", "balancer-target-unhealthy"],
         "/healthz, which ingress-nginx answers with 200; well is 204, 3??",
         ["health_check.http.status_codes: ['204', '3??'] -> ['2??', '3??']"]),
    Case(no_such_target, ["balancer-target-missing"], "ingress-nginx is ready there, and lb-1 has no such target",
         ["agent0: no target -> target by its private address"]),
    Case(machine_of_another_cluster, ["balancer-target-foreign"], "none of the cluster's nodes",
         ["old: target by its private address -> no target"]),
    Case(dedicated_machine, ["balancer-target-foreign"], "none of the cluster's nodes",
         ["192.0.2.9: target by its public address -> no target"]),
    Case(public_side_that_is_shut, ["balancer-on-public-addresses"],
         "agent1 stops TCP to port 80 from 203.0.113.80, the balancer's public address",
         ["agent1: target by its public address -> target by its private address"]),
]  # fmt: skip


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.put_in.__name__)
def test_a_fault(case: Case, scene: Scene) -> None:
    case.put_in(scene)
    found = scene.compare(remove_foreign=True)
    said = balancers.render(scene.project(), scene.cluster, found)
    assert [fault["fault"] for fault in found["faults"]] == case.faults
    assert case.evidence in found["faults"][0]["evidence"]
    assert found["faults"][0]["evidence"] in said
    assert found["faults"][0]["remedy"] in said
    _, _, changes = said.partition("To be changed:\n")
    assert [line.split(", ", 1)[1].removeprefix("port 80, ").removeprefix("port 443, ")
            for line in changes.splitlines()] == case.changes  # fmt: skip


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.put_in.__name__)
def test_what_was_mended_is_right(case: Case, scene: Scene) -> None:
    case.put_in(scene)
    scene.apply(scene.compare(remove_foreign=True))
    assert scene.compare(remove_foreign=True) == {"faults": [], "services": [], "targets": []}


def test_one_after_the_other(scene: Scene) -> None:
    """The health check is compared with where requests are to go, and targets with who serves there then."""
    nobody_at_the_destination(scene)
    scene.be("unhealthy")
    scene.http["health_check"].update(port=30999, protocol="https")
    scene.balancer["services"] = [scene.http]
    no_such_target(scene)
    found = scene.compare()
    assert [fault["fault"] for fault in found["faults"]] == [
        "balancer-wrong-destination", "balancer-checks-wrong-port", "balancer-target-missing",
    ]  # fmt: skip
    scene.apply(found)
    assert scene.compare()["faults"] == []
    assert scene.http["health_check"]["protocol"] == "http"


# --- what is right, however odd ---------------------------------------------------------------------------------------


def on_the_hosts_network(scene: Scene) -> None:
    for each, port in zip(scene.balancer["services"], (80, 443)):
        each["destination_port"] = each["health_check"]["port"] = port


def check_at_the_hosts_network(scene: Scene) -> None:
    scene.be("unknown")
    scene.https["health_check"].update(port=80, protocol="http")


def check_of_an_application(scene: Scene) -> None:
    scene.be("unknown")
    scene.http["health_check"]["http"].update(domain="platform.keybuzz.io", path="/health")


def check_of_any_host(scene: Scene) -> None:
    scene.be("unknown")
    scene.cluster["ingresses"][0]["paths"][0]["host"] = ""
    scene.http["health_check"]["http"]["path"] = "/"


def check_that_404_is_good_for(scene: Scene) -> None:
    scene.be("unknown")
    scene.http["health_check"]["http"].update(path="/", certificates=["4??"])


def check_that_only_connects(scene: Scene) -> None:
    scene.be("unknown")
    for each in scene.balancer["services"]:
        each["health_check"]["protocol"] = "tcp"
        del each["health_check"]["http"]


def odd_check_that_passes(scene: Scene) -> None:
    scene.http["health_check"].update(port=22, protocol="tcp")


def odd_check_that_something_answers(scene: Scene) -> None:
    scene.be("unknown")
    scene.http["health_check"].update(port=10250, protocol="tcp")


def the_api(scene: Scene) -> None:
    """6443 is the servers' own, and nothing of the ingress's."""
    scene.nodes["server0"]["sockets"].append({"protocol": "tcp", "address": "::", "port": 6443, "process": "k3s"})
    scene.balancer["services"] = [told(service("tcp", 6443, 6443))]
    scene.balancer["targets"] = [target("server", "server0")]


def another_application(scene: Scene) -> None:
    scene.balancer["services"] = [told(service("tcp", 5000, APP))]
    scene.balancer["targets"] = [target("server", "server0")]


def all_nodes(scene: Scene) -> None:
    scene.balancer["targets"].append(target("server", "server0"))


def public_side_that_is_open(scene: Scene) -> None:
    scene.be("unknown")
    scene.balancer["targets"][0]["use_private_ip"] = False
    scene.let_in("203.0.113.80/32", "agent0")


def public_side_that_is_healthy(scene: Scene) -> None:
    scene.balancer["targets"][0]["use_private_ip"] = False
    scene.let_in("10.0.0.0/16", "agent0")


def local_traffic_policy(scene: Scene) -> None:
    """A node without an endpoint is rightly unhealthy."""
    scene.cluster["services"][-1]["external_traffic_policy"] = "Local"
    all_nodes(scene)
    for health in scene.balancer["targets"][-1]["health_status"]:
        health["status"] = "unhealthy"


def check_that_tells_who_has_an_endpoint(scene: Scene) -> None:
    """kube-proxy's own."""
    local_traffic_policy(scene)
    scene.cluster["services"][-1]["health_check_node_port"] = 32001
    scene.http["health_check"].update(port=32001)


def by_label(scene: Scene) -> None:
    scene.balancer["targets"] = [{**target("label_selector", "role==agent"), "health_status": None}]
    scene.selected = {"role==agent": list(AGENTS)}


def other_name(scene: Scene) -> None:
    """Of a server whose node has the address."""
    scene.servers[1]["name"] = scene.balancer["targets"][0]["server"] = "worker-1"


def same_address_elsewhere(scene: Scene) -> None:
    """In another private network, which has nothing to do with the cluster's."""
    scene.servers.insert(0, server("aaa", ADDRESSES["agent0"], "198.51.100.77"))


ODD = [
    *(on_the_hosts_network, check_at_the_hosts_network, check_of_an_application, check_of_any_host),
    *(check_that_404_is_good_for, check_that_only_connects, odd_check_that_passes, odd_check_that_something_answers),
    *(the_api, another_application, all_nodes, public_side_that_is_open, public_side_that_is_healthy),
    *(local_traffic_policy, check_that_tells_who_has_an_endpoint, by_label, other_name, same_address_elsewhere),
]


@pytest.mark.parametrize("odd", ODD, ids=lambda odd: odd.__name__)
def test_nothing_is_wrong(odd: Callable[[Scene], None], scene: Scene) -> None:
    odd(scene)
    assert scene.compare() == {"faults": [], "services": [], "targets": []}


# --- what nothing here mends ------------------------------------------------------------------------------------------


def test_a_port_that_cannot_be_guessed_is_left(scene: Scene) -> None:
    scene.http.update(listen_port=8443, protocol="tcp", destination_port=30999)
    scene.http["health_check"]["port"] = 30999
    found = scene.compare()
    assert [fault["fault"] for fault in found["faults"]] == ["balancer-wrong-destination"]
    assert "Say which port is meant" in found["faults"][0]["remedy"]
    assert found["services"] == []


def test_labels_are_the_operators(scene: Scene) -> None:
    by_label(scene)
    scene.servers.append(server("old", "10.1.0.9", "198.51.100.9"))
    scene.selected = {"role==agent": ["agent0", "old"]}
    found = scene.compare(remove_foreign=True)
    remedies = {fault["fault"]: fault["remedy"] for fault in found["faults"]}
    assert remedies == {
        "balancer-target-missing": "Label their servers so that role==agent selects them.",
        "balancer-target-foreign": "Change its labels, by which role==agent selects it.",
    }
    assert found["targets"] == []


def test_a_server_of_another_project_cannot_be_added(scene: Scene) -> None:
    no_such_target(scene)
    del scene.servers[1]
    found = scene.compare()
    assert [fault["fault"] for fault in found["faults"]] == ["balancer-target-missing"]
    assert "not all of their servers are in the project" in found["faults"][0]["remedy"]
    assert found["targets"] == []


def test_what_stops_all_is_no_matter_of_addresses(scene: Scene) -> None:
    public_side_that_is_shut(scene)
    scene.let_in("192.0.2.1/32", "agent1")
    assert [fault["fault"] for fault in scene.compare()["faults"]] == ["balancer-target-unhealthy"] * 2


# --- which balancers are meant ----------------------------------------------------------------------------------------


def test_those_with_a_node_for_a_target_are_meant_or_those_that_are_named(scene: Scene) -> None:
    other = {**scene.balancer, "name": "lb-mail", "targets": []}
    project = scene.project()._replace(balancers=[scene.balancer, other])

    def names(*asked: str) -> list[str]:
        return [each["name"] for each in hetzner.chosen(project, scene.cluster, asked).balancers]

    assert names() == ["lb-1"]
    assert names("lb-mail") == ["lb-mail"]
    assert hetzner.unknown(project.balancers, ["lb-1", "lb-mail"]) == ""
    assert hetzner.unknown(project.balancers, ["lb-2"]).endswith("has no load balancer lb-2, but lb-1, lb-mail")


def test_none_is_meant(scene: Scene) -> None:
    scene.balancer["targets"] = []
    project = hetzner.chosen(scene.project(), scene.cluster, [])
    found = balancers.compare(project, scene.nodes, scene.cluster)
    assert "balancers_names names those meant" in balancers.render(project, scene.cluster, found)
