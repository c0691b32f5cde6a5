#!/usr/bin/python
"""Takes away what another network of pods left on a node and its Node, as was planned from the node's facts."""

from __future__ import annotations

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.netmend import node
from ansible.module_utils.netmend.kube import (
    MERGE_PATCH,
    RESTART,
    STRATEGIC_PATCH,
    Api,
    ApiError,
    answered,
    kubelet_credentials,
)

DOCUMENTATION = r"""
module: netmend_cni_leftovers
short_description: Take away what another network of pods left on a node
description:
  - Takes O(conditions) from the Node's status, runs O(commands) one after the other, and takes O(annotations) from the
    Node, as the filter P(netmend_swap_plan#filter) plans them from what is there. Stops at the first that fails, and
    says which. Planned again afterwards, nothing is left of what was done.
  - The Node is changed as its kubelet may change it, with the kubelet's credentials.
author: netmend maintainers
options:
  node:
    description: The node's name in the cluster.
    type: str
    required: true
  conditions:
    description: Types of conditions. One that says C(NetworkUnavailable) keeps new pods off the node.
    type: list
    elements: str
    default: []
  commands:
    description: The commands, in their order.
    type: list
    elements: dict
    default: []
    suboptions:
      argv:
        description: The program and its arguments.
        type: list
        elements: str
        required: true
      stdin:
        description: What it reads.
        type: str
        default: ""
  annotations:
    description: Names of annotations.
    type: list
    elements: str
    default: []
attributes:
  check_mode:
    support: full
    description: Says what would be taken away.
  diff_mode:
    support: full
    description: Conditions, commands and annotations.
requirements:
  - root on the node
"""

EXAMPLES = r"""
- name: Take away what is left of Flannel
  netmend_cni_leftovers:
    node: "{{ netmend_node_info.netmend_node.name }}"
    commands: "{{ netmend_swap_plan.commands[netmend_node_info.netmend_node.name] | default([]) }}"
    annotations: "{{ netmend_swap_plan.annotations[netmend_node_info.netmend_node.name] | default([]) }}"
"""

RETURN = r"""
commands:
  description: What was, or in check mode would be, run.
  returned: always
  type: list
  elements: str
  sample: [ip link del flannel.1]
"""


def contract():
    command = {
        "argv": {"type": "list", "elements": "str", "required": True},
        "stdin": {"type": "str", "default": ""},
    }
    options = {
        "node": {"type": "str", "required": True},
        "conditions": {"type": "list", "elements": "str", "default": []},
        "commands": {"type": "list", "elements": "dict", "options": command, "default": []},
        "annotations": {"type": "list", "elements": "str", "default": []},
    }
    return {"argument_spec": options, "supports_check_mode": True}


def main():
    module = AnsibleModule(**contract())
    conditions, commands, annotations = (module.params[each] for each in ("conditions", "commands", "annotations"))
    said = [shown(command) for command in commands]
    before = [*(f"condition {kind}" for kind in conditions), *said, *(f"annotation {name}" for name in annotations)]
    if before and not module.check_mode:
        take_away(module, conditions, commands, annotations)
    diff = {"before": "".join(f"{text}\n" for text in before), "after": ""}
    module.exit_json(changed=bool(before), commands=said, diff=diff)


def take_away(module, conditions, commands, annotations):
    path, changed = f"/api/v1/nodes/{module.params['node']}", False
    try:
        api = Api(kubelet_credentials(), patience=RESTART) if conditions or annotations else None
        if conditions:
            deleted = [{"$patch": "delete", "type": kind} for kind in conditions]
            taken = {"status": {"conditions": deleted}}
            answered(api, [200], "PATCH", f"{path}/status", content=taken, content_type=STRATEGIC_PATCH)
            changed = True
        run(module, commands, changed)
        changed = changed or bool(commands)
        if annotations:
            gone = {"metadata": {"annotations": dict.fromkeys(annotations)}}
            answered(api, [200], "PATCH", path, content=gone, content_type=MERGE_PATCH)
    except (ApiError, OSError) as error:
        module.fail_json(msg=f"The Node cannot be changed: {error}", changed=changed)


def run(module, commands, changed):
    for place, command in enumerate(commands):
        try:
            node.run(command["argv"], given=command["stdin"])
        except node.CommandError as error:
            module.fail_json(
                msg=f"{error}. {place} of {len(commands)} had run before.",
                commands=[shown(command) for command in commands[:place]],
                changed=changed or place > 0,
            )


def shown(command):
    return "\n".join([" ".join(command["argv"]), *(f"  {line}" for line in command["stdin"].splitlines())])


if __name__ == "__main__":
    main()
