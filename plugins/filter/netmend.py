"""The core's pure functions as filters: hosts' variables in, plans, findings and reports out."""

from __future__ import annotations

import hashlib
import secrets
import time as clock
from pathlib import Path
from typing import Any, Callable, Iterable, Iterator, Mapping

import ansible.module_utils

_CORE = str(Path(__file__).resolve().parents[2] / "module_utils")
if _CORE not in ansible.module_utils.__path__:
    ansible.module_utils.__path__.append(_CORE)

from ansible.errors import AnsibleFilterError  # noqa: E402  the path above has to be set first
from ansible.module_utils.netmend import (  # noqa: E402
    backup,
    calico_manifest,
    checklist,
    overlays,
    plan,
    report,
)
from ansible.module_utils.netmend.diagnose import diagnose  # noqa: E402
from ansible.module_utils.netmend.kube import with_config  # noqa: E402
from ansible.module_utils.netmend.report import text  # noqa: E402
from ansible.module_utils.netmend.swap import gates, order, state  # noqa: E402
from ansible.module_utils.netmend.ufw_required import required_rules  # noqa: E402

# What the roles register -> the role.
RESULTS = {
    "ufw_result": "ufw",
    "iptables_forward_result": "iptables_forward",
    "iptables_forward_sysctl_result": "iptables_forward",
    "kube_proxy_resync_result": "kube_proxy_resync",
    "k3s_restart_result": "k3s_restart",
}

Hosts = Iterable[Mapping[str, Any]]


def netmend_facts(hosts: Hosts) -> dict[str, Any]:
    """The hosts' variables -> {"expected_nodes", "nodes", "cluster"} of a Run, and "server": whose API was asked.

    Raises AnsibleFilterError where no server's API gave the cluster's state, with what each said.
    """
    hosts = list(hosts)
    nodes, expected, clusters, refusals = {}, [], [], []
    for host in hosts:
        facts = _plain(host.get("netmend_node_info", {}).get("netmend_node"))
        name = facts["name"] if facts else host["inventory_hostname"]
        expected.append(name)
        if facts:
            nodes[name] = facts
        answer = host.get("netmend_cluster_info", {})
        if "netmend_cluster" in answer:
            clusters.append((host["inventory_hostname"], _plain(answer["netmend_cluster"])))
        elif answer.get("msg"):
            refusals.append(f"{name}: {answer['msg']}")
    if not clusters:
        said = "; ".join(refusals) or "No server could be reached."
        raise AnsibleFilterError(f"No server's API gave the cluster's state. {said}")
    server, cluster = clusters[0]
    return {"expected_nodes": expected, "nodes": nodes, "cluster": with_config(cluster, nodes), "server": server}


def netmend_plan(facts: Mapping[str, Any], all_pairs: bool = False) -> dict[str, list[Any]]:
    """{"nodes", "cluster"} -> the matrix's probes, by the node that is to run them."""
    facts = _plain(facts)
    return plan.by_node(plan.plan_matrix(facts["nodes"], facts["cluster"], all_pairs=all_pairs))


def netmend_canary_plan(facts: Mapping[str, Any], pod: str) -> dict[str, list[Any]]:
    """{"nodes", "cluster"} -> the probes of one pod, "namespace/name", by the node that is to run them."""
    facts = _plain(facts)
    try:
        return plan.by_node(plan.plan_canary(facts["nodes"], facts["cluster"], pod))
    except LookupError as error:
        raise AnsibleFilterError(str(error)) from error


def netmend_underlay_plan(facts: Mapping[str, Any], hosts: Hosts) -> dict[str, Any]:
    """Facts and the hosts' variables -> node -> the arguments of netmend_underlay; empty for a single node."""
    facts = _plain(facts)
    run, now = secrets.token_hex(8), clock.time()
    orders = overlays.plan_round(facts["nodes"], facts["cluster"], _calls(hosts), now, run)
    return {node: order for node, order in orders.items() if order["peers"]}


