"""What is behind an Ingress: its Service, and the pods that this is for.

The class of an answer tells where it ended. A 503 at once: no endpoints. A fast 502: refused. A 504 after 15 s, three
tries of 5 s: nothing answers the ingress's SYNs. Later: somebody thinks about it (ingress-nginx: proxy-connect-timeout,
proxy-next-upstream-tries, proxy-read-timeout).
"""

from __future__ import annotations

import ipaddress
import json
from collections import Counter
from typing import Any, Dict, Iterator, List, Tuple

from ..model import Observation, Pod, Probe, Remedy
from ..pod_replacement import matches
from .case import BLOCKED, Case, contains, ids
from .edge_view import NAMED, NO_FREE_PORTS, Failing, after, counts, failing_backends, listed
from .firewall import policy_controller_is_off
from .path import Paths
from .registry import FIREWALL, SERVICE, WORKLOAD, Suspicion, fault
from .stops import by_policy, describe

# Labels that differ between the pods of one application.
OF_A_REVISION = ("pod-template-hash", "controller-revision-hash", "pod-template-generation")


@fault("selector-mismatch", 37, "A Service's selector matches none of the pods that it is for", WORKLOAD)
def selector_mismatch(case: Case, paths: Paths) -> Iterator[Suspicion]:
    """Pods that no Service selects stand beside a Service that selects none, and have its port or a label of it."""
    for failing in failing_backends(case):
        service = failing.service
        if not service or not service["selector"] or service["endpoints"] or failing.edge.selected(service):
            continue
        meant = _meant(case, failing)
        if not meant:
            continue
        labels = {key: value for key, value in meant[0]["labels"].items() if key not in OF_A_REVISION}
        shared = {key: labels.get(key) for key in service["selector"]}
        right = shared if any(shared.values()) else {**shared, **labels}
        yield failing.suspicion(
            [
                f"{failing.name}: the selector {listed(service['selector'])} matches no pod, so that it has no "
                f"endpoint. {len(meant)} pods of {_owners(meant)}, {_ready(meant)}, are selected by no Service, and "
                f"have {listed(labels)}.",
                failing.said(case),
            ],
            Remedy(
                role="",
                nodes=[],
                command=f"kubectl -n {service['namespace']} patch service {service['name']} --type=merge "
                f"-p '{json.dumps({'spec': {'selector': right}})}'",
                text=f"Let the Service select what {_owners(meant)} puts on its pods.",
            ),
            0.9,
            ["The pods: they run, and are only not selected.", "The network: there is no endpoint to go to."],
        )


@fault("ingress-backend-missing", 0, "An Ingress leads to a Service, a port or pods that are not there", WORKLOAD)
def ingress_backend_missing(case: Case, paths: Paths) -> Iterator[Suspicion]:
    for failing in failing_backends(case):
        service, site = failing.service, failing.site
        if service and (service["endpoints"] or not service["selector"] or failing.edge.selected(service)):
            if failing.edge.port(site):
                continue
            there = ", ".join(f"{port['port']} {port['name']}".strip() for port in service["ports"])
            seen = f"Ingress {site.ingress} asks for port {site.port} of {failing.name}, which has {there}"
            text = "Let the Ingress name a port of the Service."
        elif not service:
            seen = f"Ingress {site.ingress} leads to {failing.name}, and there is no such Service"
            text = "Make the Service, or let the Ingress name the right one."
        elif _meant(case, failing):
            continue
        else:
            seen = (
                f"{failing.name}: the selector {listed(service['selector'])} matches no pod, nor is another one meant"
            )
            text = "Deploy the application, or scale it up: no pod is there."
        command = f"kubectl -n {site.namespace} get ingress,service,deployment,daemonset"
        yield failing.suspicion(
            [f"{seen}.", failing.said(case)],
            Remedy(role="", nodes=[], command=command, text=text),
            0.9,
            ["The network: there is nothing to go to."],
        )


