#!/usr/bin/python
"""Own iptables rules stand where they must, among the rules of others; no other rule is touched unless it is named."""

from __future__ import annotations

import re

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.netmend import rules
from ansible.module_utils.netmend.node import CommandError
from ansible.module_utils.netmend.ordered import OrderError, Wanted, rule_spec

DOCUMENTATION = r"""
module: netmend_iptables_rule
short_description: Keep iptables rules where they must stand among the rules of others
description:
  - Puts own rules behind some rules of a chain and before others, and moves them when they stand elsewhere. A rule that
    is there but stands behind a DROP is not right, unlike for modules that look for presence only.
  - Own rules are known by the comment C(netmend:) and O(name). Nothing else is changed, but for the rules named in
    O(remove_rules). IPv4 only.
  - The rules last through a reload of UFW, a restart of K3s and a reboot (see O(persistent)).
options:
  name:
    description: Name of this group of rules. Letters, digits, dots, dashes and underscores.
    type: str
    required: true
  state:
    description: With V(absent), all rules of this O(name) are taken away, wherever they stand.
    type: str
    choices: [present, absent]
    default: present
  backend:
    description:
      - iptables-nft and iptables-legacy are two sets of rules, and a packet passes both.
      - V(auto) is the one that holds the chains of Kubernetes or Calico; where none or both do, the one that
        C(iptables) is. Own rules left in the other are taken away then.
    type: str
    choices: [auto, nft, legacy]
    default: auto
  table:
    description: The table of the chain.
    type: str
    choices: [filter, nat, mangle, raw]
    default: filter
  chain:
    description: The chain. A chain that is not built in must exist.
    type: str
    default: FORWARD
  rules:
    description: The rules, in the order in which they are to stand. Others of this O(name) are deleted.
    type: list
    elements: dict
    default: []
    suboptions:
      source:
        description: An address or a network in CIDR notation.
        type: str
      destination:
        description: An address or a network in CIDR notation.
        type: str
      in_interface:
        description: The interface it came in by.
        type: str
      out_interface:
        description: The interface it leaves by.
        type: str
      protocol:
        description: The protocol, in lower case, or its number where iptables-save prints a number.
        type: str
      destination_port:
        description: A port, a range such as V(30000:32767), or several with commas. Needs O(rules[].protocol).
        type: str
      ctstate:
        description: States of the connection.
        type: list
        elements: str
        choices: [INVALID, NEW, RELATED, ESTABLISHED, UNTRACKED, SNAT, DNAT]
      jump:
        description: ACCEPT, DROP, REJECT, RETURN or a chain.
        type: str
        default: ACCEPT
      rule:
        description: >-
          Instead of all the others, the whole rule as iptables-save prints it, without C(-A CHAIN) and without a
          comment.
        type: str
  after:
    description:
      - Globs of chains. The rules come behind the last rule that jumps to one of them. These are the policy chains,
        which have to see a packet before it is accepted; that they can drop it does not count for O(before).
    type: list
    elements: str
    default: []
  before:
    description:
      - Globs of chains, or V(deny). The rules come before the first rule that jumps to one of them.
      - V(deny) stands for every rule that drops or rejects some of what the rules match, or jumps to where that is
        done.
      - Where such a rule stands before one that O(after) names, O(after) wins. If it takes only a part of the packets
        it stays effective; if it takes all of them, the module fails and names both, with nothing changed.
    type: list
    elements: str
    default: []
  remove_rules:
    description: Rules of others that are to be taken away, one by one; those that are not there count as done.
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
  persistent:
    description:
      - Keeps the wanted rules in C(/etc/netmend/iptables.d) and enables the unit C(netmend-iptables.service), which
        brings them into order at boot and whenever K3s or UFW were restarted. It needs systemd and C(/usr/bin/python3).
      - With V(false), nothing is kept, and what was kept is forgotten.
    type: bool
    default: true
attributes:
  check_mode:
    support: full
    description: Plans the same steps and shows them.
  diff_mode:
    support: full
    description: Shows the chains that change, before and after, without counters.
author: netmend maintainers
"""

