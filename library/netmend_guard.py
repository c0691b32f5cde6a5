#!/usr/bin/python
"""A change that nobody confirms over a new connection is taken back by the node itself."""

from __future__ import annotations

import re

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.netmend.guard import Guard, GuardError, Scope
from ansible.module_utils.netmend.node import CommandError

DOCUMENTATION = r"""
module: netmend_guard
short_description: Confirm a change, or let the node roll it back by itself
description:
  - Guards a change of firewall, kernel parameters or files that could cut the connection it is made over. Arm it,
    change, confirm. Without a confirmation a timer of systemd on the node brings
    back what was saved, whether the controller is still there or not.
  - The live rule set is not restored as a whole, because kube-proxy and others change theirs meanwhile. Only own rules
    (comment C(netmend:)) and those in O(rules) are put back to where they stood.
  - Needs systemd and C(/usr/bin/python3) on the node.
options:
  id:
    description: Names the change. Letters, digits, dots, dashes and underscores.
    type: str
    required: true
  state:
    description:
      - V(armed) saves the state and starts the timer. If this fails, nothing may be changed. It fails if it is armed.
      - V(confirmed) gives up the connection, reaches the node over a new one, stops the timer and keeps what was saved,
        as the way back, in C(/var/lib/netmend/undo). It fails if the node is not reached, which then rolls back by
        itself, or if the change was rolled back meanwhile, and says when and why.
      - V(rolled_back) brings back what was saved, now; also if it was confirmed.
      - V(settled) does so only if it is armed, as an interrupted run left it.
      - V(absent) leaves the change as it is, and forgets the way back.
    type: str
    choices: [armed, confirmed, rolled_back, settled, absent]
    required: true
  timeout:
    description: Seconds until the node rolls back; of V(state=confirmed), how long a new connection is tried for.
    type: int
    default: 30
  files:
    description: >-
      Files, directories (all that is in them) and globs to save. What is new among them is deleted by a roll-back, so
      files that do not exist yet are named here, too.
    type: list
    elements: path
    default: []
  undo:
    description:
      - What a roll-back does with the live state, once the files are back.
      - V(iptables) puts own rules, O(rules), and what makes own rules last, back as they were.
      - V(ufw) starts UFW with the restored files, or stops it if it was disabled, without flushing rules of others.
      - V(sysctl) writes the saved values of O(sysctls).
    type: list
    elements: str
    choices: [iptables, ufw, sysctl]
    default: []
  sysctls:
    description: Names of kernel parameters to save, such as V(net.ipv4.ip_forward).
    type: list
    elements: str
    default: []
  rules:
    description: Rules of others that the change takes away.
    type: list
    elements: dict
    default: []
    suboptions:
      backend:
        description: Where it is.
        type: str
        choices: [nft, legacy]
        required: true
      table:
        description: Its table.
        type: str
        required: true
      chain:
        description: Its chain.
        type: str
        required: true
      spec:
        description: The rule exactly as iptables-save prints it, without C(-A CHAIN).
        type: str
        required: true
attributes:
  check_mode:
    support: full
    description: Says what would happen. A confirmation does not fail then, as nothing was armed.
author: netmend maintainers
"""

EXAMPLES = r"""
- name: Change the firewall without a risk of being locked out
  block:
    - name: Arm
      netmend_guard:
        id: ufw
        state: armed
        files: [/etc/ufw, /etc/default/ufw]
        undo: [ufw]

    - name: Change
      ansible.builtin.command: ufw --force enable

    - name: Confirm over a new connection
      netmend_guard:
        id: ufw
        state: confirmed
  rescue:
    - name: Go back
      netmend_guard:
        id: ufw
        state: rolled_back
"""

RETURN = r"""
rolled_back:
  description: The last roll-back, if it was not followed by another change.
  type: dict
  returned: success
  contains:
    time:
      description: The node's local time.
      type: str
    reason:
      description: Why.
      type: str
    errors:
      description: What could not be brought back.
      type: list
      elements: str
"""

FOREIGN = {
    "backend": {"type": "str", "choices": ["nft", "legacy"], "required": True},
    "table": {"type": "str", "required": True},
    "chain": {"type": "str", "required": True},
    "spec": {"type": "str", "required": True},
}


def argument_spec():
    states = ["armed", "confirmed", "rolled_back", "settled", "absent"]
    return {
        "id": {"type": "str", "required": True},
        "state": {"type": "str", "choices": states, "required": True},
        "timeout": {"type": "int", "default": 30},
        "files": {"type": "list", "elements": "path", "default": []},
        "undo": {"type": "list", "elements": "str", "choices": ["iptables", "ufw", "sysctl"], "default": []},
        "sysctls": {"type": "list", "elements": "str", "default": []},
        "rules": {"type": "list", "elements": "dict", "default": [], "options": FOREIGN},
    }


def would_change(guard, state):
    return {
        "armed": True,
        "confirmed": not guard.is_confirmed(),
        "rolled_back": guard.is_armed() or guard.is_confirmed(),
        "settled": guard.is_armed(),
        "absent": guard.armed.exists() or guard.undo.exists(),
    }[state]


def bring(guard, state, scope, timeout):
    """GuardError where the state cannot be had."""
    if state == "armed":
        guard.arm(scope, timeout)
    elif state == "confirmed":
        guard.confirm()
    elif state == "absent":
        guard.discard()
    else:
        reason = "an interrupted run left it unconfirmed" if state == "settled" else "it was asked for"
        errors = guard.roll_back(reason, confirmed=state == "rolled_back")
        if errors:
            raise GuardError(f"{guard.name} was rolled back, but for: {'; '.join(errors)}")


def main():
    module = AnsibleModule(argument_spec(), supports_check_mode=True)
    options = module.params
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", options["id"]):
        module.fail_json(msg=f"id {options['id']!r} must be letters, digits, dots, dashes and underscores")
    guard = Guard(options["id"])
    changed = would_change(guard, options["state"])
    try:
        if changed and not module.check_mode:
            scope = Scope(**{key: options[key] for key in ("files", "undo", "sysctls", "rules")})
            bring(guard, options["state"], scope, options["timeout"])
    except (GuardError, CommandError, OSError) as error:
        module.fail_json(msg=str(error))
    module.exit_json(changed=changed, rolled_back=guard.rolled_back())


if __name__ == "__main__":
    main()
