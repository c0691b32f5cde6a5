#!/usr/bin/python
"""Restarts K3s on this node, and returns when the node is Ready again; never where that would cost etcd its quorum."""

from __future__ import annotations

import json
import re
import time
from pathlib import Path

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.netmend.kube import Api, ApiError, k3s_credentials, kubelet_credentials
from ansible.module_utils.netmend.parse.cluster import ready_since

DOCUMENTATION = """
module: netmend_k3s_restart
short_description: Restart K3s on a node and wait until the node is Ready again
description:
  - Restarts the node's one running unit of K3s (k3s.service or k3s-agent.service), or O(unit), which may have been
    stopped. Pods go on running meanwhile.
  - A server is restarted only while every other server says on /readyz that it is well, its etcd member included. For
    half a minute this is waited for, as one of them may just have been restarted itself.
  - Waits until the unit is active, the kubelet has reported the node as Ready since the restart, Flannel has written
    its C(subnet.env) again where it runs, and, on a server, /readyz says ok. Fails with what is missing of that.
  - Always restarts, as it is asked for where something running is wrong that no file shows. Run it on one server at a
    time (C(throttle) 1).
options:
  node:
    description: The node's name in the cluster.
    type: str
    required: true
  servers:
    description: Addresses of the cluster's other servers; none on an agent, or where this is the only server.
    type: list
    elements: str
    default: []
  unit:
    description: The unit, whether it runs or not; where it is not given, the one that runs.
    type: str
    choices: [k3s.service, k3s-agent.service]
  flannel:
    description: Whether Flannel is to run afterwards; where it is not given, as before.
    type: bool
  timeout:
    description: Seconds to wait for the node.
    type: int
    default: 180
attributes:
  check_mode:
    support: full
    description: Says whether the node may be restarted, and restarts nothing.
  diff_mode:
    support: full
    description: The unit and since when it runs.
author: netmend maintainers
"""

EXAMPLES = """
- name: Restart K3s where Flannel's entries are stale
  netmend_k3s_restart:
    node: k3s-master-03
    servers: ["10.0.0.101", "10.0.0.102"]
  throttle: 1
"""

RETURN = """
unit:
  description: The unit.
  returned: always
  type: str
  sample: k3s-agent.service
seconds:
  description: How long it took until the node was Ready.
  returned: when not in check mode
  type: float
"""

UNITS = ("k3s.service", "k3s-agent.service")
SUBNET_ENV = Path("/run/flannel/subnet.env")
SETTLE = 30  # seconds until servers have to be well before another one is restarted
POLL = 0.5  # seconds; there is no one thing to wait on that says all of it


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "node": {"type": "str", "required": True},
            "servers": {"type": "list", "elements": "str", "default": []},
            "unit": {"type": "str", "choices": list(UNITS)},
            "flannel": {"type": "bool"},
            "timeout": {"type": "int", "default": 180},
        },
        supports_check_mode=True,
    )
    running = (unit for unit in UNITS if _shown(module, unit)["ActiveState"] == "active")
    unit = module.params["unit"] or next(running, "")
    if not unit:
        module.fail_json(msg=f"None of {', '.join(UNITS)} is active here: there is nothing that could be restarted.")
    patience = 0 if module.check_mode else SETTLE
    unwell = _still_unwell(module.params["servers"], patience) if unit == "k3s.service" else ""
    if unwell:
        module.fail_json(msg=f"{unit} is not restarted, as etcd could lose its quorum: {unwell}. Mend that first.")
    before = _shown(module, unit)
    state = f"{before['ActiveState']}, started {before['ActiveEnterTimestamp'] or 'never'}"
    result = {"changed": True, "unit": unit, "diff": {"before": f"{unit} {state}\n", "after": ""}}
    if not module.check_mode:
        result["seconds"] = _restart(module, unit)
    result["diff"]["after"] = f"{unit} restarted\n"
    module.exit_json(**result)


def _still_unwell(servers: list[str], patience: float) -> str:
    """The same as _unwell(), asked until all are well or so many seconds are over."""
    until = time.monotonic() + patience
    while True:
        unwell = _unwell(servers)
        if not unwell or time.monotonic() >= until:
            return unwell
        time.sleep(POLL)


def _unwell(servers: list[str]) -> str:
    """What is wrong with the first of these servers that is not well; "" where all are."""
    for address in servers:
        try:
            status, body = Api(k3s_credentials(f"https://{address}:6443")).get("/readyz?verbose")
        except ApiError as error:
            return str(error)
        if status != 200:
            failed = re.findall(r"^\[-\](\S+)", body, re.M)
            return f"the server {address} is not ready ({', '.join(failed) or status})"
    return ""


def _restart(module: AnsibleModule, unit: str) -> float:
    # Where Flannel has gone, its file stays.
    with_flannel = SUBNET_ENV.exists() if module.params["flannel"] is None else module.params["flannel"]
    began, started = time.time(), time.monotonic()
    _systemctl(module, "restart", "--no-block", unit)
    while True:
        missing = _missing(module, unit, began, started, with_flannel)
        took = time.monotonic() - started
        if not missing:
            return round(took, 1)
        if took > module.params["timeout"]:
            return module.fail_json(
                msg=f"{unit} was restarted, and {missing} after {took:.0f} s. See `journalctl -u {unit}`."
            )
        time.sleep(POLL)


def _missing(module: AnsibleModule, unit: str, began: float, started: float, with_flannel: bool) -> str:
    """What is not yet as it has to be after a restart at ``began`` (``started``, of the monotonic clock)."""
    shown = _shown(module, unit)
    if shown["ActiveState"] != "active" or int(shown["ActiveEnterTimestampMonotonic"]) < started * 1e6:
        return f"it has not come up again ({shown['ActiveState']})"
    if with_flannel and not (SUBNET_ENV.exists() and SUBNET_ENV.stat().st_mtime > began):
        return f"Flannel has not written {SUBNET_ENV}"
    try:
        if unit == "k3s.service":
            status, _ = Api(k3s_credentials()).get("/readyz")
            if status != 200:
                return f"/readyz says {status}"
        status, body = Api(kubelet_credentials()).get(f"/api/v1/nodes/{module.params['node']}")
    except (ApiError, OSError) as error:  # where it never ran, the kubelet's credentials are yet to be made
        return str(error)
    if status != 200 or not ready_since(json.loads(body), began):
        return f"the kubelet has not reported {module.params['node']} as Ready"
    return ""


def _shown(module: AnsibleModule, unit: str) -> dict[str, str]:
    properties = "--property=ActiveState,ActiveEnterTimestamp,ActiveEnterTimestampMonotonic"
    return dict(line.partition("=")[::2] for line in _systemctl(module, "show", properties, unit).splitlines())


def _systemctl(module: AnsibleModule, *arguments: str) -> str:
    program = module.get_bin_path("systemctl", required=True)
    _, text, _ = module.run_command([program, *arguments], check_rc=True, environ_update={"LC_ALL": "C"})
    return text


if __name__ == "__main__":
    main()
