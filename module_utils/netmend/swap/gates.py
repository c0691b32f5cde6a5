"""What forbids a swap of Flannel for Calico or one back, or to go on with it. Pure.

Each refusal names where, and says what to do.

None of it asks the overlay: a cluster whose VXLAN does not pass, with pods that are not Ready for it, is one that a
swap may help.
"""

from __future__ import annotations

import ipaddress
import math
import re
from dataclasses import dataclass
from functools import partial
from typing import Any, Callable, Dict, Iterator, List, Mapping, Optional, Set, Tuple, TypedDict

from .. import overlays, pools, sample
from ..calico_manifest import TYPHA, VERSIONS, ManifestError, Options, check
from ..diagnose.calico_view import plugins_of
from ..diagnose.control_plane import disagreements
from ..gather import DATA, PLUGINS
from ..model import ClusterFacts, Node, NodeFacts, Underlay
from ..parse.k3s import CNI_CONF_DIR
from ..without_flannel import DROP_IN, WANTED, drop_in
from .order import OVERLAYS, mtu
from .state import State, case_of, drop_in_of, is_canary, left, left_back, read

K3S = ((1, 31), (1, 36))  # the oldest and the newest that are known
NAMESPACE = "kube-system"  # of calico-node, by Calico's own manifest
# Typha is advised from so many nodes on, one for each so many, three at least, and 20 at most (docs.tigera.io,
# installation by manifest).
TYPHA_FROM, TYPHA_NODES, TYPHA_REPLICAS = 50, 200, (3, 20)
LEAST_MTU = 1280  # bytes: what IPv6 asks of a link (RFC 8200), and Calico's manifest is given at least
# Bytes that have to be free for Calico's images and a snapshot of etcd, and for its plugins, and the share of a disk
# below which the kubelet evicts pods: K3s's --eviction-hard, pkg/daemons/agent.
ROOM = {"data": 2 << 30, "plugins": 300 << 20}
EVICTION = 0.05
# Networks of pods besides Flannel and Calico: their DaemonSets, and the devices that they make.
FOREIGN_DAEMONSETS = re.compile(
    r"cilium|weave-net|kube-router|kube-flannel(-ds.*)?|canal|antrea-agent|kube-ovn-cni|ovnkube-node|kindnet"
)
FOREIGN_DEVICES = re.compile(r"cilium_\w+|weave|kube-bridge|antrea-\w+|ovn0")
# Plugins that go with any network.
HELPERS = {"portmap", "bandwidth", "tuning", "loopback", "firewall", "sbr"}
# flannel-backend of K3s -> as overlays.OVERLAYS has it.
FLANNEL = {"vxlan": "vxlan-8472", "wireguard-native": "wireguard", "host-gw": "host-gw"}
BGP, TYPHA_PORT = "tcp-179", "tcp-5473"  # as underlay_packets.KINDS has them
BY_HAND = "its pods could not be told from Flannel's, so go back by new nodes"
WITHOUT_TYPHA = "Let Typha's port pass first, or set typha to 0: each node asks the API by itself then."
REOPEN = "Let them pass first, or set insist where you know that they will."
PAIRS = 3  # that a sentence tells of

# Facts without which it is not known where the swap stands.
NEEDED = ("units", "k3s", "cni", "iptables-nft", "iptables-legacy", "interfaces", "routes")

Network = ipaddress.IPv4Network


@dataclass(frozen=True)
class Wanted:
    """What a person asks for."""

    version: str  # Calico's, as in v3.32.1
    backend: str = "felix"  # felix, bird, vxlan: as calico_manifest.Options has it
    pool: str = ""  # CIDR; "": the upper half of cluster-cidr
    block_size: int = 26  # prefix length
    mtu: int = 0  # bytes, of pods; 0: as measured
    private_cidr: str = ""  # that nodes have the addresses in which tunnels end; "": their InternalIPs
    batch: int = 5  # agents that are flipped at once
    canary: str = ""  # the agent that is flipped first; "": one is chosen
    typha: Optional[int] = None  # replicas; 0: none; None: as advised for so many nodes, or as there are
    flannel: str = "vxlan"  # on the way back, the flannel-backend that the servers' other configuration leads to
    insist: bool = False  # on the way back, to go even where that backend's packets were not seen to pass