@fault("readiness-fails", 38, "None of the pods behind a Service is ready", WORKLOAD)
def readiness_fails(case: Case, paths: Paths) -> Iterator[Suspicion]:
    """Endpoints that are not ready get nothing, whatever they would answer."""
    for failing in failing_backends(case):
        service = failing.service
        pods = failing.edge.selected(service) if service else []
        if not service or not pods or any(each["ready"] for each in (*service["endpoints"], *pods)):
            continue
        if all(NO_FREE_PORTS in pod["unscheduled"] for pod in pods):
            continue  # which is a fault of its own
        reasons = Counter(pod["reason"] or pod["phase"] for pod in pods)
        asked = {probe["target_pod"]: probe for probe in failing.inside() if probe.get("expect") == "any"}
        answers = [
            f"{name} says {case.said(probe)} to what its readinessProbe asks"
            f" ({probe['protocol']} {probe['port']}{probe.get('path', '')})"
            for name, probe in asked.items()
        ]
        yield failing.suspicion(
            [
                f"{failing.name}: of {len(pods)} pods none is ready ({counts(reasons)}).",
                *(f"Asked from inside, {answer}." for answer in answers[:NAMED]),
                failing.said(case),
            ],
            Remedy(
                role="",
                nodes=[],
                command=f"kubectl -n {service['namespace']} describe pods -l {listed(service['selector'])}",
                text=_why_not_ready([case.seen(probe) for probe in asked.values()]),
            ),
            0.95,
            ["The network between the nodes: kubelets ask the pods of their own node.", "The selector: it matches."],
        )


@fault("target-port-mismatch", 39, "A Service leads to a port on which its pods do not listen", WORKLOAD)
def target_port_mismatch(case: Case, paths: Paths) -> Iterator[Suspicion]:
    """The pod's own kernel refuses, and the pod listens on another port, or on its loopback only."""
    for failing in failing_backends(case):
        mistaken = _mistaken(case, failing)
        port = failing.edge.port(failing.site)
        if not mistaken or not port:
            continue
        pod, numbers = mistaken[0]
        there = ", ".join(case.listens(pod)) or ", ".join(str(each["port"]) for each in pod["ports"])
        name = f"{pod['namespace']}/{pod['name']}"
        text = "Let the Service lead to the port on which the pods listen."
        command = ""
        if numbers:
            patch = [{"op": "replace", "path": f"/spec/ports/{_place(failing, port)}/targetPort", "value": numbers[0]}]
            command = (
                f"kubectl -n {failing.site.namespace} patch service {failing.site.service} --type=json "
                f"-p '{json.dumps(patch)}'"
            )
        else:
            text = "Let the application listen on all addresses of its pod, and not on its loopback alone."
        yield failing.suspicion(
            [
                f"{failing.name}: port {port['port']} leads to {port['targetPort']}, where {name} does not listen; "
                f"it listens on {there}. So it is at {len(mistaken)} of {len(failing.edge.endpoints(failing.site))} "
                "endpoints.",
                *(f"Asked from inside, {name}: {case.said(probe)}." for probe in failing.inside(name)[:1]),
                failing.said(case),
            ],
            Remedy(role="", nodes=[], command=command, text=text),
            0.95,
            ["The network and policies: the pod refuses itself, too."],
        )


@fault("slow-application", 50, "The application itself is slow, or fails", WORKLOAD)
def slow_application(case: Case, paths: Paths) -> Iterator[Suspicion]:
    """From inside its own pod there is no network in between."""
    for failing in failing_backends(case):
        own = [probe for probe in failing.inside() if probe.get("expect") == "ok"]
        failed = [probe for probe in own if not case.met(probe)]
        if not failed or _mistaken(case, failing):
            continue
        seen = Counter(f"{case.said(probe)}{after(case.seen(probe))}" for probe in failed)
        yield failing.suspicion(
            [
                f"{failing.name}: asked from inside of themselves, {len(failed)} of {len(own)} pods fail "
                f"({counts(seen)}; GET {failing.site.path}).",
                failing.said(case),
            ],
            Remedy(
                role="",
                nodes=[],
                command=f"kubectl -n {failing.site.namespace} logs {failed[0]['target_pod'].partition('/')[2]}",
                text="See to the application: no change of the network helps, and none is made.",
            ),
            0.9,
            ["The network, and everything before the pod: a pod that asks itself uses none of it."],
        )


