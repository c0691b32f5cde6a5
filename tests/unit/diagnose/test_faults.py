"""Every fault put into captured facts: named first, where it is, with its remedy, and beside every other one."""

from __future__ import annotations

import itertools
import re
from pathlib import Path
from typing import Any, Callable, NamedTuple

import pytest
from ansible.module_utils.netmend.diagnose import diagnose
from ansible.module_utils.netmend.diagnose.registry import FAULTS

from .conftest import is_about

NOW = 1795250021.0  # of the bench
CATALOGUE = Path(__file__).parents[3] / "docs" / "faults.md"
NODES = ("server0", "agent0", "agent1")
TO_KUBERNETES = "default/kubernetes"


class Case(NamedTuple):
    put_in: Callable[[Any], Any]  # puts the fault in, and returns the ids of the probes that fail by it
    where: list
    role: str
    state: str = "flannel"
    others: tuple = ()  # what is named behind it, because it is in, too
    dns: bool = False  # CoreDNS runs
    edge: bool = False  # so do an ingress, applications and balancers


def prepared(bench, *cases):
    if any(case.dns for case in cases):
        bench.with_dns()
    if any(case.edge for case in cases):
        bench.with_edge()
    return bench


def vxlan_dropped_by_host(bench):
    """The captured state has the fault; only what another one let in is taken back."""
    for node in ("agent0", "agent1"):
        bench.deny(node, "8472")
    return bench.fail(bench.crosses("agent0", "agent1"))


def ipip_dropped_by_host(bench):
    bench.delete("agent1", "INPUT", "cali-INPUT")
    bench.drop_by_policy("agent1", "INPUT")
    bench.enable_ufw("agent1")
    bench.insert("agent1", "INPUT", "-s 10.0.0.0/16 -p tcp -j ACCEPT")
    bench.insert("agent1", "INPUT", "-p icmp -j ACCEPT")
    return bench.fail(bench.crosses("agent1"))


def dropped_by_fabric(bench):
    return bench.fail(bench.crosses("agent0"))


def ip_forward_off(bench):
    bench.node("agent0")["sysctls"]["net.ipv4.ip_forward"] = "0"
    return bench.fail(bench.forwarded_at("agent0"))


def bridge_nf_off(bench):
    bench.node("agent0")["sysctls"]["net.bridge.bridge-nf-call-iptables"] = "0"
    return bench.fail(lambda probe: probe["id"] == "pod-clusterip agent0>default/web tcp/80")


def forward_drop_without_accept(bench):
    bench.drop_by_policy("agent0", "FORWARD", packets=40)
    bench.insert("agent0", "FLANNEL-FWD", "-j RETURN")
    # What comes by agent0's own NodePort is masqueraded, and accepted by its mark.
    needs, masqueraded = bench.forwarded_at("agent0"), ("node-nodeport", "agent0")
    # UFW accepts pings to others.
    echoes = "ufw-before-forward" in bench.node("agent0")["iptables"]["nft"]["filter"]
    return bench.fail(
        lambda probe: (
            needs(probe)
            and (probe["row"], probe.get("target_node")) != masqueraded
            and not (echoes and probe["protocol"] == "mtu")
        )
    )


def reject_before_accept(bench):
    bench.insert("agent0", "FORWARD", "-d 10.42.0.0/16 -j REJECT --reject-with icmp-port-unreachable", packets=12)
    return bench.fail(bench.forwarded_at("agent0"), "refused")


def nft_and_legacy_mixed(bench):
    bench.insert("agent0", "FORWARD", "-d 10.42.0.0/16 -j DROP", backend="legacy", packets=9)
    return bench.fail(bench.forwarded_at("agent0"))


def accept_before_policy(bench):
    bench.insert("agent1", "FORWARD", "-s 10.42.0.0/16 -j ACCEPT")
    bench.run["cluster"]["network_policies"] = [{"namespace": "default", "name": "deny"}]
    return []


def firewall_flush(bench):
    bench.enable_ufw("agent0", manage_builtins=True)
    tables = bench.node("agent0")["iptables"]["nft"]
    tables["filter"] = {hook: {**tables["filter"][hook], "rules": []} for hook in ("INPUT", "FORWARD", "OUTPUT")}
    bench.drop_by_policy("agent0", "FORWARD")
    return bench.fail(bench.forwarded_at("agent0"))


def kube_services_jump_missing(bench):
    for hook in ("PREROUTING", "OUTPUT"):
        bench.delete("agent0", hook, "KUBE-SERVICES", table="nat")

    def asks_there(probe):
        at = probe["target_node"] if probe["row"] in ("node-nodeport", "edge-node") else probe["source_node"]
        return at == "agent0" and bool(probe.get("target_service"))

    return bench.fail(asks_there)


