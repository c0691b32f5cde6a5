"""What the servers have to agree on, and what their certificates hang on."""

from __future__ import annotations

import statistics
import time
from ipaddress import ip_network
from typing import Any, Dict, Iterator, List, Mapping, Tuple

from ..model import Certificate, NodeFacts, Remedy
from ..without_flannel import WANTED, drop_in, would_decide
from .calico_view import view_of
from .case import Case, ids
from .path import Paths
from .registry import CONTROL_PLANE, Suspicion, fault

CLOCK_TOLERANCE = 60.0  # seconds; nodes are not all asked at the same moment
SOON = 7 * 86400.0  # seconds
NAMED_FILES = 3  # in a sentence

# docs.k3s.io/cli/server, "Critical Configuration Values", with the defaults of the same page. agent-token is not
# compared, because secrets are not read; of `disable` only servicelb counts; cluster-dns follows service-cidr.
CRITICAL: Dict[str, Any] = {
    "cluster-cidr": ["10.42.0.0/16"],
    "cluster-domain": "cluster.local",
    "disable-cloud-controller": False,
    "disable-helm-controller": False,
    "disable-network-policy": False,
    "egress-selector-mode": "agent",
    "embedded-registry": False,
    "flannel-backend": "vxlan",
    "flannel-external-ip": False,
    "flannel-ipv6-masq": False,
    "secrets-encryption": False,
    "secrets-encryption-provider": "aescbc",
    "service-cidr": ["10.43.0.0/16"],
}


@fault("servers-disagree", 18, "The servers' configurations differ in what they must agree on", CONTROL_PLANE)
def servers_disagree(case: Case, paths: Paths) -> Iterator[Suspicion]:
    """K3s compares when a server joins, and never again; an agent takes over what one of them says when it starts.

    Which of them is right, the operators know; but where all nodes have Calico, one that would start Flannel is not.
    """
    differing = disagreements(case.nodes)
    remedy = _remedy(case, differing)
    for name, facts in case.nodes.items():
        if not differing or not is_known_server(facts):
            continue
        yield Suspicion(
            where=name,
            evidence=[f"{key}: {said}." for key, said in differing.items()],
            remedy=remedy,
            confidence=0.95,
        )


def _remedy(case: Case, differing: Mapping[str, str]) -> Remedy:
    text = (
        f"Give {' and '.join(differing)} the same value in the configuration of every server, and restart K3s: the "
        "servers first, one at a time, then the agents."
    )
    servers = {name: facts for name, facts in case.nodes.items() if is_known_server(facts)}
    astray = [name for name, facts in servers.items() if any(setting(facts, key)[0] != WANTED[key] for key in WANTED)]
    all_on_calico = all(
        name in case.nodes and view_of(case).has_calico(name) and not view_of(case).strays(name)
        for name in case.members
    )
    meant = all_on_calico and set(differing) <= set(WANTED) and 2 * len(astray) < len(servers)
    files = dict(drop_in(servers[name]) for name in astray)
    if not meant or len(files) != 1 or not all(would_decide(servers[name]) for name in astray):
        return Remedy(role="", nodes=list(servers), text=text)
    variables = {"k3s_restart_files": files, "k3s_restart_flannel": False}
    return Remedy(
        role="k3s_restart", nodes=astray, vars=variables, text=f"{text} All nodes have Calico: that is meant."
    )


def disagreements(nodes: Mapping[str, NodeFacts]) -> Dict[str, str]:
    """Key that the servers must agree on and do not -> what each has, and what decided it."""
    servers = {name: facts for name, facts in nodes.items() if is_known_server(facts)}
    values = {name: _critical(facts["k3s"]["config"]) for name, facts in servers.items()}
    keys = [key for key in next(iter(values.values()), {}) if len({said[key] for said in values.values()}) > 1]
    return {
        key: "; ".join(f"{name} has {values[name][key]} ({_source(facts, key)})" for name, facts in servers.items())
        for key in keys
    }