def netmend_diagnose(
    facts: Mapping[str, Any], probes: Mapping[str, Any], hosts: Hosts, remove_foreign_rules: bool = False
) -> dict[str, Any]:
    """Facts, probes and the hosts' observations -> report.Judgement."""
    hosts = list(hosts)
    results = {}
    for host in hosts:
        result = _plain(host.get("netmend_connectivity", {}).get("netmend_connectivity"))
        if result:
            results[result["node"]] = result
    probes = [probe for of_node in _plain(probes).values() for probe in of_node]
    underlay = _underlay(hosts, [node["name"] for node in facts["cluster"]["nodes"]])
    run = {**_plain(facts), "probes": probes, "results": results}
    findings = diagnose({**run, "underlay": underlay} if underlay else run)
    passing = underlay["overlays"] if underlay else {}
    matrix = plan.summarise(probes, results)
    coverage = plan.coverage(probes, _plain(facts["cluster"]))
    return report.judge(
        matrix, findings, remove_foreign_rules=remove_foreign_rules, coverage=coverage, overlays=passing
    )


def _underlay(hosts: Hosts, members: list[str]) -> Any:
    """What all nodes' reports say together; None where there are none."""
    reports = [_plain(host.get("netmend_underlay", {}).get("netmend_underlay")) for host in hosts]
    by_node = {report["node"]: report for report in reports if report}
    return overlays.evaluate(by_node, overlays.clocks(_calls(hosts)), expected=members) if by_node else None


def _calls(hosts: Hosts) -> dict[str, overlays.Call]:
    """When each node's facts were gathered, by its clock and by this one."""
    calls = {}
    for host in hosts:
        answer = _plain(host.get("netmend_node_info", {}))
        if "netmend_call" in answer and "netmend_node" in answer:
            facts, call = answer["netmend_node"], answer["netmend_call"]
            calls[facts["name"]] = overlays.Call(call["sent"], call["received"], facts["time"], facts["took"])
    return calls


def netmend_swap(facts: Mapping[str, Any], hosts: Hosts, wanted: Mapping[str, Any]) -> dict[str, Any]:
    """Facts, the hosts' variables and a gates.Wanted -> what stands against a swap, or what it does next.

    ``steps`` are nodes to be flipped at once; ``commands`` take away what is left of Flannel, by node.
    """
    nodes, cluster = _plain(facts["nodes"]), _plain(facts["cluster"])
    underlay = _underlay(list(hosts), [node["name"] for node in cluster["nodes"]])
    want = gates.Wanted(**_plain(wanted))
    asked = nodes, cluster, underlay, want
    refusals = [refusal["message"] for refusal in gates.gates(*asked)]
    if refusals:
        return {"refusals": refusals}
    standing = state.read(nodes, cluster)
    return {
        "refusals": [],
        "notes": gates.notes(*asked),
        "phase": standing["phase"],
        "options": gates.options(want, cluster, underlay)._asdict(),
        "canary": order.canary(standing, nodes, cluster, want.canary),
        "steps": order.flip(standing, cluster, want.batch, want.canary),
        "drop_ins": {name: dict(zip(("path", "content"), order.drop_in(node))) for name, node in nodes.items()},
        "commands": order.clean(standing),
        "annotations": order.old_annotations(standing),
    }