class Refusal(TypedDict):
    gate: str  # a key of GATES or GATES_BACK
    message: str


class _Swap:
    """What a gate looks at."""

    def __init__(
        self,
        nodes: Mapping[str, NodeFacts],
        cluster: ClusterFacts,
        underlay: Optional[Underlay],
        wanted: Wanted,
        back: bool = False,
    ) -> None:
        self.nodes = nodes
        self.cluster = cluster
        self.underlay = underlay
        self.wanted = wanted
        self.members: Dict[str, Node] = {node["name"]: node for node in cluster["nodes"]}
        self.state: State = read(nodes, cluster)
        self.flips = self.state["back" if back else "phase"] == "flipping"
        self.replaced = left_back(self.state) if back else left(self.state)
        self.case = case_of(nodes, cluster)


def gates(
    nodes: Mapping[str, NodeFacts], cluster: ClusterFacts, underlay: Optional[Underlay], wanted: Wanted
) -> List[Refusal]:
    """Why a swap must not begin or go on; empty where it may. underlay: None where it was not measured."""
    return _refusals(_Swap(nodes, cluster, underlay, wanted), GATES)


def gates_back(
    nodes: Mapping[str, NodeFacts], cluster: ClusterFacts, underlay: Optional[Underlay], wanted: Wanted
) -> List[Refusal]:
    """Why a swap back must not begin or go on. What is wanted is what was for the swap."""
    return _refusals(_Swap(nodes, cluster, underlay, wanted, back=True), GATES_BACK)


def _refusals(swap: _Swap, through: Mapping[str, Callable[[_Swap], Iterator[str]]]) -> List[Refusal]:
    wrong = [Refusal(gate="wanted", message=message) for message in _wanted(swap)]
    if wrong:
        return wrong
    return [Refusal(gate=name, message=message) for name, gate in through.items() for message in gate(swap)]


def notes(
    nodes: Mapping[str, NodeFacts], cluster: ClusterFacts, underlay: Optional[Underlay], wanted: Wanted
) -> List[str]:
    """What forbids nothing, and a person should know before."""
    swap = _Swap(nodes, cluster, underlay, wanted)
    found = _only_server(swap)
    replicas = typha(wanted, cluster)
    if replicas:
        found.append(f"Typha stands between Calico and the API, on {replicas} of {len(swap.members)} nodes.")
    kind, pairs = _kind(wanted.backend), underlay["pairs"] if underlay else {}
    dropping = {
        _ends(pair)[1]
        for pair, each in pairs.items()
        if each["kinds"][kind]["verdict"] == "host" and _carries(swap, pair, kind)
    }
    for name in sorted(dropping):
        found.append(
            f"{name}'s own firewall drops {overlays.label(kind)} now; Felix is going to accept them before it."
        )
    return found


def notes_back(
    nodes: Mapping[str, NodeFacts], cluster: ClusterFacts, underlay: Optional[Underlay], wanted: Wanted
) -> List[str]:
    """The same, before a swap back."""
    swap = _Swap(nodes, cluster, underlay, wanted, back=True)
    insisted = [f"It is insisted on, and so goes on although: {message}" for message in _flannel(swap) if wanted.insist]
    return [*_only_server(swap), *insisted]


def _only_server(swap: _Swap) -> List[str]:
    servers = [name for name, node in swap.members.items() if node["role"] == "server"]
    alone = "is the only server: the API is away while it restarts, and pods go on running."
    return [f"{servers[0]} {alone}"] if len(servers) == 1 else []


def flannel_passes(nodes: Mapping[str, NodeFacts], cluster: ClusterFacts, underlay: Optional[Underlay]) -> bool:
    """Whether the packets of Flannel's backend were seen to pass between all nodes."""
    return not list(_flannel(_Swap(nodes, cluster, underlay, Wanted(version=""))))