EXAMPLES = r"""
- name: Accept what pods send, behind all policies and before anything that denies
  netmend_iptables_rule:
    name: pods
    chain: FORWARD
    rules:
      - source: 10.42.0.0/16
      - destination: 10.42.0.0/16
        ctstate: [RELATED, ESTABLISHED]
    after: ["cali-*", "KUBE-*"]
    before: [deny]

- name: Take away the one rule that rejects pods
  netmend_iptables_rule:
    name: pods
    rules:
      - source: 10.42.0.0/16
    after: ["cali-*", "KUBE-*"]
    before: [deny]
    remove_rules:
      - backend: nft
        table: filter
        chain: FORWARD
        spec: -s 10.42.0.0/16 -j REJECT --reject-with icmp-port-unreachable

- name: Take away what was added
  netmend_iptables_rule:
    name: pods
    state: absent
"""

RETURN = r"""
commands:
  description: The commands that were run, or would be in check mode.
  type: list
  elements: list
  returned: success
  sample: [[iptables-nft, -w, -t, filter, -D, FORWARD, -s, 10.42.0.0/16, -j, DROP]]
kept:
  description: Whether the rules for the next start were as wanted already.
  type: bool
  returned: success
"""

RULE = {
    "source": {"type": "str"},
    "destination": {"type": "str"},
    "in_interface": {"type": "str"},
    "out_interface": {"type": "str"},
    "protocol": {"type": "str"},
    "destination_port": {"type": "str"},
    "ctstate": {
        "type": "list",
        "elements": "str",
        "choices": ["INVALID", "NEW", "RELATED", "ESTABLISHED", "UNTRACKED", "SNAT", "DNAT"],
    },
    "jump": {"type": "str", "default": "ACCEPT"},
    "rule": {"type": "str"},
}
FOREIGN = {
    "backend": {"type": "str", "choices": ["nft", "legacy"], "required": True},
    "table": {"type": "str", "required": True},
    "chain": {"type": "str", "required": True},
    "spec": {"type": "str", "required": True},
}


def contract():
    options = {
        "name": {"type": "str", "required": True},
        "state": {"type": "str", "choices": ["present", "absent"], "default": "present"},
        "backend": {"type": "str", "choices": ["auto", "nft", "legacy"], "default": "auto"},
        "table": {"type": "str", "choices": ["filter", "nat", "mangle", "raw"], "default": "filter"},
        "chain": {"type": "str", "default": "FORWARD"},
        "rules": {"type": "list", "elements": "dict", "default": [], "options": RULE},
        "after": {"type": "list", "elements": "str", "default": []},
        "before": {"type": "list", "elements": "str", "default": []},
        "remove_rules": {"type": "list", "elements": "dict", "default": [], "options": FOREIGN},
        "persistent": {"type": "bool", "default": True},
    }
    return {"argument_spec": options, "supports_check_mode": True}


def main():
    module = AnsibleModule(**contract())
    options = module.params
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", options["name"]):
        module.fail_json(msg=f"name {options['name']!r} must be letters, digits, dots, dashes and underscores")
    try:
        present = options["rules"] if options["state"] == "present" else []
        wanted = Wanted(
            rules=[rule_spec(options["name"], rule) for rule in present],
            **{key: options[key] for key in ("name", "backend", "table", "chain", "after", "before")},
        )
        lasting = wanted if options["persistent"] else {**wanted, "rules": []}
        kept = rules.kept(lasting)
        if module.check_mode:
            change = rules.preview(wanted, options["remove_rules"])
        else:
            change = rules.order(wanted, options["remove_rules"])
            if not kept:
                rules.keep(lasting)
    except (OrderError, CommandError, ValueError) as error:
        module.fail_json(msg=str(error))
    module.exit_json(
        changed=bool(change.commands) or not kept,
        commands=change.commands,
        kept=kept,
        diff={"before": change.before, "after": change.after},
    )


if __name__ == "__main__":
    main()
