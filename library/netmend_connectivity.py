#!/usr/bin/python
"""Says what a node, or a pod on it, can reach, and which of its rules dropped packets meanwhile; changes nothing."""

from __future__ import annotations

import os

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.netmend.model import met
from ansible.module_utils.netmend.pods import network_pid
from ansible.module_utils.netmend.probe import EXPECTATIONS, PROTOCOLS, PROXY, ROUNDS, checked, measure

DOCUMENTATION = r"""
module: netmend_connectivity
short_description: Measure what a node or a pod on it can reach
description:
  - Runs probes from the node, or from inside the network namespace of a pod on it, all of them at the same time.
  - Tells a refusal from a reset, silence, an unreachable network and a firewall's prohibition, and names the sender of
    an ICMP error. Says which rules that drop or reject had more packets afterwards than before, in both iptables
    backends.
  - Needs no image and nothing inside the pod, as its sockets are opened in the pod's network namespace.
  - Where a few of the probes fail, these are asked again, several times at once and from other ports. What failed at
    one moment only counts as reached, and C(detail) says how many attempts were lost.
  - Changes nothing, and does not fail because something cannot be reached. Assert on RV(met) for that.
author: netmend maintainers
options:
  targets:
    description: What is to be reached. Give either this or O(probes).
    type: list
    elements: dict
    suboptions: &target
      protocol:
        description:
          - V(tcp) completes a handshake. V(udp) sends a datagram and waits for it to come back. V(icmp) pings.
          - V(http) and V(https) send GET; a status below 500 is V(ok), as the path works whatever the application
            thinks, unless O(targets[].status) says which one is.
          - V(dns-udp) and V(dns-tcp) ask the server at O(targets[].address) for the IPv4 address of O(targets[].name).
          - V(dns-pair) asks for its IPv4 and its IPv6 address at once from one socket, as glibc does, and V(dns-apart)
            from two; either is V(ok) when both are answered, whatever the answers say. What a race in connection
            tracking drops is lost from one socket, and not from two.
          - V(mtu) finds the largest IP packet that passes with DF, by ping. Where larger ones vanish and no ICMP
            frag-needed comes back, the outcome is V(timeout).
        type: str
        choices: [tcp, udp, icmp, http, https, dns-udp, dns-tcp, dns-pair, dns-apart, mtu]
        default: tcp
      address:
        description: IPv4 address.
        type: str
        required: true
      port:
        description: By default 80 for V(http), 443 for V(https), 53 for DNS; needed for V(tcp) and V(udp).
        type: int
      name:
        description: The name to ask DNS for, or the host of HTTP and TLS, which is the address by default.
        type: str
      path:
        description: Path of an HTTP request.
        type: str
        default: /
      status:
        description: The status of HTTP that is V(ok). By default any below 500 is.
        type: int
      statuses:
        description: The same, where there are several.
        type: list
        elements: int
      unwanted:
        description: Statuses below 500 that are not V(ok) either, where none is asked for.
        type: list
        elements: int
      patience:
        description: Seconds that the answer of HTTP may take once connected, where that is longer than the time limit.
        type: float
      settle:
        description:
          - Seconds in which it may yet come right. It is asked once a second until it has, and measured then, with all
            others. A balancer, for one, lets nobody through to a target until its next health checks.
        type: float
      proxy:
        description:
          - Whether HTTP and TLS begin with the PROXY header. With V(sent) or V(none) it is tried the other way where
            the answer may be one to that, and what came of it is said. With V(unknown) either way is V(ok).
        type: str
        choices: [sent, none, unknown]
      verify:
        description: Whether a certificate that the node's authorities did not sign for the name has the outcome V(tls).
        type: bool
        default: true
      attempts:
        description:
          - How many times to try, at once. Each may meet another endpoint of a Service. The outcome is V(ok) only if it
            is so each time.
        type: int
        default: 1
      timeout:
        description: Seconds, instead of O(timeout).
        type: float
      expect:
        description: Outcome, instead of O(expect).
        type: str
        choices: &expect [ok, refused, reset, timeout, unreachable, prohibited, tls, http, dns, error, blocked, any]
  source:
    description: Where O(targets) are probed from; the node itself, unless something is given here.
    type: dict
    suboptions:
      pod:
        description: A pod on this node, as C(namespace/name).
        type: str
      pid:
        description: A process in the pod's network namespace.
        type: int
  timeout:
    description: Seconds that one attempt at one of O(targets) may take.
    type: float
    default: 2
  expect:
    description: The outcome that is expected of O(targets). V(blocked) is V(timeout), V(refused), V(unreachable) or
      V(prohibited), V(any) all of them.
    type: str
    default: ok
    choices: *expect
  rounds:
    description:
      - How often each probe is made, one round behind the other, from 1 to 100; for what comes and goes. On a network
        that is well a round takes some milliseconds, on one that drops packets the longest timeout.
    type: int
    default: 1
  probes:
    description: Probes of one node, as the filter P(netmend_plan#filter) plans them. Give either this or O(targets).
    type: list
    elements: dict
    suboptions: &probe
      <<: *target
      id:
        description: Names the probe in the result.
        type: str
        required: true
      row:
        description: The matrix's row that the probe belongs to.
        type: str
        default: ""
      source_node:
        description: The node that the probe starts from, which is to be this one.
        type: str
        default: ""
      source_pod:
        description: The pod that it starts in, for the reader.
        type: str
        default: ""
      source_pid:
        description: A process in that pod's network namespace; V(0) for the node itself.
        type: int
        default: 0
      target_node:
        description: The node that is meant, for the reader.
        type: str
        default: ""
      target_pod:
        description: The pod that is meant, for the reader.
        type: str
        default: ""
      target_service:
        description: The Service that is meant, for the reader.
        type: str
        default: ""
      balancer:
        description: The balancer that is meant, for the reader.
        type: str
        default: ""
      backend:
        description: What an Ingress leads to there, for the reader.
        type: str
        default: ""
  here:
    description: Probes that the machine which runs Ansible makes itself, as its own user, while the node probes.
    type: list
    elements: dict
    suboptions: *probe
  controllers:
    description:
      - Pods of ingress-nginx on this node, as the filter P(netmend_probing#filter) finds them. Once the probes are
        done, the last five minutes of their log are counted, and their list of endpoints is asked for.
    type: list
    elements: dict
    suboptions:
      pod:
        description: Its C(namespace/name).
        type: str
        required: true
      uid:
        description: Its UID.
        type: str
        required: true
      pid:
        description: A process in its network namespace; V(0) where that is the node's.
        type: int
        default: 0
attributes:
  check_mode:
    description: Measures in check mode too.
    support: full
  diff_mode:
    description: There is nothing to compare.
    support: none
requirements:
  - root on the node, for raw sockets, namespaces and rule sets
"""