def pool(wanted: Wanted, cluster: ClusterFacts) -> str:
    """The pods' network: what is wanted, or the upper half of cluster-cidr, as podCIDRs are given from below."""
    return wanted.pool or str(list(Network(cluster["cluster_cidr"]).subnets())[1])


def typha(wanted: Wanted, cluster: ClusterFacts) -> int:
    """Replicas of Typha. Where it is there it stays, also when a node has gone since."""
    if wanted.typha is not None:
        return wanted.typha
    there = any((each["namespace"], each["name"]) == (NAMESPACE, TYPHA) for each in cluster["services"])
    nodes = len(cluster["nodes"])
    least, most = TYPHA_REPLICAS
    return min(most, max(least, math.ceil(nodes / TYPHA_NODES))) if there or nodes >= TYPHA_FROM else 0


def options(wanted: Wanted, cluster: ClusterFacts, underlay: Optional[Underlay]) -> Options:
    """What Calico's manifest is to be patched with."""
    return Options(
        pool=pool(wanted, cluster),
        backend=wanted.backend,
        block_size=wanted.block_size,
        autodetection=f"cidr={wanted.private_cidr}" if wanted.private_cidr else "kubernetes-internal-ip",
        mtu=wanted.mtu or (mtu(underlay, wanted.backend) if underlay else 0),
        typha=typha(wanted, cluster),
    )


# --- what is asked for ----------------------------------------------------------------------------------------------


def _wanted(swap: _Swap) -> Iterator[str]:
    wanted = swap.wanted
    if not swap.cluster["cluster_cidr"]:
        yield "cluster-cidr is not known: see that the servers' configuration can be read."
        return
    try:
        if wanted.private_cidr:
            Network(wanted.private_cidr)
        check(options(wanted, swap.cluster, None))
    except ManifestError as error:
        yield f"{error}."
    except ValueError as error:
        yield f"private_cidr must be an IPv4 network: {error}."
    if wanted.flannel not in FLANNEL:
        yield f"flannel must be one of {', '.join(FLANNEL)}, and is {wanted.flannel!r}."
    if wanted.batch < 1:
        yield f"batch must be 1 or more, and is {wanted.batch}."
    if (wanted.typha or 0) > len(swap.members):
        yield f"typha must be no more than there are nodes ({len(swap.members)}), and is {wanted.typha}."
    agents = [name for name, node in swap.members.items() if node["role"] == "agent"]
    if wanted.canary and wanted.canary not in agents:
        yield f"canary must be an agent of the cluster, and is {wanted.canary!r}."


# --- the cluster ----------------------------------------------------------------------------------------------------


def _versions(swap: _Swap) -> Iterator[str]:
    oldest, newest = (f"v{major}.{minor}" for major, minor in K3S)
    for name, node in swap.members.items():
        number = re.match(r"v(\d+)\.(\d+)\.", node["version"])
        version = (int(number[1]), int(number[2])) if number else (0, 0)
        if version < K3S[0]:
            yield f"{name} runs K3s {node['version'] or 'of no known version'}: upgrade it to {oldest} or newer first."
        elif version > K3S[1]:
            yield f"{name} runs K3s {node['version']}, and {newest} is the newest known: take a netmend that knows it."
    if not re.fullmatch(r"v\d+\.\d+\.\d+", swap.wanted.version) or not swap.wanted.version.startswith(VERSIONS):
        known = " and ".join(f"{prefix}x" for prefix in VERSIONS)
        yield f"Calico {swap.wanted.version} is wanted, and {known} are known: choose one of these."


def _nodes(swap: _Swap) -> Iterator[str]:
    for name, node in swap.members.items():
        if not node["ready"]:
            yield f"{name} is not Ready ({node['reason']}): mend it, or delete the node if its machine is gone."
        if name in swap.nodes and not swap.nodes[name]["k3s"]["role"]:
            yield f"{name} has no unit of K3s that says whether it is a server or an agent: mend that first."
        if name not in swap.nodes:
            yield f"{name} could not be asked for its facts: make it reachable by SSH, and part of the inventory."
            continue
        for error in swap.nodes[name]["errors"]:
            if error["what"].split()[0] in NEEDED:
                yield f"{name}: {error['what']} cannot be read ({error['message']}): mend that first."
    for name in swap.nodes:
        if name not in swap.members:
            yield f"{name} is in the inventory, and no node of the cluster: join it, or take it out."


