"""Runs made of what real machines showed, to put faults into."""

from __future__ import annotations

import copy
import ipaddress
import json

import pytest
from ansible.module_utils.netmend.edge import Edge, plan_edge
from ansible.module_utils.netmend.model import CONTROLLER
from ansible.module_utils.netmend.overlays import evaluate
from ansible.module_utils.netmend.parse import cluster, ip, k3s, proc, ufw
from ansible.module_utils.netmend.parse.iptables import parse_rule, parse_save
from ansible.module_utils.netmend.plan import plan_matrix

STATES = ("flannel", "flannel-ufw-blocks", "both-overlays", "swapped-leftovers", "swapped-clean")
NODES = ("server0", "agent0", "agent1")
NOW = 1795250021.0  # when the machines were captured
DNS_NODE = "server0"
INGRESS = ("agent0", "agent1")  # where its controller is, and the applications
# Name -> host, port, path of the readinessProbe.
APPLICATIONS = {
    "keybuzz-api": ("platform-api.keybuzz.io", 8080, "/health"),
    "keybuzz-front": ("platform.keybuzz.io", 3000, "/"),
    "keybuzz-my-ui": ("my.keybuzz.io", 80, "/"),
}
BALANCERS = {"lb1": "203.0.113.201", "lb2": "203.0.113.202"}
BALANCER_SOURCES = ["10.0.0.5", "10.0.0.6"]


