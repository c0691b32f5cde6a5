"""verdict.yml on hosts whose variables are there already: the files, their modes, and the exit code."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator

from tests.unit import playbooks
from tests.unit.report import sample

ROOT = Path(__file__).parents[3]
FILES = ["report.html", "report.json", "report.md", "report.prom", "report.xml"]


def run(judgement: Any, directory: Path) -> subprocess.CompletedProcess[str]:
    """Runs verdict.yml as diagnose.yml does once it has measured."""
    _, cluster = sample.facts(3)
    names = sample.names(3)
    measured = {
        "netmend_now": json.dumps(judgement),
        "netmend_facts": {"expected_nodes": names, "cluster": cluster, "server": names[0]},
        "netmend_marks": [{"phase": "Probe", "at": 1.0}, {"phase": "Diagnose", "at": 2.5}],
        "netmend_read": {"answers": {name: {"netmend_node": {"name": name}} for name in names}},
        "ufw_result": {"changed": True, "diff": [sample.CHANGE]},
        "netmend_pods": {"changed": True, "diff": sample.CHANGE},
    }
    hosts = {name: {"ansible_connection": "local", **measured} for name in names}
    inventory = directory / "inventory.json"
    inventory.write_text(json.dumps({"k3s_cluster": {"hosts": hosts}}))
    return playbooks.run("playbooks/verdict.yml", "-i", inventory)


@pytest.mark.parametrize(
    ("judgement", "code"),
    [
        (sample.measured(3), 0),
        (sample.measured(3, sample.overlay_to("k3s-worker-002"), [sample.finding(["k3s-worker-002"])]), 2),
    ],
    ids=["healthy", "sick"],
)
def test_what_a_run_leaves(judgement: Any, code: int, tmp_path: Path) -> None:
    done = run(judgement, tmp_path)
    assert done.returncode == code, done.stdout + done.stderr
    reports = tmp_path / "reports"
    assert sorted(path.name for path in reports.iterdir()) == FILES
    assert {path.stat().st_mode & 0o777 for path in reports.iterdir()} == {0o600}
    written = json.loads((reports / "report.json").read_text())
    Draft202012Validator(json.loads((ROOT / "docs/report.schema.json").read_text())).validate(written)
    assert written["verdict"] in done.stdout
    assert written["now"] == judgement
    assert [node["asked"] for node in written["nodes"]] == [True] * 3
    assert [change["node"] for change in written["changes"] if change["role"] == "ufw"] == sample.names(3)
    assert [change["node"] for change in written["changes"] if change["role"] == "pod_replacement"] == ["k3s-master-01"]
    assert written["phases"][0] == {"name": "Probe", "seconds": 1.5}
    assert written["phases"][1]["seconds"] > 0


def test_a_directory_that_cannot_be_written_to_is_named(tmp_path: Path) -> None:
    (tmp_path / "reports").write_text("a file")
    done = run(sample.measured(3), tmp_path)
    assert done.returncode not in (0, 2)
    assert "cannot be written" in done.stdout
