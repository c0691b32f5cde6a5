"""What a swap does next: which nodes are flipped in which order, with which settings, and what is cleaned behind. Pure.

Planned from where the swap stands, so that one that was interrupted goes on, and one that is done plans nothing.
"""

from __future__ import annotations

from typing import Collection, Dict, List, Mapping, Sequence, TypedDict

from ..diagnose.firewall import KUBE_ROUTER
from ..model import ClusterFacts, NodeFacts, Underlay
from .state import KUBE_ROUTER_COMMENT, Leftovers, State, is_back, is_canary, is_set

OVERLAYS = {"felix": "ipip", "bird": "ipip", "vxlan": "vxlan-4789"}  # backend -> as overlays.OVERLAYS has it


class Command(TypedDict):
    argv: List[str]
    stdin: str  # what it reads; "" for nothing


# --- the flip -------------------------------------------------------------------------------------------------------


def canary(state: State, nodes: Mapping[str, NodeFacts], cluster: ClusterFacts, wanted: str = "") -> str:
    """The agent that tries Calico while everything else has Flannel; "" where some node is flipped, or no agent is.

    One that has begun to goes on.
    """
    agents = sorted(node["name"] for node in cluster["nodes"] if node["role"] == "agent" and node["name"] in nodes)
    if state["flipped"] or not agents:
        return ""
    begun = [name for name in agents if is_canary(nodes[name])]
    return begun[0] if begun else wanted if wanted in agents else _least_busy(cluster, agents)


def flip(state: State, nodes: Mapping[str, NodeFacts], cluster: ClusterFacts, batch: int) -> List[List[str]]:
    """The nodes that are yet to be flipped, by steps; those of one step may be restarted at once.

    Servers come first, one by one: etcd can lose one, and agents take the settings over from any of them when they
    start. Then agents in batches, but one alone before the others where none has tried it.
    """
    done = [node["name"] for node in cluster["nodes"] if _is_flipped(state, node["name"])]
    tried = bool(canary(state, nodes, cluster)) or any(map(is_canary, nodes.values()))
    return _steps(cluster, done, batch, tried)


def flip_back(state: State, cluster: ClusterFacts, batch: int, first: str = "") -> List[List[str]]:
    """The nodes that are yet to have Flannel again, by the same steps; none has tried that."""
    done = [name for name, node in state["nodes"].items() if is_back(node)]
    return _steps(cluster, done, batch, False, first)


def _steps(cluster: ClusterFacts, done: Collection[str], batch: int, tried: bool, first: str = "") -> List[List[str]]:
    roles = {node["name"]: node["role"] for node in cluster["nodes"]}
    servers = sorted(name for name, role in roles.items() if role == "server" and name not in done)
    agents = sorted(name for name, role in roles.items() if role == "agent" and name not in done)
    tried = tried or any(role == "agent" and name in done for name, role in roles.items())
    alone = [first if first in agents else _least_busy(cluster, agents)] if agents and not tried else []
    others = [name for name in agents if name not in alone]
    batches = [others[start : start + batch] for start in range(0, len(others), batch)]
    return [[name] for name in [*servers, *alone]] + batches


def _is_flipped(state: State, name: str) -> bool:
    node = state["nodes"].get(name)
    if not node or not node["flipped"]:
        return False
    return node["role"] != "server" or (is_set(node) and node["drop_in"] != "waits")


def _least_busy(cluster: ClusterFacts, agents: Sequence[str]) -> str:
    """The agent with the fewest pods on the overlay, but one that has some, as without them nothing would be tried."""
    pods = dict.fromkeys(agents, 0)
    for pod in cluster["pods"]:
        if pod["node"] in pods and not pod["host_network"]:
            pods[pod["node"]] += 1
    return min(agents, key=lambda name: (not pods[name], pods[name], name))


def mtu(underlay: Underlay, backend: str) -> int:
    """Bytes that pods may send at once between all nodes: the smallest path MTU without the overlay's headers.

    0 where it is not known of some pair.
    """
    sizes = [verdicts[OVERLAYS[backend]]["mtu"] for verdicts in underlay["by_pair"].values()]
    return min(sizes, default=0) if all(sizes) else 0


# --- cleaning -------------------------------------------------------------------------------------------------------


def clean(state: State) -> Dict[str, List[Command]]:
    """Node -> what takes away Flannel's and the policy controller's there, and nothing else.

    Empty while any pod has an address of before: it is answered by way of Flannel's routes, from every node.
    """
    return _clean(state["phase"], {name: node["leftovers"] for name, node in state["nodes"].items()})