@fault("policy-denies-ingress", 40, "A NetworkPolicy keeps the ingress controller from the pods", FIREWALL)
def policy_denies_ingress(case: Case, paths: Paths) -> Iterator[Suspicion]:
    """kube-router rejects what no policy lets in, Calico drops it. Policies are somebody's will: they are left."""
    if policy_controller_is_off(case) and not case.cluster["calico"]:
        return
    for failing in failing_backends(case):
        blocked = [
            probe
            for probe in failing.rows("edge-pod")
            if not case.met(probe) and case.outcome(probe) in BLOCKED and not case.comes_and_goes(probe)
        ]
        own = [probe for probe in failing.inside() if probe.get("expect") == "ok"]
        pods = [pod for probe in blocked for pod in [case.pods.get(probe.get("target_pod", ""))] if pod]
        policies = _holding(case, pods[0]) if pods else []
        sources = _sources(case, blocked)
        port = blocked[0]["port"] if blocked else 0
        if not policies or not all(map(case.met, own)) or any(_admits(each, sources, port) for each in policies):
            continue
        deciding = [
            f"{passage.node}: {describe(case, passage.node, block.verdict)}."
            for probe in blocked
            for passage in paths.passages(probe)
            for block in paths.blocks(passage)
            if by_policy(block.verdict)
        ]
        names = ", ".join(policy["name"] for policy in policies)
        yield failing.suspicion(
            [
                f"{failing.name}: its pods are held by NetworkPolicy {names}, none of whose rules lets the nodes of "
                f"the ingress controller in. {len(blocked)} of {len(failing.rows('edge-pod'))} requests from there to "
                f"the pods' own addresses fail ({counts(Counter(map(case.outcome, blocked)))}); "
                f"{case.tally(own)} of the pods answer themselves.",
                *deciding[:1],
                failing.said(case),
            ],
            Remedy(
                role="",
                nodes=[],
                command=_allowing(failing, pods[0], sources, port),
                text="Let the nodes of the ingress controller in by a policy of its own, at this port and no other.",
            ),
            0.95 if deciding else 0.75,
            ["The application: it answers itself.", "The overlay: other pods across the same nodes answer."],
        )


@fault("hairpin-off", 41, "A pod does not reach itself by its own Service", SERVICE)
def hairpin_off(case: Case, paths: Paths) -> Iterator[Suspicion]:
    """The frame would have to leave the bridge by the port that it came in by (Linux: bridge(8), hairpin)."""
    groups: Dict[str, List[Probe]] = {}
    for probe in case.failed:
        if probe["row"] == "edge-self" and probe.get("target_service") and _only_itself_fails(case, probe):
            groups.setdefault(probe["source_node"], []).append(probe)
    for node, probes in groups.items():
        bridge = case.bridge(node) if node in case.nodes else None
        ports = [each for each in case.nodes[node]["interfaces"] if bridge and each["master"] == bridge["name"]]
        off = [each["name"] for each in ports if each.get("hairpin") is False]
        if not bridge or not off:
            continue
        others = [probe for probe in case.run["probes"] if probe["row"] == "edge-service"]
        yield Suspicion(
            where=node,
            evidence=[
                f"{node}: {len(off)} of {len(ports)} ports of {bridge['name']} send nothing back to where it came from "
                f"({', '.join(off[:NAMED])}). {len(probes)} pods there fail to themselves by "
                f"{', '.join(sorted({probe['target_service'] for probe in probes}))}; "
                f"{case.tally(others)} requests of others to such Services came out as expected."
            ],
            remedy=Remedy(
                role="bridge_hairpin",
                nodes=[node],
                vars={"bridge_hairpin_bridge": bridge["name"]},
                text="Turn hairpin on; if it is off for pods to come, set hairpinMode in the CNI's configuration.",
            ),
            confidence=0.95,
            explains=ids(probes),
            ruled_out=["The application: it answers itself at its own address, and others by the Service."],
        )


def _meant(case: Case, failing: Failing) -> List[Pod]:
    """Pods beside a Service without any that no Service selects, and that have a label or the port of it."""
    service = failing.service
    if not service:
        return []
    others = [each for each in case.cluster["services"] if each["namespace"] == service["namespace"]]
    taken = {pod["uid"] for other in others for pod in failing.edge.selected(other)}
    targets = {port["targetPort"] for port in service["ports"]}

    def likeness(pod: Pod) -> int:
        ports = {value for port in pod["ports"] for value in (port["port"], port["name"])}
        return 2 * len(service["selector"].items() & pod["labels"].items()) + len(ports & targets)

    free = [
        pod
        for pod in case.cluster["pods"]
        if pod["namespace"] == service["namespace"] and pod["uid"] not in taken and pod["phase"] == "Running"
    ]
    most = max(map(likeness, free), default=0)
    best = [pod for pod in free if likeness(pod) == most] if most else []
    return [pod for pod in best if pod["owner"] == best[0]["owner"]]


def _mistaken(case: Case, failing: Failing) -> List[Tuple[Pod, List[int]]]:
    """Ready pods that do not listen where the Service leads, with the ports where they do, for others to reach."""
    found = []
    for end in failing.edge.endpoints(failing.site):
        pod = case.pods.get(end["pod"])
        if not pod or not end["ready"] or pod["host_network"]:
            continue
        listens = [address.rpartition(":") for address in case.listens(pod)]
        outward = sorted({int(port) for address, _, port in listens if not _is_loopback(address)})
        asked = failing.inside(end["pod"])
        refused = bool(asked) and all(case.outcome(probe) == "refused" for probe in asked)
        elsewhere = outward or [port["port"] for port in pod["ports"] if not listens and port["protocol"] == "TCP"]
        if (refused or not end["port"]) and end["port"] not in elsewhere and (elsewhere or listens):
            found.append((pod, elsewhere))
    return found


