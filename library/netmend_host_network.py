#!/usr/bin/python
"""Runs Deployments on their hosts' network, or back on the pods', and hands over only to what serves."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.netmend.apply import CONCURRENCY, differences
from ansible.module_utils.netmend.declared import at_least, number, object_name
from ansible.module_utils.netmend.host_network import Wish
from ansible.module_utils.netmend.host_network_apply import Mover, Refused, refuse
from ansible.module_utils.netmend.kube import Api, ApiError, k3s_credentials
from ansible.module_utils.netmend.rollout_apply import Limits

DOCUMENTATION = r"""
module: netmend_host_network
short_description: Run Deployments on their hosts' network while the pods' own does not work, and back
description:
  - There, each Deployment gets a companion, which runs the same template on the hosts' network. When all of its pods
    serve, the Services lead to them alone; when the Deployment's pods have drained, it is left with no replicas. How
    many it had stands in its annotation C(netmend/replicas).
  - A HorizontalPodAutoscaler leaves a Deployment alone that has no replicas, and goes on when it has some again.
  - Back, the Deployment gets its replicas again, and its companion goes when they serve.
  - Nothing is changed where a port of the hosts is taken, or anything else stands against it. A companion that does not
    come up is removed, or gets its former template; what served before serves meanwhile.
  - What was interrupted is finished by running it again, either way.
author: netmend maintainers
options:
  applications:
    description: The Deployments.
    type: list
    elements: dict
    required: true
    suboptions:
      name:
        description: Namespace and name, with a slash.
        type: str
        required: true
      kind:
        description:
          - V(DaemonSet) has a pod on each node that the Deployment's nodeSelector and tolerations allow, and the
            Deployment's name.
          - V(Deployment) has as many replicas, one a node at most, and the name C(NAME-host-network).
        type: str
        choices: [DaemonSet, Deployment]
        default: DaemonSet
      node_ports:
        description: NodePorts for ports of its Services, which become NodePort Services for as long. Its ports are the
          hosts' ports in any case.
        type: dict
  state:
    description: V(present) is on the hosts' network, V(absent) is back.
    type: str
    choices: [present, absent]
    default: present
  sockets:
    description: What listens on each node, C(sockets) of netmend_node_info by the node's name. Needed for V(present).
    type: dict
  drain_seconds:
    description: Seconds that a pod goes on without new requests before it gets SIGTERM.
    type: int
    default: 30
  timeout:
    description: Seconds without progress until a step counts as failed.
    type: int
    default: 300
  patience:
    description: Seconds that a pod is given whose image cannot be pulled, or whose container crashes.
    type: int
    default: 20
attributes:
  check_mode:
    support: full
    description: Asks the API server what would become of the companion, and shows what would become of the rest.
  diff_mode:
    support: full
    description: Objects that change, without their status.
requirements:
  - root on a K3s server, and Kubernetes 1.30
"""

EXAMPLES = r"""
- name: Read what listens on this node
  netmend_node_info:
  register: node

- name: Keep an application up while the overlay is mended
  netmend_host_network:
    applications:
      - {name: keybuzz/keybuzz-api, node_ports: {8080: 30080}}
    sockets: "{{ {node.netmend_node.name: node.netmend_node.sockets} }}"
  delegate_to: "{{ groups['k3s_servers'] | first }}"
  run_once: true

- name: Take it back
  netmend_host_network:
    applications:
      - {name: keybuzz/keybuzz-api}
    state: absent
  delegate_to: "{{ groups['k3s_servers'] | first }}"
  run_once: true
"""

RETURN = r"""
applications:
  description: What became of each application.
  returned: when nothing stood against it
  type: list
  elements: dict
  contains:
    name:
      description: Namespace and name, with a slash.
      type: str
      sample: keybuzz/keybuzz-api
    objects:
      description: Objects that were, or in check mode would be, changed.
      type: list
      elements: str
      sample: ["DaemonSet keybuzz/keybuzz-api", "Deployment keybuzz/keybuzz-api"]
    failure:
      description: What is wrong; empty for nothing.
      type: str
      sample: ""
"""


def main():
    module = AnsibleModule(
        argument_spec={
            "applications": {
                "type": "list",
                "elements": "dict",
                "required": True,
                "options": {
                    "name": {"type": "str", "required": True},
                    "kind": {"type": "str", "choices": ["DaemonSet", "Deployment"], "default": "DaemonSet"},
                    "node_ports": {"type": "dict"},
                },
            },
            "state": {"type": "str", "choices": ["present", "absent"], "default": "present"},
            "sockets": {"type": "dict"},
            "drain_seconds": {"type": "int", "default": 30},
            "timeout": {"type": "int", "default": 300},
            "patience": {"type": "int", "default": 20},
        },
        supports_check_mode=True,
    )
    given = module.params
    try:
        for name, least in (("drain_seconds", 0), ("timeout", 1), ("patience", 0)):
            at_least(least)(given[name], name)
        wishes = read(given["applications"], given["drain_seconds"])
    except ValueError as error:
        module.fail_json(msg=str(error))
    limits = Limits(given["timeout"], given["patience"], 0)
    is_present = given["state"] == "present"
    try:
        api = Api(k3s_credentials(), timeout=60)
        refuse(api, wishes, given["sockets"] or {} if is_present else None)
        with ThreadPoolExecutor(CONCURRENCY) as pool:
            movers = [Mover(api, wish, limits) for wish in wishes]
            moves = list(
                pool.map(lambda each: (each.there if is_present else each.back)(dry_run=module.check_mode), movers)
            )
    except Refused as error:
        module.fail_json(msg=f"Nothing was changed. {error}")
    except ApiError as error:
        module.fail_json(msg=f"{error}. Run this again to finish it")
    changes = [change for move in moves for change in move.changes]
    failures = [move.failure for move in moves if move.failure]
    # What listens on all nodes is long, and nobody reads it in a result.
    module.params["sockets"] = None
    result = {
        "changed": bool(changes) or bool(failures),
        "applications": [
            {
                "name": f"{wish.namespace}/{wish.name}",
                "objects": [change.what for change in move.changes],
                "failure": move.failure,
            }
            for wish, move in zip(wishes, moves)
        ],
    }
    if module._diff:
        result["diff"] = differences(changes)
    if failures:
        module.fail_json(msg="\n".join(failures), **result)
    module.exit_json(**result)


def read(applications, drain):
    """The wishes. ValueError names what is wrong."""
    wishes = []
    for place, each in enumerate(applications):
        where = f"applications[{place}]"
        namespace, _, name = object_name(each["name"], f"{where}.name").partition("/")
        if any((wish.namespace, wish.name) == (namespace, name) for wish in wishes):
            raise ValueError(f"{where}: {each['name']} stands in the list already")
        ports = {}
        for port, node_port in (each["node_ports"] or {}).items():
            ports[whole(port, f"{where}.node_ports")] = whole(node_port, f"{where}.node_ports.{port}")
        wishes.append(Wish(namespace, name, each["kind"], ports, drain))
    return wishes


def whole(given, where):
    """A port's number, which is text where it is a key of JSON."""
    return number(65535)(int(given) if str(given).isdecimal() else given, where)


if __name__ == "__main__":
    main()
