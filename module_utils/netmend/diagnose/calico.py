"""Calico: its addresses, its routes to other nodes' pods, its pools, and what Flannel left or still does beside it.

Calico's name for a node is the Kubernetes Node with annotations. Its routes come from BIRD, which learns them by BGP on
TCP 179, or from Felix, which needs no BGP. BGP is judged by connections that are there and by the underlay's SYNs,
which make none: a probe that connects to TCP 179 would end an established session, as a peer that restarts gracefully
is known by its new connection (RFC 4724, section 4.2), and Calico's BIRD has graceful restart on (confd's
bird.cfg.template).
"""

from __future__ import annotations

from collections import Counter
from typing import Any, Dict, FrozenSet, Iterator, List, NamedTuple, Optional, Tuple

from ..model import Pod, Probe, Remedy
from ..parse.k3s import CNI_CONF_DIR
from . import calico_mends as mends
from .calico_view import BGP_PORT, BOTH, FELIX, NOBODY, Pair, of_flannel, pair_of, plugins_of, view_of
from .case import Case, contains, ids, is_private, overlap
from .overlay import end_is_right, measured
from .path import Passage, Paths, crossings
from .registry import CNI, FABRIC, FIREWALL, NODE, Suspicion, fault
from .stops import Stop, describe, opening

INTERNAL_IP = "kubernetes-internal-ip"
# Plugins of those that K3s or a distribution leaves behind. Another one first in order may be meant so: Multus is.
PLAIN_PLUGINS = frozenset(["bridge", "flannel", "ptp", "loopback", "portmap", "bandwidth", "firewall", "tuning"])
NOT_IPIP = "IPIP being dropped: packets to these pods get into no tunnel, as no route of Calico's leads them there."


# --- addresses --------------------------------------------------------------------------------------------------------


@fault("calico-stale-node", 10, "Calico has a node that does not exist any more", NODE)
def calico_stale_node(case: Case, paths: Paths) -> Iterator[Suspicion]:
    """A node of the cluster that is not in the inventory and answers nobody; Calico's peers go on looking for it.

    calico-node is not Ready by it only while it starts, or where no other peer is left (node/pkg/health of
    projectcalico/calico: after 30 s one established session is enough). A machine that was ever up said its kubelet's
    version, and it may come back; where none was said, there is nobody to come.
    """
    for name, member in case.members.items():
        address = case.calico_address(name)
        if not address or member["ready"] or name in case.nodes or name in case.run["expected_nodes"]:
            continue
        asked = [probe for probe in case.run["probes"] if name in _ends(probe, paths)]
        dialled = [node for node in case.nodes if case.bgp_state(node, address) == "SYN-SENT"]
        if any(case.met(probe) for probe in asked if probe.get("target_node") == name):
            continue
        yield Suspicion(
            where=name,
            evidence=[
                f"{name} is a node of the cluster, with Calico's address {address}, and is in no inventory. It is not "
                f"Ready ({member['reason']}), and {case.tally(asked)} probes that need it came out as expected"
                + (f"; {', '.join(dialled)} get no answer to BGP from there." if dialled else ".")
            ],
            remedy=_without(case, name),
            confidence=0.75,
            explains=ids(probe for probe in asked if not case.met(probe)),
            ruled_out=[
                "A node that is only switched off looks the same from here: the provider's list of machines tells.",
                "The overlay: the other nodes' pods are not concerned.",
            ],
        )