def _is_loopback(address: str) -> bool:
    return ipaddress.ip_address(address.strip("[]")).is_loopback


def _place(failing: Failing, port: Dict[str, Any]) -> int:
    return failing.service["ports"].index(port) if failing.service else 0


def _why_not_ready(answers: List[Observation]) -> str:
    statuses = [seen.get("status", 0) for seen in answers]
    if any(200 <= status < 400 for status in statuses):
        return "See why the kubelet has another answer than a pod that asks itself: time limits, or a port of a name."
    if any(400 <= status < 500 for status in statuses):
        return "Let the readinessProbe ask what the application answers: it listens, and does not know that path."
    if any(statuses):
        return "See to the application: it says itself that it is not well."
    if any(seen.get("outcome") == "refused" for seen in answers):
        return "See to the application, or to the readinessProbe's port: nothing listens there."
    return "See why the pods are not ready, and mend that; the network has no part in it."


def _only_itself_fails(case: Case, probe: Probe) -> bool:
    """Whether the Service answers by every pod but the one that asked, which answers at its own address.

    Connection tracking keeps no entry of a packet that a bridge drops (nf_conntrack confirms those that leave), so
    failed attempts are led nowhere, as far as it tells; and a SYN that is sent again has another turn.
    """
    own = case.pods[probe["source_pod"]]["ip"] if probe.get("source_pod") in case.pods else ""
    direct = [
        each
        for each in case.run["probes"]
        if each["row"] == "edge-self" and each.get("target_pod") == probe.get("source_pod")
    ]
    led = case.led(probe)
    ends = {end.address for end in case.endpoints(probe)}
    by_others = bool(led) and not any(tally.failed for end, tally in led.items() if end != own)
    by_itself = own in led and led[own].failed < led[own].attempts
    alone = ends == {own} or (by_others and not by_itself)
    return alone and bool(direct) and all(map(case.met, direct)) and case.outcome(probe) in BLOCKED


def _holding(case: Case, pod: Pod) -> List[Dict[str, Any]]:
    """NetworkPolicies that decide about what comes to the pod."""
    return [
        policy
        for policy in case.cluster["network_policies"]
        if policy["namespace"] == pod["namespace"]
        and "Ingress" in policy.get("types", [])
        and matches(policy.get("pod_selector", {}), pod["labels"])
    ]


def _admits(policy: Dict[str, Any], sources: List[str], port: int) -> bool:
    """Whether a rule lets a host in: one for everybody, or for addresses. Selectors mean pods, and no host is one."""
    for rule in policy.get("ingress", []):
        numbers = [each.get("port") for each in rule.get("ports", [])]
        if numbers and port not in numbers and not any(isinstance(number, str) for number in numbers):
            continue
        blocks = [each["ipBlock"]["cidr"] for each in rule.get("from", []) if "ipBlock" in each]
        if not rule.get("from") or any(contains(block, source) for block in blocks for source in sources):
            return True
    return False


def _sources(case: Case, probes: List[Probe]) -> List[str]:
    """The addresses that the probes' nodes have towards pods: their own, and the one in the overlay."""
    found: Dict[str, None] = {}
    for node in dict.fromkeys(probe["source_node"] for probe in probes):
        if node in case.nodes:
            devices = [each["name"] for each in case.nodes[node]["interfaces"] if each["kind"] in ("vxlan", "ipip")]
            found.update(
                dict.fromkeys([case.internal_ip(node), *(case.tunnel_address(node, each) for each in devices)])
            )
    return list(found)


def _allowing(failing: Failing, pod: Pod, sources: List[str], port: int) -> str:
    labels = {key: value for key, value in pod["labels"].items() if key not in OF_A_REVISION}
    policy = {
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": {"name": f"{failing.site.service}-from-ingress", "namespace": pod["namespace"]},
        "spec": {
            "podSelector": {"matchLabels": labels},
            "policyTypes": ["Ingress"],
            "ingress": [
                {
                    "from": [{"ipBlock": {"cidr": f"{source}/32"}} for source in sources],
                    "ports": [{"port": port, "protocol": "TCP"}],
                }
            ],
        },
    }
    return f"echo '{json.dumps(policy)}' | kubectl apply -f -"


def _owners(pods: List[Pod]) -> str:
    return ", ".join(dict.fromkeys(pod["owner"] or f"Pod/{pod['name']}" for pod in pods))


def _ready(pods: List[Pod]) -> str:
    return f"{sum(pod['ready'] for pod in pods)} of them Ready"