def leftovers(found: Leftovers, of: Collection[str]) -> List[Command]:
    """What takes away what is left on one node of "flannel", or of the "policy" controller alone. Nothing while pods
    have interfaces of Flannel's."""
    if "flannel" in of:
        return [] if found["attached"] else _clean_node(found)
    if "policy" not in of:
        return []
    chains = {place: [each for each in names if _is_policy(each)] for place, names in found["chains"].items()}
    rules = {place: [each for each in rules if _is_policy(each)] for place, rules in found["rules"].items()}
    return [*_restore(chains, rules), *(_command("ipset", "destroy", name) for name in found["ipsets"])]


def _is_policy(text: str) -> bool:
    return any(chain in text for chain in KUBE_ROUTER) or KUBE_ROUTER_COMMENT in text


def set_aside(path: str) -> Command:
    """containerd reads conf, conflist and json alone."""
    return _command("mv", "--backup=numbered", "--", path, f"{path}.netmend-aside")


def clean_back(state: State) -> Dict[str, List[Command]]:
    """Node -> what takes away Calico's there, and nothing else. Empty while any pod has an address of before, or Felix
    is there and would make it anew."""
    return _clean(state["back"], {name: node["calico"] for name, node in state["nodes"].items()})


def old_annotations(state: State) -> Dict[str, List[str]]:
    """Node -> the names of Flannel's annotations that it still has, once they may be taken away."""
    return _of_nodes(state["phase"], {name: each["leftovers"]["annotations"] for name, each in state["nodes"].items()})


def old_annotations_back(state: State) -> Dict[str, List[str]]:
    """The same of Calico's."""
    return _of_nodes(state["back"], {name: each["calico"]["annotations"] for name, each in state["nodes"].items()})


def conditions_back(state: State) -> Dict[str, List[str]]:
    """Node -> the types of conditions that Calico left in its status.

    Where calico-node ends, it says that the network is unavailable, which keeps new pods off the node. K3s's Flannel
    says nothing of that, so that nobody would ever take it back.
    """
    return _of_nodes(state["back"], {name: each["calico"]["conditions"] for name, each in state["nodes"].items()})


def _of_nodes(phase: str, found: Mapping[str, List[str]]) -> Dict[str, List[str]]:
    return {name: names for name, names in found.items() if names} if phase == "leftovers" else {}


def _clean(phase: str, leftovers: Mapping[str, Leftovers]) -> Dict[str, List[Command]]:
    if phase != "leftovers":
        return {}
    plans = {name: _clean_node(found) for name, found in leftovers.items() if not found["attached"]}
    return {name: plan for name, plan in plans.items() if plan}


def _clean_node(found: Leftovers) -> List[Command]:
    """Rules first: FLANNEL-POSTRTG rewrites the sources of packets that Calico carries. A device takes its routes and
    its FDB along, and where it stays, its being down takes the routes; its address tells whose it is, and goes last."""
    down = sorted({address.rpartition(" dev ")[2] for address in found["addresses"]})
    routes = [route for route in found["routes"] if route.rpartition(" dev ")[2] not in (*found["devices"], *down)]
    return [
        *_restore(found["chains"], found["rules"]),
        *(_command("ipset", "destroy", name) for name in found["ipsets"]),
        *(_command("ip", "route", "del", *route.split()) for route in routes),
        *(_command("ip", "link", "del", device) for device in found["devices"]),
        *(_command("ip", "link", "set", device, "down") for device in down),
        *(_command("ip", "address", "del", *address.split()) for address in found["addresses"]),
        *(_command("rm", "-r", "--", path) for path in found["files"]),
    ]


def _restore(chains: Mapping[str, List[str]], rules: Mapping[str, List[str]]) -> List[Command]:
    """One transaction for each backend, which changes nothing if anything in it is not there."""
    texts: Dict[str, str] = {}
    for place in dict.fromkeys([*rules, *chains]):
        if not rules.get(place) and not chains.get(place):
            continue
        backend, table = place.split()
        lines = [f"-D{rule[2:]}" for rule in rules.get(place, [])]
        lines += [f"{action} {chain}" for action in ("-F", "-X") for chain in chains.get(place, [])]
        texts[backend] = texts.get(backend, "") + "\n".join([f"*{table}", *lines, "COMMIT\n"])
    return [
        Command(argv=[f"iptables-{backend}-restore", "-w", "--noflush"], stdin=text) for backend, text in texts.items()
    ]


def _command(*argv: str) -> Command:
    return Command(argv=list(argv), stdin="")