def kubelet_dropped_by_host(bench):
    for node in ("agent0", "agent1"):
        bench.insert(node, "ufw-user-input", "-s 10.0.0.0/16 -p udp -m udp --dport 8472 -j ACCEPT")
    bench.deny("agent1", "10250")
    return bench.fail(lambda probe: re.fullmatch("host-host (agent0|server0)>agent1 tcp/10250", probe["id"]))


def port_dropped_by_host(bench):
    bench.insert("server0", "INPUT", "-i vec0 -p tcp -m tcp --dport 6443 -j DROP", packets=5)

    def asks_api(probe):
        from_outside = probe["source_node"] != "server0"
        return from_outside and (probe.get("port") == 6443 or probe.get("target_service") == TO_KUBERNETES)

    return bench.fail(asks_api)


def etcd_dropped_by_host(bench):
    """agent1 becomes a second server, so that there are members to talk to each other."""
    bench.members[1]["role"] = "server"
    bench.node("agent1")["k3s"].update(role="server", config=dict(bench.node("server0")["k3s"]["config"]))
    bench.node("agent1")["sockets"] = bench.node("server0")["sockets"]
    bench.plan()
    bench.insert("server0", "INPUT", "-i vec0 -p tcp -m multiport --dports 2379,2380 -j DROP", packets=5)
    return bench.fail(lambda probe: re.fullmatch("host-host agent1>server0 tcp/23(79|80)", probe["id"]))


def conntrack_full(bench):
    bench.node("agent0")["conntrack"] = {"count": 4096, "max": 4096}
    bench.lose("agent0", "conntrack.drop", 70)
    return bench.fail(bench.involves("agent0"))


def reverse_path_filter(bench):
    """agent0 answers agent1 by another interface than the one that agent1's packets come in by."""
    facts = bench.node("agent0")
    route = next(route for route in facts["routes"] if route["destination"] == "default")
    facts["routes"].append({**route, "destination": "10.0.0.111/32", "gateway": "203.0.113.1", "device": "eth0"})
    facts["sysctls"]["net.ipv4.conf.vec0.rp_filter"] = "1"
    bench.lose("agent0", "TcpExt.IPReversePathFilter", 31)
    between = [bench.involves("agent0"), bench.involves("agent1")]
    return bench.fail(lambda probe: all(does(probe) for does in between))


def stale_ipvs_device(bench):
    dummy = {**bench.node("agent0")["interfaces"][0], "name": "kube-ipvs0", "kind": "dummy"}
    bench.node("agent0")["interfaces"].append({**dummy, "addresses": ["10.43.0.1/32"]})
    return bench.fail(lambda probe: probe["id"] == "host-clusterip agent0>default/kubernetes tcp/443", "refused")


def hostport_lost(bench):
    pod = next(pod for pod in bench.pods if pod["node"] == "agent0" and not pod["host_network"])
    pod["ports"] = [{"port": 8080, "protocol": "TCP", "hostPort": 8880}]
    bench.chain("agent0", "CNI-HOSTPORT-DNAT", table="nat")
    return []


def stale_network_policy(bench):
    for facts in bench.run["nodes"].values():  # an agent's own is not asked
        facts["k3s"]["config"]["disable-network-policy"] = True
    rule = "-d 10.42.3.2/32 -j REJECT --reject-with icmp-port-unreachable"
    bench.insert("agent1", "KUBE-POD-FW-33KCQI252C7LCMNY", rule)
    at_pod = [probe["id"] for probe in bench.run["probes"] if probe.get("target_pod") == "default/web-qlhjn"]
    return bench.fail(lambda probe: probe["id"] in at_pod and probe["source_node"] != "agent1", "refused")


def servers_disagree(bench):
    k3s = bench.node("agent1")["k3s"]
    k3s["role"], k3s["sources"]["flannel-backend"] = "server", "/etc/rancher/k3s/config.yaml.d/90-backend.yaml"
    k3s["config"]["flannel-backend"] = "none"
    return []


def clock_skew(bench):
    bench.node("agent1")["time"] -= 7200
    return []


def certificate_expired(bench):
    certificate = {"file": "/var/lib/rancher/k3s/agent/serving-kubelet.crt", "subject": "agent0"}
    bench.node("agent0")["certificates"].append({**certificate, "not_before": NOW - 9e6, "not_after": NOW - 3600})
    bench.node("agent0")["k3s"]["unit"] = "k3s-agent.service"
    return []


def coredns_down(bench):
    bench.pods[:] = [pod for pod in bench.pods if pod["name"] != "coredns-1"]
    (dns,) = [service for service in bench.run["cluster"]["services"] if service["name"] == "kube-dns"]
    dns["endpoints"] = []
    probes = bench.run["probes"]
    probes[:] = [probe for probe in probes if probe.get("target_pod") != "kube-system/coredns-1"]
    return bench.fail(lambda probe: probe["address"] == "10.43.0.10", "refused")


