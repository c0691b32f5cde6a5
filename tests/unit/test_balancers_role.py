"""playbooks/balancers.yml with the collection hetzner.hcloud itself, on an API that answers as Hetzner's documents."""

from __future__ import annotations

import copy
import json
import subprocess
from pathlib import Path
from typing import Any, Iterator

import pytest

from tests.hetzner import READ_ONLY, TOKEN, Hetzner, set_health, with_ingress
from tests.unit.standins import Project

REPAIR = ("-e", "balancers_repair=true")
UPDATE, ADD, REMOVE = (
    f"POST /load_balancers/5/actions/{each}" for each in ("update_service", "add_target", "remove_target")
)


@pytest.fixture
def hetzner() -> Iterator[Hetzner]:
    api = Hetzner()
    yield api
    api.close()


@pytest.fixture
def project(tmp_path: Path) -> Project:
    project = Project(tmp_path)
    project.change(lambda run: with_ingress(run["cluster"]))
    return project


def run(project: Project, hetzner: Hetzner, *more: str, token: str = TOKEN) -> subprocess.CompletedProcess[str]:
    """Whatever is asked for, the token is said nowhere."""
    command = ("ansible-playbook", "-i", "inventory/mine", "playbooks/balancers.yml", *more)
    done = project.run(*command, HCLOUD_TOKEN=token, HCLOUD_ENDPOINT=hetzner.url)
    assert not token or token not in done.stdout + done.stderr
    return done


def break_all(hetzner: Hetzner) -> None:
    """The first balancer: a wrong destination, health checks and PROXY protocol, and a target that is missing."""
    first = hetzner.balancers[0]
    set_health(first, "unhealthy")
    http, https = first["services"]
    http.update(destination_port=30999)
    http["health_check"].update(port=30999)
    http["health_check"]["http"].update(path="/")
    https.update(proxyprotocol=True)
    https["health_check"].update(port=31999, protocol="http")
    del first["targets"][1]


def test_healthy(project: Project, hetzner: Hetzner) -> None:
    selector = {"type": "label_selector", "label_selector": {"selector": "role==agent"}, "use_private_ip": True}
    hetzner.balancers[1]["targets"] = [{**selector, "targets": []}]
    done = run(project, hetzner, "-vvvv", "--diff")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "lb-1, 203.0.113.80: http 80 to 31695 (2 of 2 targets healthy), tcp 443 to 32720" in done.stdout
    assert "lb-2, 203.0.113.81: http 80 to 31695" in done.stdout
    assert "lb-mail, " not in done.stdout
    assert hetzner.asked
    assert hetzner.changes == []
    files = [path for path in project.directory.parent.rglob("*") if path.is_file()]
    assert [path for path in files if TOKEN.encode() in path.read_bytes()] == []


def test_repair(project: Project, hetzner: Hetzner) -> None:
    """Look, check, apply, apply again; what was right stays as it was."""
    right = copy.deepcopy(hetzner.balancers)
    break_all(hetzner)
    broken = copy.deepcopy(hetzner.balancers)

    looked = run(project, hetzner)
    assert looked.returncode == 2, looked.stdout + looked.stderr
    assert "Findings left: balancer-wrong-destination, balancer-checks-wrong-port, " in looked.stdout
    checked = run(project, hetzner, *REPAIR, "--check", "--diff", "-vvv")
    assert checked.returncode == 10, checked.stdout + checked.stderr
    assert "lb-1, port 80, destination_port: 30999 -> 31695" in checked.stdout
    assert hetzner.changes == []
    assert hetzner.balancers == broken

    mended = run(project, hetzner, *REPAIR, "--diff", "-vvv")
    assert mended.returncode == 0, mended.stdout + mended.stderr
    assert hetzner.changes == [UPDATE, UPDATE, ADD]
    assert hetzner.balancers == right

    again = run(project, hetzner, *REPAIR)
    assert again.returncode == 0, again.stdout + again.stderr
    assert "changed: " not in again.stdout
    assert hetzner.changes == [UPDATE, UPDATE, ADD]


def test_a_target_that_is_refused_is_put_back(project: Project, hetzner: Hetzner) -> None:
    """On its public address, where UFW lets in only the private network."""
    first = hetzner.balancers[0]
    first["targets"][0].update(use_private_ip=False)
    set_health(first, "unhealthy")
    hetzner.heals = False
    project.change(only_private)
    before = copy.deepcopy(first["targets"][0]["server"])
    hetzner.refuses = "add_target"
    done = run(project, hetzner, *REPAIR)
    assert done.returncode == 1, done.stdout + done.stderr
    assert "add_target is refused" in done.stdout
    assert hetzner.changes == [REMOVE, ADD, ADD]
    assert [each["use_private_ip"] for each in first["targets"] if each["server"] == before] == [False]

    done = run(project, hetzner, *REPAIR, "-e", "balancers_settle=0")
    assert done.returncode == 2, done.stdout + done.stderr
    assert "Findings left: balancer-target-unhealthy." in done.stdout
    assert [each["use_private_ip"] for each in first["targets"]] == [True, True]


