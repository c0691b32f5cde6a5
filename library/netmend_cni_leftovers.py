#!/usr/bin/python
"""Takes away what another network of pods left on a node, by commands that were planned from the node's facts."""

from __future__ import annotations

from ansible.module_utils.basic import AnsibleModule

DOCUMENTATION = r"""
module: netmend_cni_leftovers
short_description: Take away what another network of pods left on a node
description:
  - Runs commands one after the other, as the filter P(netmend_swap_plan#filter) plans them from what is there; stops at
    the first that fails, and says which. Planned again afterwards, nothing is left of what was done.
author: netmend maintainers
options:
  commands:
    description: The commands, in their order.
    type: list
    elements: dict
    required: true
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
attributes:
  check_mode:
    support: full
    description: Says what would be run.
  diff_mode:
    support: full
    description: The commands.
requirements:
  - root on the node
"""

EXAMPLES = r"""
- name: Take away what is left of Flannel
  netmend_cni_leftovers:
    commands: "{{ netmend_swap_plan.commands[netmend_node_info.netmend_node.name] | default([]) }}"
"""

RETURN = r"""
commands:
  description: What was, or in check mode would be, run.
  returned: always
  type: list
  elements: str
  sample: [ip link del flannel.1]
"""


def main():
    command = {
        "argv": {"type": "list", "elements": "str", "required": True},
        "stdin": {"type": "str", "default": ""},
    }
    module = AnsibleModule(
        argument_spec={"commands": {"type": "list", "elements": "dict", "required": True, "options": command}},
        supports_check_mode=True,
    )
    commands = module.params["commands"]
    said = [shown(command) for command in commands]
    for command in [] if module.check_mode else commands:
        status, _, error = module.run_command(command["argv"], data=command["stdin"] or None)
        if status:
            done = commands.index(command)
            module.fail_json(
                msg=f"`{' '.join(command['argv'])}` failed: {error.strip()}. {done} of {len(commands)} had run before.",
                commands=said[:done],
                changed=done > 0,
            )
    diff = {"before": "".join(f"{text}\n" for text in said), "after": ""}
    module.exit_json(changed=bool(commands), commands=said, diff=diff)


def shown(command):
    return "\n".join([" ".join(command["argv"]), *(f"  {line}" for line in command["stdin"].splitlines())])


if __name__ == "__main__":
    main()