def coredns_unreachable(bench):
    by_udp = ("dns-udp", "dns-pair", "dns-apart")
    return bench.fail(lambda probe: probe["source_node"] == "agent1" and probe["protocol"] in by_udp)


def dns_conntrack_race(bench):
    """Asked again, half of the pairs are won; those from ports that failed find an entry."""
    bench.lose("agent1", "conntrack.insert_failed", 7)
    lost = {"detail": "7 of 15 attempts: no answer to AAAA", "attempts": 15, "failed": 7}
    return bench.fail(lambda probe: probe["source_node"] == "agent1" and probe["protocol"] == "dns-pair", **lost)


def stale_vxlan_peer(bench):
    """agent1 has lost where server0 is."""
    mac = next(e for e in bench.node("agent1")["neighbours"] if e["address"] == "10.42.0.0")["mac"]
    fdb = bench.node("agent1")["fdb"]
    fdb[:] = [entry for entry in fdb if entry["mac"] != mac]
    between = {("agent1", "server0"), ("server0", "agent1")}
    return bench.fail(lambda probe: bool(between & bench.crossings(probe)))


def flannel_on_wrong_nic(bench):
    """Its peers have taken note."""
    bench.member("agent1")["annotations"]["flannel.alpha.coreos.com/public-ip"] = "203.0.113.111"
    for facts in bench.run["nodes"].values():
        for entry in facts["fdb"]:
            if entry["destination"] == "10.0.0.111":
                entry["destination"] = "203.0.113.111"
    k3s = bench.node("agent1")["k3s"]
    k3s["config"]["flannel-iface"] = "eth0"
    k3s["sources"]["flannel-iface"] = "/etc/rancher/k3s/config.yaml.d/90-nic.yaml"
    return bench.fail(bench.crosses("agent1"))


def vxlan_bad_checksum(bench):
    bench.run["results"]["agent1"]["risen"] = {"Udp.InCsumErrors": 40}
    return bench.fail(bench.crosses("agent1"))


def path_mtu_black_hole(bench):
    between = {"agent0", "agent1"}
    return bench.fail(
        lambda probe: probe["protocol"] == "mtu" and {probe["source_node"], probe["target_node"]} == between, mtu=1300
    )


def pod_mtu_too_high(bench):
    for interface in bench.node("agent1")["interfaces"]:
        if interface["kind"] in ("bridge", "veth"):
            interface["mtu"] = 1480
    sweeps = [p["id"] for p in bench.run["probes"] if p["id"].startswith("pod-pod agent1>") and p["protocol"] == "mtu"]
    return bench.fail(lambda probe: probe["id"] in sweeps, mtu=1400)


def node_unreachable(bench):
    del bench.run["nodes"]["agent1"]
    bench.members[1]["ready"] = False
    bench.plan()
    return bench.fail(lambda probe: probe.get("target_node") == "agent1" or bench.crosses("agent1")(probe))


def node_not_ready(bench):
    bench.members[1].update(ready=False, reason="KubeletNotReady: no CNI")
    return []


def api_unhealthy(bench):
    bench.run["cluster"]["api"]["etcd"] = "failed"
    return []


def unexplained(bench):
    return bench.fail(lambda probe: probe["id"] == "host-pod agent0>agent0 tcp/8080", "refused")


def endpoint_fails(bench):
    """Each endpoint was met twelve times, from each node and each of its pods."""
    (web,) = [service for service in bench.run["cluster"]["services"] if service["name"] == "web"]
    endpoints = {end["ip"]: [12, 12 if end["node"] == "agent1" else 0] for end in web["endpoints"]}
    asked = {f"{start}-clusterip {node}>default/web tcp/80" for start in ("host", "pod") for node in NODES}
    return bench.fail(lambda probe: probe["id"] in asked, attempts=36, failed=12, endpoints=endpoints)


def fails_at_times(bench):
    return bench.fail(lambda probe: probe["id"] == "host-pod agent0>agent0 tcp/8080", attempts=20, failed=5)


PUBLIC = {"server0": "203.0.113.100", "agent0": "203.0.113.110", "agent1": "203.0.113.111"}


def calico_stale_node(bench):
    gone = dict(bench.members[1], name="gone", internal_ip="10.0.0.119", ready=False, reason="NodeStatusUnknown")
    gone["annotations"] = {"projectcalico.org/IPv4Address": "10.0.0.119/32"}
    bench.members.append(gone)
    bench.plan()
    return bench.fail(lambda probe: probe.get("target_node") == "gone")


def calico_wrong_address(bench):
    bench.address(agent1=PUBLIC["agent1"])
    return bench.fail(bench.crosses("agent1"))


def ipip_dropped_in_public(bench):
    bench.address(**PUBLIC)
    return bench.fail(bench.crosses("agent0"))


