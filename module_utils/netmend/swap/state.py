"""Where a swap stands, as the nodes and the cluster show it now. Nothing is remembered from run to run. Pure."""

from __future__ import annotations

import re
from typing import Any, Dict, Iterable, Iterator, List, Mapping, Tuple, TypedDict

from ..diagnose.calico_view import ENDED, View, of_flannel
from ..diagnose.case import Case, contains
from ..diagnose.control_plane import setting
from ..diagnose.firewall import KUBE_ROUTER, policy_controller_is_off
from ..model import ClusterFacts, Interface, Node, NodeFacts, Pod, Route, Rule, Run
from ..ordered import TAG
from ..parse.k3s import CNI_CONF_DIR
from ..without_flannel import DROP_IN, WANTED

FLANNEL_ANNOTATION = "flannel.alpha.coreos.com/"
FLANNEL_CHAINS = ("FLANNEL-",)
# Rules in chains of others that lead into none of their makers' own: by their comments.
FLANNEL_COMMENTS = ("flanneld forward", "flanneld masq")  # before it had chains
KUBE_ROUTER_COMMENT = "KUBE-ROUTER rule"
KUBE_ROUTER_SETS = re.compile(r"(inet6:)?KUBE-(SRC|DST)-")  # pkg/controllers/netpol of cloudnativelabs/kube-router
BRIDGE = "cni0"

CALICO_ANNOTATION = "projectcalico.org/"
CALICO_CHAINS = ("cali-",)
# Felix's own rules in chains of others, and the one that lets pods of both networks meet while Flannel runs.
CALICO_COMMENTS = ("cali:", f"{TAG}calico-beside-flannel")
CALICO_SETS = "cali4"  # cali40, and cali4t while Felix fills one anew
CALICO_ROUTES = ("80", "bird")  # who made them, as ip route calls it: Felix, BIRD
CALICO_VETH = re.compile(r"cali[0-9a-f]{11}")  # on the host, of a pod
CALICO_CONDITION = "NetworkUnavailable"


class Setting(TypedDict):
    value: str
    source: str  # a file, "ExecStart", "environment", "K3s's default"; for an agent "the servers"


class Leftovers(TypedDict):
    """What is there of a network of pods; as long as a node uses that network, it is in use."""

    devices: List[str]
    addresses: List[str]  # as ip address takes them; of devices that stay, and are taken down
    attached: List[str]  # interfaces of pods that have it
    routes: List[str]  # as ip route takes them
    fdb: List[str]  # as bridge fdb takes them
    chains: Dict[str, List[str]]  # "nft filter" -> names
    rules: Dict[str, List[str]]  # "nft filter" -> those in other chains, as iptables-save prints them
    ipsets: List[str]
    files: List[str]
    annotations: List[str]  # names, of the Node
    conditions: List[str]  # types, of the Node's status


class NodeState(TypedDict):
    role: str
    conf_dir: str  # where containerd looks for its network; "" unknown
    flipped: bool  # that is where Calico's is
    settings: Dict[str, Setting]  # flannel-backend and disable-network-policy
    drop_in: str  # a server's: "" for none, "waits" for a start of K3s, "overridden", "in force"
    calico_ready: bool  # of the pod calico-node
    canary: bool  # an agent whose Flannel was given Calico's configuration
    tunnel: str  # Calico's device with an address of a pool; "" for none
    unrouted: List[str]  # nodes to whose pods Calico has no routes here
    leftovers: Leftovers  # of Flannel and of K3s's policy controller
    calico: Leftovers


class State(TypedDict):
    """``phase`` is one of these, in their order:

    none: no Calico. installed: beside Flannel, which all nodes still use. flipping: some nodes are flipped, or about to
    be. pods: all are, and some pods have addresses of before. leftovers: of Flannel or the policy controller. done.

    ``back`` is where a swap back stands. flipping: some nodes are not to use Flannel, or have not begun to. pods: all
    use it, and some pods have addresses of before. calico: its objects are in the cluster. leftovers: on nodes. done.
    """

    phase: str
    back: str
    pools: List[Dict[str, Any]]  # Calico's that give addresses: name and spec
    felix: Dict[str, Any]  # FelixConfiguration default: name and spec
    nodes: Dict[str, NodeState]  # those with facts
    flipped: List[str]
    unflipped: List[str]  # nodes without facts among them
    pods: Dict[str, List[str]]  # calico, flannel, other -> "namespace/name" of those with an address of their own
    backwards: List[str]  # sentences: what shows that a swap from Calico to Flannel is under way


