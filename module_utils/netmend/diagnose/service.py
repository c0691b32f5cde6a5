"""What makes a Service's address or a pod's hostPort lead anywhere: kube-proxy's rules, and the portmap plugin's."""

from __future__ import annotations

from typing import Any, Dict, FrozenSet, Iterator, List, NamedTuple, Set, Tuple

from ..kube_proxy import JUMPS, Jump, missing_jumps
from ..model import Pod, Probe, Remedy
from .case import BLOCKED, Case, ids
from .path import Paths
from .registry import FLUSH, SERVICE, Suspicion, fault

NAMED_JUMPS = 3  # in a sentence
IPVS_DEVICE = "kube-ipvs0"  # Kubernetes: pkg/proxy/ipvs, defaultDummyDevice
HOSTPORTS = "CNI-HOSTPORT-DNAT"  # containernetworking/plugins: plugins/meta/portmap
HOSTPORTS_NFT = "cni_hostport"  # its table where it is told to use nftables


@fault("firewall-flush", 26, "A firewall reload flushes the rules of Kubernetes", FLUSH)
def firewall_flush(case: Case, paths: Paths) -> Iterator[Suspicion]:
    """None of kube-proxy's jumps is left in the filter table, or UFW is set to flush it.

    MANAGE_BUILTINS=yes with all jumps in place is a finding too, though nothing fails yet: `ufw reload`, `ufw enable`
    and a reboot flush the filter table for certain, and kube-proxy does not notice, as its canary stands in mangle.
    It is given less confidence, and stands behind what does fail. With UFW off it is none.
    """
    for node, facts in case.nodes.items():
        lost = flushed(case, node)
        bites = facts["ufw"]["enabled"] and facts["ufw"]["manage_builtins"]
        if not lost and not bites:
            continue
        missing = missing_jumps(case.ruleset(node)) if _keeps_jumps(case, node) else []
        evidence = [f"{node}: {_listed(missing)}."] if missing else []
        if bites:
            evidence.append(
                f"{node}: MANAGE_BUILTINS=yes in /etc/default/ufw: each reload of UFW flushes the filter table, "
                "with all rules of kube-proxy, the kubelet and the CNI."
            )
            text = "Set MANAGE_BUILTINS=no in /etc/default/ufw."
        else:
            text = "Let kube-proxy write its rules again, and find out what flushes them: UFW's setting is not it."
        yield Suspicion(
            where=node,
            evidence=evidence,
            remedy=Remedy(role="ufw" if bites else "kube_proxy_resync", nodes=[node], text=text),
            confidence=(0.95 if bites else 0.8) if lost else 0.6,
            explains=_explained(case, paths, node, missing) if lost else frozenset(),
            ruled_out=["A single lost jump: all of the filter table's are gone at once."] if lost else [],
        )


@fault("kube-services-jump-missing", 27, "Jumps to kube-proxy's chains are missing", SERVICE)
def kube_services_jump_missing(case: Case, paths: Paths) -> Iterator[Suspicion]:
    """A fact that bites: the chains are there, and nothing leads to them. kube-proxy itself does not look."""
    for node in case.nodes:
        if not _keeps_jumps(case, node):
            continue
        missing = missing_jumps(case.ruleset(node))
        managed = case.nodes[node]["ufw"]["enabled"] and case.nodes[node]["ufw"]["manage_builtins"]
        if not missing or (flushed(case, node) and not managed):
            continue  # nothing is missing, or a flush is named, with the same remedy
        rules = case.ruleset(node).get("nat", {}).get("KUBE-SERVICES", {"rules": []})["rules"]
        explained = _explained(case, paths, node, missing)
        there = _to_pods(case, node)
        yield Suspicion(
            where=node,
            evidence=[
                f"{node}: {_listed(missing)}; the chain KUBE-SERVICES itself has {len(rules)} rules. "
                f"Failing probes that ask a Service there: {len(explained)}; "
                f"{case.tally(there)} probes from there to pods' own addresses came out as expected."
            ],
            remedy=Remedy(role="kube_proxy_resync", nodes=[node], text="Let kube-proxy write its jumps again."),
            confidence=0.97 if explained else 0.85,
            explains=explained,
            ruled_out=["The overlay and the pods: a Service's address leads nowhere before either is reached."],
        )


@fault("stale-ipvs-device", 30, "A device left by kube-proxy's IPVS mode holds Services' addresses", SERVICE)
def stale_ipvs_device(case: Case, paths: Paths) -> Iterator[Suspicion]:
    """To this node those addresses are its own: what no rule translates first is answered by the node itself.

    In the mode IPVS the device is right, and the iptables rules of the single Services are not there. Other devices
    that hold a Service's address (NodeLocal DNSCache's) are meant to answer.
    """
    services = {service["cluster_ip"]: service for service in case.cluster["services"]}
    for node in case.nodes:
        device = case.interface(node, IPVS_DEVICE)
        held = [address.partition("/")[0] for address in device["addresses"]] if device else []
        names = [f"{services[ip]['namespace']}/{services[ip]['name']} ({ip})" for ip in held if ip in services]
        if not names or not _translates(case, node):
            continue
        asked = [probe for probe in case.run["probes"] if probe["source_node"] == node and probe["address"] in held]
        explained = ids(each for each in asked if case.outcome(each) in BLOCKED and not case.met(each))
        yield Suspicion(
            where=node,
            evidence=[
                f"{node}: the device {IPVS_DEVICE} holds {len(names)} addresses of Services, such as {names[0]}: "
                "they are the node's own. But kube-proxy's rules there are those of its iptables mode. "
                f"{case.tally(asked)} probes from there to these addresses came out as expected."
            ],
            remedy=Remedy(
                role="",
                nodes=[node],
                command=f"ip link delete {IPVS_DEVICE}",
                text=f"Remove the device {IPVS_DEVICE}, which kube-proxy no longer looks after.",
            ),
            confidence=0.95 if explained else 0.8,
            explains=explained,
            ruled_out=["kube-proxy in its mode IPVS, which needs the device: it would have no rule for each Service."],
        )