def bgp_dropped_by_host(bench):
    """agent1 dials, as its address is the higher one."""
    bench.run_calico(backend="bird", felix="Disabled")
    bench.drop_by_policy("agent0", "INPUT")
    bench.enable_ufw("agent0")
    for spec in ("-s 10.0.0.0/16 -p tcp -m tcp ! --dport 179 -j ACCEPT", "-p icmp -j ACCEPT"):
        bench.insert("agent0", "INPUT", spec)
    return without_routes(bench, "agent0", "agent1")


def bgp_dropped_by_fabric(bench):
    bench.run_calico(backend="bird", felix="Disabled")
    bench.node("agent1")["bgp"] = [
        {"own": "10.0.0.111", "peer": "10.0.0.110", "state": state} for state in ("CLOSING", "SYN-SENT")
    ]
    return without_routes(bench, "agent0", "agent1")


def no_cluster_routes(bench):
    bench.run_calico(backend="none", felix="Disabled")
    return without_routes(bench, "agent0", "agent1")


def calico_routes_missing(bench):
    bench.run_calico(backend="bird", felix="Disabled")
    return without_routes(bench, "agent0", "agent1")


def without_routes(bench, here, there):
    bench.unroute(here, there)
    bench.unroute(there, here)
    return bench.fail(bench.between(here, there))


def cluster_routes_twice(bench):
    bench.run_calico(backend="bird", felix="Enabled")
    return []


def flannel_leftovers(bench):
    (pod,) = [pod for pod in bench.pods if pod["node"] == "agent1"]
    left = next(route for route in bench.node("agent0")["routes"] if route["device"] == "flannel.1")
    bench.node("agent0")["routes"].append({**left, "destination": pod["ip"]})
    return bench.fail(bench.between("agent0", "agent1"))


def pool_outside_cluster_cidr(bench):
    bench.run["cluster"]["cluster_cidr"] = "10.99.0.0/16"
    return []


def two_ipams_overlap(bench):
    calico = bench.run["cluster"]["calico"]
    calico["ippools"][0]["cidr"] = "10.42.0.0/16"
    (pod,) = [pod for pod in bench.pods if pod["node"] == "agent1"]
    bench.pods.insert(0, dict(pod, name="other", uid="other", node="agent0", ready=False))
    block = next(affinity for affinity in calico["blockaffinities"] if affinity["node"] == "agent0")
    was, block["cidr"] = block["cidr"], bench.members[1]["pod_cidr"].replace("/24", "/26")
    for route in [route for node in NODES for route in bench.node(node)["routes"] if route["destination"] == was]:
        route["destination"] = block["cidr"]
    return bench.fail(lambda probe: probe.get("target_pod") == f"default/{pod['name']}", "refused")


def cni_config_not_read(bench):
    """The server was restarted, the agents were not."""
    bench.node("server0")["k3s"]["config"]["flannel-backend"] = "none"
    bench.node("server0")["cni"]["conf_dir"] = "/etc/cni/net.d"
    return []


def selector_mismatch(bench):
    service = bench.application("keybuzz-front")
    service["selector"], service["endpoints"] = {"app": "keybuzz-frontend"}, []
    return without_endpoints(bench, "keybuzz-front")


def without_endpoints(bench, name):
    bench.plan()
    return bench.fail_sites(name, 503) + bench.fail_rows(name, "edge-service")


def ingress_backend_missing(bench):
    """The application is scaled to none."""
    bench.pods[:] = [pod for pod in bench.pods if pod not in bench.pods_of("keybuzz-front")]
    bench.application("keybuzz-front")["endpoints"] = []
    return without_endpoints(bench, "keybuzz-front")


def ingress_endpoints_stale(bench):
    """The pods were made anew; the controller on agent1 has not heard of it."""
    (said,) = bench.run["controllers"]["agent1"]
    said["endpoints"]["keybuzz-keybuzz-front-80"] = ["10.42.1.66:3000"]
    refused = "connect() failed (113: No route to host) while connecting to upstream"
    said["log"]["failures"] = {"10.42.1.66:3000": {refused: 9}}
    return bench.fail(
        lambda probe: (
            probe["row"] == "edge-node" and probe["target_node"] == "agent1" and is_about(probe, "keybuzz-front")
        ),
        **{"outcome": "http", "status": 502, "detail": "status 502", "rtt_ms": 9000.0},
    )


def readiness_fails(bench):
    for pod in bench.pods_of("keybuzz-api"):
        pod.update(ready=False, reason="ContainersNotReady", readiness={**pod["readiness"], "path": "/never"})
    for end in bench.application("keybuzz-api")["endpoints"]:
        end["ready"] = False
    bench.plan()
    inside = {"status": 404, "detail": "status 404"}
    assert bench.fail(lambda probe: probe.get("path") == "/never", "ok", **inside)
    return bench.fail_sites("keybuzz-api", 503) + bench.fail_rows("keybuzz-api", "edge-service")


