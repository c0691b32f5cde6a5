#!/usr/bin/python
"""Sets kernel parameters, now and for the next boot, and touches nothing where they are as wanted."""

from __future__ import annotations

from pathlib import Path

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.netmend import sysctl

DOCUMENTATION = r"""
module: netmend_sysctl
short_description: Set kernel parameters, and keep them for the next boot
description:
  - Sets all parameters in one call and keeps them in one file of C(/etc/sysctl.d), beside what the file keeps already.
  - Values that the kernel has already are not written.
author: netmend maintainers
options:
  values:
    description:
      - Name to value, as sysctl has them. A parameter that the kernel does not have is an error.
      - Those under C(net.bridge) are left out where the node has no bridge, as with Calico.
    type: dict
    default: {}
  file:
    description: Where they are kept.
    type: path
    default: /etc/sysctl.d/99-netmend.conf
  state:
    description: V(absent) removes the file; the kernel's values stay as they are until the next boot.
    type: str
    choices: [present, absent]
    default: present
attributes:
  check_mode:
    support: full
    description: Reads the same and writes nothing.
  diff_mode:
    support: full
    description: The live values and the file, before and after.
requirements:
  - root on the node
"""

EXAMPLES = r"""
- name: Let the node forward packets
  netmend_sysctl:
    values:
      net.ipv4.ip_forward: "1"

- name: Keep nothing for the next boot
  netmend_sysctl:
    state: absent
"""

RETURN = r"""
changes:
  description: What was changed, or would be in check mode.
  type: list
  elements: str
  returned: success
  sample: ["net.ipv4.ip_forward: 0 -> 1", "/etc/sysctl.d/99-netmend.conf: net.ipv4.ip_forward = 1"]
values:
  description: The parameters that were looked after, with the values that they have now, or would have in check mode.
  type: dict
  returned: success
  sample: {net.ipv4.ip_forward: "1"}
"""


def main():
    module = AnsibleModule(
        argument_spec={
            "values": {"type": "dict", "default": {}},
            "file": {"type": "path", "default": "/etc/sysctl.d/99-netmend.conf"},
            "state": {"type": "str", "choices": ["present", "absent"], "default": "present"},
        },
        supports_check_mode=True,
    )
    file = Path(module.params["file"])
    present = module.params["state"] == "present"
    values = {name: str(value) for name, value in module.params["values"].items()} if present else {}
    wanted = sysctl.applicable(values, sysctl.has_bridges())
    try:
        before = sysctl.read(wanted, file)
        after = sysctl.plan(before, wanted, present)
        if before != after and not module.check_mode:
            sysctl.apply(before, after, file)
    except sysctl.SysctlError as error:
        module.fail_json(msg=str(error))
    changes = sysctl.changes(before, after, file)
    module.exit_json(
        changed=bool(changes),
        changes=changes,
        values=after.live,
        diff=[_diff("kernel", before.live, after.live), _diff(str(file), before.kept, after.kept)],
    )


def _diff(what, before, after):
    return {
        "before_header": what,
        "after_header": what,
        "before": sysctl.render(before),
        "after": sysctl.render(after),
    }


if __name__ == "__main__":
    main()
