"""The core's pure functions as filters: hosts' variables in, plans, findings and reports out."""

from __future__ import annotations

import base64
import hashlib
import json
import secrets
import time as clock
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any, Callable, Iterable, Iterator, Mapping, Sequence

import ansible.module_utils
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

_CORE = str(Path(__file__).resolve().parents[2] / "module_utils")
if _CORE not in ansible.module_utils.__path__:
    ansible.module_utils.__path__.append(_CORE)

from ansible.errors import AnsibleFilterError  # noqa: E402  the path above has to be set first
from ansible.module_utils.netmend import (  # noqa: E402  as above
    backup,
    balancers,
    calico_manifest,
    checklist,
    edge,
    hetzner,
    ingress_nginx,
    k3s_disable,
    overlays,
    plan,
    report,
    restore,
)
from ansible.module_utils.netmend.diagnose import diagnose  # noqa: E402  as above
from ansible.module_utils.netmend.diagnose.hops import walks  # noqa: E402  as above
from ansible.module_utils.netmend.kube import with_config  # noqa: E402  as above
from ansible.module_utils.netmend.model import CONTROLLER  # noqa: E402  as above
from ansible.module_utils.netmend.report import text  # noqa: E402  as above
from ansible.module_utils.netmend.swap import cause, gates, order, state  # noqa: E402  as above
from ansible.module_utils.netmend.ufw_required import required_rules  # noqa: E402  as above
from ansible.module_utils.netmend.without_flannel import drop_in  # noqa: E402  as above
from ansible.utils.collection_loader._collection_finder import _get_collection_path  # noqa: E402  as above

# What the roles register -> the role.
RESULTS = {
    "ufw_result": "ufw",
    "iptables_forward_result": "iptables_forward",
    "iptables_forward_sysctl_result": "iptables_forward",
    "kube_proxy_resync_result": "kube_proxy_resync",
    "k3s_disable_result": "k3s_disable",
    "k3s_restart_result": "k3s_restart",
    "bridge_hairpin_result": "bridge_hairpin",
    "cni_leftovers_result": "cni_leftovers",
    "calico_settings_made": "calico_settings",
    "calico_settings_patched": "calico_settings",
    "calico_settings_removed": "calico_settings",
    "path_mtu_result": "path_mtu",
    "path_mtu_clamp_result": "path_mtu",
}
# What one server does for all nodes.
OF_SERVER = {"netmend_pods": "pod_replacement"}

# What netmend_everywhere's results are kept as.
READ = "netmend_read"
PROBED = "netmend_probed"
ROUND = "netmend_round"
CHECKED = "netmend_checked"

TUNNELS = 120  # seconds that Calico may take from a tunnel's address to its routes, BGP's sessions among them
SAID = 300  # characters of an error that a report quotes

Names = Sequence[str]
Kept = Mapping[str, Any]  # variables that all hosts have


def netmend_reading(names: Names, servers: Names) -> str:
    """Hosts -> the arguments of netmend_node_info, by host: JSON for netmend_everywhere."""
    return json.dumps({name: {"cluster": name in servers} for name in names})


def netmend_facts(names: Names, hostvars: Any) -> dict[str, Any]:
    """Hosts -> {"expected_nodes", "silent", "cluster"} of a Run, and "server": whose API was asked. Nodes' facts stay
    in the answers.

    Raises AnsibleFilterError where no server's API gave the cluster's state, with what each said.
    """
    return _facts(_kept(names, hostvars))


def _facts(kept: Kept) -> dict[str, Any]:
    expected, silent, clusters, refusals = [], {}, [], []
    for host, answer in _answers(kept, READ).items():
        name = answer.get("netmend_node", {}).get("name", host)
        expected.append(name)
        if "netmend_node" not in answer:
            silent[name] = " ".join(str(answer.get("msg", "")).split()).removeprefix("Task failed: ")[:SAID]
        if "netmend_cluster" in answer:
            clusters.append((host, answer["netmend_cluster"]))
        elif "netmend_cluster_error" in answer:
            refusals.append(f"{name}: {answer['netmend_cluster_error']}")
    if not clusters:
        said = "; ".join(refusals or [f"{name}: {why}" for name, why in silent.items()]) or "There is no server."
        raise AnsibleFilterError(f"No server's API gave the cluster's state. {said}")
    server, cluster = clusters[0]
    known = with_config(cluster, _nodes(kept))
    return {"expected_nodes": expected, "silent": silent, "cluster": known, "server": server}