def _etcd(swap: _Swap) -> Iterator[str]:
    """A restart takes one member away for a while; the others have to be a majority of all, and well."""
    members = {name: node for name, node in swap.members.items() if node["etcd"]}
    state = swap.cluster["api"].get("etcd", "ok")
    if state != "ok":
        yield f"The API says of etcd: {state}; mend etcd first."
    if len(members) < 2:
        return
    voters = [name for name, node in members.items() if node["etcd"] == "voter"]
    well = [name for name in voters if members[name]["ready"]]
    if len(well) - 1 < len(voters) // 2 + 1:
        yield (
            f"etcd has {len(voters)} voting members, {len(well)} on Ready nodes ({', '.join(well) or 'none'}): "
            "it would lose its quorum while one restarts. Have three that are well, or one server alone."
        )


def _servers(swap: _Swap) -> Iterator[str]:
    """Between two servers' flips they differ in what the drop-in says."""
    for key, said in disagreements(swap.nodes).items():
        if not (swap.flips and key in WANTED):
            yield f"The servers disagree on {key} ({said}): give it one value on all, and restart them one by one."


def _overridden(swap: _Swap) -> Iterator[str]:
    for name, facts in swap.nodes.items():
        mine = drop_in_of(facts)
        if facts["k3s"]["role"] == "agent" and mine:
            yield f"{mine} is on the agent {name}, which would not start with it: delete it there."
        node = swap.state["nodes"].get(name)
        if facts["k3s"]["role"] != "server" or not node:
            continue
        path, _ = drop_in(facts)
        for key, value in WANTED.items():
            setting = node["settings"][key]
            if setting["value"] != value and _wins(setting["source"], path):
                where = facts["k3s"]["unit"] if setting["source"] == "ExecStart" else setting["source"]
                yield f"{name}: {key} is {setting['value']} in {where}, which overrides {DROP_IN}: take it out there."


def _wins(source: str, path: str) -> bool:
    """Whether what a source says counts for more than a file: flags do, and files of the folder that come after it."""
    folder = path.rpartition("/")[0]
    return source == "ExecStart" or (source.startswith(f"{folder}/") and source > path)


def _kept_away(swap: _Swap) -> Iterator[str]:
    """What the drop-in hides is not known: where something does, K3s's next start shows it, and the run ends there."""
    for name, node in swap.state["nodes"].items():
        backend = node["settings"]["flannel-backend"]
        path, _ = drop_in(swap.nodes[name])
        if node["role"] == "server" and backend["value"] == "none" and backend["source"] != path:
            where = swap.nodes[name]["k3s"]["unit"] if backend["source"] == "ExecStart" else backend["source"]
            yield f"{name}: flannel-backend is none in {where}, and not by {DROP_IN} alone: take it out there."


def _disk(swap: _Swap) -> Iterator[str]:
    """Where Calico runs already, its images are there."""
    for name, facts in swap.nodes.items():
        if name in swap.state["nodes"] and swap.state["nodes"][name]["calico_ready"]:
            continue
        places = {"data": str(facts["k3s"]["config"].get("data-dir", DATA)), "plugins": PLUGINS}
        for what, path in places.items():
            space = facts["disk"].get(path)
            if not space:
                yield f"{name}: the room on the disk of {path} is not known: see why it cannot be asked for."
                continue
            room = space["free"] - int(EVICTION * space["size"])
            if room < ROOM[what]:
                yield (
                    f"{name}: {max(room, 0) >> 20} MiB are free for {path} before the kubelet evicts pods, and "
                    f"{ROOM[what] >> 20} MiB are needed: make room."
                )


