#!/usr/bin/python
"""Own UFW rules are as listed and take hold; nobody else's is changed, moved or deleted."""

from __future__ import annotations

import importlib.util
import shlex

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.common.respawn import has_respawned, probe_interpreters_for_module, respawn_module
from ansible.module_utils.netmend import ufw_apply
from ansible.module_utils.netmend.ufw import Plan, State, Wanted, admits, own, plan, rule_of, show

DOCUMENTATION = """
module: netmend_ufw
short_description: Keep a list of UFW rules beside the operator's own
description:
  - Own rules carry the comment C(netmend:NAME). Those that are listed are added, those that are not are deleted; all
    others stay as and where they are.
  - UFW takes the first rule that matches. An own allow goes before a refusal that is wider than it (C(deny 10250/tcp)),
    and behind one for a part of its sources, one interface or one destination. Where a refusal is for exactly the same
    sources, or for some of the ports only, the module fails and names it, for a person to decide.
  - Adds nothing where a rule of the operator's lets in as much.
  - All rules are written by UFW's own code, to UFW's own files, and take hold at once and together. Where a step fails,
    all is put back as it was.
  - Refuses to close UFW to new SSH connections like the one that this runs over, be it by a rule or by enabling it.
  - A change of O(before_rules) needs C(ufw reload), which passes through an open firewall for an instant.
requirements:
  - ufw 0.36 or later
options:
  rules:
    description: The own rules. Where one is to refuse, what it is not to refuse goes before it.
    type: list
    elements: dict
    default: []
    suboptions:
      name:
        description: Names the rule; letters, digits, dots, dashes, underscores, colons and plus signs.
        type: str
        required: true
      rule:
        description: What is done with what matches.
        type: str
        choices: [allow, deny, reject, limit]
        default: allow
      direction:
        description: V(routed) is what the node forwards, C(ufw route).
        type: str
        choices: [in, out, routed]
        default: in
      interface_in:
        description: Interface it comes in at.
        type: str
      interface_out:
        description: Interface it leaves by.
        type: str
      proto:
        description: Protocol.
        type: str
        choices: [any, tcp, udp, esp, ah, igmp, gre, vrrp]
        default: any
      from:
        description: Source, an address, a CIDR or V(any).
        type: str
        default: any
      from_port:
        description: Source port, as O(rules[].port).
        type: str
      to:
        description: Destination, as O(rules[].from).
        type: str
        default: any
      port:
        description: Destination port, several (V(80,443)) or a range (V(30000:32767)). Numbers, no service names.
        type: str
  before_rules:
    description:
      - Marked blocks in the filter table of C(/etc/ufw/before.rules), for what UFW's rules cannot say, as IP
        protocol 4.
    type: list
    elements: dict
    default: []
    suboptions:
      name:
        description: Names the block, as O(rules[].name).
        type: str
        required: true
      lines:
        description: Rules as of iptables, each of which appends (C(-A)) to C(ufw-before-input), -output or -forward.
        type: list
        elements: str
        required: true
  manage_builtins:
    description:
      - V(false) writes C(MANAGE_BUILTINS=no), so that a reload does not flush the chains of Kubernetes. Left as it is
        where omitted.
    type: bool
    choices: [false]
  enabled:
    description: Whether UFW is enabled. Left as it is where omitted.
    type: bool
  purge:
    description: Delete own rules and blocks that are not listed.
    type: bool
    default: true
attributes:
  check_mode:
    support: full
    description: Says what would be changed.
  diff_mode:
    support: full
    description: The rules as C(ufw show added) has them, and the files.
author: netmend maintainers
"""

EXAMPLES = """
- name: Let the other nodes' VXLAN in
  netmend_ufw:
    rules:
      - {name: flannel-vxlan-from-k3s-worker-01, from: 10.0.0.110, port: 8472, proto: udp}
      - {name: flannel-vxlan-from-k3s-worker-02, from: 10.0.0.111, port: 8472, proto: udp}
    manage_builtins: false

- name: Let IPIP in, which UFW has no word for
  netmend_ufw:
    before_rules:
      - name: ipip
        lines: ["-A ufw-before-input -p 4 -s 10.0.0.110/32 -j ACCEPT"]
    purge: false
"""

RETURN = """
changes:
  description: What was done, in order; empty where nothing was to do.
  returned: always
  type: list
  elements: str
  sample: ["ufw prepend allow from 10.0.0.110 to any port 10250 proto tcp comment netmend:kubelet-from-k3s-worker-01"]
rules:
  description: The own rules, in UFW's order, as C(ufw show added) has them.
  returned: always
  type: list
  elements: str
enabled:
  description: Whether UFW is enabled now; in check mode, would be.
  returned: always
  type: bool
"""

