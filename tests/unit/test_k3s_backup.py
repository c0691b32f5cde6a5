"""netmend_k3s_backup: what it keeps of a server, who may read it, and that no result says what is in it."""

from __future__ import annotations

import base64
import json
import os
import runpy
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from ansible.errors import AnsibleActionFail

ROOT = Path(__file__).parents[2]
SECRET = "K10abc::server:secret"
# Like K3s, which puts the node's name and the time behind the name.
K3S = """#!/bin/sh
test "$1 $2 $3" = "etcd-snapshot save --name" && echo pages >{db}/snapshots/$4-server0-1795854000
"""


@pytest.fixture
def server(tmp_path: Path) -> Path:
    """The root of a server's files; programs of its own come first."""
    (tmp_path / "data/server/db/snapshots").mkdir(parents=True)
    (tmp_path / "data/server/token").write_text(f"{SECRET}\n")
    (tmp_path / "config/config.yaml.d").mkdir(parents=True)
    (tmp_path / "config/config.yaml").write_text("cluster-init: true\n")
    (tmp_path / "config/config.yaml.d/90-netmend-cni.yaml").write_text("flannel-backend: none\n")
    (tmp_path / "config/k3s.env").write_text("not YAML\n")
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin/k3s").write_text(K3S.format(db=tmp_path / "data/server/db"))
    (tmp_path / "bin/k3s").chmod(0o755)
    return tmp_path


def keep(server: Path, *more: str, ok: bool = True, **arguments: Any) -> dict[str, Any]:
    """The module's result, run by Ansible on this machine as host server0."""
    given = {
        "name": "netmend-1",
        "directory": str(server / "backups/netmend-1"),
        "data_dir": str(server / "data"),
        "config_dir": str(server / "config"),
        **arguments,
    }
    connection = f"server0 ansible_connection=local ansible_python_interpreter={sys.executable}"
    (server / "hosts").write_text(f"{connection} ansible_remote_tmp={server}/tmp\n")
    done = subprocess.run(
        [
            *(Path(sys.executable).with_name("ansible"), "-i", server / "hosts", "server0", *more),
            *("-m", "netmend_k3s_backup", "-a", json.dumps(given)),
        ],
        cwd=ROOT,
        env={
            **os.environ,
            "ANSIBLE_LOAD_CALLBACK_PLUGINS": "1",
            "ANSIBLE_STDOUT_CALLBACK": "ansible.builtin.minimal",
            "PATH": f"{server}/bin:{os.environ['PATH']}",
        },
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert (done.returncode == 0) is ok, done.stdout + done.stderr
    encoded = base64.b64encode(f"{SECRET}\n".encode()).decode()
    assert not any(secret in done.stdout + done.stderr for secret in (SECRET, encoded))
    result: dict[str, Any] = json.loads(done.stdout.partition("=> ")[2])
    return result


def kept(server: Path) -> dict[str, tuple[str, int]]:
    """Path below the backup -> content and mode."""
    backup = server / "backups/netmend-1"
    files = [path for path in backup.rglob("*") if path.is_file()]
    return {str(path.relative_to(backup)): (path.read_text(), path.stat().st_mode & 0o777) for path in files}


def test_token_and_configuration_are_kept_from_others(server: Path) -> None:
    result = keep(server, "-vvv")
    assert (result["changed"], result["kind"], result["saved"]) == (True, "", "")
    assert result["kept"][0] == f"{server}/data/server/token"
    place = f"server0{server}"
    assert kept(server) == {
        f"{place}/data/server/token": (f"{SECRET}\n", 0o600),
        f"{place}/config/config.yaml": ("cluster-init: true\n", 0o600),
        f"{place}/config/config.yaml.d/90-netmend-cni.yaml": ("flannel-backend: none\n", 0o600),
    }
    folders = [path for path in (server / "backups").rglob("*") if path.is_dir()]
    assert {path.stat().st_mode & 0o777 for path in [server / "backups", *folders]} == {0o700}


def test_check_mode_keeps_nothing(server: Path) -> None:
    result = keep(server, "--check", state=True)
    assert (result["changed"], result["saved"]) == (True, "")
    assert not (server / "backups").exists()
    assert not list((server / "data/server/db/snapshots").iterdir())


def test_etcd_is_saved_by_k3s(server: Path) -> None:
    (server / "data/server/db/etcd/member").mkdir(parents=True)
    result = keep(server, state=True)
    assert result["kind"] == "etcd-snapshot"
    assert Path(result["saved"]).name == "netmend-1-server0-1795854000"
    assert Path(result["saved"]).read_text() == "pages\n"
    assert kept(server)["etcd-snapshot"] == ("", 0o600)  # into which it is fetched
    (server / "bin/k3s").write_text("#!/bin/sh\n")
    again = keep(server, state=True, name="netmend-2", ok=False)
    assert "has 0 files of that name" in again["msg"]


def test_sqlite_is_copied(server: Path) -> None:
    database = server / "data/server/db/state.db"
    with closing(sqlite3.connect(database)) as open_one:
        open_one.execute("create table kine (name text)")
        open_one.execute("insert into kine values ('/registry/a')")
        open_one.commit()
        result = keep(server, state=True)
    assert result["kind"] == "state.db"
    with closing(sqlite3.connect(result["saved"])) as copy:
        assert copy.execute("select name from kine").fetchall() == [("/registry/a",)]
    database.write_text("no database\n" * 999)
    assert "cannot be copied" in keep(server, state=True, name="netmend-2", ok=False)["msg"]


def test_a_server_writes_nothing_outside_of_its_folder(tmp_path: Path) -> None:
    write = runpy.run_path(str(ROOT / "plugins/action/netmend_k3s_backup.py"))["write"]
    write(tmp_path / "server0", "/etc/rancher/k3s/a.yaml", b"a")
    with pytest.raises(AnsibleActionFail, match="which is not below its own folder"):
        write(tmp_path / "server0", "/../agent0/a.yaml", b"a")
    assert [path.name for path in tmp_path.iterdir()] == ["server0"]


def test_what_is_no_server_is_said(server: Path) -> None:
    (server / "data/server/token").unlink()
    result = keep(server, ok=False)
    assert result["msg"] == f"{server}/data/server/token: No such file or directory. Is this a server of K3s?"
    assert not (server / "backups").exists()
