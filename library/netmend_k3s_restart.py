#!/usr/bin/python
"""Restarts K3s on this node with the configuration that it is to have, and returns when the node is Ready again; never
where that would cost etcd its quorum."""

from __future__ import annotations

import json
import os
import re
import tempfile
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
  - O(files) are written and taken away only then, so that a restart that is refused leaves none of them to be found by
    the next one.
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
  files:
    description:
      - What K3s is to find when it starts, by absolute path. Contents, which only root may read; or null for what is
        not to be there, a link among it. Missing directories are made, with mode 0700.
    type: dict
    default: {}
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
    description: The unit and since when it runs, and the lines of the files that change.
author: netmend maintainers
"""

EXAMPLES = """
- name: Restart K3s where Flannel's entries are stale
  netmend_k3s_restart:
    node: k3s-master-03
    servers: ["10.0.0.101", "10.0.0.102"]
  throttle: 1

- name: Let a server do without Flannel
  netmend_k3s_restart:
    node: k3s-master-03
    servers: ["10.0.0.101", "10.0.0.102"]
    files:
      /etc/rancher/k3s/config.yaml.d/90-netmend-cni.yaml: |
        flannel-backend: "none"
    flannel: false
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
            "files": {"type": "dict", "default": {}},
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
    files = {Path(path): content for path, content in module.params["files"].items()}
    old = {path: _content(path) for path in files}
    changed = [path for path in files if old[path] != files[path]]
    diff = {
        "before": _lines(old, changed) + f"{unit} {state}\n",
        "after": _lines(files, changed) + f"{unit} restarted\n",
    }
    result = {"changed": True, "unit": unit, "diff": diff}
    if not module.check_mode:
        for path in changed:
            _put(path, files[path])
        result["seconds"] = _restart(module, unit)
    module.exit_json(**result)


def _content(path: Path) -> str | None:
    """What a file has, or where a link leads; None where there is neither."""
    if path.is_symlink():
        return f"-> {os.readlink(path)}\n"
    return path.read_text(encoding="utf-8") if path.exists() else None


def _put(path: Path, content: str | None) -> None:
    if content is None:
        path.unlink()
        return
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    # Others may read it at no time, which AnsibleModule.atomic_move lets them do with a new file.
    descriptor, made = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}-")
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    os.replace(made, path)


def _lines(files: dict[Path, str | None], paths: list[Path]) -> str:
    return "".join(f"{path}: {line}\n" for path in paths for line in (files[path] or "").splitlines())


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