def _budgets(swap: _Swap) -> Iterator[str]:
    """By what they ask for, and not by how many pods are Ready now. A budget that was not counted yet asks for none."""
    pods = {f"{pod['namespace']}/{pod['name']}": pod for pod in swap.cluster["pods"]}
    replaced = [pods[name] for name in swap.replaced]
    for budget in swap.cluster["disruption_budgets"]:
        concerned = [
            pod
            for pod in replaced
            if pod["namespace"] == budget["namespace"] and _selects(budget["selector"], pod["labels"])
        ]
        if concerned and 0 < budget["desired"] >= budget["expected"]:
            yield (
                f"The PodDisruptionBudget {budget['namespace']}/{budget['name']} wants {budget['desired']} of "
                f"{budget['expected']} pods healthy, so that none may be replaced: allow one less, or add a replica."
            )


def _selects(selector: Optional[Mapping[str, Any]], labels: Mapping[str, str]) -> bool:
    """A LabelSelector of Kubernetes: all of it has to hold; none at all selects nothing."""
    if selector is None:
        return False
    holds: Dict[str, Callable[[str, List[str]], bool]] = {
        "In": lambda key, values: labels.get(key) in values,
        "NotIn": lambda key, values: labels.get(key) not in values,
        "Exists": lambda key, _: key in labels,
        "DoesNotExist": lambda key, _: key not in labels,
    }
    return all(labels.get(key) == value for key, value in (selector.get("matchLabels") or {}).items()) and all(
        holds[each["operator"]](each["key"], each.get("values") or [])
        for each in selector.get("matchExpressions") or []
    )


def _direction(swap: _Swap) -> Iterator[str]:
    for sentence in swap.state["backwards"]:
        yield f"A swap back to Flannel seems to be under way, as {sentence}: finish that first."


# --- networks of pods -----------------------------------------------------------------------------------------------


def _foreign(swap: _Swap) -> Iterator[str]:
    for daemonset in swap.cluster["daemonsets"]:
        if FOREIGN_DAEMONSETS.fullmatch(daemonset["name"]):
            name = f"{daemonset['namespace']}/{daemonset['name']}"
            yield f"The DaemonSet {name} is of another network of pods: remove that first."
    for name, facts in swap.nodes.items():
        cni = facts["cni"]
        networks = {**{f"{cni['conf_dir']}/{file}": each for file, each in cni["networks"].items()}, **cni["unread"]}
        for path, network in networks.items():
            kinds = [str(plugin.get("type", "")) for plugin in plugins_of(network)]
            others = sorted({kind or "unknown" for kind in kinds} - HELPERS - _expected(path, facts))
            if others:
                yield f"{name}: {path} is of the network plugin {', '.join(others)}: remove that network first."
        for interface in facts["interfaces"]:
            if FOREIGN_DEVICES.fullmatch(interface["name"]):
                yield f"{name}: the device {interface['name']} is of another network of pods: remove that first."


def _expected(path: str, facts: NodeFacts) -> Set[str]:
    """Embedded in K3s, Flannel has a folder of its own; what else is in containerd's default one has to be Calico. A
    canary has Calico's configuration in the file that K3s writes for Flannel, and keeps it when it is flipped."""
    if path.startswith(f"{CNI_CONF_DIR}/"):
        return {"calico"}
    written = path.endswith("/10-flannel.conflist") and (is_canary(facts) or facts["cni"]["conf_dir"] == CNI_CONF_DIR)
    return {"flannel", "calico"} if written else {"flannel"}


def _running(swap: _Swap) -> Iterator[str]:
    """The Calico that runs has to be the one that is wanted."""
    node, wanted = swap.cluster["calico"].get("node", {}), swap.wanted
    if node and node["namespace"] != NAMESPACE:
        yield f"Calico runs in {node['namespace']}, and not by its own manifest: remove it, or leave the swap to it."
    elif node and node["version"] != wanted.version:
        yield f"Calico {node['version']} runs, and {wanted.version} is wanted: ask for the one that runs."


