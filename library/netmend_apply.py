#!/usr/bin/python
"""Sees to it that objects of Kubernetes are in the cluster as they are given, or not at all."""

from __future__ import annotations

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.netmend.apply import apply, differences, named, put, remove
from ansible.module_utils.netmend.kube import RESTART, Api, ApiError, k3s_credentials

DOCUMENTATION = r"""
module: netmend_apply
short_description: Apply objects of Kubernetes from a K3s server
description:
  - Applies objects on the server's side, as C(netmend), and says what that changed. What others set on them stays.
  - Definitions of kinds come first and are waited for, then namespaces, then everything else at once.
  - An API that takes no connection, as while K3s restarts, is asked again for 90 s.
  - Needs nothing but Python on the server.
author: netmend maintainers
options:
  objects:
    description: The objects, with C(apiVersion), C(kind) and C(metadata). Of those to be removed no more is looked at.
    type: list
    elements: dict
    required: true
  state:
    description:
      - V(absent) removes them in the opposite order, with what they own.
      - V(patched) gives objects that are there the fields that are given, one after the other, and fails for one that
        is not there. What V(present) gave an object and does not give it again goes; what V(patched) gives it stays.
    type: str
    choices: [present, absent, patched]
    default: present
  wait:
    description:
      - Seconds to wait until what is removed is gone, the pods of a DaemonSet or Deployment included. V(0) for not at
        all.
    type: int
    default: 0
attributes:
  check_mode:
    support: full
    description: Asks the API server what would become of each object, without doing it.
  diff_mode:
    support: full
    description: Objects that change, without their status; of a Secret no more than that it changes.
requirements:
  - root on a K3s server
"""

EXAMPLES = r"""
- name: See to it that there is a namespace
  netmend_apply:
    objects:
      - apiVersion: v1
        kind: Namespace
        metadata: {name: keybuzz}
  delegate_to: "{{ groups['k3s_servers'] | first }}"
  run_once: true

- name: Give pods no more addresses of a pool
  netmend_apply:
    state: patched
    objects:
      - apiVersion: crd.projectcalico.org/v1
        kind: IPPool
        metadata: {name: default-ipv4-ippool}
        spec: {disabled: true}
  delegate_to: "{{ groups['k3s_servers'] | first }}"
  run_once: true
"""

RETURN = r"""
objects:
  description: The objects that were, or in check mode would be, changed.
  returned: always
  type: list
  elements: str
  sample: ["DaemonSet kube-system/calico-node"]
"""


def contract():
    options = {
        "objects": {"type": "list", "elements": "dict", "required": True},
        "state": {"type": "str", "choices": ["present", "absent", "patched"], "default": "present"},
        "wait": {"type": "int", "default": 0},
    }
    return {"argument_spec": options, "supports_check_mode": True}


def main():
    module = AnsibleModule(**contract())
    objects = module.params["objects"]
    refuse_wrong(module, objects)
    try:
        api = Api(k3s_credentials(), timeout=60, patience=RESTART)
        if module.params["state"] == "present":
            changes = apply(api, objects, module.check_mode)
        elif module.params["state"] == "patched":
            changes = put(api, objects, module.check_mode)
        else:
            changes = remove(api, objects, module.check_mode, module.params["wait"])
    except ApiError as error:
        module.fail_json(msg=str(error))
    result = {"changed": bool(changes), "objects": [change.what for change in changes]}
    if module._diff:
        result["diff"] = differences(changes)
    module.exit_json(**result)


def refuse_wrong(module, objects):
    for index, item in enumerate(objects):
        for key in ("apiVersion", "kind"):
            if not isinstance(item.get(key), str):
                module.fail_json(msg=f"objects[{index}] has no {key}.")
        if not isinstance(item.get("metadata"), dict) or not item["metadata"].get("name"):
            module.fail_json(msg=f"objects[{index}], a {item['kind']}, has no metadata.name.")
    names = [named(item) for item in objects]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice and module.params["state"] != "patched":
        module.fail_json(msg=f"objects has {', '.join(twice)} more than once.")


if __name__ == "__main__":
    main()