@fault("calico-wrong-address", 9, "Calico found the wrong address of a node", CNI)
def calico_wrong_address(case: Case, paths: Paths) -> Iterator[Suspicion]:
    """Tunnels and BGP end at projectcalico.org/IPv4Address; what Kubernetes knows as InternalIP is where they belong.

    An address of another private network that all nodes agree on, and that works, may be meant so.
    Source: https://docs.tigera.io/calico/latest/networking/ipam/ip-autodetection
    """
    view, found = view_of(case), []
    lost, by_public = view.lost(paths), _nodes(lost_in_public(case, paths))
    for node in case.members:
        address, internal = case.calico_address(node), case.internal_ip(node)
        if not address or address == internal or not internal or node in by_public or _is_stale(case, node):
            continue
        explains = ids(probe for pair, probes in lost.items() if node in pair for probe in probes)
        is_public = is_private(internal) and not is_private(address)
        if not (explains or is_public or not view.has_address(node, address)):
            continue
        kind = "a public address" if is_public else "an address"
        of_node = "" if view.has_address(node, address) else " that no interface of it has"
        right = [other for other in case.members if case.calico_address(other) == case.internal_ip(other)]
        suspicion = Suspicion(
            where=node,
            evidence=[
                f"{node}: Calico has {address}, {kind}{of_node}, and Kubernetes has the InternalIP {internal}. "
                f"{len(right)} of {len(case.members)} nodes have the same for both. "
                f"IP_AUTODETECTION_METHOD is {view.node.get('autodetection', 'not known')}."
            ],
            remedy={},
            confidence=0.9 if explains and is_public else 0.8 if is_public else 0.6,
            explains=explains,
            ruled_out=["The fabric and BGP: they are asked to carry what goes to another address."] if explains else [],
        )
        found.append(suspicion)
    remedy = _autodetection(case, [suspicion.where for suspicion in found])
    yield from (suspicion._replace(remedy=remedy) for suspicion in found)


@fault("ipip-dropped-in-public", 7, "IPIP runs over public addresses, where it gets lost", FABRIC)
def ipip_dropped_in_public(case: Case, paths: Paths) -> Iterator[Suspicion]:
    """A provider's firewall stands before public addresses, and knows tcp, udp, icmp, esp and gre alone.

    Source: the protocols of a rule in Hetzner Cloud's API, https://docs.hetzner.cloud (Firewalls).
    """
    lost = lost_in_public(case, paths)
    for (here, there), probes in lost.items():
        received = case.interface(there, "tunl0")
        yield Suspicion(
            where=f"{here}>{there}",
            evidence=[
                f"{here}>{there}: the tunnel runs from {case.calico_address(here)} to {case.calico_address(there)}, "
                f"which are public. {case.tally(probes)} probes to pods passed, all others timed out. tunl0 of {there} "
                f"has received {received['rx_packets'] if received else 'unknown'} packets since it came up."
            ],
            remedy=_autodetection(case, sorted(_nodes(lost))),
            confidence=0.8,
            explains=ids(view_of(case).lost(paths).get(pair_of(here, there), [])),
            ruled_out=[
                "BGP: the routes to these pods are there, and lead into the tunnel.",
                "The nodes' firewalls: both ends accept IPIP from each other.",
            ],
        )


def lost_in_public(case: Case, paths: Paths) -> Dict[Pair, List[Probe]]:
    """Probes of pods by ordered pairs of nodes whose tunnel runs between public addresses and carries nothing."""
    return {
        (here, there): probes
        for (here, there), probes in crossings(case, paths).items()
        for overlay in [paths.overlay(here, there)]
        if overlay
        and overlay.kind == "ipip"
        and not any(is_private(case.underlay_address(end, "ipip")) for end in (here, there))
        and all(map(case.dropped, probes))
        and all(end_is_right(case, paths, *ends) for ends in ((here, there), (there, here)))
        and not any(paths.blocks(passage) for probe in probes for passage in paths.passages(probe))
    }


# --- routes -----------------------------------------------------------------------------------------------------------


@fault("bgp-dropped-by-host", 8, "The node's firewall drops BGP (TCP 179): no routes to other nodes' pods", FIREWALL)
def bgp_dropped_by_host(case: Case, paths: Paths) -> Iterator[Suspicion]:
    """Felix accepts IPIP before UFW is asked, and does not accept TCP 179."""
    view = view_of(case)
    stops: Dict[Tuple[str, str, str, str, int], List[Tuple[Passage, Any, FrozenSet[str]]]] = {}
    for pair in view.without_bgp(paths):
        for passage in view.dialling(*pair):
            for block in paths.blocks(passage):
                key = (passage.node, block.verdict.backend, *block.verdict.rule[:3])
                stops.setdefault(key, []).append((passage, block.verdict, ids(view.lost(paths)[pair_of(*pair)])))
    for (node, *_), found in stops.items():
        passage, verdict, _ = found[0]
        peers = sorted({each.peer for each, _, _ in found})
        explains: FrozenSet[str] = frozenset().union(*(probes for _, _, probes in found))
        yield Suspicion(
            where=node,
            evidence=[
                f"{node} stops BGP (TCP 179) {'from' if passage.hook == 'INPUT' else 'to'} {', '.join(peers)}: "
                f"{describe(case, node, verdict)}. {view.routes(node, paths)} {view.readiness()}"
                f"{case.tally(case.pings(node))} node pings came out as expected."
            ],
            remedy=opening(case, Stop(node, verdict, passage, peers, explains), "BGP (TCP 179)"),
            confidence=0.95,
            explains=explains,
            ruled_out=[NOT_IPIP, "The address: Calico has the InternalIP of both ends."],
        )