def _calico(swap: _Swap) -> Iterator[str]:
    """What is there of Calico has to be what is wanted."""
    yield from _running(swap)
    wanted = swap.wanted
    expected = {
        "cidr": pool(wanted, swap.cluster),
        "blockSize": wanted.block_size,
        "ipipMode": "Never" if wanted.backend == "vxlan" else "Always",
        "vxlanMode": "Always" if wanted.backend == "vxlan" else "Never",
    }
    defaults = {"blockSize": 26, "ipipMode": "Never", "vxlanMode": "Never"}
    for each in swap.state["pools"]:
        for key, value in expected.items():
            has = each.get(key, defaults.get(key))
            if has != value:
                yield (
                    f"Calico's pool {each['name']} has {key} {has}, and {value} is wanted: ask for what is there, or "
                    "delete that pool."
                )


def _pool(swap: _Swap) -> Iterator[str]:
    """podCIDRs are given from below, one to each new node, and mean something as long as Flannel is used."""
    wanted, cluster = Network(pool(swap.wanted, swap.cluster)), Network(swap.cluster["cluster_cidr"])
    podcidrs = {name: node["pod_cidr"] for name, node in swap.members.items()}
    six = [
        cidr for facts in swap.nodes.values() for cidr in facts["k3s"]["config"].get("cluster-cidr", []) if ":" in cidr
    ]
    if six or any(":" in cidr for cidr in podcidrs.values()):
        yield "The cluster gives IPv6 addresses to pods, which the swap does not carry over: keep to IPv4."
        return
    networks = {name: Network(cidr) for name, cidr in podcidrs.items() if cidr}
    would_do = pools.free(str(cluster), filter(None, podcidrs.values()), swap.wanted.block_size, len(swap.members))
    advice = f"pool {would_do} would do" if would_do else f"no part of {cluster} above all podCIDRs would do"
    if not wanted.subnet_of(cluster):
        yield f"The pool {wanted} is not inside cluster-cidr {cluster}: {advice}."
        return
    above = [name for name, network in networks.items() if network.broadcast_address >= wanted.network_address]
    if above and swap.state["phase"] not in ("leftovers", "done"):
        said = ", ".join(f"{networks[name]} of {name}" for name in above[:PAIRS])
        more = f" and {len(above) - PAIRS} more" if len(above) > PAIRS else ""
        yield f"The pool {wanted} does not lie above the podCIDR {said}{more}: {advice}."
    size = swap.wanted.block_size
    if pools.blocks(wanted, size) < len(swap.members):
        yield (
            f"The pool {wanted} has {pools.blocks(wanted, size)} blocks of /{size}, and each of {len(swap.members)} "
            "nodes needs one: take a larger pool or smaller blocks."
        )


def _podcidrs(swap: _Swap) -> Iterator[str]:
    """By its address it is known which network a pod has, also when Calico's pools have gone."""
    for name, node in swap.members.items():
        if not node["pod_cidr"]:
            yield f"{name} has no podCIDR, from which Flannel would give addresses: see why K3s gave it none."
    cluster = Network(swap.cluster["cluster_cidr"])
    for each in swap.state["pools"]:
        network = Network(each["cidr"])
        if not network.subnet_of(cluster):
            yield f"Calico's pool {each['name']} ({network}) is not inside cluster-cidr {cluster}: {BY_HAND}."
        shared = [name for name, node in swap.members.items() if _overlap(node["pod_cidr"], network)]
        if shared:
            yield f"Calico's pool {each['name']} ({network}) overlaps the podCIDR of {_few(shared)}: {BY_HAND}."


def _overlap(podcidr: str, network: Network) -> bool:
    return bool(podcidr) and ":" not in podcidr and Network(podcidr).overlaps(network)


# --- the network between the nodes ----------------------------------------------------------------------------------


