#!/usr/bin/python
"""Lets a bridge's ports send frames back to where they came from; touches none that do."""

from __future__ import annotations

from pathlib import Path

from ansible.module_utils.basic import AnsibleModule

DOCUMENTATION = r"""
module: netmend_bridge_hairpin
short_description: Turn hairpin on at the ports of a bridge
description:
  - A pod that asks its own Service is led back to itself by the bridge, which sends a frame out of the port that it
    came in by only where hairpin is on there (bridge(8)).
  - Turns it on at the ports where it is off, as K3s's own Flannel has it for each pod (C(hairpinMode)). Ports that come
    later are as the configuration of the CNI says.
author: netmend maintainers
options:
  bridge:
    description: The bridge that pods are on.
    type: str
    default: cni0
attributes:
  check_mode:
    support: full
    description: Says at which ports it is off, and writes nothing.
  diff_mode:
    support: full
    description: The ports, before and after.
requirements:
  - root on the node
"""

EXAMPLES = r"""
- name: Let pods reach themselves by their own Services
  netmend_bridge_hairpin:
    bridge: cni0
"""

RETURN = r"""
ports:
  description: The ports where it was off, or is in check mode.
  returned: success
  type: list
  elements: str
  sample: [veth1a2b3c4d]
"""

INTERFACES = Path("/sys/class/net")
OFF = "0"


def main():
    module = AnsibleModule(
        argument_spec={"bridge": {"type": "str", "default": "cni0"}},
        supports_check_mode=True,
    )
    ports = INTERFACES / module.params["bridge"] / "brif"
    if not ports.is_dir():
        module.fail_json(msg=f"{module.params['bridge']} is no bridge of this node")
    states = {port.name: port / "hairpin_mode" for port in sorted(ports.iterdir())}
    off = [name for name, state in states.items() if state.read_text().strip() == OFF]
    for name in [] if module.check_mode else off:
        states[name].write_text("1")
    module.exit_json(
        changed=bool(off),
        ports=off,
        diff={
            "before": "".join(f"{name} hairpin {'off' if name in off else 'on'}\n" for name in states),
            "after": "".join(f"{name} hairpin on\n" for name in states),
        },
    )


if __name__ == "__main__":
    main()