@fault("bgp-dropped-by-fabric", 8, "BGP (TCP 179) gets lost between the nodes: no routes to other nodes' pods", FABRIC)
def bgp_dropped_by_fabric(case: Case, paths: Paths) -> Iterator[Suspicion]:
    """SYNs that were measured to get lost on their way are certain; a connection that nothing answers is not."""
    view = view_of(case)
    for here, there in view.without_bgp(paths):
        pings, lost = case.pings(here, there), _lost(case, here, there)
        if _stopped(case, paths, here, there) or not lost:
            continue
        yield Suspicion(
            where=f"{here}>{there}",
            evidence=[
                f"{lost.evidence} {view.routes(here, paths)} {view.readiness()}"
                f"{case.tally(pings)} pings between the two nodes passed."
            ],
            remedy=Remedy(role="", nodes=sorted([here, there]), text="Let TCP 179 pass between the nodes' addresses."),
            confidence=lost.confidence,
            explains=ids(view.lost(paths)[pair_of(here, there)]),
            ruled_out=[
                NOT_IPIP,
                "The nodes' firewalls: both ends accept TCP 179 from each other.",
                "BIRD being down: the port of a machine that listens to nobody refuses, and does not keep silent.",
            ],
        )


@fault("no-cluster-routes", 0, "Neither Felix nor BIRD is to make the routes to other nodes' pods", CNI)
def no_cluster_routes(case: Case, paths: Paths) -> Iterator[Suspicion]:
    """programClusterRoutes of FelixConfiguration and of BGPConfiguration have to be kept consistent: if neither is on,
    there are no routes. Source: api/pkg/apis/projectcalico/v3/{felixconfig,bgpconfig}.go of projectcalico/calico."""
    view = view_of(case)
    for here, there in view.unrouted(paths):
        if view.makers(there) == NOBODY:
            yield Suspicion(
                where=here,
                evidence=[f"{view.routes(here, paths)} {view.switches()} {view.readiness()}".strip()],
                remedy=mends.remedy(
                    case,
                    "Let Felix make the routes, which needs no BGP; BIRD's own switch stays off.",
                    patches=[mends.custom("FelixConfiguration", "default", programClusterRoutes="Enabled")],
                ),
                confidence=0.9,
                explains=ids(view.lost(paths)[pair_of(here, there)]),
                ruled_out=[NOT_IPIP, "TCP 179: no route would come of it."],
            )


@fault("cluster-routes-twice", 0, "Felix and BIRD both make the routes to other nodes' pods", CNI)
def cluster_routes_twice(case: Case, paths: Paths) -> Iterator[Suspicion]:
    """If both are on, they fight over the routes; nothing need fail at the moment (sources as above)."""
    view = view_of(case)
    both = sorted(pool["name"] for pool in view.pools if view.makers_of(pool) == BOTH)
    # Before 3.32 BIRD has no switch.
    kind = "BGPConfiguration" if view.bird_has_a_switch else "FelixConfiguration"
    if both:
        yield Suspicion(
            where="the cluster",
            evidence=[f"Both make the routes for the pool {', '.join(both)}. {view.switches()}"],
            remedy=mends.remedy(
                case,
                "Leave the routes to Felix alone, as BIRD's part is to be removed from Calico; before 3.32, where BIRD "
                "has no switch, to BIRD.",
                patches=[mends.custom(kind, "default", programClusterRoutes="Disabled")],
            ),
            confidence=0.7,
        )