def target_port_mismatch(bench):
    service = bench.application("keybuzz-front")
    service["ports"][0]["targetPort"] = 3001
    for end in service["endpoints"]:
        end["port"] = 3001
    bench.plan()
    direct = bench.fail_rows("keybuzz-front", "edge-service", "edge-pod", "edge-self", detail="RST")
    return direct + bench.fail_sites("keybuzz-front", 502)


def slow_application(bench):
    silence = {"detail": "connected, but no answer"}
    direct = bench.fail(
        lambda probe: probe.get("path") and probe["row"] in BEHIND and is_about(probe, "keybuzz-my-ui"),
        "timeout",
        **silence,
    )
    return direct + bench.fail_sites("keybuzz-my-ui", 504, 60)


BEHIND = ("edge-service", "edge-pod", "edge-self")


def policy_denies_ingress(bench):
    bench.run["cluster"]["network_policies"].append(
        {"namespace": "keybuzz", "name": "default-deny", "pod_selector": {}, "types": ["Ingress"], "ingress": [],
         "egress": []}
    )  # fmt: skip
    bench.plan()
    crossing = bench.fail(
        lambda probe: probe["row"] == "edge-pod" and is_about(probe, "keybuzz-api")
        and probe["source_node"] != probe["target_node"], "refused", detail="icmp port-unreachable from 10.0.0.110",
    )  # fmt: skip
    for pod in bench.pods_of("keybuzz-api"):
        jump = f"-d {pod['ip']}/32 -j KUBE-POD-FW-KEYBUZZAPI"
        bench.insert(pod["node"], "KUBE-ROUTER-FORWARD", jump)
        reject = "-m mark ! --mark 0x10000/0x10000 -j REJECT --reject-with icmp-port-unreachable"
        bench.insert(pod["node"], "KUBE-POD-FW-KEYBUZZAPI", reject, packets=9)
    return crossing + bench.fail_sites("keybuzz-api", 502)


def hairpin_off(bench):
    """As a lab shows it: a SYN that the bridge drops leaves no entry, and is led anew when it is sent again."""
    veths = [each for each in bench.node("agent1")["interfaces"] if each["kind"] == "veth"]
    assert {each["hairpin"] for each in veths} == {True}
    for each in veths:
        each["hairpin"] = False
    others = {pod["ip"]: [9, 0] for pod in bench.pods if pod["namespace"] == "keybuzz" and pod["node"] != "agent1"}
    return bench.fail(
        lambda probe: probe["row"] == "edge-self" and probe["source_node"] == "agent1" and probe.get("target_service"),
        "timeout", attempts=12, failed=3, endpoints=others,
    )  # fmt: skip


def host_port_conflict(bench):
    controller = next(pod for pod in bench.pods if pod["name"] == "ingress-nginx-controller-agent1")
    traefik = {"svccontroller.k3s.cattle.io/svcname": "traefik"}
    bench.pod("agent1", "kube-system", "svclb-traefik-x", traefik, ports={"http": 80})["ports"][0]["hostPort"] = 80
    bench.pods[-1]["host_network"] = True
    message = "0/3 nodes are available: 1 node(s) didn't have free ports for the requested pod ports."
    controller.update(
        node="", ip="", ready=False, phase="Pending", reason="Unschedulable", meant_for="agent1", unscheduled=message
    )
    ends = bench.application("ingress-nginx-controller")["endpoints"]
    ends[:] = [end for end in ends if end["node"] != "agent1"]
    bench.plan()
    return []


def node_port_blocked_for_balancer(bench):
    for node in ("agent0", "agent1"):
        bench.enable_ufw(node)
        bench.drop_by_policy(node, "INPUT", packets=40)
        bench.insert(node, "INPUT", "-s 10.0.0.0/24 -p tcp -m multiport --dports 80,443 -j DROP")
        for peer in ("100", "110", "111"):
            bench.insert(node, "INPUT", f"-s 10.0.0.{peer}/32 -j ACCEPT")
        bench.insert(node, "INPUT", "-s 10.42.0.0/16 -j ACCEPT")
        rule = bench.chain(node, "INPUT")["rules"][4]
        bench.chain(node, "INPUT")["rules"][4] = {
            **rule,
            "target": "ufw-drop-edge",
            "spec": rule["spec"][:-4] + "ufw-drop-edge",
        }
        bench.insert(node, "ufw-drop-edge", "-j DROP", packets=31)
    return bench.fail(
        lambda probe: probe["row"] == "edge-balancer", "http", status=503, detail="status 503", rtt_ms=3.0
    )


