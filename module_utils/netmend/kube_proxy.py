"""What kube-proxy's iptables mode keeps in the tables (k8s.io/kubernetes/pkg/proxy/iptables, iptablesJumpChains)."""

from __future__ import annotations

import re
from typing import List, NamedTuple, Optional, Set

from .model import Ruleset

# mangle last: kube-proxy watches the canary there, and writes once the others are gone too.
CANARY_TABLES = ("nat", "filter", "mangle")


FLANNEL_CHAIN = "FLANNEL-FWD"


class Jump(NamedTuple):
    table: str
    hook: str
    target: str

    def __str__(self) -> str:
        return f"{self.table} {self.hook} -> {self.target}"


JUMPS = (
    Jump("nat", "PREROUTING", "KUBE-SERVICES"),
    Jump("nat", "OUTPUT", "KUBE-SERVICES"),
    Jump("nat", "POSTROUTING", "KUBE-POSTROUTING"),
    Jump("filter", "FORWARD", "KUBE-FORWARD"),
    Jump("filter", "FORWARD", "KUBE-SERVICES"),
    Jump("filter", "FORWARD", "KUBE-EXTERNAL-SERVICES"),
    Jump("filter", "FORWARD", "KUBE-PROXY-FIREWALL"),
    Jump("filter", "INPUT", "KUBE-NODEPORTS"),
    Jump("filter", "INPUT", "KUBE-EXTERNAL-SERVICES"),
    Jump("filter", "INPUT", "KUBE-PROXY-FIREWALL"),
    Jump("filter", "OUTPUT", "KUBE-SERVICES"),
    Jump("filter", "OUTPUT", "KUBE-PROXY-FIREWALL"),
)


def missing_jumps(ruleset: Ruleset) -> List[Jump]:
    """The jumps that kube-proxy wants and that are not there, nat first: without those no Service answers."""
    return [jump for jump in JUMPS if jump.target not in _targets(ruleset, jump)]


def flannel_is_flushed(ruleset: Ruleset) -> bool:
    """Whether Flannel's accepts for pods are gone, of which its chain is left.

    It looks for them in a period of its own, and puts them back: 50 s in K3s (SetupAndEnsureForwardRules in its
    pkg/agent/flannel).
    """
    table = ruleset.get("filter", {})
    if FLANNEL_CHAIN not in table:
        return False
    there = FLANNEL_CHAIN in _targets(ruleset, Jump("filter", "FORWARD", FLANNEL_CHAIN))
    return not (there and table[FLANNEL_CHAIN]["rules"])


def service_addresses(ruleset: Ruleset) -> Set[str]:
    """The addresses that KUBE-SERVICES looks for: Services' own, and those of load balancers."""
    chain = ruleset.get("nat", {}).get("KUBE-SERVICES")
    matches = (re.search(r"-d ([0-9.]+)/32 ", rule["spec"]) for rule in (chain["rules"] if chain else []))
    return {match[1] for match in matches if match}


def _targets(ruleset: Ruleset, jump: Jump) -> List[Optional[str]]:
    chain = ruleset.get(jump.table, {}).get(jump.hook)
    return [rule["target"] for rule in chain["rules"]] if chain else []