class Bench:
    """A run, and the ways to break it. Every probe passes until it is said to fail."""

    def __init__(self, directory, pods="10.42.0.0/16", services="10.43.0.0/16"):
        self.members = [cluster.node(item) for item in _items(directory, "nodes")]
        self.pods = [cluster.pod(item) for item in _items(directory, "pods")]
        self.run = {
            "expected_nodes": list(NODES),
            "nodes": {node: _facts(directory / node, node, self.pods) for node in NODES},
            "cluster": {
                "version": "v1.36.3+k3s1",
                "api": {"livez": "ok", "readyz": "ok", "etcd": "ok", "server": "https://10.0.0.100:6443"},
                "cluster_cidr": pods,
                "service_cidr": services,
                "dns_ip": "",
                "nodes": self.members,
                "pods": self.pods,
                "services": cluster.services(_items(directory, "services"), _items(directory, "endpointslices")),
                "network_policies": [],
                "secrets": {},
                **{key: [] for key in ("ingresses", "ingress_classes", "daemonsets", "errors")},
                "calico": _calico(directory),
                "ingress_nginx": {},
            },
        }
        self.ends = {"default/web": set(NODES)}  # Service -> the nodes that its endpoints are on
        self.plan()

    def with_dns(self):
        """Lets CoreDNS run, which the captured clusters went without, and plans anew."""
        address = str(ipaddress.ip_network(self.member(DNS_NODE)["pod_cidr"])[200])
        self.pods.append(
            {
                "namespace": "kube-system", "name": "coredns-1", "uid": "uid-coredns", "node": DNS_NODE, "ip": address,
                "host_network": False, "ready": True, "phase": "Running", "reason": "", "owner": "Deployment/coredns",
                "labels": {"k8s-app": "kube-dns"}, "unscheduled": "", "meant_for": "", "readiness": {},
                "ports": [{"name": "", "port": 53, "protocol": "TCP", "hostPort": 0}],
            }
        )  # fmt: skip
        self.run["cluster"]["dns_ip"] = "10.43.0.10"
        self.run["cluster"]["services"].append(
            {
                "namespace": "kube-system", "name": "kube-dns", "type": "ClusterIP", "cluster_ip": "10.43.0.10",
                "selector": {"k8s-app": "kube-dns"}, "external_traffic_policy": "", "health_check_node_port": 0,
                "ports": [
                    {"name": name, "port": 53, "targetPort": 53, "nodePort": 0, "protocol": protocol}
                    for name, protocol in (("dns", "UDP"), ("dns-tcp", "TCP"))
                ],
                "endpoints": [
                    {"ip": address, "node": DNS_NODE, "port": 53, "protocol": protocol, "ready": True,
                     "pod": "kube-system/coredns-1"}
                    for protocol in ("UDP", "TCP")
                ],
            }
        )  # fmt: skip
        self.ends["kube-system/kube-dns"] = {DNS_NODE}
        self.plan()

    def with_edge(self):
        """An ingress on both agents, three applications behind it and two balancers in front, and plans anew."""
        run = self.run["cluster"]
        self.application("web")["ports"][0]["nodePort"] = 30095  # as captured, it has the ingress's
        run["ingress_classes"] = [{"name": "nginx", "controller": "k8s.io/ingress-nginx", "default": False}]
        labels = {"app.kubernetes.io/name": "ingress-nginx", "app.kubernetes.io/component": "controller"}
        ports = {"http": 80, "https": 443}
        controllers = [
            self.pod(node, "ingress-nginx", f"ingress-nginx-controller-{node}", labels, ports=ports, host_network=True)
            for node in INGRESS
        ]
        node_ports = [("http", 80, "http", 31695), ("https", 443, "https", 32720)]
        self.service(
            "ingress-nginx", "ingress-nginx-controller", labels, controllers, address="10.43.0.200", ports=node_ports
        )
        for number, (name, (host, port, path)) in enumerate(APPLICATIONS.items()):
            of_it = {"ports": {"http": port}, "path": path, "number": number}
            pods = [self.pod(node, "keybuzz", f"{name}-{node}", {"app": name}, **of_it) for node in INGRESS]
            address = f"10.43.0.{210 + number}"
            self.service("keybuzz", name, {"app": name}, pods, address=address, ports=[("http", 80, port, 0)])
            tls = [{"hosts": [host], "secret": f"{name}-tls"}] if name == "keybuzz-api" else []
            run["ingresses"].append(
                {
                    "namespace": "keybuzz", "name": name, "class": "nginx", "tls": tls, "protocol": "HTTP",
                    "addresses": [self.member(node)["internal_ip"] for node in INGRESS],
                    "paths": [{"host": host, "path": "/", "service": name, "port": 80}],
                }
            )  # fmt: skip
            self.ends[f"keybuzz/{name}"] = set(INGRESS)
        run["secrets"] = {"keybuzz/keybuzz-api-tls": "kubernetes.io/tls"}
        targets = [{"address": self.member(node)["internal_ip"], "status": {}} for node in INGRESS]
        self.run["balancers"] = [
            {
                "name": name, "address": address, "private": True, "targets": targets,
                "services": [
                    {"protocol": "tcp", "listen_port": listen, "destination_port": port, "proxy_protocol": False,
                     "health": {"protocol": "tcp", "port": port, "path": "", "codes": []}}
                    for listen, port in ((80, 31695), (443, 32720))
                ],
            }
            for name, address in BALANCERS.items()
        ]  # fmt: skip
        self.run["balancer_sources"] = BALANCER_SOURCES
        self.plan()

    def pod(self, node, namespace, name, labels, *, ports, path="", number=0, host_network=False):
        """A Ready pod, with a process that listens on its ports."""
        network = ipaddress.ip_network(self.member(node)["pod_cidr"])
        pod = {
            "namespace": namespace, "name": name, "uid": f"uid-{name}", "node": node, "labels": labels,
            "ip": self.member(node)["internal_ip"] if host_network else str(network[210 + number]),
            "host_network": host_network, "ready": True, "phase": "Running", "reason": "",
            "owner": f"Deployment/{name.removesuffix(f'-{node}')}", "unscheduled": "", "meant_for": "",
            "ports": [{"name": key, "port": port, "protocol": "TCP", "hostPort": port if host_network else 0}
                      for key, port in ports.items()],
            "readiness": {"path": path, "port": next(iter(ports.values())), "scheme": "HTTP"} if path else {},
        }  # fmt: skip
        self.pods.append(pod)
        if not host_network:
            listens = [f"0.0.0.0:{port}" for port in ports.values()]
            self.node(node)["pods"].append({"uid": pod["uid"], "pid": 200 + number, "netns": 2, "listens": listens})
        return pod

    def service(self, namespace, name, selector, pods, *, address, ports):
        service = {
            "namespace": namespace, "name": name, "selector": selector, "cluster_ip": address,
            "type": "NodePort" if ports[0][3] else "ClusterIP", "external_traffic_policy": "Cluster",
            "health_check_node_port": 0,
            "ports": [{"name": key, "port": port, "targetPort": target, "nodePort": node_port, "protocol": "TCP"}
                      for key, port, target, node_port in ports],
            "endpoints": [
                {"ip": pod["ip"], "node": pod["node"], "protocol": "TCP", "ready": True,
                 "pod": f"{namespace}/{pod['name']}",
                 "port": next(each["port"] for each in pod["ports"] if target in (each["port"], each["name"]))}
                for _, _, target, _ in ports for pod in pods
            ],
        }  # fmt: skip
        self.run["cluster"]["services"].append(service)

    def fail_sites(self, name, status, seconds=0.0, **more):
        """Lets the requests fail that an ingress is to hand on to an application."""
        return self.fail(
            lambda probe: probe["row"] in ("edge-balancer", "edge-node") and is_about(probe, name),
            "http", **{"status": status, "detail": f"status {status}", "rtt_ms": 1000 * seconds + 4.0, **more},
        )  # fmt: skip

    def fail_rows(self, name, *rows, outcome="refused", **more):
        """Lets the probes of these rows fail that are about an application."""
        return self.fail(lambda probe: probe["row"] in rows and is_about(probe, name), outcome, **more)

    def application(self, name):
        return next(each for each in self.run["cluster"]["services"] if each["name"] == name)

    def pods_of(self, name):
        return [pod for pod in self.pods if pod["labels"].get("app") == name]

    def plan(self):
        """Plans the matrix, and lets every probe pass that did not fail before."""
        before = self.run.get("results", {})
        seen = {each["id"]: each for result in before.values() for each in result["observations"]}
        self.run["probes"] = plan_matrix(self.run["nodes"], self.run["cluster"])
        self.run["probes"] += plan_edge(self.run["nodes"], Edge(self.run["cluster"], self.run.get("balancers", [])))
        self.run["results"] = {
            node: {"node": node, "moved": [], "observations": [], "risen": before.get(node, {}).get("risen", {})}
            for node in [*self.run["nodes"], CONTROLLER]
        }
        for probe in self.run["probes"]:
            observation = seen.get(probe["id"], _passing(probe))
            self.run["results"][probe["source_node"]]["observations"].append(observation)
        edge = Edge(self.run["cluster"])
        ends = {site.upstream: [f"{end['ip']}:{end['port']}" for end in edge.endpoints(site) if end["ready"]]
                for site in edge.sites}  # fmt: skip
        self.run["controllers"] = {
            pod["node"]: [
                {"pod": f"ingress-nginx/{pod['name']}", "seconds": 300.0, "errors": {},
                 "endpoints": copy.deepcopy(ends),
                 "log": {"answers": {name: {"200": 20} for name in ends}, "tries": {}, "failures": {}}}
            ]
            for pod in edge.controllers
        }  # fmt: skip

    def fail(self, when, outcome="timeout", **more):
        """Lets those probes fail for which ``when(probe)`` is true, and returns their ids. ``more`` is also seen."""
        failed = [probe["id"] for probe in self.run["probes"] if when(probe)]
        assert failed, "a fault that no probe sees"
        for result in self.run["results"].values():
            for observation in result["observations"]:
                if observation["id"] in failed:
                    observation.update(outcome=outcome, **more)
        return failed

    def member(self, name):
        return next(member for member in self.members if member["name"] == name)

    def node(self, name):
        return self.run["nodes"][name]

    def chain(self, node, chain, table="filter", backend="nft"):
        tables = self.node(node)["iptables"][backend]
        chains = tables.setdefault(table, {})
        return chains.setdefault(chain, {"policy": "ACCEPT", "packets": 0, "bytes": 0, "rules": []})

    def insert(self, node, chain, spec, *, table="filter", backend="nft", packets=0, number=1):
        self.chain(node, chain, table, backend)["rules"].insert(number - 1, parse_rule(spec, packets))

    def delete(self, node, chain, target, table="filter"):
        """Deletes the rules that jump to the target."""
        rules = self.chain(node, chain, table)["rules"]
        kept = [rule for rule in rules if rule["target"] != target]
        assert kept != rules
        rules[:] = kept

    def deny(self, node, port):
        """Takes away what UFW allows to a port."""
        rules = self.chain(node, "ufw-user-input")["rules"]
        rules[:] = [rule for rule in rules if rule["matches"].get("dport") != port]

    def drop_by_policy(self, node, chain, packets=0):
        self.chain(node, chain).update(policy="DROP", packets=packets)

    def lose(self, node, counter, packets):
        """Lets a counter of the kernel's lost packets rise while the node was probing."""
        self.run["results"][node]["risen"][counter] = packets

    def enable_ufw(self, node, **settings):
        self.node(node)["ufw"].update(installed=True, enabled=True, **settings)

    # --- Calico ---

    def run_calico(self, backend="none", version="v3.32.1", **settings):
        """By a DaemonSet, which the captured clusters did not have; settings: programClusterRoutes of felix, bird."""
        calico = self.run["cluster"]["calico"]
        calico["node"] = {
            **{"namespace": "kube-system", "name": "calico-node", "desired": 3, "ready": 3, "version": version},
            **{"backend": backend, "autodetection": "kubernetes-internal-ip", "program_cluster_routes": ""},
        }
        for kind, who in (("felixconfigurations", "felix"), ("bgpconfigurations", "bird")):
            if who in settings:
                calico[kind] = [{"name": "default", "programClusterRoutes": settings[who]}]

    def address(self, **addresses):
        """What Calico found as the nodes' addresses, and every node knows of."""
        for node in self.members:
            if node["name"] in addresses:
                node["annotations"]["projectcalico.org/IPv4Address"] = f"{addresses[node['name']]}/32"
        known = [node["annotations"]["projectcalico.org/IPv4Address"].partition("/")[0] for node in self.members]
        for facts in self.run["nodes"].values():
            facts["ipsets"]["cali40all-hosts-net"] = known

    def unroute(self, node, *peers):
        """Takes away the node's routes to the peers' blocks."""
        affinities = self.run["cluster"]["calico"]["blockaffinities"]
        blocks = [affinity["cidr"] for affinity in affinities if affinity["node"] in peers]
        routes = self.node(node)["routes"]
        kept = [route for route in routes if route["destination"] not in blocks]
        assert len(kept) < len(routes)
        routes[:] = kept

    # --- what probes do ---

    def involves(self, *nodes):
        """Whether a probe starts at one of the nodes, asks a port of one, or may end there."""

        def does(probe):
            ends = {node for pair in self.crossings(probe) for node in pair}
            if probe.get("target_service") == "default/kubernetes":
                ends.add("server0")
            return bool(set(nodes) & ({probe["source_node"], probe.get("target_node")} | ends))

        return does

    def crossings(self, probe):
        """The pairs of nodes between which the overlay carries the probe, on any of its ways to a pod."""
        if probe.get("target_pod"):
            ends, via = {probe["target_node"]}, probe["source_node"]
        elif probe.get("target_service") in self.ends:
            ends, via = self.ends[probe["target_service"]], probe.get("target_node") or probe["source_node"]
        else:
            return set()
        return {(via, end) for end in ends if end != via}

    def crosses(self, *nodes):
        """Whether a probe needs the overlay at one of the nodes."""
        return lambda probe: any(set(nodes) & set(pair) for pair in self.crossings(probe))

    def between(self, *pair):
        """Whether a probe needs the overlay between these two nodes."""
        return lambda probe: any(set(pair) == set(crossing) for crossing in self.crossings(probe))

    def forwarded_at(self, node):
        """Whether a probe needs the node to forward."""

        def needs(probe):
            by_node_port = probe["row"] == "node-nodeport" and probe["target_node"] == node != probe["source_node"]
            leaves = probe.get("source_pod") and probe["source_node"] == node and not _stays(probe)
            return bool(by_node_port or leaves or any(end == node for _, end in self.crossings(probe)))

        return needs