def netmend_edge(
    balancers: Any, sources: Any = (), applications: Any = (), patience: Any = edge.PATIENCE, k3s: Any = ()
) -> Any:
    """What is declared of the edge -> the same, read; raises AnsibleFilterError that names what is wrong."""
    try:
        return {
            "balancers": edge.read_balancers(_plain(balancers)),
            "sources": _plain(sources),
            "applications": _plain(applications),
            "patience": edge.read_patience(patience),
            "k3s_disable": k3s_disable.read(_plain(k3s)),
        }
    except ValueError as error:
        raise AnsibleFilterError(str(error)) from error


def netmend_plan(
    names: Names, hostvars: Any, all_pairs: bool = False, edge_alone: bool = False, settle: float = 0.0
) -> str:
    """Hosts -> the matrix's probes and the edge's, or the latter alone, by the node that is to run them, as JSON.

    ``settle``: seconds that the balancers may take to see what was mended.
    """
    kept = _kept(names, hostvars)
    nodes, cluster = _nodes(kept), kept["netmend_facts"]["cluster"]
    said = _plain(kept["netmend_edge"])
    of_edge = edge.Edge(cluster, said["balancers"], said["applications"])
    matrix = [] if edge_alone else plan.plan_matrix(nodes, cluster, all_pairs=all_pairs)
    return json.dumps(plan.by_node([*matrix, *edge.plan_edge(nodes, of_edge, said["patience"], settle)]))


def netmend_probing(names: Names, hostvars: Any, rounds: Any = 1) -> str:
    """Hosts, and what netmend_plan planned -> the arguments of netmend_connectivity, by host, of those that answered.

    JSON for netmend_everywhere. Beside the probes these are the pods of ingress-nginx there, which it asks what they
    say themselves.
    """
    kept = _kept(names, hostvars)
    controllers = edge.plan_controllers(_nodes(kept), kept["netmend_facts"]["cluster"])
    nodes, asking = _named(kept), _asking(kept, json.loads(kept["netmend_probes"]))
    also = {host: {"controllers": controllers.get(node, []), "rounds": rounds} for host, node in nodes.items()}
    return json.dumps({host: {**arguments, **also[host]} for host, arguments in asking.items()})


def netmend_canary_reading(names: Names, hostvars: Any, node: str) -> str:
    """Hosts, and the node of a canary -> what is to be read again with it, as netmend_reading has it: that node, and
    the cluster where it was read before."""
    kept = _kept(names, hostvars)
    server = kept["netmend_facts"]["server"]
    own = [host for host, name in _named(kept).items() if name == node]
    return netmend_reading([*own, server], [server])


def netmend_canary_plan(names: Names, hostvars: Any, pod: str) -> dict[str, list[Any]]:
    """Hosts -> the probes of one pod, "namespace/name", by the node that is to run them."""
    kept = _kept(names, hostvars)
    kept = {**kept, READ: {"answers": {**_answers(kept, READ), **_answers(kept, "netmend_canary_read")}}}
    nodes, cluster, underlay = _measured({**kept, "netmend_facts": _facts(kept)})
    passes = gates.flannel_passes(nodes, cluster, underlay)
    try:
        return plan.by_node(plan.plan_canary(nodes, cluster, pod, others_reached=passes))
    except LookupError as error:
        raise AnsibleFilterError(str(error)) from error


def netmend_underlay_plan(names: Names, hostvars: Any, forks: int) -> str:
    """Hosts, of which Ansible works on so many at a time -> the arguments of netmend_underlay, by host.

    JSON for netmend_everywhere. Empty for a single node.
    """
    kept = _kept(names, hostvars)
    run, now = secrets.token_hex(8), clock.time()
    late = max((report["late"] for report in _underlay_reports(kept)), default=0.0)
    orders = overlays.plan_round(
        _nodes(kept), kept["netmend_facts"]["cluster"], _calls(kept), now, run, forks=forks, late=late
    )
    by_host = {host: orders[node] for host, node in _named(kept).items() if orders.get(node, {}).get("peers")}
    return json.dumps(by_host)


