"""What a node's UFW must let in for K3s, its overlay, the kubelet and the load balancers, and no more.

Only INPUT is asked for here. What goes to ordinary pods, a NodePort's traffic too, has its address changed before
filtering and passes FORWARD: it is let through by KUBE-FORWARD's mark and by the accepts for the pods' addresses, which
are not UFW's. A NodePort, ClusterIP or balancer meets INPUT where its pod is on the host's network, at the pod's port.

A pod that speaks to another node has that node's address by then (FLANNEL-POSTRTG, cali-nat-outgoing masquerade), but
keeps its own towards the node that it is on, or where masquerading is off. So what pods need is opened to both.
SSH is not in here: where it is open is the operator's business.
"""

from __future__ import annotations

import ipaddress
from typing import Any, Dict, Iterable, Iterator, List, Mapping, Sequence, Tuple, TypedDict

from .model import ClusterFacts, Node, NodeFacts, Service

KUBELET = 10250
REGISTRY = 5001  # embedded-registry: nodes hand images to each other
BGP, CALICO_VXLAN, TYPHA = 179, 4789, 5473
FLANNEL_VXLAN, WIREGUARD = 8472, 51820

ALL, NODEPORTS = "all", "nodeports"  # what rules are asked for

Rule = Dict[str, str]  # an element of netmend_ufw's option ``rules``


class Required(TypedDict):
    rules: List[Rule]
    before_rules: List[Dict[str, Any]]  # elements of netmend_ufw's option ``before_rules``


def required_rules(
    cluster: ClusterFacts,
    node: NodeFacts,
    balancers: Sequence[str] = (),
    nodeports_from: Sequence[str] = (),
    scope: str = ALL,
) -> Required:
    """What netmend_ufw is to be given on ``node``.

    ``balancers`` and ``nodeports_from`` are addresses or CIDRs; both reach the NodePorts, balancers an ingress on the
    host's network (80 and 443) too. ``scope`` is ALL, or NODEPORTS for these two alone. Raises ValueError, naming the
    node, where an address or a CIDR is not known.
    """
    here = _here(cluster, node)
    peers = [peer for peer in cluster["nodes"] if peer["name"] != here["name"]]
    _check_addresses(cluster, peers)
    nodes = {peer["name"]: peer["internal_ip"] for peer in peers}
    servers = {peer["name"]: peer["internal_ip"] for peer in peers if peer["role"] == "server"}
    pods = {f"pods-{index}" if index else "pods": cidr for index, cidr in enumerate(_pod_cidrs(cluster))}
    edge = _labelled(balancers)
    outside = {**edge, **_labelled(nodeports_from)}
    config = node["k3s"]["config"]
    services = [service for service in cluster["services"] if scope == ALL or _is_exposed(service)]
    served = [
        *_service_rules(services, here, inside={**nodes, **pods}, servers=servers, outside=outside),
        *_ingress_rules(cluster, here, edge),
    ]
    if scope == NODEPORTS:
        return Required(rules=_once(served), before_rules=[])

    rules = [*_allow("kubelet", KUBELET, {**nodes, **pods})]
    if here["role"] == "server":
        rules += _allow("api", config.get("https-listen-port") or 6443, {**nodes, **pods})
        if not config.get("datastore-endpoint"):
            rules += _allow("etcd", "2379:2380", servers)
    if config.get("embedded-registry"):
        rules += _allow("registry", REGISTRY, nodes)
    for name, port in _flannel(cluster, node, here).items():
        rules += _allow(name, port, nodes, "udp")
    pools = [pool.get("spec", pool) for pool in _calico(cluster, "ippools")]
    if pools:
        rules += _calico_rules(cluster, pools, nodes)

    ipip = any(pool.get("ipipMode", "Never") != "Never" for pool in pools)
    sources = [address for address in nodes.values() if _version(address) == 4]
    lines = [f"-A ufw-before-input -p 4 -s {address}/32 -j ACCEPT" for address in sources]
    return Required(
        rules=_once([*rules, *served]), before_rules=[{"name": "ipip", "lines": lines}] if ipip and lines else []
    )


# --- details --------------------------------------------------------------------------------------------------------


def _allow(what: str, port: Any, sources: Mapping[str, str], protocol: str = "tcp") -> Iterator[Rule]:
    for name, source in sources.items():
        yield {"name": f"{what}-from-{name}", "rule": "allow", "proto": protocol, "from": source, "port": str(port)}


def _here(cluster: ClusterFacts, node: NodeFacts) -> Node:
    for one in cluster["nodes"]:
        if one["name"] == node["name"]:
            return one
    raise ValueError(f"node {node['name']} is not in the cluster: its nodes are {_names(cluster['nodes'])}")


def _check_addresses(cluster: ClusterFacts, peers: Sequence[Node]) -> None:
    nowhere = [peer for peer in peers if not peer["internal_ip"]]
    if nowhere:
        raise ValueError(f"no InternalIP is known for node {_names(nowhere)}")
    if not cluster["cluster_cidr"]:
        raise ValueError("the cluster's pod CIDR is not known")