EXAMPLES = r"""
- name: Ask whether this node reaches the kubelet of another one
  netmend_connectivity:
    targets:
      - address: 10.0.0.111
        port: 10250

- name: Ask from inside a pod whether names resolve and the shop answers
  netmend_connectivity:
    source:
      pod: keybuzz/keybuzz-api-7d9c5b4f6d-x2x7q
    targets:
      - {protocol: dns-udp, address: 10.43.0.10, name: kubernetes.default.svc.cluster.local}
      - {protocol: http, address: 10.43.17.4, port: 8080, path: /health}
  register: from_the_pod

- name: Refuse to go on where they do not
  ansible.builtin.assert:
    that: from_the_pod.met
    fail_msg: "{{ from_the_pod.unmet | join('; ') }}"

- name: Count how many of twenty connections to the database fail
  netmend_connectivity:
    rounds: 20
    targets:
      - {address: 10.0.0.10, port: 5432}

- name: Prove that etcd cannot be reached from here
  netmend_connectivity:
    expect: blocked
    targets:
      - {address: 10.0.0.100, port: 2379}
      - {address: 10.0.0.100, port: 2380}
"""

RETURN = r"""
netmend_connectivity:
  description: What was observed.
  returned: always
  type: dict
  contains:
    node:
      description: Where the probes started.
      type: str
      sample: k3s-worker-01
    observations:
      description:
        - One for each probe, in their order, with C(id), C(outcome), and a C(detail) that says more. C(rtt_ms) is the
          round trip in milliseconds, C(mtu) the size in bytes of the largest IP packet that passed, C(status) that of
          an HTTP answer, C(certificate) the names in what a server showed, and until when it is good.
        - Where more than one attempt was made there are C(attempts) and C(failed), their numbers; C(ports), the local
          ports of failed ones, and C(endpoints), the addresses that a Service's led to as far as connection tracking
          tells, each with its attempts and failures. Where none failed, the slowest is what is shown.
      type: list
      elements: dict
      sample:
        - {id: "tcp 10.0.0.111:10250", outcome: prohibited, detail: icmp admin-prohibited from 10.0.0.111}
    moved:
      description:
        - Rules (and policies, with index 0) that drop or reject, and had more packets afterwards. Other traffic of the
          node counts as well.
      type: list
      elements: dict
      sample:
        - {backend: nft, table: filter, chain: FORWARD, index: 3, spec: -j DROP, packets: 2}
    risen:
      description:
        - The kernel's counters of packets that were lost without a rule (damaged, by the reverse path filter, or in
          connection tracking), and by how much they rose; those that did. Other traffic of the node counts as well.
      type: dict
      sample: {TcpExt.IPReversePathFilter: 12}
netmend_here:
  description: The same of O(here), as C(netmend_connectivity).
  returned: where O(here) has probes
  type: dict
netmend_controllers:
  description: What each of O(controllers) says itself.
  returned: where O(controllers) has any
  type: list
  elements: dict
  contains:
    pod:
      description: Its C(namespace/name).
      type: str
    seconds:
      description: How much of its log was counted.
      type: float
    log:
      description:
        - Counts alone; of a line nothing else is kept. C(answers) has the requests of each upstream by status, and
          C(tries) how many were sent to each endpoint, where lines have the usual form. C(failures) has what nginx says
          of each endpoint that failed.
      type: dict
      sample:
        answers: {default-web-80: {"200": 20, "504": 3}}
        tries: {10.42.2.7:8080: 29}
        failures:
          10.42.2.7:8080: {"upstream timed out (110: Operation timed out) while connecting to upstream": 9}
    endpoints:
      description: The addresses that it sends the requests of each upstream to.
      type: dict
      sample: {default-web-80: ["10.42.2.7:8080"]}
    errors:
      description: Why C(log) or C(endpoints) could not be had, and is null.
      type: dict
met:
  description: Whether all outcomes were as expected.
  returned: always
  type: bool
unmet:
  description: A sentence for each that was not.
  returned: always
  type: list
  elements: str
  sample: ["tcp 10.0.0.111:10250: expected ok, found timeout (no answer to SYN)"]
"""

