#!/usr/bin/python
"""One run at a time changes a cluster: takes the Lease that says so, or gives it back."""

from __future__ import annotations

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.netmend.kube import RESTART, Api, ApiError, k3s_credentials
from ansible.module_utils.netmend.lease import Claim, LeaseHeld, give_back, take

DOCUMENTATION = r"""
module: netmend_lease
short_description: Let no other run change the cluster meanwhile
description:
  - Takes the Lease C(netmend) in kube-system, or renews it; fails where another run has it and is alive.
  - A run that ended without giving it back is taken for dead when it was not heard from for as long as it said, or
    at once where its process ran on the same controller, or in the same container, and is gone.
author: netmend maintainers
options:
  holder:
    description:
      - This run, as C(USER@HOST/SPACE/PROCESS), where SPACE stands for the machine or container whose process it is;
        the same in all calls of one run, and of no other.
      - Filled in on the controller where it is not given.
    type: str
    required: true
  state:
    description: V(held) takes or renews it, V(released) gives it back if it is this run's.
    type: str
    choices: [held, released]
    default: held
  dead:
    description: A holder that is known to be dead. Filled in on the controller.
    type: str
    default: ""
  duration:
    description: Seconds without a renewal after which others may take this run for dead.
    type: int
    default: 600
attributes:
  check_mode:
    support: full
    description: Neither takes it nor gives it back.
  diff_mode:
    support: none
    description: There is nothing of the cluster's network to compare.
requirements:
  - root on a K3s server
"""

EXAMPLES = r"""
- name: Let no other run change the cluster meanwhile
  netmend_lease:
  delegate_to: "{{ groups['k3s_servers'] | first }}"
  run_once: true

- name: Let others change it again
  netmend_lease:
    state: released
  delegate_to: "{{ groups['k3s_servers'] | first }}"
  run_once: true
"""

RETURN = r"""
holder:
  description: Who holds the lease now, another run where this fails; empty once it was given back.
  type: str
  returned: when not in check mode
  sample: operator@bastion/1f3c0d2e/4711
"""


def contract():
    options = {
        "holder": {"type": "str", "required": True},
        "state": {"type": "str", "choices": ["held", "released"], "default": "held"},
        "dead": {"type": "str", "default": ""},
        "duration": {"type": "int", "default": 600},
    }
    return {"argument_spec": options, "supports_check_mode": True}


def main():
    module = AnsibleModule(**contract())
    if module.check_mode:
        module.exit_json(changed=False)
    holder = module.params["holder"]
    try:
        if module.params["state"] == "released":
            module.exit_json(changed=give_back(Api(k3s_credentials(), patience=RESTART), holder), holder="")
        take(Api(k3s_credentials()), Claim(holder, module.params["duration"], module.params["dead"]))
    except LeaseHeld as error:
        module.fail_json(msg=str(error), holder=error.holder)
    except ApiError as error:
        module.fail_json(msg=str(error))
    module.exit_json(changed=True, holder=holder)


if __name__ == "__main__":
    main()