def netmend_diagnose(
    names: Names, hostvars: Any, remove_foreign_rules: bool = False, gone_nodes: Iterable[str] = ()
) -> str:
    """Hosts, with their observations -> report.Judgement, as JSON."""
    kept = _kept(names, hostvars)
    facts = {**kept["netmend_facts"], "nodes": _nodes(kept)}
    if isinstance(gone_nodes, str) or not all(isinstance(name, str) for name in gone_nodes):
        raise AnsibleFilterError(f"netmend_gone_nodes must be a list of names of nodes, and is {gone_nodes!r}")
    results = {result["node"]: result for result in _results(kept, PROBED)}
    said = _plain(kept["netmend_edge"])
    probes = [probe for of_node in json.loads(kept["netmend_probes"]).values() for probe in of_node]
    underlay = _underlay(kept, [node["name"] for node in facts["cluster"]["nodes"]])
    declared = {
        "balancers": said["balancers"],
        "balancer_sources": said["sources"],
        "k3s_disable": said["k3s_disable"],
        "gone_nodes": list(gone_nodes),
    }
    measured = {"controllers": dict(_controllers(kept)), **({"underlay": underlay} if underlay else {})}
    run = {**facts, **declared, **measured, "probes": probes, "results": results}
    findings = diagnose(run)
    passing = underlay["overlays"] if underlay else {}
    matrix = plan.summarise(probes, results)
    is_matrix = any(probe["row"] not in plan.EDGE for probe in probes)
    coverage = plan.coverage(probes, facts["cluster"]) if is_matrix else None
    judgement = report.judge(
        matrix,
        findings,
        remove_foreign_rules=remove_foreign_rules,
        coverage=coverage,
        overlays=passing,
        walks=walks(run, findings),
    )
    return json.dumps(judgement)


def netmend_outcome(now: str) -> dict[str, Any]:
    """What of a judgement decides on a repair."""
    judgement = json.loads(now)
    return {name: judgement[name] for name in ("healthy", "remedies", "pods")}


def netmend_ingress_nginx(
    names: Names, hostvars: Any, live: Sequence[Mapping[str, Any]], wanted: Mapping[str, Any]
) -> dict[str, Any]:
    """Hosts, the namespace's objects and an ingress_nginx.Wanted -> an ingress_nginx.Plan."""
    kept = _kept(names, hostvars)
    cluster, asked = kept["netmend_facts"]["cluster"], ingress_nginx.Wanted(**_plain(wanted))
    return ingress_nginx.plan(cluster, _nodes(kept), _plain(live), asked)._asdict()


def netmend_k3s_disable_plan(node: Mapping[str, Any], components: Names) -> dict[str, Any]:
    """A server's facts, and what of K3s's own it is to do without -> a k3s_disable.Plan."""
    return k3s_disable.plan(_plain(node), _plain(components))._asdict()


def netmend_k3s_disable_left(cluster: Mapping[str, Any], components: Names, waiting: Names) -> list[str]:
    """The cluster's facts -> what is yet to come of that, for pods that wait for the ports."""
    return k3s_disable.left(_plain(cluster), _plain(components), _plain(waiting))