def external_traffic_policy_local(bench):
    service = bench.application("ingress-nginx-controller")
    service.update(external_traffic_policy="Local", health_check_node_port=32111)
    bench.pods[:] = [pod for pod in bench.pods if pod["name"] != "ingress-nginx-controller-agent1"]
    service["endpoints"][:] = [end for end in service["endpoints"] if end["node"] != "agent1"]
    for balancer in bench.run["balancers"]:
        for each in balancer["services"]:
            each["health"]["port"] = 10250
    bench.plan()
    return bench.fail(lambda probe: probe["row"] == "edge-balancer", "timeout", attempts=10, failed=5)


def balancer_checks_wrong_port(bench):
    for each in bench.run["balancers"][0]["services"]:
        each["health"]["port"] = 31699
    bench.plan()
    checks = bench.fail(lambda probe: probe["row"] == "edge-health" and probe["port"] == 31699, "refused", detail="RST")
    by_it = bench.fail(
        lambda probe: probe["row"] == "edge-balancer" and probe["balancer"] == "lb1", "http", status=503,
        detail="status 503", rtt_ms=2.0,
    )  # fmt: skip
    return checks + by_it


def proxy_protocol_mismatch(bench):
    for balancer in bench.run["balancers"]:
        for each in balancer["services"]:
            each["proxy_protocol"] = True
    bench.plan()
    doors = bench.fail(
        lambda probe: probe["row"] == "edge-node" and probe["port"] in (31695, 32720), "http", status=400,
        detail="status 400; without the PROXY header: status 200", proxied="status 200", rtt_ms=2.0,
    )  # fmt: skip
    return doors + bench.fail(lambda probe: probe["row"] == "edge-balancer", "http", status=400, detail="status 400")


def ingress_class_mismatch(bench):
    ingress = bench.run["cluster"]["ingresses"][1]
    ingress.update({"class": "ngnix", "addresses": []})
    bench.plan()
    return bench.fail_sites("keybuzz-front", 404)


def tls_secret_missing(bench):
    bench.run["cluster"]["secrets"]["keybuzz/keybuzz-api-tls"] = ""
    fake = "Kubernetes Ingress Controller Fake Certificate"
    shown = {"subject": fake, "issuer": fake, "names": ["ingress.local"], "not_after": NOW + 3e7}
    assert bench.fail(lambda probe: probe["protocol"] == "https", "ok", certificate=shown)
    return []


def egress_masquerade_missing(bench):
    rules = bench.chain("agent1", "FLANNEL-POSTRTG", "nat")["rules"]
    assert [rule for rule in rules if rule["target"] == "MASQUERADE"]
    rules[:] = [rule for rule in rules if rule["target"] != "MASQUERADE"]
    pods = lambda probe: probe["row"] == "edge-outside" and probe["source_node"] == "agent1" and probe.get("source_pod")  # noqa: E731
    assert bench.fail(pods, "timeout", detail="no answer to SYN")
    return []