DEFAULT_PORTS = {"http": 80, "https": 443, "dns-udp": 53, "dns-tcp": 53, "dns-pair": 53, "dns-apart": 53}


def contract():
    expect = {"type": "str", "choices": list(EXPECTATIONS)}
    target = {
        "protocol": {"type": "str", "choices": list(PROTOCOLS), "default": "tcp"},
        "address": {"type": "str", "required": True},
        "port": {"type": "int"},
        "name": {"type": "str"},
        "path": {"type": "str", "default": "/"},
        "status": {"type": "int"},
        "statuses": {"type": "list", "elements": "int"},
        "unwanted": {"type": "list", "elements": "int"},
        "patience": {"type": "float"},
        "settle": {"type": "float"},
        "proxy": {"type": "str", "choices": list(PROXY)},
        "verify": {"type": "bool", "default": True},
        "attempts": {"type": "int", "default": 1},
        "timeout": {"type": "float"},
        "expect": expect,
    }
    probe = {
        **target,
        "id": {"type": "str", "required": True},
        "source_pid": {"type": "int", "default": 0},
        **{
            name: {"type": "str", "default": ""}
            for name in (
                *("row", "source_node", "source_pod", "target_node", "target_pod", "target_service"),
                *("balancer", "backend"),
            )
        },
    }
    options = {
        "targets": {"type": "list", "elements": "dict", "options": target},
        "source": {"type": "dict", "options": {"pod": {"type": "str"}, "pid": {"type": "int"}}},
        "timeout": {"type": "float", "default": 2.0},
        "expect": {**expect, "default": "ok"},
        "rounds": {"type": "int", "default": 1},
        "probes": {"type": "list", "elements": "dict", "options": probe},
        "here": {"type": "list", "elements": "dict", "options": probe},
        "controllers": {
            "type": "list",
            "elements": "dict",
            "options": {
                "pod": {"type": "str", "required": True},
                "uid": {"type": "str", "required": True},
                "pid": {"type": "int", "default": 0},
            },
        },
    }
    return {
        "argument_spec": options,
        "mutually_exclusive": [("probes", "targets"), ("probes", "source")],
        "required_one_of": [("probes", "targets")],
        "supports_check_mode": True,
    }