def netmend_certificate(name: str) -> dict[str, str]:
    """A DNS name -> "cert", its own authority "ca", and "key", as a Secret has them: PEM in base64. For ten years."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "netmend")])
    now = datetime.now(timezone.utc)
    certificate = (
        x509.CertificateBuilder(subject, subject, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - timedelta(hours=1))
        .not_valid_after(now + timedelta(days=3650))
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(name)]), critical=False)
        .sign(key, hashes.SHA256())
    )
    form = serialization.PrivateFormat.PKCS8
    private = key.private_bytes(serialization.Encoding.PEM, form, serialization.NoEncryption())
    public = certificate.public_bytes(serialization.Encoding.PEM)
    return {key: base64.b64encode(pem).decode() for key, pem in (("ca", public), ("cert", public), ("key", private))}


def _kept(names: Names, hostvars: Any) -> Kept:
    """What tasks that ran once have left for all hosts, as it is kept.

    To look through a few hundred nodes' facts in a template's way takes Ansible minutes, and there is no template in
    what modules and filters returned, which is all that is used here. For the same reason what is large and of no use
    to a playbook is passed on as JSON.
    """
    kept: Kept = hostvars.raw_get(names[0])
    return kept


def _answers(kept: Kept, name: str) -> dict[str, Any]:
    """Host -> what a module said there."""
    answers: dict[str, Any] = kept.get(name, {}).get("answers", {})
    return answers


def _named(kept: Kept) -> dict[str, str]:
    """Host -> its node, of those that answered."""
    read = _answers(kept, READ).items()
    return {host: answer["netmend_node"]["name"] for host, answer in read if "netmend_node" in answer}


def _nodes(kept: Kept) -> dict[str, Any]:
    """Node -> its facts, of those that answered."""
    found = (answer.get("netmend_node") for answer in _answers(kept, READ).values())
    return {facts["name"]: facts for facts in found if facts}


def _asking(kept: Kept, probes: Mapping[str, list[Any]]) -> dict[str, Any]:
    """Probes by node -> arguments of netmend_connectivity by host. The controller's go with those of a server."""
    server, own = kept["netmend_facts"]["server"], probes.get(CONTROLLER, [])
    return {
        host: {"probes": probes.get(node, []), "here": own if host == server else []}
        for host, node in _named(kept).items()
    }


def _results(kept: Kept, name: str) -> Iterator[Any]:
    """model.ProbeResult of each node that answered, and of the controller."""
    for answer in _answers(kept, name).values():
        yield from (answer[said] for said in ("netmend_connectivity", "netmend_here") if said in answer)


def _controllers(kept: Kept) -> Iterator[Any]:
    """Node, and model.ControllerSaid of each that was asked there."""
    for answer in _answers(kept, PROBED).values():
        if "netmend_controllers" in answer:
            yield answer["netmend_connectivity"]["node"], answer["netmend_controllers"]


def _underlay(kept: Kept, members: list[str]) -> Any:
    """What all nodes' reports say together; None where there are none."""
    by_node = {report["node"]: report for report in _underlay_reports(kept)}
    return overlays.evaluate(by_node, overlays.clocks(_calls(kept)), expected=members) if by_node else None


def _underlay_reports(kept: Kept) -> Iterator[Any]:
    return (answer["netmend_underlay"] for answer in _answers(kept, ROUND).values() if "netmend_underlay" in answer)


def _calls(kept: Kept) -> dict[str, overlays.Call]:
    """When each node's facts were gathered, by its clock and by this one."""
    calls = {}
    for answer in _answers(kept, READ).values():
        if "netmend_node" in answer:
            facts, call = answer["netmend_node"], answer["netmend_call"]
            calls[facts["name"]] = overlays.Call(call["sent"], call["received"], facts["time"], facts["took"])
    return calls


def netmend_swap_plan(names: Names, hostvars: Any, wanted: Mapping[str, Any], to: str) -> dict[str, Any]:
    """Hosts, measured, a gates.Wanted, and calico or flannel -> what stands against that swap, or what it does next.

    ``steps`` are nodes to be flipped at once, ``cidrs`` the networks that pods have their addresses from then;
    ``commands``, ``annotations`` and ``conditions``, by node, are what takes away what is left of the other network.
    """
    nodes, cluster, underlay = _measured(_kept(names, hostvars))
    want = gates.Wanted(**_plain(wanted))
    asked = nodes, cluster, underlay, want
    back = to == "flannel"
    refusals = [refusal["message"] for refusal in (gates.gates_back if back else gates.gates)(*asked)]
    if refusals:
        return {"refusals": refusals, "unknown": overlays.is_unknown(underlay)}
    standing = state.read(nodes, cluster)
    options = gates.options(want, cluster, underlay)._asdict()
    common = {"refusals": [], "drop_ins": _drop_ins(nodes)}
    if not back:
        return {
            **common,
            "notes": gates.notes(*asked),
            "phase": standing["phase"],
            "backup": standing["phase"] in ("none", "installed"),
            "options": options,
            "canary": order.canary(standing, nodes, cluster, want.canary),
            "steps": order.flip(standing, nodes, cluster, want.batch),
            "cidrs": [options["pool"]],
            "commands": order.clean(standing),
            "annotations": order.old_annotations(standing),
            "conditions": {},
        }
    pools = [pool["cidr"] for pool in standing["pools"]]
    return {
        **common,
        "notes": gates.notes_back(*asked),
        "phase": standing["back"],
        "backup": standing["back"] != "leftovers",
        "options": {**options, **({"pool": pools[0]} if pools else {})},
        "canary": "",
        "steps": order.flip_back(standing, cluster, want.batch, want.canary),
        "cidrs": [node["pod_cidr"] for node in cluster["nodes"]],
        "commands": order.clean_back(standing),
        "annotations": order.old_annotations_back(standing),
        "conditions": order.conditions_back(standing),
    }