AROUND_AGENT0 = ["agent0>agent1", "agent0>server0", "agent1>agent0", "server0>agent0"]
CASES = {
    "coredns-down": Case(coredns_down, ["kube-system/kube-dns"], "", dns=True),
    "coredns-unreachable": Case(coredns_unreachable, ["agent1"], "", dns=True),
    "dns-conntrack-race": Case(dns_conntrack_race, ["agent1"], "", dns=True),
    "stale-vxlan-peer": Case(stale_vxlan_peer, ["agent1>server0"], "k3s_restart"),
    "flannel-on-wrong-nic": Case(flannel_on_wrong_nic, ["agent1"], ""),
    "vxlan-bad-checksum": Case(vxlan_bad_checksum, ["agent1"], ""),
    "path-mtu-black-hole": Case(path_mtu_black_hole, ["agent0>agent1", "agent1>agent0"], "path_mtu"),
    "pod-mtu-too-high": Case(pod_mtu_too_high, ["agent1"], ""),
    "firewall-flush": Case(firewall_flush, ["agent0"], "ufw", others=("kube-services-jump-missing",)),
    "kubelet-dropped-by-host": Case(kubelet_dropped_by_host, ["agent1"], "ufw", "flannel-ufw-blocks"),
    "vxlan-dropped-by-host": Case(vxlan_dropped_by_host, ["agent0", "agent1"], "ufw", "flannel-ufw-blocks"),
    "ipip-dropped-by-host": Case(ipip_dropped_by_host, ["agent1"], "ufw", "swapped-clean"),
    "vxlan-dropped-by-fabric": Case(dropped_by_fabric, AROUND_AGENT0, ""),
    "ipip-dropped-by-fabric": Case(dropped_by_fabric, AROUND_AGENT0, "", "swapped-clean"),
    "ip-forward-off": Case(ip_forward_off, ["agent0"], "iptables_forward"),
    "bridge-nf-off": Case(bridge_nf_off, ["agent0"], "iptables_forward"),
    "forward-drop-without-accept": Case(forward_drop_without_accept, ["agent0"], "iptables_forward"),
    "reject-before-accept": Case(reject_before_accept, ["agent0"], "iptables_forward"),
    "nft-and-legacy-mixed": Case(nft_and_legacy_mixed, ["agent0"], ""),
    "accept-before-policy": Case(accept_before_policy, ["agent1"], ""),
    "kube-services-jump-missing": Case(kube_services_jump_missing, ["agent0"], "kube_proxy_resync"),
    "port-dropped-by-host": Case(port_dropped_by_host, ["server0"], ""),
    "etcd-dropped-by-host": Case(etcd_dropped_by_host, ["server0"], ""),
    "conntrack-full": Case(conntrack_full, ["agent0"], "iptables_forward"),
    "reverse-path-filter": Case(reverse_path_filter, ["agent0"], ""),
    "stale-ipvs-device": Case(stale_ipvs_device, ["agent0"], ""),
    "hostport-lost": Case(hostport_lost, ["agent0"], ""),
    "stale-network-policy": Case(stale_network_policy, ["agent1"], ""),
    "servers-disagree": Case(servers_disagree, ["agent1", "server0"], ""),
    "clock-skew": Case(clock_skew, ["agent1"], ""),
    "certificate-expired": Case(certificate_expired, ["agent0"], ""),
    "calico-stale-node": Case(calico_stale_node, ["gone"], "", "swapped-clean", ("node-not-ready",)),
    "calico-wrong-address": Case(calico_wrong_address, ["agent1"], "", "swapped-clean"),
    "ipip-dropped-in-public": Case(ipip_dropped_in_public, AROUND_AGENT0, "", "swapped-clean"),
    "bgp-dropped-by-host": Case(bgp_dropped_by_host, ["agent0"], "ufw", "swapped-clean"),
    "bgp-dropped-by-fabric": Case(bgp_dropped_by_fabric, ["agent1>agent0"], "", "swapped-clean"),
    "no-cluster-routes": Case(no_cluster_routes, ["agent0", "agent1"], "calico_settings", "swapped-clean"),
    "cluster-routes-twice": Case(cluster_routes_twice, ["the cluster"], "calico_settings", "swapped-clean"),
    "calico-routes-missing": Case(calico_routes_missing, ["agent0", "agent1"], "", "swapped-clean"),
    "flannel-leftovers": Case(flannel_leftovers, ["agent0"], "cni_leftovers", "swapped-leftovers"),
    "pool-outside-cluster-cidr": Case(
        pool_outside_cluster_cidr, ["IPPool netmend-ipip"], "calico_settings", "swapped-clean"
    ),
    "two-ipams-overlap": Case(two_ipams_overlap, ["IPPool netmend-ipip"], "", "both-overlays"),
    "cni-config-not-read": Case(cni_config_not_read, ["agent0", "agent1"], "", "both-overlays"),
    "selector-mismatch": Case(selector_mismatch, ["keybuzz/keybuzz-front"], "", edge=True),
    "ingress-endpoints-stale": Case(ingress_endpoints_stale, ["agent1"], "", edge=True),
    "ingress-backend-missing": Case(ingress_backend_missing, ["keybuzz/keybuzz-front"], "", edge=True),
    "readiness-fails": Case(readiness_fails, ["keybuzz/keybuzz-api"], "", edge=True),
    "target-port-mismatch": Case(target_port_mismatch, ["keybuzz/keybuzz-front"], "", edge=True),
    "policy-denies-ingress": Case(policy_denies_ingress, ["keybuzz/keybuzz-api"], "", edge=True),
    "hairpin-off": Case(hairpin_off, ["agent1"], "bridge_hairpin", edge=True),
    "host-port-conflict": Case(host_port_conflict, ["agent1"], "", edge=True),
    "node-port-blocked-for-balancer": Case(node_port_blocked_for_balancer, ["agent0", "agent1"], "ufw", edge=True),
    "external-traffic-policy-local": Case(
        external_traffic_policy_local, ["ingress-nginx/ingress-nginx-controller"], "", edge=True
    ),
    "balancer-checks-wrong-port": Case(balancer_checks_wrong_port, ["lb1"], "", edge=True),
    "proxy-protocol-mismatch": Case(proxy_protocol_mismatch, ["lb1", "lb2"], "", edge=True),
    "ingress-class-mismatch": Case(ingress_class_mismatch, ["keybuzz/keybuzz-front"], "", edge=True),
    "tls-secret-missing": Case(tls_secret_missing, ["keybuzz/keybuzz-api"], "", edge=True),
    "egress-masquerade-missing": Case(egress_masquerade_missing, ["agent1"], "k3s_restart", edge=True),
    "slow-application": Case(slow_application, ["keybuzz/keybuzz-my-ui"], "", edge=True),
    "node-unreachable": Case(node_unreachable, ["agent1"], "", others=("node-not-ready",)),
    "node-not-ready": Case(node_not_ready, ["agent1"], ""),
    "api-unhealthy": Case(api_unhealthy, ["https://10.0.0.100:6443"], ""),
    "endpoint-fails": Case(endpoint_fails, ["default/web"], ""),
    "fails-at-times": Case(fails_at_times, ["agent0"], ""),
    "unexplained": Case(unexplained, ["agent0"], ""),
}