@fault("clock-skew", 33, "A node's clock is wrong", CONTROL_PLANE)
def clock_skew(case: Case, paths: Paths) -> Iterator[Suspicion]:
    """Against the median of all nodes' clocks. Of two nodes that differ it cannot tell which one is wrong.

    Kubernetes takes a node for alive while its lease's renewTime grows (pkg/controller/nodelifecycle,
    tryUpdateNodeHealth), and of a clock that is set back it does not, until it is as late as it was.
    """
    now = _now(case)
    for node, facts in case.nodes.items() if len(case.nodes) > 1 else []:
        offset = facts["time"] - now
        if abs(offset) <= CLOCK_TOLERANCE:
            continue
        certificates, clock = facts["certificates"], facts["time"]
        invalid = [each for each in certificates if not each["not_before"] <= clock < each["not_after"]]
        source, synchronized = facts["clock"]["source"], facts["clock"]["synchronized"]
        yield Suspicion(
            where=node,
            evidence=[
                f"{node}: its clock is {abs(offset):.0f} s {'ahead of' if offset > 0 else 'behind'} the median of "
                f"{len(case.nodes)} nodes. The kernel takes it for {'' if synchronized else 'not '}synchronized; "
                f"{source or 'no known daemon'} looks after it. By it, {len(invalid)} of {len(certificates)} "
                "certificates of K3s there are not valid now."
            ],
            remedy=Remedy(
                role="",
                nodes=[node],
                command="chronyc makestep" if source == "chrony" else "timedatectl set-ntp true",
                text="Set the clock by NTP, and see that its servers can be reached (UDP 123). If it was ahead, "
                "restart K3s on the servers then, one by one: they take the node for NotReady again and again until "
                "its heartbeats are as late as they were.",
            ),
            confidence=0.95 if len(case.nodes) > 2 else 0.6,
            explains=ids(each for each in case.failed if case.outcome(each) == "tls" and node in paths.nodes(each)),
            ruled_out=[f"The time that asking takes: nodes may differ by {CLOCK_TOLERANCE:.0f} s for that."],
        )


@fault("certificate-expired", 33, "A certificate of K3s has expired, or is about to", CONTROL_PLANE)
def certificate_expired(case: Case, paths: Paths) -> Iterator[Suspicion]:
    """K3s renews its certificates when it starts, those that end within 120 days (docs.k3s.io/cli/certificate).

    So one that ends sooner is healthy; within a week it is going to bite. Authorities are never renewed by a start.
    """
    now = _now(case)
    for node, facts in case.nodes.items():
        ending = [each for each in facts["certificates"] if each["not_after"] < now + SOON]
        if not ending:
            continue
        expired = [each for each in ending if each["not_after"] < now]
        authority = next((each for each in ending if each["file"].endswith("-ca.crt")), None)
        unit = facts["k3s"]["unit"].partition(".")[0]
        command = "k3s certificate rotate-ca" if authority else f"systemctl restart {unit}"
        text = "Restart K3s, one server at a time and then the agents: it renews certificates when it starts."
        if authority:
            text = "Rotate the authority as docs.k3s.io/cli/certificate says: a restart does not renew it."
        yield Suspicion(
            where=node,
            evidence=[f"{node}: {_dated(ending, now)}."],
            remedy=Remedy(role="", nodes=[node], command=command, text=text),
            confidence=0.95 if expired else 0.8,
            explains=ids(
                each for each in case.failed if expired and case.outcome(each) == "tls" and node in paths.nodes(each)
            ),
            ruled_out=["The node's clock: the dates are held against the median of all nodes' clocks."],
        )


def _now(case: Case) -> float:
    return statistics.median([facts["time"] for facts in case.nodes.values()] or [0.0])


def _dated(certificates: List[Certificate], now: float) -> str:
    named = [
        f"{each['file']} ({each['subject']}) {'expired' if each['not_after'] < now else 'expires'} at "
        + time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(each["not_after"]))
        for each in sorted(certificates, key=lambda each: each["not_after"])[:NAMED_FILES]
    ]
    more = len(certificates) - len(named)
    return "; ".join(named) + (f"; and {more} more" if more else "")


def is_known_server(facts: NodeFacts) -> bool:
    unread = any(error["what"] in ("k3s unit", "k3s config") for error in facts["errors"])
    return facts["k3s"]["role"] == "server" and not unread


def _critical(config: Dict[str, Any]) -> Dict[str, str]:
    """What has to be the same on all servers, with K3s's defaults, as text."""
    values = {key: config.get(key, default) for key, default in CRITICAL.items()}
    values["cluster-dns"] = config.get("cluster-dns") or _dns_of(_text(values["service-cidr"]))
    values["disable=servicelb"] = "servicelb" in config.get("disable", [])
    return {key: _text(value) for key, value in sorted(values.items())}


def _dns_of(service_cidr: str) -> str:
    try:
        return ",".join(str(ip_network(cidr)[10]) for cidr in service_cidr.split(",")[:1])
    except (ValueError, IndexError):
        return ""


def _text(value: Any) -> str:
    if isinstance(value, list):
        return ",".join(str(item) for item in value)
    return str(value).lower() if isinstance(value, bool) else str(value)


def setting(facts: NodeFacts, key: str) -> Tuple[str, str]:
    """What a server has of a key that all must agree on, and what decided it."""
    return _critical(facts["k3s"]["config"])[key], _source(facts, key)


def _source(facts: NodeFacts, key: str) -> str:
    return facts["k3s"]["sources"].get(key.partition("=")[0], "K3s's default")
