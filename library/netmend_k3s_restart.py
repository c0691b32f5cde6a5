#!/usr/bin/python
"""Restarts K3s on this node with the configuration that it is to have, and returns when the node is Ready again; never
where that would cost etcd its quorum."""

from __future__ import annotations

import os
import re
import time
from pathlib import Path
from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.netmend import node
from ansible.module_utils.netmend.kube import Api, ApiError, k3s_credentials, kubelet_credentials
from ansible.module_utils.netmend.mirror import Mirror
from ansible.module_utils.netmend.parse.cluster import ready_since

DOCUMENTATION = """
module: netmend_k3s_restart
short_description: Restart K3s on a node and wait until the node is Ready again
description:
  - Restarts the node's one running unit of K3s (k3s.service or k3s-agent.service), or O(unit), which may have been
    stopped. Pods go on running meanwhile.
  - A server is restarted only while every other server says on /readyz that it is well, its etcd member included. For
    half a minute this is waited for, as one of them may just have been restarted itself.
  - O(files) and O(links) are written and taken away only then, so that a restart that is refused leaves none of them to
    be found by the next one.
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
  links:
    description: Symbolic links that K3s is to find when it starts, by absolute path, and where they lead.
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
POLL = 0.2  # seconds, where nothing tells of a change
WATCH = 5  # seconds that a watch may say nothing before it is looked again


class Link(str):
    """Where a symbolic link leads, in the place of what a file has."""


def contract() -> dict[str, Any]:
    options = {
        "node": {"type": "str", "required": True},
        "servers": {"type": "list", "elements": "str", "default": []},
        "unit": {"type": "str", "choices": list(UNITS)},
        "files": {"type": "dict", "default": {}},
        "links": {"type": "dict", "default": {}},
        "flannel": {"type": "bool"},
        "timeout": {"type": "int", "default": 180},
    }
    return {"argument_spec": options, "supports_check_mode": True}


def main() -> None:
    module = AnsibleModule(**contract())
    try:
        run(module)
    except node.CommandError as error:
        module.fail_json(msg=str(error))


def run(module: AnsibleModule) -> None:
    running = (unit for unit in UNITS if _shown(unit)["ActiveState"] == "active")
    unit = module.params["unit"] or next(running, "")
    if not unit:
        module.fail_json(msg=f"None of {', '.join(UNITS)} is active here: there is nothing that could be restarted.")
    patience = 0 if module.check_mode else SETTLE
    unwell = _still_unwell(module.params["servers"], patience) if unit == "k3s.service" else ""
    if unwell:
        module.fail_json(msg=f"{unit} is not restarted, as etcd could lose its quorum: {unwell}. Mend that first.")
    before = _shown(unit)
    state = f"{before['ActiveState']}, started {before['ActiveEnterTimestamp'] or 'never'}"
    files = {Path(path): content for path, content in module.params["files"].items()}
    files.update((Path(path), Link(target)) for path, target in module.params["links"].items())
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
        return Link(os.readlink(path))
    return path.read_text(encoding="utf-8") if path.exists() else None


def _put(path: Path, content: str | None) -> None:
    if content is None:
        path.unlink()
    elif isinstance(content, Link):
        node.link(path, content)
    else:
        node.write(path, content.encode())


def _lines(files: dict[Path, str | None], paths: list[Path]) -> str:
    arrow = {path: "-> " if isinstance(files[path], Link) else "" for path in paths}
    return "".join(f"{path}: {arrow[path]}{line}\n" for path in paths for line in (files[path] or "").splitlines())


def _still_unwell(servers: list[str], patience: float) -> str:
    """The same as _unwell(), asked until all are well or so many seconds are over."""
    until = time.monotonic() + patience
    apis: dict[str, Api] = {}
    while True:
        unwell = _unwell(servers, apis)
        if not unwell or time.monotonic() >= until:
            return unwell
        time.sleep(POLL)


def _unwell(servers: list[str], apis: dict[str, Api]) -> str:
    """What is wrong with the first of these servers that is not well; "" where all are. ``apis`` are kept for later."""
    for address in servers:
        try:
            apis[address] = apis.get(address) or Api(k3s_credentials(f"https://{address}:6443"))
            status, body = apis[address].get("/readyz?verbose")
        except ApiError as error:
            return str(error)
        if status != 200:
            failed = re.findall(r"^\[-\](\S+)", body, re.M)
            return f"the server {address} is not ready ({', '.join(failed) or status})"
    return ""


def _restart(module: AnsibleModule, unit: str) -> float:
    # Where Flannel has gone, its file stays.
    with_flannel = SUBNET_ENV.exists() if module.params["flannel"] is None else module.params["flannel"]
    limit = module.params["timeout"]
    began, started = time.time(), time.monotonic()
    missing = _started(unit, limit)
    if not missing:
        restarted = Restarted(unit, module.params["node"], began)
        while (missing := restarted.missing(with_flannel)) and time.monotonic() < started + limit:
            restarted.wait()
    took = time.monotonic() - started
    if missing:
        module.fail_json(msg=f"{unit} was restarted, and {missing} after {took:.0f} s. See `journalctl -u {unit}`.")
    return round(took, 1)


def _started(unit: str, limit: float) -> str:
    """Restarts it, and says what is missing when K3s says that it runs, or the time is over."""
    try:
        # K3s's units are of Type=notify: this ends when K3s says so.
        node.run(["systemctl", "restart", unit], timeout=limit)
    except node.CommandError:
        return f"it has not come up again ({_shown(unit)['ActiveState']})"
    return ""


class Restarted:
    """A node whose K3s was restarted at ``began``."""

    def __init__(self, unit: str, name: str, began: float) -> None:
        self._name, self._began = name, began
        self._administrator: Api | None = None
        self._answers = unit != "k3s.service"
        self._node: Mirror | None = None

    def missing(self, with_flannel: bool) -> str:
        """What is not yet as it has to be."""
        if with_flannel and not (SUBNET_ENV.exists() and SUBNET_ENV.stat().st_mtime > self._began):
            return f"Flannel has not written {SUBNET_ENV}"
        try:
            if not self._answers:
                self._administrator = self._administrator or Api(k3s_credentials())
                status, _ = self._administrator.get("/readyz")
                if status != 200:
                    return f"/readyz says {status}"
                self._answers = True
            path = f"/api/v1/nodes?fieldSelector=metadata.name={self._name}"
            self._node = self._node or Mirror(Api(kubelet_credentials()), {"node": path})
        except (ApiError, OSError) as error:  # where it never ran, the kubelet's credentials are yet to be made
            return str(error)
        if not any(ready_since(item, self._began) for item in self._node.state()["node"]):
            return f"the kubelet has not reported {self._name} as Ready"
        return ""

    def wait(self) -> None:
        """Returns when something may have come."""
        if not self._node:
            time.sleep(POLL)
            return
        try:
            self._node.wait(WATCH)
        except ApiError:  # its server restarts
            self._node = None


def _shown(unit: str) -> dict[str, str]:
    text = node.run(["systemctl", "show", "--property=ActiveState,ActiveEnterTimestamp", unit])
    return dict(line.partition("=")[::2] for line in text.splitlines())


if __name__ == "__main__":
    main()
