#!/usr/bin/python
"""Lets a node tell the API which of its pods that have left their Services somebody still has a connection to."""

from __future__ import annotations

import gc
import os
import socket
from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.netmend.declared import at_least
from ansible.module_utils.netmend.kube import Api, ApiError, Credentials, kubelet_credentials
from ansible.module_utils.netmend.pod_connections import end, listen, serve

DOCUMENTATION = r"""
module: netmend_pod_connections
short_description: Let a node tell when nobody is connected any more to a pod that is to go
description:
  - While M(netmend_pod_replacement) runs on a server, a process on each node reads once a second which connections the
    pods there have that were taken out of their Services, from C(/proc/PID/net/tcp), and writes into the pod's status
    whether there are any, as the condition C(netmend/Connected). So a pod goes when its connections have ended, and
    not only when C(drain_seconds) are over.
  - Connections count that others have to the pod, at a port that it listens on. Those that it has to others do not, nor
    those over its loopback. A client that keeps an idle connection open counts.
  - It asks the API as the kubelet of its node, which may write the status of that node's pods and no others.
  - The process ends when it is stopped, when O(duration) is over, and when the API does not answer. Without it, drains
    take their whole time.
author: netmend maintainers
options:
  state:
    description: V(started) starts it, in the place of one that still runs. V(stopped) returns when it has ended.
    type: str
    choices: [started, stopped]
    default: started
  node:
    description: The node's name in the cluster. Needed for V(started).
    type: str
  duration:
    description: Seconds after which it ends by itself.
    type: int
    default: 3600
attributes:
  check_mode:
    support: full
    description: Starts and stops nothing.
  diff_mode:
    support: none
    description: Only the status of pods that are about to go is written, so there is nothing to compare.
requirements:
  - root on a node of K3s
"""

EXAMPLES = r"""
- name: Let nodes tell when nobody is connected any more to a pod that is to go
  netmend_pod_connections:
    node: "{{ ansible_facts['hostname'] }}"

- name: Replace the pods that have addresses of before
  netmend_pod_replacement:
    cidrs: [10.42.128.0/17]
    drain_seconds: 300
  delegate_to: "{{ groups['k3s_servers'] | first }}"
  run_once: true

- name: Let nodes stop that
  netmend_pod_connections:
    state: stopped
"""

RETURN = r"""
running:
  description:
    - Whether the process runs now. Where it could not be started, a warning says why. It is no change of the node, so
      RV(ignore:changed) is always false.
  returned: when not in check mode
  type: bool
  sample: true
"""


def contract() -> dict[str, Any]:
    options = {
        "state": {"type": "str", "choices": ["started", "stopped"], "default": "started"},
        "node": {"type": "str"},
        "duration": {"type": "int", "default": 3600},
    }
    return {
        "argument_spec": options,
        "required_if": [("state", "started", ["node"])],
        "supports_check_mode": True,
    }


def main() -> None:
    module = AnsibleModule(**contract())
    try:
        at_least(1)(module.params["duration"], "duration")
    except ValueError as error:
        module.fail_json(msg=str(error))
    if module.check_mode:
        module.exit_json(changed=False)
    running = False
    try:
        end()
        if module.params["state"] == "started":
            credentials = kubelet_credentials()
            Api(credentials).get("/version")
            _start(listen(), credentials, module.params["node"], module.params["duration"])
            running = True
    except socket.timeout:
        running = True
        module.warn("The process that tells of connections does not end; it does by itself when its time is over.")
    except (ApiError, OSError) as error:
        module.warn(f"Drains take their whole time on this node, as its connections are not told: {error}")
    module.exit_json(changed=False, running=running)


def _start(listener: socket.socket, credentials: Credentials, node: str, duration: int) -> None:
    """Goes on in a process of its own, which nobody waits for."""
    if os.fork():
        return
    os.setsid()
    gc.enable()  # it is off where a module runs without Ansible's own code, as those end soon
    nowhere = os.open(os.devnull, os.O_RDWR)
    for stream in range(3):
        os.dup2(nowhere, stream)
    try:
        serve(listener, Api(credentials), node, duration)
    finally:
        os._exit(0)  # what the module's parent process cleans up is not this one's


if __name__ == "__main__":
    main()