def read(nodes: Mapping[str, NodeFacts], cluster: ClusterFacts) -> State:
    case = case_of(nodes, cluster)
    view = View(case)
    felix = (each for each in cluster["calico"].get("felixconfigurations", []) if each["name"] == "default")
    found = {name: _node(view, name) for name in case.members if name in nodes}
    pods = _pods(view)
    flipped = [name for name in case.members if name in found and found[name]["flipped"]]
    unflipped = [name for name in case.members if name not in flipped]
    return State(
        phase=_phase(view, found, pods, flipped),
        back=_back(view, found, pods),
        pools=view.pools,
        felix=next(felix, {}),
        nodes=found,
        flipped=flipped,
        unflipped=unflipped,
        pods={network: [f"{pod['namespace']}/{pod['name']}" for pod in each] for network, each in pods.items()},
        backwards=list(_backwards(view, found, pods["calico"])) if view.pools else [],
    )


def case_of(nodes: Mapping[str, NodeFacts], cluster: ClusterFacts) -> Case:
    """The facts as diagnosis indexes them, without probes."""
    return Case(Run(expected_nodes=list(nodes), nodes=dict(nodes), cluster=cluster, probes=[], results={}))


def left(state: State) -> List[str]:
    """Pods that are not on Calico's network, and would be if they were made anew."""
    return [*state["pods"]["flannel"], *state["pods"]["other"]]


def left_back(state: State) -> List[str]:
    """Pods that are not on Flannel's network, and would be if they were made anew."""
    return [*state["pods"]["calico"], *state["pods"]["other"]]


def is_set(node: NodeState) -> bool:
    """Whether a server's configuration is as the drop-in wants it, whatever says so."""
    return all(node["settings"][key]["value"] == value for key, value in WANTED.items())


def is_back(node: NodeState) -> bool:
    """Whether Flannel gives pods their addresses there, and goes on to after another start."""
    return not node["flipped"] and not node["drop_in"] and not node["canary"]


def is_canary(facts: NodeFacts) -> bool:
    """Whether an agent's Flannel was given another network's configuration to try (docs.k3s.io/cli/agent)."""
    return "flannel-cni-conf" in facts["k3s"]["config"]


def has_leftovers(leftovers: Leftovers) -> bool:
    return any(leftovers.values())


def _phase(view: View, nodes: Dict[str, NodeState], pods: Dict[str, List[Pod]], flipped: List[str]) -> str:
    if not view.pools and not view.node:
        return "none"
    drop_ins = {node["drop_in"] for node in nodes.values()}
    if not flipped and drop_ins <= {""}:
        return "installed"
    if len(flipped) < len(view.case.members) or drop_ins & {"waits", "overridden"}:
        return "flipping"
    if pods["flannel"] or pods["other"]:
        return "pods"
    return "leftovers" if any(has_leftovers(node["leftovers"]) for node in nodes.values()) else "done"


def _back(view: View, nodes: Dict[str, NodeState], pods: Dict[str, List[Pod]]) -> str:
    if not all(name in nodes and is_back(nodes[name]) for name in view.case.members):
        return "flipping"
    objects = bool(view.case.cluster["calico"])
    if not objects and not any(has_leftovers(node["calico"]) for node in nodes.values()):
        return "done"
    if pods["calico"] or pods["other"]:
        return "pods"
    return "calico" if objects else "leftovers"


def _backwards(view: View, nodes: Dict[str, NodeState], on_calico: List[Pod]) -> Iterator[str]:
    """Forwards, every server is flipped before any agent, and a node has pods on Calico only once it is flipped."""
    servers = {name: node for name, node in nodes.items() if node["role"] == "server"}
    waiting = [name for name, node in servers.items() if not node["flipped"]]
    for name, node in nodes.items():
        backend = node["settings"]["flannel-backend"]
        if name in servers and node["flipped"] and backend["value"] != "none":
            yield f"{name} runs without Flannel, and flannel-backend is {backend['value']} ({backend['source']})"
        if node["role"] == "agent" and node["flipped"] and waiting:
            yield f"the agent {name} runs without Flannel, and the server {waiting[0]} with it"
        count = sum(pod["node"] == name for pod in on_calico)
        if count and not node["flipped"] and not is_canary(view.case.nodes[name]):
            yield f"{name} runs Flannel, and has {count} pods with addresses of Calico's"


