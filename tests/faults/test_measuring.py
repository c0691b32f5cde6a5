"""A node that cannot be asked is a finding, and an API that cannot be asked an error; neither is a crash."""

from __future__ import annotations

from pathlib import Path

from lab import cluster
from lab.playbooks import Playbooks
from lab.spec import Lab

GONE = "k3s-worker-09"


def test_a_node_that_does_not_answer_is_named_and_the_others_are_diagnosed(
    playbooks: Playbooks, tmp_path: Path
) -> None:
    inventory = tmp_path / "gone.yml"
    inventory.write_text(f"k3s_agents: {{hosts: {{{GONE}: {{ansible_host: 10.0.0.119}}}}}}\n")
    run = playbooks.run("diagnose.yml", "-i", str(inventory))
    assert run.code == 2, run.output
    (finding,) = run.report["now"]["findings"]
    assert (finding["fault"], finding["where"]) == ("node-unreachable", [GONE])
    assert run.report["now"]["matrix"]["ok"] > 0


def test_a_node_without_python_is_named_and_the_others_are_diagnosed(
    lab: Lab, playbooks: Playbooks, tmp_path: Path
) -> None:
    bare = lab.agents[-1].name
    inventory = tmp_path / "bare.yml"
    inventory.write_text(f"k3s_agents: {{hosts: {{{bare}: {{ansible_python_interpreter: /usr/bin/no-python}}}}}}\n")
    run = playbooks.run("diagnose.yml", "-i", str(inventory))
    assert run.code == 2, run.output
    first = run.report["now"]["findings"][0]
    assert (first["fault"], first["where"]) == ("node-unreachable", [bare])
    assert "/usr/bin/no-python" in first["evidence"][0]
    assert run.report["now"]["matrix"]["ok"] > 0


def test_an_api_that_does_not_answer_is_one_clear_error(lab: Lab, playbooks: Playbooks) -> None:
    server = lab.servers[0]
    cluster.must(lab, server, "systemctl stop k3s")
    try:
        run = playbooks.run("diagnose.yml")
    finally:
        cluster.must(lab, server, "systemctl start k3s")
        cluster.wait(lab)
    assert run.code == 1, run.output
    assert "No server's API gave the cluster's state" in run.output