@fault("calico-routes-missing", 0, "Calico has no routes to other nodes' pods", CNI)
def calico_routes_missing(case: Case, paths: Paths) -> Iterator[Suspicion]:
    """What is left of missing routes: whoever is to make them does not run, or its BGP session does not come about."""
    view = view_of(case)
    named = {pair_of(*dial) for dial in view.without_bgp(paths) if _stopped(case, paths, *dial) or _lost(case, *dial)}
    for here, there in view.unrouted(paths):
        makers, explains = view.makers(there), ids(view.lost(paths)[pair_of(here, there)])
        if makers == NOBODY or view.astray(here, there) or pair_of(here, there) in named:
            continue
        pod = view.agent(here)
        running = "is not there" if pod is None else "is Ready" if pod["ready"] else f"is not Ready ({pod['reason']})"
        state = case.bgp_state(here, case.calico_address(there)) or "none"
        bgp = f" Its BGP connection to {there}: {state}." if makers != FELIX else ""
        yield Suspicion(
            where=here,
            evidence=[f"{view.routes(here, paths)} calico-node of {here} {running}.{bgp}"],
            remedy=Remedy(
                role="",
                nodes=[here],
                command="kubectl -n {namespace} logs -l k8s-app=calico-node -c calico-node --tail=50 --prefix".format(
                    namespace=view.node.get("namespace", "kube-system")
                ),
                text="See why calico-node makes no routes there; `birdcl show protocols` in it tells of BGP.",
            ),
            confidence=0.6,
            explains=explains,
            ruled_out=[NOT_IPIP],
        )


@fault("flannel-leftovers", 15, "What Flannel left takes the packets for Calico's pods", CNI)
def flannel_leftovers(case: Case, paths: Paths) -> Iterator[Suspicion]:
    """Devices and routes of Flannel stay when K3s is told to do without. Only a route that wins over Calico's harms:
    one that is as long as Calico's block or longer."""
    view = view_of(case)
    for pair, probes in view.lost(paths).items():
        for here, there in (pair, pair[::-1]):
            taken: Dict[Tuple[str, str], int] = Counter()
            for pod in view.pods(there):
                route = case.route(here, pod["ip"]) if here in case.nodes else None
                block = next((block for block in view.blocks(there) if contains(block, pod["ip"])), "")
                if route and of_flannel(case, here, route) and contains(block, route["destination"]):
                    taken[route["destination"], route["device"]] += 1
            for (destination, device), count in taken.items():
                yield Suspicion(
                    where=here,
                    evidence=[
                        f"{here}: the route {destination} dev {device}, which is Flannel's, takes what goes to {count} "
                        f"pods of Calico's on {there}. {case.tally(view.between(here, there, paths))} probes between "
                        "the two nodes and their pods came out as expected."
                    ],
                    remedy=Remedy(
                        role="cni_leftovers" if view.is_off_flannel(here) else "",
                        nodes=[here],
                        vars={"cni_leftovers_of": ["flannel"]},
                        command=f"ip route del {destination} dev {device}",
                        text="Delete what Flannel left, its routes first, one node at a time.",
                    ),
                    confidence=0.95,
                    explains=ids(probes),
                    ruled_out=["Calico's tunnel: these packets do not take it."],
                )


# --- pools and configuration ------------------------------------------------------------------------------------------


@fault("pool-outside-cluster-cidr", 11, "Calico's pool is not inside K3s's cluster-cidr", CNI)
def pool_outside_cluster_cidr(case: Case, paths: Paths) -> Iterator[Suspicion]:
    """kube-proxy takes what has no address of cluster-cidr for traffic from outside, and masquerades it on its way to a
    Service: the server sees a node's address, and NetworkPolicies misjudge it. Nothing fails.

    Source: https://kubernetes.io/docs/reference/command-line-tools-reference/kube-proxy (--cluster-cidr).
    """
    cidr, view = case.cluster["cluster_cidr"], view_of(case)
    if any(error["what"] == "cluster_cidr" for error in case.cluster["errors"]):
        return  # it is not known what K3s has, and the pool may be right
    for pool in view.pools:
        if not cidr or contains(cidr, pool["cidr"]):
            continue
        pods = [pod for pod in case.pods.values() if not pod["host_network"] and contains(pool["cidr"], pod["ip"])]
        masquerading = [node for node in case.nodes if _masquerades_others(case, node, cidr)]
        yield Suspicion(
            where=f"IPPool {pool['name']}",
            evidence=[
                f"The pool {pool['name']} is {pool['cidr']}, and cluster-cidr is {cidr}. {len(pods)} pods have an "
                f"address of it; kube-proxy masquerades what does not come from {cidr} on {len(masquerading)} of "
                f"{len(case.nodes)} nodes."
            ],
            remedy=_within(case, pool, pods),
            confidence=0.95 if pods and masquerading else 0.7,
        )