def netmend_leftovers(names: Names, hostvars: Any) -> dict[str, dict[str, Any]]:
    """Hosts, measured -> what role cni_leftovers is to take away, by the nodes where a finding asks for it."""
    kept = _kept(names, hostvars)
    nodes, cluster = _nodes(kept), kept["netmend_facts"]["cluster"]
    standing = state.read(nodes, cluster)["nodes"]
    found = {}
    for node, roles in json.loads(kept["netmend_now"])["remedies"].items():
        asked = roles.get("cni_leftovers")
        if asked and node in standing:
            leftovers, of = standing[node]["leftovers"], asked.get("cni_leftovers_of", [])
            aside = [order.set_aside(path) for path in asked.get("cni_leftovers_files", [])]
            found[node] = {
                "commands": [*aside, *order.leftovers(leftovers, of)],
                "annotations": leftovers["annotations"] if "flannel" in of else [],
            }
    return found


def netmend_swap_cause(names: Names, hostvars: Any, consent: str) -> str:
    """Hosts, measured, and netmend_swap -> why Flannel is to be swapped for Calico now; "" where it is not."""
    kept = _kept(names, hostvars)
    faults = [finding["fault"] for finding in json.loads(kept["netmend_now"])["findings"]]
    return cause.why(consent, faults, *_measured(kept))


def _measured(kept: Kept) -> tuple[Any, Any, Any]:
    """Nodes, cluster and underlay, as the gates take them."""
    nodes, cluster = _nodes(kept), kept["netmend_facts"]["cluster"]
    return nodes, cluster, _underlay(kept, [node["name"] for node in cluster["nodes"]])


def _drop_ins(nodes: Mapping[str, Any]) -> dict[str, dict[str, str]]:
    return {name: dict(zip(("path", "content"), drop_in(node))) for name, node in nodes.items()}


def netmend_restore(names: Names, hostvars: Any, path: str, server: str = "") -> dict[str, Any]:
    """Servers, with their facts and tokens' checksums as role k3s_restore reads them, and a backup's directory -> what
    stands against restoring them from it, or restore.Plan and backup.Backup in one."""
    hosts = {name: hostvars.raw_get(name) for name in names}
    found = {name: host.get("k3s_restore_info", {}).get("netmend_node") for name, host in hosts.items()}
    nodes = {name: facts for name, facts in found.items() if facts}
    kept = {name: host.get("k3s_restore_token", {}).get("stat", {}).get("checksum") for name, host in hosts.items()}
    tokens = {name: token for name, token in kept.items() if token}
    saved = backup.read(Path(path))
    refusals = restore.refusals(saved, list(names), nodes, tokens, server)
    if refusals:
        return {"refusals": refusals}
    return {
        **saved,
        **restore.plan(saved, nodes, server),
        "refusals": [],
        "notes": restore.notes(saved, nodes, server),
        "tokenless": [name for name in names if name not in tokens],
    }