@fault("hostport-lost", 28, "The rules that lead to pods' hostPorts are gone", SERVICE)
def hostport_lost(case: Case, paths: Paths) -> Iterator[Suspicion]:
    """The portmap plugin writes them when a pod is made, and never looks again: a flush takes them for good."""
    for node in case.nodes:
        lost = _lost_host_ports(case, node)
        if not lost:
            continue
        ports = ", ".join(f"{port} ({pod['namespace']}/{pod['name']})" for pod, port in lost)
        pods = {(pod["namespace"], pod["name"]) for pod, _ in lost}
        rules = case.ruleset(node).get("nat", {}).get(HOSTPORTS, {"rules": []})["rules"]
        yield Suspicion(
            where=node,
            evidence=[f"{node}: nat {HOSTPORTS} has {len(rules)} rules, and none leads to these hostPorts: {ports}."],
            remedy=Remedy(
                role="",
                nodes=[node],
                command="; ".join(f"kubectl delete pod --namespace {space} {name}" for space, name in sorted(pods)),
                text="Recreate these pods: their hostPorts' rules are written when a pod is made, and only then.",
            ),
            confidence=0.95,
            ruled_out=[
                "The pods: they are Ready.",
                "NodePorts and ClusterIPs: kube-proxy keeps their rules in chains of its own, which it writes again.",
            ],
        )


class _HostPort(NamedTuple):
    pod: Pod
    port: str  # "80/TCP"


def _lost_host_ports(case: Case, node: str) -> List[_HostPort]:
    """HostPorts of the node's Ready pods that no rule leads to, where the portmap plugin keeps them in iptables."""
    nat = case.ruleset(node).get("nat", {})
    cni, tables = case.nodes[node]["cni"]["networks"], case.nodes[node]["nft_tables"]
    plugins: List[Dict[str, Any]] = next((network.get("plugins", []) for _, network in sorted(cni.items())), [])
    by_portmap = HOSTPORTS in nat or any(plugin.get("type") == "portmap" for plugin in plugins)
    if not by_portmap or any(table["name"] == HOSTPORTS_NFT for table in tables):
        return []
    jumps = any(rule["target"] == HOSTPORTS for rule in nat.get("PREROUTING", {"rules": []})["rules"])
    led = {
        f"{port}/{rule['matches'].get('protocol', '').upper()}"
        for rule in (nat[HOSTPORTS]["rules"] if jumps and HOSTPORTS in nat else [])
        for port in rule["matches"].get("dport", "").split(",")
    }
    declared = [
        _HostPort(pod, f"{port['hostPort']}/{port['protocol']}")
        for pod in case.pods_on(node)
        for port in pod["ports"]
        if pod["ready"] and port.get("hostPort")
    ]
    return [each for each in declared if each.port not in led]


def _translates(case: Case, node: str) -> bool:
    """Whether kube-proxy's own rules lead from Services' addresses to endpoints: its iptables mode."""
    rules = case.ruleset(node).get("nat", {}).get("KUBE-SERVICES", {"rules": []})["rules"]
    return any((rule["target"] or "").startswith("KUBE-SVC-") for rule in rules)


def _keeps_jumps(case: Case, node: str) -> bool:
    """Whether kube-proxy runs here in its iptables mode: in the others it has no canary, and other jumps or none."""
    return "KUBE-PROXY-CANARY" in case.ruleset(node).get("mangle", {})


def flushed(case: Case, node: str) -> bool:
    """Whether none of kube-proxy's jumps is left in the filter table."""
    jumps = {jump for jump in JUMPS if jump.table == "filter"}
    return _keeps_jumps(case, node) and jumps <= set(missing_jumps(case.ruleset(node)))


def _listed(missing: List[Jump]) -> str:
    named = f" ({', '.join(map(str, missing))})" if len(missing) <= NAMED_JUMPS else ""
    return f"{len(missing)} of {len(JUMPS)} jumps of kube-proxy are missing{named}"


def _explained(case: Case, paths: Paths, node: str, missing: List[Jump]) -> FrozenSet[str]:
    """Failing probes whose Service would be found by a missing jump; all that the node forwards, if those are gone."""
    untranslated: Set[Tuple[str, str]] = {(node, jump.hook) for jump in missing if jump.table == "nat"}
    unaccepted = flushed(case, node)
    return ids(
        probe
        for probe in case.failed
        if case.outcome(probe) in BLOCKED
        and (
            untranslated & paths.translators(probe)
            or (unaccepted and any(p.node == node and p.hook == "FORWARD" for p in paths.passages(probe)))
        )
    )


def _to_pods(case: Case, node: str) -> List[Probe]:
    probes = case.run["probes"]
    return [probe for probe in probes if probe["source_node"] == node and probe["row"] in ("pod-pod", "host-pod")]