@fault("two-ipams-overlap", 12, "Calico and Flannel both hand out the same addresses", CNI)
def two_ipamsoverlap(case: Case, paths: Paths) -> Iterator[Suspicion]:
    """Each keeps its own books: Calico's blocks, and host-local's files for the node's podCIDR. Where Flannel does not
    run, podCIDRs mean nothing."""
    view = view_of(case)
    live = {node: case.members[node]["pod_cidr"] for node in view.with_facts if view.runs_flannel(node)}
    for pool in view.pools:
        blocks = [(node, block) for node in case.members for block in view.blocks(node)]
        podcidrs = {node: cidr for node, cidr in live.items() if overlap(pool["cidr"], cidr)}
        if not podcidrs or not any(contains(pool["cidr"], block) for _, block in blocks):
            continue
        shared = [
            (node, block, min(block, cidr, key=lambda network: -int(network.partition("/")[2])))
            for node, block in blocks
            for cidr in podcidrs.values()
            if overlap(block, cidr)
        ]
        clashes = sorted({f"{block} of {node}" for node, block, _ in shared})
        twice = [(one, other) for one, other in _same_address(case) if contains(pool["cidr"], one["ip"])]
        explains = ids(
            probe
            for probe in case.failed
            if any(
                contains(network, address)
                for flow in paths.flows(probe)
                for address in (flow.end.address, flow.pod)
                for _, _, network in shared
                if address
            )
        )
        named = [f"{one['ip']} of {_name(one)} and {_name(other)}" for one, other in twice]
        yield Suspicion(
            where=f"IPPool {pool['name']}",
            evidence=[
                f"The pool {pool['name']}, {pool['cidr']}, overlaps the podCIDRs of {', '.join(sorted(podcidrs))}, "
                f"where Flannel hands out addresses. Calico's blocks in those: {', '.join(clashes) or 'none yet'}. "
                f"Addresses that two pods have: {'; '.join(named) or 'none yet'}."
            ],
            remedy=Remedy(
                role="",
                nodes=[],
                command=mends.typed(mends.custom("IPPool", pool["name"], disabled=True)),
                text="Make a pool inside cluster-cidr and outside of all podCIDRs, disable this one, and recreate "
                "Calico's pods.",
            ),
            confidence=0.95 if twice else 0.9 if clashes else 0.7,
            explains=explains,
        )