def is_about(probe, name):
    return probe.get("backend", "").startswith(f"keybuzz/{name}:")


def _passing(probe):
    observation = {"id": probe["id"], "outcome": "ok", "detail": ""}
    if probe["protocol"] in ("http", "https"):
        observation.update(status=200, detail="status 200", rtt_ms=12.0)
    if probe["protocol"] == "https":
        names = {"subject": probe["name"], "issuer": "R11", "names": [probe["name"]], "not_after": NOW + 5e6}
        observation["certificate"] = names
    return observation


def _stays(probe):
    """The API server's endpoint is the host of server0."""
    return probe["source_node"] == "server0" and probe.get("target_service") == "default/kubernetes"


def _facts(directory, name, pods):
    def text(file):
        path = directory / file
        return path.read_text() if path.exists() else ""

    return {
        "name": name,
        "interfaces": ip.interfaces(text("ip-link.json"), text("ip-addr.json")),
        "routes": ip.routes(text("ip-route-all.json")),
        "neighbours": ip.neighbours(text("ip-neigh.json")),
        "fdb": ip.fdb(text("bridge-fdb.json")),
        "sysctls": dict(line.split(" = ") for line in text("sysctl.txt").splitlines()),
        "iptables": {"backend": "nft", "version": "1.8.11", "nft": parse_save(text("iptables-save.txt")), "legacy": {}},
        "ipsets": proc.ipsets(text("ipset.txt")),
        "ufw": {
            "installed": True,
            "enabled": text("ufw-status-verbose.txt").startswith("Status: active"),
            "manage_builtins": False,
            "rules": ufw.user_rules(text("ufw-user.rules.txt")),
        },
        "nft_tables": [],
        "conntrack": {"count": 340, "max": 131072},
        "sockets": proc.sockets(text("ss.txt")),
        "time": NOW,
        "clock": {"synchronized": True, "source": "chrony"},
        "certificates": [],
        "unconfirmed": [],
        "errors": [],
        "k3s": _k3s(directory, name),
        "cni": _cni(directory, text("containerd-config.toml")),
        **{"bgp": [], "flannel": [], "calico": []},
        "pods": [{"uid": pod["uid"], "pid": 100, "netns": 1} for pod in pods if pod["node"] == name],
    }


