"""Switches of a node's kernel without which it forwards no pod's packets."""

from __future__ import annotations

from typing import Any, Dict, Iterator

from ..model import Remedy
from .case import BLOCKED, Case, ids
from .path import Paths
from .registry import KERNEL, Suspicion, fault


@fault("ip-forward-off", 19, "The node's kernel forwards nothing (ip_forward is 0)", KERNEL)
def ip_forward_off(case: Case, paths: Paths) -> Iterator[Suspicion]:
    """Certain by the fact alone: every pod behind another node, and every NodePort, needs forwarding."""
    for node, facts in case.nodes.items():
        if facts["sysctls"].get("net.ipv4.ip_forward") != "0" or node not in case.members:
            continue
        through = [
            probe
            for probe in case.run["probes"]
            if any(p.node == node and p.hook == "FORWARD" and not p.packet.bridged for p in paths.passages(probe))
        ]
        yield Suspicion(
            where=node,
            evidence=[
                f"{node}: net.ipv4.ip_forward is 0. "
                f"{case.tally(through)} probes that it may have to forward came out as expected."
            ],
            remedy=Remedy(
                role="iptables_forward",
                nodes=[node],
                vars=_parameter("net.ipv4.ip_forward"),
                text="Set net.ipv4.ip_forward to 1, and keep it in /etc/sysctl.d.",
            ),
            confidence=0.99,
            explains=ids(probe for probe in through if case.outcome(probe) in BLOCKED and not case.met(probe)),
            ruled_out=["A firewall's drop: with ip_forward 0 no packet gets as far as FORWARD."],
        )


@fault("bridge-nf-off", 20, "Bridged packets bypass iptables (bridge-nf-call-iptables is 0)", KERNEL)
def bridge_nf_off(case: Case, paths: Paths) -> Iterator[Suspicion]:
    """A fact that bites whenever a Service's endpoint is on the asking pod's node: its answer is not translated back.

    Where the CNI has no bridge (Calico), the switch means nothing.
    """
    for node, facts in case.nodes.items():
        bridge = case.bridge(node)
        if facts["sysctls"].get("net.bridge.bridge-nf-call-iptables") != "0" or not bridge:
            continue
        beside = [
            probe
            for probe in case.run["probes"]
            if (node, "PREROUTING") in paths.translators(probe)
            and probe["source_node"] == node
            and any(flow.end.pod and flow.end.node == node for flow in paths.flows(probe))
        ]
        explained = ids(probe for probe in beside if case.outcome(probe) in BLOCKED and not case.met(probe))
        yield Suspicion(
            where=node,
            evidence=[
                f"{node}: net.bridge.bridge-nf-call-iptables is 0, and its pods hang on the bridge {bridge['name']}. "
                f"{case.tally(beside)} probes by pods here to Services with endpoints here came out as expected."
            ],
            remedy=Remedy(
                role="iptables_forward",
                nodes=[node],
                vars=_parameter("net.bridge.bridge-nf-call-iptables"),
                text="Set net.bridge.bridge-nf-call-iptables to 1, and keep it in /etc/sysctl.d.",
            ),
            confidence=0.95 if explained else 0.85,
            explains=explained,
            ruled_out=["kube-proxy: a Service whose endpoint is on another node is not concerned."],
        )


def _parameter(name: str) -> Dict[str, Any]:
    """What the role iptables_forward is given to set one kernel parameter, and do nothing else."""
    return {"iptables_forward_accepts": False, "iptables_forward_sysctls": {name: "1"}}
