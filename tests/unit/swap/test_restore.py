"""The restore as its playbook goes about it: two servers, one of which joins the other, and an agent."""

from __future__ import annotations

import hashlib
import json
import sqlite3
from pathlib import Path
from typing import Any

import pytest

from .conftest import Captured
from .journey import Journey

PAGES = bytes(512)
TOKEN = "K10abc::server:secret\n"
# As systemd says of a service that runs.
SYSTEMCTL = """echo "$NETMEND_HOST $@" >>{calls}
case $1 in show) printf 'LoadState=loaded\\nActiveState=active\\n' ;; esac"""


class Restore:
    """A cluster whose servers keep their files below a directory, and a backup of them."""

    def __init__(self, place: Path, cluster: Captured) -> None:
        self.place = place
        self.journey = Journey(place / "journey", "restore", last=2, servers=("server0", "agent0"))
        self.journey.script("systemctl", SYSTEMCTL.format(calls=self.journey.place / "systemctl"))
        self.backup = place / "netmend-1"
        for name in self.journey.servers:
            (self.data(name) / "server/db/etcd").mkdir(parents=True)
            self.token(name).write_text(TOKEN)
            self.drop_in(name).parent.mkdir(parents=True)
            self.drop_in(name).write_text("")
            kept = self.backup / name / "var/lib/rancher/k3s/server/token"
            kept.parent.mkdir(parents=True)
            kept.write_text(TOKEN)
            config = {"data-dir": str(self.data(name)), "config": str(place / name / "config.yaml")}
            cluster.nodes[name]["k3s"].update(role="server", config=config, sources={})
        cluster.nodes["agent0"]["k3s"]["config"]["server"] = "https://10.0.0.100:6443"
        (self.backup / "etcd-snapshot").write_bytes(PAGES + hashlib.sha256(PAGES).digest())
        self.journey.stage("lost", cluster)

    def data(self, name: str) -> Path:
        return self.place / name / "data"

    def token(self, name: str) -> Path:
        return self.data(name) / "server/token"

    def drop_in(self, name: str) -> Path:
        return self.place / name / "config.yaml.d/90-netmend-cni.yaml"

    def go(self, *arguments: str, ok: bool = True) -> str:
        given = {"k3s_restore_from": self.backup, "k3s_restore_place": self.place / "snapshot"}
        extra = [word for name, value in given.items() for word in ("-e", f"{name}={value}")]
        return self.journey.go("lost", {}, Path(), *extra, *arguments, ok=ok)

    def files(self) -> list[str]:
        return sorted(str(path.relative_to(self.place)) for name in self.journey.servers
                      for path in (self.place / name).rglob("*"))  # fmt: skip


@pytest.fixture
def restore(tmp_path: Path, flannel: Captured) -> Restore:
    return Restore(tmp_path, flannel)


def test_one_is_reset_and_the_other_joins_it(restore: Restore) -> None:
    restore.token("agent0").unlink()
    output = restore.go("-e", "k3s_restore_confirm=netmend-1")
    assert "server0 is reset to netmend-1, then agent0 join it with empty databases" in output
    stopped = [line for line in restore.journey.told("systemctl") if " stop " in line]
    assert sorted(stopped) == ["agent0 stop k3s.service", "server0 stop k3s.service"]
    assert restore.journey.told("kubectl") == [
        f"server --cluster-reset --cluster-reset-restore-path={restore.place}/snapshot/etcd-snapshot"
    ]
    assert [call for call in restore.journey.told("calls") if "k3s_restart" in call] == [
        "netmend_k3s_restart server0 k3s.service",
        "netmend_k3s_restart agent0 k3s.service",
        "netmend_k3s_restart agent1 k3s-agent.service",
    ]
    (aside,) = restore.data("agent0").glob("server/db-before-*")
    assert (aside / "etcd").is_dir()
    assert not (restore.data("agent0") / "server/db").exists()
    assert (restore.data("server0") / "server/db/etcd").is_dir()
    assert restore.token("agent0").read_text() == TOKEN
    assert restore.token("agent0").stat().st_mode & 0o777 == 0o600
    assert not restore.drop_in("server0").exists()
    assert not (restore.place / "snapshot").exists()
    assert TOKEN.strip() not in output


def test_what_was_interrupted_begins_anew(restore: Restore) -> None:
    (restore.data("server0") / "server/db/reset-flag").touch()
    (restore.data("agent0") / "server/db").rename(restore.data("agent0") / "server/db-before-19700101T000000Z")
    restore.go("-e", "k3s_restore_confirm=netmend-1")
    assert not (restore.data("server0") / "server/db/reset-flag").exists()
    assert len(list(restore.data("agent0").glob("server/db-before-*"))) == 1


def test_a_database_of_sqlite_is_put_in_the_place_of_the_one_that_is_there(tmp_path: Path, flannel: Captured) -> None:
    restore = Restore(tmp_path, flannel)
    restore.journey.servers = ("server0",)
    (restore.backup / "etcd-snapshot").unlink()
    with sqlite3.connect(restore.backup / "state.db") as database:
        database.execute("create table kine (name text)")
    database.close()
    restore.go("-e", "k3s_restore_confirm=netmend-1")
    assert restore.journey.told("kubectl") == []
    restored = restore.data("server0") / "server/db/state.db"
    assert restored.read_bytes() == (restore.backup / "state.db").read_bytes()
    (aside,) = restore.data("server0").glob("server/db-before-*")
    assert (aside / "etcd").is_dir()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ((), "Nothing was changed. To go on, say so: -e k3s_restore_confirm=netmend-1"),
        (("-e", "k3s_restore_confirm=netmend-2"), "To go on, say so: -e k3s_restore_confirm=netmend-1"),
        (("-e", "k3s_restore_from=/nowhere"), "/nowhere holds neither etcd-snapshot nor state.db"),
        (("-e", {"k3s_restore_from": ""}), "k3s_restore_from must be the directory of a backup on this machine."),
    ],
    ids=["no consent", "to another one", "no backup", "none named"],
)
def test_without_a_backup_and_a_consent_nothing_is_changed(
    restore: Restore, arguments: tuple[Any, ...], said: str
) -> None:
    before = restore.files()
    words = [word if isinstance(word, str) else json.dumps(word) for word in arguments]
    assert said in restore.go(*words, ok=False)
    assert restore.files() == before
    assert restore.journey.told("systemctl") == restore.journey.told("calls") == []


def test_a_check_needs_no_consent_and_changes_nothing(restore: Restore) -> None:
    before = restore.files()
    output = restore.go("--check")
    assert "server0 is reset to netmend-1" in output
    assert restore.files() == before
    assert not any(" stop " in line for line in restore.journey.told("systemctl"))
    assert restore.journey.told("kubectl") == []
