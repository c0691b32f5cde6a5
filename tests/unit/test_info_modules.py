"""The info modules as Ansible starts them, on a machine that need not be a node."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from ansible.module_utils.netmend.model import NodeFacts
from ansible.module_utils.testing import patch_module_args

from tests.unit.loaded import loaded


def run(name: str, arguments: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    module = loaded(f"library/{name}.py")
    with patch_module_args(arguments), pytest.raises(SystemExit):
        module.main()
    return json.loads(capsys.readouterr().out)


@pytest.mark.parametrize("check_mode", [True, False])
def test_node_info(check_mode: bool, capsys: pytest.CaptureFixture[str]) -> None:
    result = run("netmend_node_info", {"_ansible_check_mode": check_mode}, capsys)
    assert result["changed"] is False
    assert set(result["netmend_node"]) == set(NodeFacts.__annotations__)
    assert "net.ipv4.conf.lo.forwarding" in result["netmend_node"]["sysctls"]


def test_a_server_that_cannot_ask_its_api_says_why_and_does_not_fail(capsys: pytest.CaptureFixture[str]) -> None:
    result = run("netmend_node_info", {"cluster": True}, capsys)
    assert "failed" not in result
    assert result["netmend_node"]["name"]
    assert result["netmend_cluster_error"].startswith("cannot read K3s's credentials: /var/lib/rancher/k3s/server/tls")


def test_cluster_info_says_what_to_do(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    result = run("netmend_cluster_info", {"kubeconfig": str(tmp_path / "none")}, capsys)
    assert result["failed"] is True
    assert result["msg"].startswith("The cluster cannot be measured: cannot use the kubeconfig")