def _k3s(directory, name):
    paths = sorted((directory / "rancher").rglob("*.yaml"), key=lambda path: (len(path.parts), path.name))
    config, _ = k3s.effective([(str(path), k3s.parse_config(path.read_text(), str(path))) for path in paths], [], {})
    unit = "k3s.service" if name.startswith("server") else "k3s-agent.service"
    return {"role": name[:-1], "unit": unit, "config": config, "sources": {}, "files": {}}


def _cni(directory, containerd):
    conf_dir, bin_dirs = k3s.containerd_cni(containerd)
    folder = directory / ("cni-etc" if conf_dir == "/etc/cni/net.d" else "cni")
    networks = {path.name: json.loads(path.read_text()) for path in sorted(folder.iterdir())}
    image = k3s.pause_image(containerd)
    return {"conf_dir": conf_dir, "bin_dirs": bin_dirs, "pause_image": image, "networks": networks}


def _calico(directory):
    """As captured, where it ran as plain units: without a DaemonSet."""
    kinds = [kind for kind in ("ippools", "felixconfigurations", "blockaffinities") if _has(directory, kind)]
    return {kind: [cluster.custom(item) for item in _items(directory, kind)] for kind in kinds}


def _has(directory, kind):
    path = directory / f"server0/k8s-{kind}.json"
    return path.exists() and path.stat().st_size > 0


