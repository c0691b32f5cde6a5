"""A control plane that is lost comes back from the backup that a swap makes, and pods go on meanwhile."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from lab import cluster
from lab.playbooks import Playbooks
from lab.spec import Lab

KUBECTL = "k3s kubectl --namespace=default"
LOSE = "systemctl stop k3s.service; rm -r /var/lib/rancher/k3s/server/db"


@pytest.fixture
def backup(lab: Lab, playbooks: Playbooks, tmp_path: Path) -> Path:
    """Made of a cluster that has a ConfigMap `before` and not yet a ConfigMap `later`."""
    cluster.must(lab, lab.servers[0], f"{KUBECTL} create configmap before")
    play = {
        "hosts": "k3s_servers",
        "gather_facts": False,
        "roles": ["k3s_backup"],
        "vars": {"k3s_backup_directory": str(tmp_path / "backups")},
    }
    (tmp_path / "backup.yml").write_text(json.dumps([play]))
    run = playbooks.run(str(tmp_path / "backup.yml"))
    assert run.code == 0, run.output
    (made,) = (tmp_path / "backups").iterdir()
    assert (made / "etcd-snapshot").stat().st_mode & 0o777 == 0o600
    cluster.must(lab, lab.servers[0], f"{KUBECTL} create configmap later")
    return made


def test_a_control_plane_that_is_lost_is_restored(lab: Lab, playbooks: Playbooks, backup: Path) -> None:
    for server in lab.servers:
        cluster.must(lab, server, LOSE)
    with pytest.raises(cluster.ClusterError):
        cluster.must(lab, lab.servers[0], f"{KUBECTL} get configmaps")

    given = ("-e", f"k3s_restore_from={backup}")
    checked = playbooks.run("playbooks/restore.yml", *given, "--check")
    assert checked.code == 0, checked.output
    asked = playbooks.run("playbooks/restore.yml", *given)
    assert asked.code not in (0, 2), asked.output
    assert f"Nothing was changed. To go on, say so: -e k3s_restore_confirm={backup.name}" in asked.output
    with pytest.raises(cluster.ClusterError):
        cluster.must(lab, lab.servers[0], f"{KUBECTL} get configmaps")

    run = playbooks.run("playbooks/restore.yml", *given, "-e", f"k3s_restore_confirm={backup.name}", limit=900)
    assert (run.code, run.report["healthy"]) == (0, True), run.output
    there = cluster.must(lab, lab.servers[0], f"{KUBECTL} get configmaps -o name").split()
    assert "configmap/before" in there
    assert "configmap/later" not in there