@fault("cni-config-not-read", 16, "containerd does not read the network configuration that is meant", CNI)
def cni_config_not_read(case: Case, paths: Paths) -> Iterator[Suspicion]:
    """K3s writes containerd's configuration when it starts: with flannel-backend none it names no conf_dir, and
    containerd's own default holds, /etc/cni/net.d, where Calico's is. Of several files there the first in order counts.

    Calico beside a Flannel that K3s is configured for is the state before a swap, and works. Where several nodes are
    yet to be restarted, a swap is under way, which has to be more careful than a repair.
    Source: https://docs.k3s.io/networking/basic-network-options#custom-cni
    """
    view = view_of(case)
    on_calico = [node for node in case.members if node in case.nodes and view.has_calico(node)]
    for node, facts in case.nodes.items():
        cni = facts["cni"]
        first = next(iter(cni["networks"]), "")
        is_meant = not cni["conf_dir"] or (first and _is_calico(cni["networks"][first]))
        if is_meant or not view.pools or not view.wants_no_flannel(node):
            continue
        strays = view.strays(node)
        if cni["conf_dir"] != CNI_CONF_DIR:
            unit = facts["k3s"].get("unit") or "k3s"
            said = f"containerd reads {cni['conf_dir']}, as with Flannel, though flannel-backend is none"
            alone = bool(on_calico) and set(case.members) - set(on_calico) == {node}
            remedy = Remedy(
                role="k3s_restart" if alone else "",
                nodes=[node],
                vars={"k3s_restart_flannel": False},
                pods=mends.named(strays) if alone else {},
                command=f"systemctl restart {unit.partition('.')[0]}",
                text="Restart K3s there, servers before agents, then recreate the node's pods.",
            )
        elif any(map(_is_calico, cni["networks"].values())):
            file = f"{cni['conf_dir']}/{first}"
            kinds = {plugin.get("type", "") for plugin in plugins_of(cni["networks"][first])}
            plain = kinds <= PLAIN_PLUGINS
            said = f"containerd reads {file} first, which is not Calico's"
            remedy = Remedy(
                role="cni_leftovers" if plain else "",
                nodes=[node],
                vars={"cni_leftovers_files": [file]},
                pods=mends.named(strays) if plain else {},
                command=f"mv {file} {file}.netmend-aside",
                text="Move that file out of the way, then recreate the node's pods.",
            )
        else:
            continue
        pods, addresses = case.pods_on(node), {pod["ip"] for pod in strays}
        of_calico = len(view.pods(node))
        yield Suspicion(
            where=node,
            evidence=[f"{node}: {said}. {of_calico} of {len(pods)} pods there have an address of Calico's."],
            remedy=remedy,
            confidence=0.9,
            explains=ids(
                probe
                for probe in case.failed
                if any({flow.end.address, flow.pod} & addresses for flow in paths.flows(probe))
            ),
        )


def _stopped(case: Case, paths: Paths, here: str, there: str) -> bool:
    """Whether a firewall of the two stops BGP from here to there."""
    return any(paths.blocks(passage) for passage in view_of(case).dialling(here, there))


class _Lost(NamedTuple):
    evidence: str  # a sentence
    confidence: float


def _lost(case: Case, here: str, there: str) -> Optional[_Lost]:
    """Whether what here sends to there's port of BGP gets lost: as measured at both ends, else as far as here sees."""
    ends = {node: case.calico_address(node) for node in (here, there)}
    seen = measured(case, ends, f"tcp-{BGP_PORT}")
    if seen and seen.verdict == "fabric":
        return _Lost(seen.sentence, 0.98)
    if (seen and seen.answered) or not _silent(case, here, there):
        return None
    return _Lost(f"{here}>{there}: the connection to TCP 179 is in SYN-SENT: nothing answers.", 0.75)


def _silent(case: Case, here: str, there: str) -> bool:
    """Whether here dials and gets no answer, though the two nodes reach each other."""
    pings = case.pings(here, there)
    dials = case.bgp_state(here, case.calico_address(there)) == "SYN-SENT"
    return dials and bool(pings) and all(case.met(ping) for ping in pings)


def _without(case: Case, node: str) -> Remedy:
    text = "Delete the node, if its machine is gone for good; Calico then gives up its address and blocks."
    command = f"kubectl delete node {node}"
    if case.members[node]["version"] and node not in case.run.get("gone_nodes", []):
        return Remedy(role="", nodes=[], command=command, text=f"{text} It goes once netmend_gone_nodes names it.")
    # Those that it never got would wait for it until their DaemonSet changes: a node that goes does not.
    waiting = [pod for pod in case.pods.values() if pod["meant_for"] == node and not pod["node"]]
    absent = [{"apiVersion": "v1", "kind": "Node", "metadata": {"name": node}}, *map(mends.as_object, waiting)]
    return mends.remedy(case, text, absent=absent, command=command)