def _items(directory, kind):
    return json.loads((directory / f"server0/k8s-{kind}.json").read_text())["items"]


@pytest.fixture(scope="session")
def benches(fixtures, tmp_path_factory):
    captured = {state: fixtures / "k3s-1.36.3" / state for state in STATES}
    other = _with_other_networks(captured["swapped-clean"], tmp_path_factory.mktemp("captured"))
    return {
        **{state: Bench(directory) for state, directory in captured.items()},
        "other-networks": Bench(other, "10.233.0.0/16", "10.110.0.0/16"),
    }


def _with_other_networks(captured, directory):
    """The same cluster with the networks that the operators have on Calico."""
    for path in captured.rglob("*"):
        if path.is_file():
            copy_of = directory / path.relative_to(captured)
            copy_of.parent.mkdir(parents=True, exist_ok=True)
            copy_of.write_text(path.read_text().replace("10.42.", "10.233.").replace("10.43.", "10.110."))
    return directory


@pytest.fixture
def captured(benches):
    """A run with all probes passing, on what a captured state's machines showed."""
    return lambda state: copy.deepcopy(benches[state])


@pytest.fixture
def measured(underlay_reports):
    """Puts the underlay into a run; lost, host: (sender, receiver, kind) that do not arrive, that it drops itself."""

    def measure(bench, lost=(), host=()):
        addresses = {node["name"]: node["internal_ip"] for node in bench.members}
        reports = underlay_reports(addresses)
        for sender, receiver, kind in lost:
            reports[receiver]["heard"][sender]["kinds"][kind] = {"arrived": 0, "accepted": 0}
        for sender, receiver, kind in host:
            reports[receiver]["heard"][sender]["kinds"][kind]["accepted"] = 0
        bench.run["underlay"] = evaluate(reports, {})

    return measure


@pytest.fixture
def flannel(captured):
    return captured("flannel")


@pytest.fixture
def calico(captured):
    return captured("swapped-clean")
