#!/usr/bin/python
"""Has K3s's state, token and configuration of a server on the controller, from which a cluster can be restored."""

from __future__ import annotations

import base64
from contextlib import closing
from pathlib import Path

from ansible.module_utils.basic import AnsibleModule

DOCUMENTATION = r"""
module: netmend_k3s_backup
short_description: Keep a server's token and configuration on the controller, and save the cluster's state
description:
  - Keeps the server's token and all YAML files of its configuration below O(directory) of the controller, in a
    directory with the host's name in the inventory. Directories get mode 0700, files 0600.
  - With O(state), K3s saves a snapshot of etcd, too, or SQLite a copy of its database, where K3s uses that. The file
    stays on the server, and its path is returned.
  - Needs netmend's action plugin of the same name, which writes the files.
author: netmend maintainers
options:
  name:
    description: Of the snapshot or copy.
    type: str
    required: true
  directory:
    description: Directory of the backup on the controller.
    type: path
    required: true
  state:
    description: Whether the cluster's state is saved as well, which one server does for all.
    type: bool
    default: false
  data_dir:
    description: K3s's C(data-dir) on the server.
    type: path
    default: /var/lib/rancher/k3s
  config_dir:
    description: Where K3s's configuration is on the server.
    type: path
    default: /etc/rancher/k3s
attributes:
  check_mode:
    support: full
    description: Saves and keeps nothing.
  diff_mode:
    support: none
    description: There is nothing to compare.
requirements:
  - root on the server
"""

EXAMPLES = r"""
- name: Keep what the cluster can be restored from
  netmend_k3s_backup:
    name: before-the-upgrade
    directory: backups/before-the-upgrade
    state: "{{ inventory_hostname == ansible_play_hosts | first }}"
"""

RETURN = r"""
kept:
  description: Paths of the files that are kept, as they are on the server.
  returned: success
  type: list
  elements: str
  sample: [/var/lib/rancher/k3s/server/token, /etc/rancher/k3s/config.yaml]
kind:
  description: What the state is, C(etcd-snapshot) or C(state.db); empty without O(state).
  returned: success
  type: str
saved:
  description: The state's path on the server; empty without O(state).
  returned: success
  type: str
  sample: /var/lib/rancher/k3s/server/db/snapshots/before-the-upgrade-k3s-master-01-1795854000
"""


def main():
    module = AnsibleModule(
        argument_spec={
            "name": {"type": "str", "required": True},
            "directory": {"type": "path", "required": True},
            "state": {"type": "bool", "default": False},
            "data_dir": {"type": "path", "default": "/var/lib/rancher/k3s"},
            "config_dir": {"type": "path", "default": "/etc/rancher/k3s"},
        },
        supports_check_mode=True,
    )
    data, config = Path(module.params["data_dir"]), Path(module.params["config_dir"])
    token = data / "server/token"
    paths = [token, *sorted(path for path in config.rglob("*") if path.suffix in (".yaml", ".yml") and path.is_file())]
    kind, saved = "", ""
    try:
        files = {str(path): base64.b64encode(path.read_bytes()).decode() for path in paths}
    except OSError as error:
        module.fail_json(msg=f"{error.filename}: {error.strerror}. Is this a server of K3s?")
    if module.params["state"] and not module.check_mode:
        kind, saved = save(module, data / "server/db")
    module.exit_json(changed=True, files=files, kind=kind, saved=saved)


def save(module, db):
    """What the state is, and its path."""
    name = module.params["name"]
    if not (db / "etcd/member").exists():
        return "state.db", copied(module, db / "state.db", db / f"{name}.db")
    k3s = module.get_bin_path("k3s", required=True, opt_dirs=["/usr/local/bin"])
    module.run_command([k3s, "etcd-snapshot", "save", "--name", name], check_rc=True)
    found = sorted(db.glob(f"snapshots/{name}*"))
    if len(found) != 1:
        module.fail_json(msg=f"K3s says that it saved {name}, and {db}/snapshots has {len(found)} files of that name.")
    return "etcd-snapshot", str(found[0])


def copied(module, database, copy):
    """The path of a copy that is whole while K3s goes on writing: https://www.sqlite.org/backup.html"""
    import sqlite3  # noqa: PLC0415  only where K3s uses it: some nodes' Python has none

    try:
        source, target = sqlite3.connect(f"file:{database}?mode=ro", uri=True), sqlite3.connect(str(copy))
        with closing(source), closing(target):
            source.backup(target)
            said = target.execute("pragma integrity_check").fetchall()
    except sqlite3.Error as error:
        module.fail_json(msg=f"{database} cannot be copied: {error}")
    if said != [("ok",)]:
        module.fail_json(msg=f"{database} is damaged: {said[0][0]}")
    return str(copy)


if __name__ == "__main__":
    main()