def _addresses(swap: _Swap) -> Iterator[str]:
    """Measured are the InternalIPs, and tunnels end at what Calico finds in private_cidr."""
    if not swap.wanted.private_cidr:
        return
    private = Network(swap.wanted.private_cidr)
    for name, facts in swap.nodes.items():
        if name not in swap.members:
            continue
        own = {
            address.partition("/")[0]
            for interface in facts["interfaces"]
            if not interface["name"].startswith(("cali", "tunl", "vxlan", "flannel", "cni"))
            for address in interface["addresses"]
            if ":" not in address and ipaddress.ip_interface(address).ip in private
        }
        internal = swap.members[name]["internal_ip"]
        if own != {internal}:
            yield (
                f"{name} has {', '.join(sorted(own)) or 'no address'} in {private}, and its InternalIP is {internal}: "
                "name the network that holds just the InternalIPs as private_cidr, or none."
            )


def _measured(swap: _Swap) -> Iterator[str]:
    if len(swap.members) < 2:
        return
    if not swap.underlay:
        yield "The network between the nodes was not measured: measure it first."
        return
    unknown = swap.underlay["unknown"]
    for name, why in unknown.items():
        yield f"Nothing was measured of {name} ({why}): see why it could not take part, and measure again."
    missing = [
        f"{here}>{there}"
        for here, peers in sample.peers(sample.zones(swap.members.values())).items()
        for there in peers
        if not {here, there} & set(unknown) and f"{here}>{there}" not in swap.underlay["pairs"]
    ]
    if missing:
        yield f"{_few(missing)} was not measured: measure again."


def _underlay(swap: _Swap) -> Iterator[str]:
    """Every kind of packet that the backend needs, on every pair that was measured."""
    if not swap.underlay:
        return
    for kind in (_kind(swap.wanted.backend), *([BGP] if swap.wanted.backend == "bird" else [])):
        failing = [pair for pair in swap.underlay["pairs"] if not _carries(swap, pair, kind)]
        yield from _failing(swap, kind, failing, partial(_instead, swap, kind))
    if typha(swap.wanted, swap.cluster):
        failing = [pair for pair in swap.underlay["pairs"] if not _carries(swap, pair, TYPHA_PORT)]
        yield from _failing(swap, TYPHA_PORT, failing, lambda stopped: WITHOUT_TYPHA)


def _flannel_passes(swap: _Swap) -> Iterator[str]:
    if not swap.wanted.insist:
        yield from _flannel(swap)


def _flannel(swap: _Swap) -> Iterator[str]:
    """Every kind of packet that Flannel's backend needs, on every pair that was measured."""
    yield from _measured(swap)
    settings = [node["settings"] for node in swap.state["nodes"].values() if node["role"] == "server"]
    said = {each["flannel-backend"]["value"] for each in settings} - {"none"}
    backend = min(said, default=swap.wanted.flannel)
    if backend not in FLANNEL:
        yield f"flannel-backend is {backend}, and {', '.join(FLANNEL)} are known: choose one of these."
    elif swap.underlay:
        kind = overlays.OVERLAYS[FLANNEL[backend]][0]
        pairs = swap.underlay["pairs"]
        failing = [pair for pair, each in pairs.items() if each["kinds"][kind]["verdict"] != "passes"]
        yield from _failing(swap, kind, failing, lambda stopped: REOPEN)


def _failing(swap: _Swap, kind: str, pairs: List[str], remedy: Callable[[List[str]], str]) -> Iterator[str]:
    """What stops a kind of packet between these pairs, and what to do; or that this is not known."""
    assert swap.underlay
    unknown = [pair for pair in pairs if swap.underlay["pairs"][pair]["kinds"][kind]["verdict"] == "unknown"]
    stopped = [pair for pair in pairs if pair not in unknown]
    label = overlays.label(kind)
    if stopped:
        yield f"{_capital(label)} do not pass. {_seen(swap, kind, stopped)} {remedy(stopped)}"
    elif unknown:
        yield f"Whether {label} pass is not known. {_seen(swap, kind, unknown)} Measure again."


def _seen(swap: _Swap, kind: str, pairs: List[str]) -> str:
    assert swap.underlay
    seen = [overlays.sentence(swap.underlay["pairs"], *_ends(pair), kind) for pair in pairs[:PAIRS]]
    more = f" {len(pairs) - PAIRS} more pairs are like that." if len(pairs) > PAIRS else ""
    return " ".join(seen) + more