def main():
    module = AnsibleModule(**contract())
    try:
        probes = declared(module.params) if module.params["probes"] is None else module.params["probes"]
        option = "targets" if module.params["probes"] is None else "probes"
        probes = checked(option, probes, module.params["timeout"], module.params["expect"])
        if module.params["here"]:
            raise ValueError("here: takes netmend's action plugin, and this is the module alone")
        if not 1 <= module.params["rounds"] <= ROUNDS:
            raise ValueError(f"rounds: {module.params['rounds']} is not from 1 to {ROUNDS}")
        node = source_node(probes)
    except LookupError as error:
        module.fail_json(msg=f"source.pod: {error}")
    except ValueError as error:
        module.fail_json(msg=str(error))
    result = measure(node, probes, module.params["rounds"])
    more = {"netmend_controllers": said_by(module.params["controllers"])} if module.params["controllers"] else {}
    unmet = [
        f"{probe['id']}: expected {probe['expect']}, found {seen['outcome']} ({seen['detail']})"
        for probe, seen in zip(probes, result["observations"])
        if not met(probe, seen)
    ]
    module.exit_json(changed=False, netmend_connectivity=result, met=not unmet, unmet=unmet, **more)


def said_by(controllers):
    from ansible.module_utils.netmend.controllers import said  # noqa: PLC0415  few nodes have any: saves http.client

    return said(controllers)


def declared(params):
    """The targets as probes. LookupError where the source is no pod of this node."""
    source = params["source"] or {}
    if source.get("pod") and source.get("pid"):
        raise ValueError("source: give pod or pid, not both")
    pid = network_pid(source["pod"]) if source.get("pod") else source.get("pid") or 0
    probes = []
    for target in params["targets"]:
        port = target["port"] or DEFAULT_PORTS.get(target["protocol"], 0)
        probes.append({**target, "id": title(target, port), "port": port, "source_pid": pid})
    return probes


def title(target, port):
    """How a result names a target: "http 10.43.17.4:8080/health shop.example"."""
    place = f"{target['address']}:{port}" if port else target["address"]
    path = target["path"] if target["protocol"] in ("http", "https") else ""
    return " ".join(part for part in (target["protocol"], place + path, target["name"]) if part)


def source_node(probes):
    """The node that all probes start from; this machine where they name none. ValueError where they name several."""
    nodes = sorted({probe["source_node"] for probe in probes if probe.get("source_node")})
    if len(nodes) > 1:
        raise ValueError(f"probes: one call runs those of one node, but these are of {', '.join(nodes)}")
    return nodes[0] if nodes else os.uname().nodename


if __name__ == "__main__":
    main()