def _pods(view: View) -> Dict[str, List[Pod]]:
    """Pods with an address of their own, by the network that it is of."""
    found: Dict[str, List[Pod]] = {"calico": [], "flannel": [], "other": []}
    for pod in view.case.pods.values():
        if not pod["host_network"] and pod["ip"] and pod["phase"] not in ENDED:
            found[_network(view, pod)].append(pod)
    return found


def _network(view: View, pod: Pod) -> str:
    if any(contains(pool["cidr"], pod["ip"]) for pool in view.pools):
        return "calico"
    member = view.case.members.get(pod["node"])
    return "flannel" if member and contains(member["pod_cidr"], pod["ip"]) else "other"


def _node(view: View, name: str) -> NodeState:
    case = view.case
    facts, member, agent = case.nodes[name], case.members[name], view.agent(name)
    settings = {key: _setting(case, facts, key) for key in WANTED}
    return NodeState(
        role=member["role"],
        conf_dir=facts["cni"]["conf_dir"],
        flipped=facts["cni"]["conf_dir"] == CNI_CONF_DIR,
        settings=settings,
        drop_in=_drop_in(facts, settings),
        calico_ready=bool(agent and agent["ready"]),
        canary=is_canary(facts),
        tunnel=_tunnel(view, facts),
        unrouted=[
            peer for peer in case.members if peer != name and (not view.blocks(peer) or view.missing(name, peer))
        ],
        leftovers=_of_flannel(case, member),
        calico=_of_calico(view, member),
    )


def _setting(case: Case, facts: NodeFacts, key: str) -> Setting:
    """An agent takes both from a server when it starts, and does not know them itself."""
    if facts["k3s"]["role"] == "server":
        value, source = setting(facts, key)
        return Setting(value=value, source=source)
    servers = [each for each in case.nodes.values() if each["k3s"]["role"] == "server"]
    return Setting(value=" or ".join(sorted({setting(each, key)[0] for each in servers})), source="the servers")


def drop_in_of(facts: NodeFacts) -> str:
    """The path of the drop-in; "" where there is none."""
    return next((path for path in facts["k3s"]["files"] if path.endswith(f".d/{DROP_IN}")), "")


def _drop_in(facts: NodeFacts, settings: Dict[str, Setting]) -> str:
    path = drop_in_of(facts)
    if not path or facts["k3s"]["role"] != "server":
        return ""
    if any(settings[key]["value"] != value for key, value in WANTED.items()):
        return "overridden"
    return "in force" if facts["k3s"]["files"][path] < facts["k3s"]["started"] else "waits"


def _tunnel(view: View, facts: NodeFacts) -> str:
    for interface in facts["interfaces"]:
        if _is_tunnel(interface):
            own = (address.partition("/")[0] for address in interface["addresses"])
            if any(contains(pool["cidr"], address) for address in own for pool in view.pools):
                return interface["name"]
    return ""


def _is_tunnel(interface: Interface) -> bool:
    return (interface["kind"], interface["name"]) in (("ipip", "tunl0"), ("vxlan", "vxlan.calico"))


def _of_flannel(case: Case, member: Node) -> Leftovers:
    """The policy controller's chains and sets are no leftovers while it is on."""
    name = member["name"]
    facts = case.nodes[name]
    devices = [each["name"] for each in facts["interfaces"] if _is_device(each["name"], each["kind"])]
    off = policy_controller_is_off(case)
    comments = (*FLANNEL_COMMENTS, *((KUBE_ROUTER_COMMENT,) if off else ()))
    chains, rules = _firewall(case, name, (*FLANNEL_CHAINS, *(KUBE_ROUTER if off else ())), comments)
    ipsets = [each for each in facts["ipsets"] if KUBE_ROUTER_SETS.match(each)]
    return Leftovers(
        devices=devices,
        addresses=[],
        attached=[each["name"] for each in facts["interfaces"] if each["master"] == BRIDGE],
        routes=[_route(route) for route in facts["routes"] if _is_route(case, name, route)],
        fdb=[
            f"{entry['mac']} dev {entry['device']} dst {entry['destination']}"
            for entry in facts["fdb"]
            if entry["device"] in devices and entry["destination"]
        ],
        chains=chains,
        rules=rules,
        ipsets=sorted(ipsets) if off else [],
        files=facts["flannel"],
        annotations=sorted(each for each in member["annotations"] if each.startswith(FLANNEL_ANNOTATION)),
        conditions=[],
    )