def _instead(swap: _Swap, kind: str, stopped: List[str]) -> str:
    """What to do: what the measurement says that passes, and where a node's own firewall is to blame, its rules."""
    assert swap.underlay
    verdicts = swap.underlay["overlays"]
    said = []
    if all(swap.underlay["pairs"][pair]["kinds"][kind]["verdict"] in ("host", "sender") for pair in stopped):
        said.append("Take away the rules that drop them, or let them pass before.")
    other = "felix" if kind != "ipip" else "vxlan"
    name = OVERLAYS[other]
    if verdicts[name]["verdict"] in ("works", "host"):
        said.append(f"Choose backend {other}: {overlays.TITLES[name]} passes, with MTU {mtu(swap.underlay, other)}.")
    elif overlays.passing(verdicts):
        said.append(f"Another overlay passes: {', '.join(overlays.passing(verdicts))}.")
    elif not said:
        said.append("No overlay passes: keep the applications up on the nodes' own network with host_network.")
    return " ".join(said)


def _mtu(swap: _Swap) -> Iterator[str]:
    if not swap.underlay or not swap.underlay["pairs"]:
        return
    measured, wanted = mtu(swap.underlay, swap.wanted.backend), swap.wanted.mtu
    if not measured and not wanted:
        unknown = [
            pair for pair, each in swap.underlay["by_pair"].items() if not each[OVERLAYS[swap.wanted.backend]]["mtu"]
        ]
        yield f"The MTU that passes is not known between {_few(unknown)}: measure again, or name one as mtu."
    elif measured and wanted > measured:
        yield f"mtu {wanted} is wanted, and {measured} is the most that passes between all nodes: ask for no more."
    elif measured and measured < LEAST_MTU:
        yield f"Pods would have an MTU of {measured}, and {LEAST_MTU} is the least: see what narrows the network."


def _kind(backend: str) -> str:
    return overlays.OVERLAYS[OVERLAYS[backend]][0]


def _carries(swap: _Swap, pair: str, kind: str) -> bool:
    """Whether it passes, or is going to: Felix puts its own chains first in INPUT and accepts its tunnels there, before
    other rules of the same table and rule set. Not so for TCP; and where Felix runs already, it would have."""
    assert swap.underlay
    crossing, receiver = swap.underlay["pairs"][pair]["kinds"][kind], _ends(pair)[1]
    node = swap.state["nodes"].get(receiver)
    if crossing["verdict"] != "host" or kind in (BGP, TYPHA_PORT) or not node or node["calico_ready"]:
        return crossing["verdict"] == "passes"
    place = [swap.case.backend(receiver), "filter"]
    return bool(crossing["rules"]) and all(rule.split()[:2] == place for rule in crossing["rules"])


def _ends(pair: str) -> Tuple[str, str]:
    here, _, there = pair.partition(">")
    return here, there


def _few(names: List[str]) -> str:
    return ", ".join(names[:PAIRS]) + (f" and {len(names) - PAIRS} more" if len(names) > PAIRS else "")


def _capital(text: str) -> str:
    return text[0].upper() + text[1:]


GATES: Dict[str, Callable[[_Swap], Iterator[str]]] = {
    "versions": _versions,
    "nodes": _nodes,
    "etcd": _etcd,
    "servers": _servers,
    "direction": _direction,
    "foreign": _foreign,
    "calico": _calico,
    "pool": _pool,
    "overridden": _overridden,
    "disk": _disk,
    "budgets": _budgets,
    "addresses": _addresses,
    "measured": _measured,
    "underlay": _underlay,
    "mtu": _mtu,
}

# Another run is refused by the lease, which is taken before anything is changed.
GATES_BACK: Dict[str, Callable[[_Swap], Iterator[str]]] = {
    "versions": _versions,
    "nodes": _nodes,
    "etcd": _etcd,
    "servers": _servers,
    "foreign": _foreign,
    "calico": _running,
    "podcidrs": _podcidrs,
    "overridden": _kept_away,
    "budgets": _budgets,
    "flannel": _flannel_passes,
}
