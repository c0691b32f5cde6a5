"""What mends Calico: fields of its objects, objects that are to be there or not, and pods made anew. Pure.

Only where its manifests brought it, which is in kube-system: its operator takes back what is not in its own resources.
"""

from __future__ import annotations

import json
from datetime import datetime, timezone
from typing import Any, Dict, Iterable, List, Optional, Sequence, Set

from ..model import Pod, Remedy
from ..pools import free
from .calico_view import ENDED, plugins_of, view_of
from .case import Case, contains, overlap

ROLE = "calico_settings"
NAMESPACE = "kube-system"
API = "crd.projectcalico.org/v1"
POOL = "netmend-inside-cluster-cidr"  # what a pool is called that is made for pods of one that cannot stay
BLOCK_SIZE = 26  # Calico's own default

Object = Dict[str, Any]


def remedy(
    case: Case,
    text: str,
    *,
    patches: Sequence[Object] = (),
    objects: Sequence[Object] = (),
    absent: Sequence[Object] = (),
    pods: Iterable[Pod] = (),
    command: str = "",
) -> Remedy:
    """``patches`` are objects that are there, with the fields that they are to have. One server sees to all of it."""
    node = view_of(case).node
    servers = [name for name, facts in case.nodes.items() if facts["k3s"].get("role") == "server"]
    command = command or " && ".join(map(typed, patches))
    if not servers or (node and node["namespace"] != NAMESPACE):
        return Remedy(role="", nodes=[], command=command, text=text)
    asked = {"patches": list(patches), "objects": list(objects), "absent": list(absent)}
    return Remedy(
        role=ROLE,
        nodes=servers[:1],
        vars={f"{ROLE}_{name}": value for name, value in asked.items() if value},
        pods=named(pods),
        command=command,
        text=text,
    )


def named(pods: Iterable[Pod]) -> Dict[str, str]:
    made_anew = (pod for pod in pods if not pod["host_network"] and pod["phase"] not in ENDED)
    return {pod["uid"]: f"{pod['namespace']}/{pod['name']}" for pod in made_anew}


def custom(kind: str, name: str, **spec: Any) -> Object:
    return {"apiVersion": API, "kind": kind, "metadata": {"name": name}, "spec": spec}


def environment(case: Case, **variables: str) -> Object:
    """Of calico-node's container of that name; its pods are made anew for it, node by node."""
    values = [{"name": name, "value": value} for name, value in variables.items()]
    return _daemonset(case, {"spec": {"containers": [{"name": "calico-node", "env": values}]}})


def mtu(case: Case, wanted: int) -> List[Object]:
    """The MTU of pods and tunnels, as calico.yaml has it: calico-node reads it when it starts, and so starts anew, as
    by `kubectl rollout restart`."""
    now = max((facts["time"] for facts in case.nodes.values()), default=0.0)
    at = datetime.fromtimestamp(now, timezone.utc).isoformat(timespec="seconds")
    config = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "calico-config", "namespace": NAMESPACE}}
    started = _daemonset(case, {"metadata": {"annotations": {"kubectl.kubernetes.io/restartedAt": at}}})
    return [{**config, "data": {"veth_mtu": str(wanted)}}, started]


def said_mtus(case: Case) -> Set[int]:
    """What the nodes' configurations of Calico's plugin say; 0: Felix finds it."""
    networks = [network for facts in case.nodes.values() for network in facts["cni"]["networks"].values()]
    plugins = [plugin for network in networks for plugin in plugins_of(network) if plugin.get("type") == "calico"]
    return {int(plugin.get("mtu") or 0) for plugin in plugins}


def agents(case: Case, nodes: Iterable[str]) -> List[Object]:
    """The pods calico-node of these nodes; without them their DaemonSet makes them anew."""
    return [as_object(pod) for pod in map(view_of(case).agent, nodes) if pod]


def as_object(pod: Pod) -> Object:
    return {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": pod["name"], "namespace": pod["namespace"]}}


def another_pool(case: Case, instead: Dict[str, Any], clear_of: Iterable[str]) -> Optional[List[Object]]:
    """A pool inside cluster-cidr and clear of these networks, like the one that it stands in for.

    None needed: an empty list. No room for one: None.
    """
    cidr, view = case.cluster["cluster_cidr"], view_of(case)
    taken = list(clear_of)
    if any(_will_do(pool["cidr"], cidr, taken) for pool in view.pools if pool["name"] != instead["name"]):
        return []
    size = instead.get("blockSize", BLOCK_SIZE)
    pools = [pool["cidr"] for pool in case.cluster["calico"].get("ippools", []) if ":" not in pool["cidr"]]
    network = free(cidr, [*taken, *pools], size, len(case.members))
    if not network:
        return None
    kept = {key: value for key, value in instead.items() if key not in ("name", "cidr", "disabled")}
    return [custom("IPPool", POOL, **{**kept, "cidr": network})]


def _will_do(pool: str, cidr: str, taken: Iterable[str]) -> bool:
    return contains(cidr, pool) and not any(overlap(pool, each) for each in taken)


def _daemonset(case: Case, template: Object) -> Object:
    node = view_of(case).node
    metadata = {"name": node.get("name", "calico-node"), "namespace": node.get("namespace", NAMESPACE)}
    return {"apiVersion": "apps/v1", "kind": "DaemonSet", "metadata": metadata, "spec": {"template": template}}


def typed(item: Object) -> str:
    """A patch as a person would type it."""
    namespace = item["metadata"].get("namespace")
    group = f".{item['apiVersion'].partition('/')[0]}" if item["apiVersion"] == API else ""
    fields = {key: value for key, value in item.items() if key not in ("apiVersion", "kind", "metadata")}
    return (
        f"kubectl {f'-n {namespace} ' if namespace else ''}patch {item['kind'].lower()}{group} "
        f"{item['metadata']['name']} {'--type merge ' if group else ''}-p '{json.dumps(fields)}'"
    )