RULE = {
    "name": {"type": "str", "required": True},
    "rule": {"type": "str", "choices": ["allow", "deny", "reject", "limit"], "default": "allow"},
    "direction": {"type": "str", "choices": ["in", "out", "routed"], "default": "in"},
    "interface_in": {"type": "str"},
    "interface_out": {"type": "str"},
    "proto": {
        "type": "str",
        "choices": ["any", "tcp", "udp", "esp", "ah", "igmp", "gre", "vrrp"],
        "default": "any",
    },
    "from": {"type": "str", "default": "any"},
    "from_port": {"type": "str"},
    "to": {"type": "str", "default": "any"},
    "port": {"type": "str"},
}
BLOCK = {
    "name": {"type": "str", "required": True},
    "lines": {"type": "list", "elements": "str", "required": True},
}


def argument_spec() -> dict[str, object]:
    return {
        "rules": {"type": "list", "elements": "dict", "default": [], "options": RULE},
        "before_rules": {"type": "list", "elements": "dict", "default": [], "options": BLOCK},
        "manage_builtins": {"type": "bool", "choices": [False]},
        "enabled": {"type": "bool"},
        "purge": {"type": "bool", "default": True},
    }


def main() -> None:
    module = AnsibleModule(argument_spec=argument_spec(), supports_check_mode=True)
    _need_ufw(module)
    try:
        wanted = _wanted(module.params)
        before = ufw_apply.read()
        planned = plan(before, wanted)
        _keep_ssh(module, before, planned["after"])
        if not module.check_mode and planned["after"] != before:
            ufw_apply.apply(planned)
            _confirm(wanted)
    except (ValueError, OSError, ufw_apply.UfwError) as error:
        module.fail_json(msg=f"ufw: {error}")
    after = planned["after"]
    module.exit_json(
        changed=after != before,
        changes=_changes(planned, before),
        rules=[show(rule) for rule in after["rules"] if own(rule)],
        enabled=after["enabled"],
        diff=_diff(before, after),
    )


def _need_ufw(module: AnsibleModule) -> None:
    """UFW's own code is in the system's Python, which need not be the one that Ansible found."""
    if importlib.util.find_spec("ufw") is None:
        interpreter = None if has_respawned() else probe_interpreters_for_module(["/usr/bin/python3"], "ufw")
        if interpreter is None:
            module.fail_json(msg="ufw is not installed, or not for /usr/bin/python3")
        respawn_module(interpreter)


def _wanted(params: dict[str, object]) -> Wanted:
    blocks = {block["name"]: block["lines"] for block in params["before_rules"]}
    if len(blocks) < len(params["before_rules"]):
        raise ValueError("two blocks of before_rules have the same name")
    return Wanted(
        rules=[rule_of(option) for option in params["rules"]],
        before_rules=blocks,
        purge=params["purge"],
        manage_builtins=params["manage_builtins"],
        enabled=params["enabled"],
    )


def _keep_ssh(module: AnsibleModule, before: State, after: State) -> None:
    connection = ufw_apply.ssh_connection()
    if connection is None or not after["enabled"] or admits(after, connection):
        return
    if before["enabled"] and not admits(before, connection):
        return
    module.fail_json(
        msg=(
            "ufw: nothing was changed: UFW would not let in SSH from {source} to {destination} port {port}; "
            "allow it first, or list a rule for it"
        ).format(**connection)
    )


def _changes(planned: Plan, before: State) -> list[str]:
    after = planned["after"]
    edited = {
        ufw_apply.BEFORE: after["before_rules"] != before["before_rules"],
        ufw_apply.DEFAULT: after["default_ufw"] != before["default_ufw"],
    }
    switched = ["ufw enable" if after["enabled"] else "ufw disable"] if after["enabled"] != before["enabled"] else []
    edits = [f"edit {path}" for path, changed in edited.items() if changed]
    return [shlex.join(command) for command in planned["commands"]] + edits + switched


def _confirm(wanted: Wanted) -> None:
    now = ufw_apply.read()
    left = plan(now, wanted)
    if left["after"] != now:
        raise ufw_apply.UfwError(f"the change did not take hold; left to do: {left['commands']}")


def _diff(before: State, after: State) -> list[dict[str, str]]:
    return [
        _part("ufw show added", *("".join(f"{show(rule)}\n" for rule in state["rules"]) for state in (before, after))),
        _part(str(ufw_apply.BEFORE), before["before_rules"], after["before_rules"]),
        _part(str(ufw_apply.DEFAULT), before["default_ufw"], after["default_ufw"]),
        _part("ufw status", *("active\n" if state["enabled"] else "inactive\n" for state in (before, after))),
    ]


def _part(header: str, before: str, after: str) -> dict[str, str]:
    return {"before_header": header, "after_header": header, "before": before, "after": after}


if __name__ == "__main__":
    main()