def names(findings):
    return [finding["fault"] for finding in findings]


def test_every_known_fault_is_tested_here():
    assert set(CASES) == set(FAULTS)


@pytest.mark.parametrize("fault", CASES)
def test_a_fault_is_named_first_and_accounts_for_all_that_fails(captured, fault):
    case = CASES[fault]
    bench = prepared(captured(case.state), case)
    failed = case.put_in(bench)
    findings = diagnose(bench.run)
    assert names(findings) == [fault, *case.others]
    finding = findings[0]
    assert sorted(finding["where"]) == sorted(case.where)
    assert finding["remedy"]["role"] == case.role
    assert set(finding["explains"]) == set(failed)
    assert all(sentence.endswith(".") for sentence in finding["evidence"] + finding["ruled_out"])
    assert finding["remedy"]["text"].endswith(".")
    assert 0 < finding["confidence"] <= 1


# What a lost packet is told from is the same as for the others: where one of those is in, it cannot be told.
APART = (
    "vxlan-dropped-by-fabric",
    "ipip-dropped-by-fabric",
    "ipip-dropped-by-host",
    "coredns-unreachable",
    "dns-conntrack-race",
    "node-unreachable",
    "endpoint-fails",
    "fails-at-times",
    "unexplained",
)
HIDDEN = (
    ("firewall-flush", "forward-drop-without-accept"),  # a flush takes the accepts away, too
    ("node-port-blocked-for-balancer", "kubelet-dropped-by-host"),  # nodes are let in before all rules of UFW
    ("accept-before-policy", "stale-network-policy"),  # what is accepted early gets to no policy's chain
)
EDGE = [fault for fault, case in CASES.items() if case.edge]
OF_FLANNEL = [fault for fault, case in CASES.items() if case.state.startswith("flannel") and fault not in APART]
FLANNEL = [fault for fault in OF_FLANNEL if fault not in EDGE]
PAIRS = [pair for pair in itertools.combinations(FLANNEL, 2) if pair not in HIDDEN]


# On Calico: with faults that are the same on every network. Two reasons for one pair's missing routes cannot be told.
CALICO = [fault for fault, case in CASES.items() if case.state == "swapped-clean" and fault not in APART]
ANYWHERE = ("kube-services-jump-missing", "port-dropped-by-host", "node-not-ready", "api-unhealthy")
PAIRS += itertools.product(CALICO, ANYWHERE)
# The edge is before the network: with a fault of each layer behind it, and of two applications.
BEHIND_IT = ("kube-services-jump-missing", "kubelet-dropped-by-host", "node-not-ready")
PAIRS += [pair for pair in itertools.product(EDGE, BEHIND_IT) if pair not in HIDDEN]
PAIRS += itertools.combinations(("selector-mismatch", "readiness-fails", "slow-application", "hairpin-off"), 2)


@pytest.mark.parametrize("pair", PAIRS, ids="+".join)
def test_two_faults_at_once_are_each_found_and_causes_come_first(captured, pair):
    states = {CASES[fault].state for fault in pair}
    bench = captured(next((state for state in ("swapped-clean", "flannel-ufw-blocks") if state in states), "flannel"))
    prepared(bench, *(CASES[fault] for fault in pair))
    failed = [probe for fault in pair for probe in CASES[fault].put_in(bench)]
    findings = diagnose(bench.run)
    found = names(findings)
    assert set(pair) <= set(found)
    assert "unexplained" not in found
    assert {probe for finding in findings for probe in finding["explains"]} == set(failed)
    stages = [FAULTS[finding["fault"]].layer for finding in findings if finding["explains"]]
    assert stages == sorted(stages)


def test_a_fault_of_the_fabric_is_found_beside_one_of_another_node(flannel):
    lost = dropped_by_fabric(flannel)
    for hook in ("PREROUTING", "OUTPUT"):
        flannel.delete("agent1", hook, "KUBE-SERVICES", table="nat")
    flannel.fail(lambda probe: probe["row"] == "host-clusterip" and probe["source_node"] == "agent1")
    findings = diagnose(flannel.run)
    assert names(findings) == ["kube-services-jump-missing", "vxlan-dropped-by-fabric"]
    assert set(lost) <= set(findings[1]["explains"])


def test_the_catalogue_says_the_same_as_the_registry():
    rows = re.findall(r"^\| `([a-z0-9-]+)` \| (\d+|-) \|", CATALOGUE.read_text(), re.M)
    assert dict(rows) == {fault.name: str(fault.number or "-") for fault in FAULTS.values()}
    assert len(rows) == len(FAULTS)