def _names(nodes: Iterable[Node]) -> str:
    return ", ".join(sorted(node["name"] for node in nodes)) or "none"


def _pod_cidrs(cluster: ClusterFacts) -> List[str]:
    """The pod CIDR, one each for IPv4 and IPv6, and Calico's pools that lie outside."""
    cidrs = cluster["cluster_cidr"].split(",")
    pools = [pool.get("spec", pool) for pool in _calico(cluster, "ippools")]
    for cidr in sorted(pool["cidr"] for pool in pools if not pool.get("disabled")):
        if not any(_inside(cidr, wide) for wide in cidrs):
            cidrs.append(cidr)
    return cidrs


def _flannel(cluster: ClusterFacts, node: NodeFacts, here: Node) -> Dict[str, int]:
    """The ports that Flannel's tunnel comes in at.

    What the node has counts. The annotation is there before the tunnel is, but stays when another overlay took over.
    """
    backend = here["annotations"].get("flannel.alpha.coreos.com/backend-type", "")
    expected = "" if _calico(cluster, "ippools") else backend
    devices = {interface["name"]: interface for interface in node["interfaces"]}
    ports = {}
    if "flannel.1" in devices or expected == "vxlan":
        info = devices["flannel.1"]["info"] if "flannel.1" in devices else {}
        ports["flannel-vxlan"] = int(info.get("port") or FLANNEL_VXLAN)
    if "flannel-wg" in devices or expected == "wireguard":
        ports["flannel-wireguard"] = WIREGUARD
    return ports


def _calico(cluster: ClusterFacts, kind: str) -> List[Dict[str, Any]]:
    return list(cluster["calico"].get(kind) or [])


def _calico_rules(
    cluster: ClusterFacts, pools: Sequence[Mapping[str, Any]], nodes: Mapping[str, str]
) -> Iterator[Rule]:
    felix = [config.get("spec", config) for config in _calico(cluster, "felixconfigurations")]
    # Felix can program IPIP's routes itself (3.31 and later); everything that is not VXLAN needs BIRD otherwise.
    felix_routes = any(config.get("programClusterRoutes") == "Enabled" for config in felix)
    by_bgp = [pool for pool in pools if pool.get("vxlanMode", "Never") == "Never"]
    if any(not felix_routes or pool.get("ipipMode", "Never") == "Never" for pool in by_bgp):
        yield from _allow("bgp", BGP, nodes)
    if len(by_bgp) < len(pools):
        yield from _allow("calico-vxlan", CALICO_VXLAN, nodes, "udp")
    if any(config.get("wireguardEnabled") for config in felix):
        yield from _allow("calico-wireguard", WIREGUARD, nodes, "udp")
    if any(pod["labels"].get("k8s-app") == "calico-typha" for pod in cluster["pods"]):
        yield from _allow("typha", TYPHA, nodes)


def _is_exposed(service: Service) -> bool:
    return service["type"] in ("NodePort", "LoadBalancer")


def _service_rules(
    services: Iterable[Service],
    here: Node,
    *,
    inside: Mapping[str, str],
    servers: Mapping[str, str],
    outside: Mapping[str, str],
) -> Iterator[Rule]:
    """For Services whose pods are on this node's own network."""
    for service in services:
        if (service["namespace"], service["name"]) == ("default", "kubernetes"):
            continue
        webhook = all("webhook" in f"{port.get('name')} {port['targetPort']}" for port in service["ports"])
        # Only API servers call webhooks.
        sources = {**(servers if webhook else inside), **(outside if _is_exposed(service) else {})}
        for end in service["endpoints"]:
            # A port that the pod does not name, as after a webhook that is off again, has no number.
            if end["ip"] == here["internal_ip"] and end["port"]:
                protocol = end["protocol"].lower()
                yield from _allow(f"{protocol}-{end['port']}", end["port"], sources, protocol)


def _ingress_rules(cluster: ClusterFacts, here: Node, balancers: Mapping[str, str]) -> Iterator[Rule]:
    for pod in cluster["pods"]:
        if pod["host_network"] and pod["node"] == here["name"]:
            for port in pod["ports"]:
                if port["port"] in (80, 443):
                    yield from _allow(f"tcp-{port['port']}", port["port"], balancers)


def _once(rules: Iterable[Rule]) -> List[Rule]:
    """One rule for the same packets: a port can be needed for more than one reason."""
    kept: Dict[Tuple[str, str, str], Rule] = {}
    for rule in rules:
        kept.setdefault((rule["proto"], rule["from"], rule["port"]), rule)
    return list(kept.values())


def _labelled(sources: Iterable[str]) -> Dict[str, str]:
    """Name for a rule -> address or CIDR."""
    networks = [ipaddress.ip_network(source) for source in sources]
    plain = [str(network[0] if network.num_addresses == 1 else network) for network in networks]
    return {source.replace("/", "-"): source for source in plain}


def _inside(narrow: str, wide: str) -> bool:
    one, other = ipaddress.ip_network(narrow), ipaddress.ip_network(wide)
    return one.version == other.version and one.subnet_of(other)  # type: ignore[arg-type]  # one version


def _version(address: str) -> int:
    return ipaddress.ip_address(address).version
