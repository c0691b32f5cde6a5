"""What ansible-inventory makes of a servers.tsv, and what it says of a wrong one."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
BIN = Path(sys.executable).parent
EXAMPLE = ROOT / "docs/servers.tsv"


def ansible(program: str, *arguments: str | Path, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [BIN / program, *arguments],
        cwd=ROOT,
        env={**os.environ, "ANSIBLE_CONFIG": str(ROOT / "ansible.cfg"), "COLUMNS": "1000", **environment},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def listed(source: Path, **environment: str) -> dict[str, Any]:
    done = ansible("ansible-inventory", "-i", source, "--list", **environment)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)  # type: ignore[no-any-return]  # JSON is of any type


def variables(inventory: dict[str, Any], host: str) -> dict[str, Any]:
    """Of a host; text that is not to be templated is listed with a mark that says so.

    Without inject_facts_as_vars Ansible itself adds an empty ``ansible_local`` to every host.
    """
    listed = inventory["_meta"]["hostvars"].get(host, {})
    return {
        name: value.get("__ansible_unsafe", value) if isinstance(value, dict) else value
        for name, value in listed.items()
        if name != "ansible_local"
    }


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "servers.tsv"


def test_the_example_is_the_cluster_of_the_example_inventory() -> None:
    by_lines, by_yaml = listed(EXAMPLE), listed(ROOT / "inventory/example")
    for group in ("k3s_cluster", "k3s_servers", "k3s_agents"):
        assert by_lines[group] == by_yaml[group]
    for host in by_yaml["_meta"]["hostvars"]:
        assert variables(by_lines, host)["ansible_host"] == variables(by_yaml, host)["ansible_host"]
    assert variables(by_lines, "k3s-worker-01") == {
        "ansible_host": "10.0.0.110", "ansible_user": "root", "ansible_port": 22,
        "servers_tsv_private": "10.0.0.110", "servers_tsv_public": "203.0.113.13",
    }  # fmt: skip


def test_names_say_what_a_role_does_not(file: Path) -> None:
    file.write_text(
        "\ufeffIP Privee\tHOSTNAME\tROLE\tUSER_SSH\tNotes\r\n"
        "10.0.0.100\tk3s-master-01\tk3s\tops\r\n"
        "# out of order: 10.0.0.101\r\n"
        "\r\n"
        " 10.0.0.110 \tk3s-worker-01\t\t\tnew\t\r\n"
        "10.0.0.120\tbig\tAgent\r\n"
        "\tk3s-worker-02\r\n"
        "10.0.0.10\tdb-01\tpostgres\r\n"
    )
    inventory = listed(file)
    assert inventory["k3s_servers"]["hosts"] == ["k3s-master-01"]
    assert inventory["k3s_agents"]["hosts"] == ["k3s-worker-01", "big", "k3s-worker-02"]
    assert inventory["ungrouped"]["hosts"] == ["db-01"]
    assert variables(inventory, "k3s-master-01") == {
        "ansible_host": "10.0.0.100", "ansible_user": "ops", "servers_tsv_private": "10.0.0.100",
    }  # fmt: skip
    assert variables(inventory, "k3s-worker-01")["ansible_host"] == "10.0.0.110"
    assert variables(inventory, "k3s-worker-02") == {}


def test_the_role_stands_above_the_name(file: Path) -> None:
    file.write_text("name\trole\nk3s-worker-01\tserver\n")
    assert listed(file)["k3s_servers"]["hosts"] == ["k3s-worker-01"]


def test_columns_by_the_option_and_connecting_from_outside(file: Path) -> None:
    file.write_text("one\t203.0.113.1\t10.0.0.1\tserver\t2222\ntwo\t\t10.0.0.2\tagent\n")
    inventory = listed(
        file,
        NETMEND_SERVERS_TSV_COLUMNS="hostname, public, private, role, ssh_port",
        NETMEND_SERVERS_TSV_CONNECT_BY="public",
    )
    assert variables(inventory, "one")["ansible_host"] == "203.0.113.1"
    assert variables(inventory, "one")["ansible_port"] == 2222
    assert variables(inventory, "two")["ansible_host"] == "10.0.0.2"


def test_a_column_may_be_a_variable_of_ansible(file: Path) -> None:
    file.write_text("hostname\tansible_become\nk3s-master-01\ttrue\n")
    assert variables(listed(file), "k3s-master-01") == {"ansible_become": "true"}


def test_beside_ordinary_inventories(tmp_path: Path) -> None:
    (tmp_path / "hosts.yml").write_text("k3s_cluster: {children: {k3s_servers: {hosts: {k3s-master-01: }}}}\n")
    (tmp_path / "agents.tsv").write_text("hostname\tprivate\nk3s-worker-01\t10.0.0.110\n")
    (tmp_path / "group_vars").mkdir()
    (tmp_path / "group_vars/k3s_cluster.yml").write_text("ansible_user: ops\n")
    reports = tmp_path / "reports"
    reports.mkdir()
    (reports / "report.json").write_text('{"before": {"hosts": {"not-a-host": {}}}}')
    inventory = listed(tmp_path)
    assert sorted(inventory["_meta"]["hostvars"]) == ["k3s-master-01", "k3s-worker-01"]
    assert {variables(inventory, host)["ansible_user"] for host in inventory["_meta"]["hostvars"]} == {"ops"}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("hostname  private\nk3s-master-01  10.0.0.1\n", "line 1: no column is named hostname; between the tabs"),
        ("hostname\tprivate\tIP-Private\n", "line 1: there is more than one column private"),
        ("hostname\tprivate\n", "none of its 0 machines is a server or an agent"),
        ("hostname\tprivate\ndb-01\t10.0.0.10\n", "none of its 1 machines is a server or an agent"),
        ("hostname\tprivate\n# one\nk3s-master-01\t10.0.0.256\n", "line 3, column private: '10.0.0.256' is not an"),
        ("hostname\tpublic\nk3s-master-01\t::1\n", "line 2, column public: '::1' is not an IPv4 address"),
        ("hostname\tprivate\n\t10.0.0.1\n", "line 2, column hostname: '' is not a host name"),
        ("hostname\tport\nk3s-master-01\t65536\n", "line 2, column port: '65536' is not a port from 1 to 65535"),
        ("hostname\tuser\nk3s-master-01\t-oProxyCommand=x\n", "line 2, column user: '-oProxyCommand=x' is not a user"),
        ("hostname\tport\nk3s-master-01\t22\tx\n", "line 2, column 3: 'x' stands behind the last of 2 columns"),
        (
            "hostname\tprivate\nk3s-master-01\t10.0.0.1\nk3s-worker-01\t10.0.0.1\n",
            "line 3, column private: '10.0.0.1' stands in line 2 already",
        ),
        (
            "hostname\tport\nk3s-master-01\t0\nk3s-master-01\t22\n",
            "line 2, column port: '0' is not a port from 1 to 65535; "
            "line 3, column hostname: 'k3s-master-01' stands in line 2 already",
        ),
    ],
)
def test_what_is_wrong_is_named(text: str, said: str, file: Path) -> None:
    file.write_text(text)
    done = ansible("ansible-inventory", "-i", file, "--list")
    assert done.returncode != 0
    assert f"{file}: {said}" in done.stderr


@pytest.mark.parametrize("text", ["hostname\tprivate\nk3s-master-01\t10.0.0\n", "", "k3s-master-01\n"])
def test_a_run_on_a_wrong_inventory_does_not_end_well(text: str, file: Path) -> None:
    """What this plugin refuses may be an inventory in INI's form, though of no cluster."""
    file.write_text(text)
    assert ansible("ansible-playbook", "-i", file, "validate.yml").returncode not in (0, 2)


def test_it_is_documented() -> None:
    done = ansible("ansible-doc", "-t", "inventory", "--json", "servers_tsv")
    assert done.returncode == 0, done.stderr
    documented = json.loads(done.stdout)["servers_tsv"]
    assert set(documented["doc"]["options"]) == {"columns", "connect_by"}
    assert "servers.tsv" in documented["examples"]