def _autodetection(case: Case, nodes: List[str]) -> Remedy:
    """The InternalIPs, where what the tunnel needs was measured to pass between them. Where Calico is already told to
    take them, it has but to look again, which it does when it starts."""
    view = view_of(case)
    text = "Let Calico take each node's InternalIP, or the address in the private network's CIDR (cidr=)."
    method = view.node.get("autodetection", "")
    patches = [mends.environment(case, IP_AUTODETECTION_METHOD=INTERNAL_IP)]
    name, namespace = view.node.get("name", "calico-node"), view.node.get("namespace", mends.NAMESPACE)
    typed = f"kubectl -n {namespace} set env daemonset/{name} -c calico-node IP_AUTODETECTION_METHOD={INTERNAL_IP}"
    found = mends.remedy(case, text, patches=patches, command=typed)
    if not _passes_between(case, nodes, "udp-4789" if any(map(view.is_vxlan, view.pools)) else "ipip"):
        return Remedy(role="", nodes=[], command=typed, text=text)
    agents = mends.agents(case, nodes)
    if not agents or not _finds_internal_ips(case, method, nodes):
        return found
    names = " ".join(agent["metadata"]["name"] for agent in agents)
    text = f"Let calico-node look for its address again: {method} leads to the InternalIP."
    return mends.remedy(case, text, absent=agents, command=f"kubectl -n {namespace} delete pod {names}")


def _finds_internal_ips(case: Case, method: str, astray: List[str]) -> bool:
    """Whether it leads to all nodes' InternalIPs, and to none of what was found on those that have another address."""
    kind, _, value = method.partition("=")
    cidrs = [each.strip() for each in value.split(",")] if kind == "cidr" else []
    right = [any(contains(cidr, case.internal_ip(node)) for cidr in cidrs) for node in case.members]
    wrong = [any(contains(cidr, case.calico_address(node)) for cidr in cidrs) for node in astray]
    return kind == INTERNAL_IP or (all(right) and not any(wrong))


def _passes_between(case: Case, nodes: List[str], packets: str) -> bool:
    """Between the InternalIPs of these nodes and all that were measured with them. What a node's own firewall drops of
    it, Felix lets in once it knows the addresses."""
    underlay = case.run.get("underlay")
    pairs = underlay["pairs"].items() if underlay else []
    found = [pair["kinds"][packets]["verdict"] for name, pair in pairs if set(name.split(">")) & set(nodes)]
    return bool(found) and set(found) <= {"passes", "host"}


def _within(case: Case, pool: Dict[str, Any], pods: List[Pod]) -> Remedy:
    cidr = case.cluster["cluster_cidr"]
    text = f"Disable this pool, with another one inside {cidr} and clear of what Flannel gives, and recreate its pods."
    # Where Flannel gives no addresses, podCIDRs mean nothing.
    live = [node for node in view_of(case).with_facts if view_of(case).runs_flannel(node)]
    podcidrs = [case.members[node]["pod_cidr"] for node in live if case.members[node]["pod_cidr"]]
    disabled = mends.custom("IPPool", pool["name"], disabled=True)
    made = mends.another_pool(case, pool, podcidrs)
    found = mends.remedy(case, text, patches=[disabled], objects=made or [], pods=pods)
    return found if made is not None else Remedy(role="", nodes=[], command=found["command"], text=text)


def _nodes(pairs: Dict[Pair, List[Probe]]) -> FrozenSet[str]:
    return frozenset(node for pair in pairs for node in pair)


def _ends(probe: Probe, paths: Paths) -> FrozenSet[str]:
    """The nodes that the probe goes to."""
    return frozenset([probe.get("target_node", ""), *(flow.end.node for flow in paths.flows(probe))])


def _is_stale(case: Case, node: str) -> bool:
    return not case.members[node]["ready"] and node not in case.nodes


def _is_calico(network: Dict[str, Any]) -> bool:
    return any(plugin.get("type") == "calico" for plugin in plugins_of(network))


def _same_address(case: Case) -> Iterator[Tuple[Pod, Pod]]:
    """Pods of two nodes with one address."""
    seen: Dict[str, Pod] = {}
    for pod in case.pods.values():
        if pod["ip"] and not pod["host_network"] and pod["phase"] == "Running":
            first = seen.setdefault(pod["ip"], pod)
            if first["node"] != pod["node"]:
                yield first, pod


def _name(pod: Pod) -> str:
    return f"{pod['namespace']}/{pod['name']}"


def _masquerades_others(case: Case, node: str, cidr: str) -> bool:
    """Whether kube-proxy there masquerades what comes from outside of cluster-cidr to a Service."""
    return any(
        rule["target"] == "KUBE-MARK-MASQ" and rule["matches"].get("!source") == cidr
        for chain in case.ruleset(node).get("nat", {}).values()
        for rule in chain["rules"]
    )