def netmend_calico(path: str, sha256: str, options: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The file of Calico's manifest -> the objects to apply, patched by calico_manifest.Options.

    Raises AnsibleFilterError where the file is another than the checksum's, where one is given, or cannot be patched.
    """
    try:
        content = Path(path).read_bytes()
        found = hashlib.sha256(content).hexdigest()
        if sha256 and found != sha256:
            raise AnsibleFilterError(f"{path} has the SHA-256 {found}, and {sha256} is asked for: not used")
        calico = calico_manifest.patch(content.decode(), calico_manifest.Options(**_plain(options)))
    except (OSError, UnicodeDecodeError, calico_manifest.ManifestError) as error:
        raise AnsibleFilterError(f"{path}: {error}") from error
    return [*calico.definitions, *calico.settings, *calico.objects]


def netmend_calico_tunnels(cluster: Mapping[str, Any], node: str, backend: str) -> list[dict[str, Any]]:
    """Cluster facts -> what a node has to reach through its tunnels: targets of netmend_connectivity.

    Raises AnsibleFilterError for a node that Calico has given no tunnel address.
    """
    annotation = calico_manifest.TUNNEL_ADDRESS[backend]
    addresses = {each["name"]: each["annotations"].get(annotation) for each in _plain(cluster["nodes"])}
    without = sorted(name for name, address in addresses.items() if not address)
    if without:
        raise AnsibleFilterError(f"Calico has given {', '.join(without)} no tunnel address ({annotation})")
    return [
        {"protocol": protocol, "address": address}
        for name, address in addresses.items()
        if name != node
        for protocol in ("icmp", "mtu")
    ]


def netmend_mark(marks: Iterable[Any], phase: str) -> list[dict[str, Any]]:
    """The marks of a run, and one more: the phase begins now."""
    return [*_plain(list(marks)), {"phase": phase, "at": round(clock.monotonic(), 3)}]


def netmend_checklist(given: Any) -> Any:
    """netmend_checklist, read; None where it asks for nothing."""
    return checklist.read(_plain(given))


def netmend_checklist_problem(given: Any) -> str:
    """What is wrong in netmend_checklist; "" where nothing is."""
    try:
        netmend_checklist(given)
    except ValueError as error:
        return str(error)
    return ""


def netmend_checklist_plan(asked: Mapping[str, Any], facts: Mapping[str, Any]) -> dict[str, list[Any]]:
    """A checklist's probes, by the node that is to run them; "" is the controller."""
    facts = _plain(facts)
    return plan.by_node(checklist.probes(_plain(asked), facts["nodes"], facts["cluster"]))


def netmend_checklist_judge(
    judgement: Mapping[str, Any], asked: Mapping[str, Any], facts: Mapping[str, Any], hosts: Hosts
) -> dict[str, Any]:
    """report.Judgement, and what the hosts' and the controller's observations say of the checklist."""
    facts = _plain(facts)
    answers = [_plain(host.get(name, {})) for host in hosts for name in ("netmend_checked", "netmend_checked_here")]
    results = [answer.get("netmend_connectivity", {}) for answer in answers]
    observations = [seen for result in results for seen in result.get("observations", [])]
    points = checklist.points(_plain(asked), facts["nodes"], facts["cluster"], facts["expected_nodes"], observations)
    return report.with_checklist(_plain(judgement), points)


def netmend_report(hosts: Hosts, time: str, check_mode: bool = False, pass_mark: float | None = None) -> dict[str, Any]:
    """The hosts' variables after a run -> the whole report."""
    hosts = list(hosts)
    measured = next(host for host in hosts if "netmend_now" in host)
    facts = measured["netmend_facts"]
    cluster = _plain(facts["cluster"])
    return report.report(
        now=_plain(measured["netmend_now"]),
        before=_plain(measured.get("netmend_before")),
        changes=[change for host in hosts for change in _changes(host)],
        nodes=report.members(cluster, _plain(facts["expected_nodes"]), list(facts["nodes"])),
        marks=netmend_mark(measured.get("netmend_marks", []), "end"),
        time=time,
        version=cluster["version"],
        check_mode=check_mode,
        pass_mark=None if pass_mark is None else float(pass_mark),
    )


def _changes(host: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """What each role left on one host, where it changed something."""
    for variable, role in RESULTS.items():
        result = _plain(host.get(variable, {}))
        if result.get("changed"):
            diff = result.get("diff") or {"before": "", "after": result.get("stdout", "")}
            yield {"node": host["inventory_hostname"], "role": role, "diff": diff if isinstance(diff, list) else [diff]}


class FilterModule:
    def filters(self) -> dict[str, Callable[..., Any]]:
        return {
            "netmend_facts": netmend_facts,
            "netmend_plan": netmend_plan,
            "netmend_underlay_plan": netmend_underlay_plan,
            "netmend_diagnose": netmend_diagnose,
            "netmend_calico": netmend_calico,
            "netmend_calico_tunnels": netmend_calico_tunnels,
            "netmend_canary_plan": netmend_canary_plan,
            "netmend_checklist": netmend_checklist,
            "netmend_checklist_problem": netmend_checklist_problem,
            "netmend_checklist_plan": netmend_checklist_plan,
            "netmend_checklist_judge": netmend_checklist_judge,
            "netmend_mark": netmend_mark,
            "netmend_measured_text": text.measured,
            "netmend_report": netmend_report,
            "netmend_state_is_whole": lambda path: backup.is_whole(Path(path)),
            "netmend_swap": netmend_swap,
            "netmend_text": text.render,
            "netmend_ufw_rules": required_rules,
        }


def _plain(value: Any) -> Any:
    """Ansible's lazy containers and tagged strings as plain Python, so that the core sees nothing of Ansible."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return value