def _of_calico(view: View, member: Node) -> Leftovers:
    """The kernel keeps tunl0 as long as IPIP is loaded, and a node may have it without Calico: there, it is the address
    that tells. Calico's definitions may have gone, and its pools with them: cluster-cidr holds them."""
    case, name = view.case, member["name"]
    facts = case.nodes[name]
    networks = [case.cluster["cluster_cidr"], *(pool["cidr"] for pool in view.pools)]
    tunnels = [each for each in facts["interfaces"] if _is_tunnel(each)]
    chains, rules = _firewall(case, name, CALICO_CHAINS, CALICO_COMMENTS)
    return Leftovers(
        devices=[each["name"] for each in tunnels if each["kind"] == "vxlan"],
        addresses=[
            f"{address} dev {each['name']}"
            for each in tunnels
            if each["kind"] == "ipip"
            for address in each["addresses"]
            if _is_inside(networks, address)
        ],
        attached=[each["name"] for each in facts["interfaces"] if CALICO_VETH.fullmatch(each["name"])],
        routes=[
            _route(route)
            for route in facts["routes"]
            if route["table"] == "main"
            and route["protocol"] in CALICO_ROUTES
            and _is_inside(networks, route["destination"])
        ],
        fdb=[],  # with the device
        chains=chains,
        rules=rules,
        ipsets=sorted(each for each in facts["ipsets"] if each.startswith(CALICO_SETS)),
        files=facts["calico"],
        annotations=sorted(each for each in member["annotations"] if each.startswith(CALICO_ANNOTATION)),
        conditions=[CALICO_CONDITION] if member["network"].startswith("Calico") else [],
    )


def _is_inside(networks: Iterable[str], address: str) -> bool:
    return any(contains(network, address.partition("/")[0]) for network in networks)


def _is_device(name: str, kind: str) -> bool:
    return name == BRIDGE if kind == "bridge" else name.startswith("flannel") and kind in ("vxlan", "wireguard")


def _is_route(case: Case, node: str, route: Route) -> bool:
    """Of the main table: by Flannel's devices, or, as host-gw makes them, to another node's podCIDR by its address."""
    if route["table"] != "main" or route["type"] != "unicast":
        return False
    by_gateway = any(
        (route["destination"], route["gateway"]) == (peer["pod_cidr"], peer["internal_ip"])
        for peer in case.members.values()
        if peer["name"] != node and peer["pod_cidr"]
    )
    return of_flannel(case, node, route) or by_gateway


def _route(route: Route) -> str:
    if route["type"] == "blackhole":
        return f"blackhole {route['destination']} proto {route['protocol']}"
    gateway = f" via {route['gateway']}" if route["gateway"] else ""
    return f"{route['destination']}{gateway} dev {route['device']}"


def _firewall(
    case: Case, node: str, prefixes: Tuple[str, ...], comments: Tuple[str, ...]
) -> Tuple[Dict[str, List[str]], Dict[str, List[str]]]:
    """Chains, and the rules of other chains that lead into them or, by their comments, go with them."""

    def goes(rule: Rule) -> bool:
        return (rule["target"] or "").startswith(prefixes) or rule["comment"].startswith(comments)

    chains: Dict[str, List[str]] = {}
    rules: Dict[str, List[str]] = {}
    for backend, ruleset in case.rulesets(node).items():
        for table, content in ruleset.items():
            own = [chain for chain in content if chain.startswith(prefixes)]
            others = [
                f"-A {chain} {rule['spec']}"
                for chain in content
                if chain not in own
                for rule in content[chain]["rules"]
                if goes(rule)
            ]
            if own:
                chains[f"{backend} {table}"] = own
            if others:
                rules[f"{backend} {table}"] = others
    return chains, rules