def netmend_calico(path: str, sha256: str, options: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The file of Calico's manifest -> the objects to apply, patched by calico_manifest.Options.

    Raises AnsibleFilterError where the file is another than the checksum's, where one is given, or cannot be patched.
    """
    wanted = calico_manifest.Options(**_plain(options))
    try:
        content = Path(path).read_bytes()
        found = hashlib.sha256(content).hexdigest()
        if sha256 and found != sha256:
            kind = "with Typha" if wanted.typha else "without Typha"
            raise AnsibleFilterError(f"{path} has the SHA-256 {found}, and {sha256} ({kind}) is asked for: not used")
        calico = calico_manifest.patch(content.decode(), wanted)
    except (OSError, UnicodeDecodeError, calico_manifest.ManifestError) as error:
        raise AnsibleFilterError(f"{path}: {error}") from error
    return [*calico.definitions, *calico.settings, *calico.objects]


def netmend_images(objects: Sequence[Mapping[str, Any]]) -> list[str]:
    """Objects -> the images that have to be on every node: their DaemonSets', and Typha's, which may be on any."""
    runs = [item for item in _plain(objects) if item["kind"] == "DaemonSet" or _is_typha(item)]
    pods = [item["spec"]["template"]["spec"] for item in runs]
    return sorted({each["image"] for pod in pods for each in (*pod.get("initContainers", []), *pod["containers"])})


def _is_typha(item: Mapping[str, Any]) -> bool:
    return (item["kind"], item["metadata"]["name"]) == ("Deployment", calico_manifest.TYPHA)


def netmend_calico_tunnels(addresses: Sequence[str], node: str) -> list[dict[str, Any]]:
    """NODE=ADDRESS of each node's tunnel -> what a node has to reach through its own: targets of netmend_connectivity.

    Raises AnsibleFilterError for a node that Calico has given no tunnel address.
    """
    by_node = dict(each.split("=") for each in addresses)
    without = sorted(name for name, address in by_node.items() if not address)
    if without:
        raise AnsibleFilterError(f"Calico has given {', '.join(without)} no tunnel address")
    return [
        {"protocol": protocol, "address": address, "settle": TUNNELS}
        for name, address in by_node.items()
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


def netmend_checklist_probing(names: Names, hostvars: Any, asked: Mapping[str, Any]) -> str:
    """Hosts -> the arguments of netmend_connectivity for a checklist, by host, of those that have something to ask.

    JSON for netmend_everywhere.
    """
    kept = _kept(names, hostvars)
    probes = checklist.probes(_plain(asked), _nodes(kept), kept["netmend_facts"]["cluster"])
    asking = _asking(kept, plan.by_node(probes))
    return json.dumps({host: given for host, given in asking.items() if given["probes"] or given["here"]})


def netmend_checklist_judge(names: Names, hostvars: Any, asked: Mapping[str, Any]) -> str:
    """Hosts -> report.Judgement, with what their and the controller's observations say of the checklist, as JSON."""
    kept = _kept(names, hostvars)
    facts = kept["netmend_facts"]
    observations = [seen for result in _results(kept, CHECKED) for seen in result["observations"]]
    points = checklist.points(_plain(asked), _nodes(kept), facts["cluster"], facts["expected_nodes"], observations)
    return json.dumps(report.with_checklist(json.loads(kept["netmend_now"]), points))


def netmend_has_collection(name: str) -> bool:
    """Whether a collection is installed where this Ansible looks."""
    try:
        _get_collection_path(name)
    except ValueError:
        return False
    return True


def netmend_balancer_problem(answers: Any, names: Names) -> str:
    """Why the balancers cannot be told, by what the modules answered and by the names asked for; "" where they can."""
    given = _plain(answers)
    failed = [answer for answer in given if not {*answer} & {*hetzner.ANSWERS, "skipped"}]
    return hetzner.problem(failed[0]) if failed else hetzner.unknown(given[0][hetzner.ANSWERS[0]], names)


def netmend_balancer_selectors(read: Any) -> list[str]:
    return hetzner.selectors(_plain(read))


def netmend_balancers(
    names: Names, hostvars: Any, read: Mapping[str, Any], only: Names, remove_foreign: bool = False
) -> dict[str, Any]:
    """Hosts, and answers of Hetzner's API -> the balancers, what is wrong with them, the changes, and all that as text.

    ``read``: balancers, servers, and the results of a loop over label selectors.
    """
    kept, answers = _kept(names, hostvars), _plain(read)
    cluster = kept["netmend_facts"]["cluster"]
    there, servers = (answers[of][key] for of, key in zip(("balancers", "servers"), hetzner.ANSWERS))
    selected = {each["item"]: [server["name"] for server in each[hetzner.ANSWERS[1]]] for each in answers["selected"]}
    project = hetzner.chosen(hetzner.Project(there, servers, selected), cluster, _plain(only))
    comparison = balancers.compare(project, _nodes(kept), cluster, remove_foreign)
    return {
        "balancers": hetzner.declared(project, cluster),
        "text": balancers.render(project, cluster, comparison),
        "drift": bool(comparison["services"] or comparison["targets"]),
        **comparison,
    }


def netmend_report(
    names: Names, hostvars: Any, time: str, check_mode: bool = False, pass_mark: float | None = None
) -> str:
    """Hosts after a run -> the whole report, as JSON."""
    kept = _kept(names, hostvars)
    facts, hosts = kept["netmend_facts"], [hostvars.raw_get(name) for name in names]
    whole = report.report(
        now=json.loads(kept["netmend_now"]),
        before=json.loads(kept["netmend_before"]) if "netmend_before" in kept else None,
        changes=[change for host in hosts for change in _changes(host, facts.get("server", ""))],
        nodes=report.members(facts["cluster"], facts["expected_nodes"], list(_nodes(kept))),
        marks=netmend_mark(kept["netmend_marks"], "end"),
        time=time,
        version=facts["cluster"]["version"],
        check_mode=check_mode,
        pass_mark=None if pass_mark is None else float(pass_mark),
    )
    return json.dumps(whole)


def _changes(host: Mapping[str, Any], server: str) -> Iterator[dict[str, Any]]:
    """What each role left on one host, where it changed something. Of what ran once, all hosts have the result."""
    for variable, role in (RESULTS | OF_SERVER if host["inventory_hostname"] == server else RESULTS).items():
        result = host.get(variable, {})
        if result.get("changed"):
            diff = result.get("diff") or {"before": "", "after": result.get("stdout", "")}
            yield {"node": host["inventory_hostname"], "role": role, "diff": diff if isinstance(diff, list) else [diff]}


class FilterModule:
    def filters(self) -> dict[str, Callable[..., Any]]:
        return {
            "netmend_facts": netmend_facts,
            "netmend_plan": netmend_plan,
            "netmend_probing": netmend_probing,
            "netmend_reading": netmend_reading,
            "netmend_underlay_plan": netmend_underlay_plan,
            "netmend_diagnose": netmend_diagnose,
            "netmend_balancer_problem": netmend_balancer_problem,
            "netmend_balancer_selectors": netmend_balancer_selectors,
            "netmend_balancers": netmend_balancers,
            "netmend_edge": netmend_edge,
            "netmend_calico": netmend_calico,
            "netmend_calico_tunnels": netmend_calico_tunnels,
            "netmend_canary_reading": netmend_canary_reading,
            "netmend_canary_plan": netmend_canary_plan,
            "netmend_certificate": netmend_certificate,
            "netmend_checklist": netmend_checklist,
            "netmend_checklist_problem": netmend_checklist_problem,
            "netmend_checklist_probing": netmend_checklist_probing,
            "netmend_checklist_judge": netmend_checklist_judge,
            "netmend_has_collection": netmend_has_collection,
            "netmend_images": netmend_images,
            "netmend_k3s_disable_left": netmend_k3s_disable_left,
            "netmend_k3s_disable_plan": netmend_k3s_disable_plan,
            "netmend_ingress_nginx": netmend_ingress_nginx,
            "netmend_leftovers": netmend_leftovers,
            "netmend_mark": netmend_mark,
            "netmend_measured_text": lambda now: text.measured(json.loads(now)),
            "netmend_outcome": netmend_outcome,
            "netmend_report": netmend_report,
            "netmend_restore": netmend_restore,
            "netmend_state_is_whole": lambda path: backup.is_whole(Path(path)),
            "netmend_swap_cause": netmend_swap_cause,
            "netmend_swap_plan": netmend_swap_plan,
            "netmend_text": lambda whole: text.render(json.loads(whole)),
            "netmend_ufw_rules": required_rules,
        }


def _plain(value: Any) -> Any:
    """Ansible's lazy containers and tagged strings as plain Python, so that the core sees nothing of Ansible."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return value