def only_private(run: Any) -> None:
    for name in ("agent0", "agent1"):
        facts = run["nodes"][name]
        facts["interfaces"].append({**facts["interfaces"][-1], "name": "eth0", "addresses": ["198.51.100.2/32"]})
        rules = [{"source": "10.0.0.0/16", "protocol": "tcp"}, {}]
        facts["iptables"]["nft"]["filter"]["INPUT"] = {
            "policy": "ACCEPT", "packets": 0, "bytes": 0,
            "rules": [
                {"spec": target, "target": target, "target_options": {}, "goto": False, "packets": 0, "bytes": 0,
                 "matches": matches, "opaque": [], "comment": ""}
                for target, matches in zip(("ACCEPT", "DROP"), rules)
            ],
        }  # fmt: skip


def test_the_diagnosis_is_given_them(project: Project, hetzner: Hetzner) -> None:
    said = project.directory.parent / "said.json"
    play = {"hosts": "k3s_cluster", "gather_facts": False, "tasks": [
        {"ansible.builtin.copy": {"content": "{{ netmend_balancers | to_json }}", "dest": str(said), "mode": "0600"},
         "delegate_to": "localhost", "run_once": True},
    ]}  # fmt: skip
    (project.directory / "said.yml").write_text(json.dumps([{"import_playbook": "playbooks/measure.yml"}, play]))
    command = ("ansible-playbook", "-i", "inventory/mine", "said.yml")
    done = project.run(*command, HCLOUD_TOKEN=TOKEN, HCLOUD_ENDPOINT=hetzner.url)
    assert done.returncode == 0, done.stdout + done.stderr
    first, second = json.loads(said.read_text())
    assert (first["name"], first["address"], first["private"]) == ("lb-1", "203.0.113.80", True)
    assert second["name"] == "lb-2"
    assert [each["address"] for each in first["targets"]] == ["10.0.0.110", "10.0.0.111"]
    assert first["targets"][0]["status"] == {"80": "healthy", "443": "healthy"}
    https = first["services"][1]
    assert (https["protocol"], https["listen_port"], https["destination_port"]) == ("tcp", 443, 32720)
    assert https["proxy_protocol"] is False
    assert (https["health"]["protocol"], https["health"]["port"], https["health"]["path"]) == (
        "https",
        32720,
        "/healthz",
    )
    assert https["health"]["codes"] == list(range(200, 400))


# --- what is refused --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("token", "arguments", "said"),
    [
        ("hcloud-unknown", (), "does not accept the token of balancers_token (HCLOUD_TOKEN): unable to authenticate"),
        ("", (), "No token for Hetzner's API is given. Set HCLOUD_TOKEN in the environment"),
        (TOKEN, ("-e", '{"balancers_names": ["lb-9"]}'), "has no load balancer lb-9, but lb-1, lb-2, lb-mail"),
        (
            TOKEN,
            ("-e", "balancers_endpoint=http://127.0.0.1:1/v1"),
            "Hetzner's API does not answer: it cannot be reached",
        ),
        (READ_ONLY, REPAIR, "the token is only allowed to perform GET requests (token_readonly)"),
    ],
    ids=["wrong token", "no token", "unknown name", "unreachable", "read only"],
)
def test_refused(token: str, arguments: tuple[str, ...], said: str, project: Project, hetzner: Hetzner) -> None:
    break_all(hetzner)
    broken = copy.deepcopy(hetzner.balancers)
    done = run(project, hetzner, *arguments, token=token)
    assert done.returncode == 1, done.stdout + done.stderr
    assert sum(line.startswith("failed: ") and said in line for line in done.stdout.splitlines()) == 1
    assert hetzner.balancers == broken


def test_without_the_collection(project: Project, hetzner: Hetzner) -> None:
    """A diagnosis never asks for it; nor for anything else, without a token."""
    environment = {"ANSIBLE_COLLECTIONS_SCAN_SYS_PATH": "false", "ANSIBLE_COLLECTIONS_PATH": "/nowhere"}
    command = ("ansible-playbook", "-i", "inventory/mine", "playbooks/balancers.yml")
    done = project.run(*command, HCLOUD_TOKEN=TOKEN, HCLOUD_ENDPOINT=hetzner.url, **environment)
    assert done.returncode == 1, done.stdout + done.stderr
    assert "ansible-galaxy collection install -r collections/requirements.yml" in done.stdout
    diagnosis = ("ansible-playbook", "-i", "inventory/mine", "diagnose.yml")
    for given in ({"HCLOUD_TOKEN": TOKEN, **environment}, {"HCLOUD_TOKEN": ""}):
        done = project.run(*diagnosis, HCLOUD_ENDPOINT=hetzner.url, **given)
        assert done.returncode == 0, done.stdout + done.stderr
    assert hetzner.asked == []
