"""netmend_k3s_restart: whom it refuses to restart, and what it waits for. systemctl and the API are stood in for."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any, Callable, Iterator

import pytest
from ansible.module_utils.netmend.kube import ApiError
from ansible.module_utils.netmend.parse.cluster import ready_since
from ansible.module_utils.testing import patch_module_args

from tests.unit.loaded import loaded

SYSTEMCTL = """#!/bin/sh
echo "$*" >>"$0.log"
test "$1" = show || exit CODE
case "$3" in
    UNIT) echo "ActiveState=active" ;;
    *) echo "ActiveState=inactive" ;;
esac
echo "ActiveEnterTimestamp=Sat 2026-11-21 12:00:00 UTC"
"""
READY = {"type": "Ready", "status": "True"}

Run = Callable[..., dict[str, Any]]


def node(**condition: str) -> dict[str, Any]:
    return {"status": {"conditions": [{**READY, **condition}]}}


@pytest.fixture
def restart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs the module on a node with this unit and these answers; "asked": what systemctl was told."""
    module = loaded("library/netmend_k3s_restart.py")

    def run(
        unit: str, answers: dict[str, Any], /, code: int = 0, settle: float = 0, wait: float = 0.1, **arguments: Any
    ) -> dict[str, Any]:
        program = tmp_path / "systemctl"
        program.write_text(SYSTEMCTL.replace("UNIT", unit).replace("CODE", str(code)))
        program.chmod(0o755)

        class Api:
            def __init__(self, server: str) -> None:
                self.server = server

            def get(self, path: str) -> tuple[int, str]:
                assert "readyz" in path
                answer = answers[self.server]
                answer = answer.pop(0) if isinstance(answer, list) else answer
                if isinstance(answer, Exception):
                    raise answer
                status, body = answer
                return status, body

            def listed(self, path: str) -> tuple[list[Any], str]:
                assert path == "/api/v1/nodes?fieldSelector=metadata.name=n"
                return self._nodes()[:1], "1"

            def watch(self, path: str, seconds: float, version: str) -> Iterator[dict[str, Any]]:
                yield from ({"type": "MODIFIED", "object": item} for item in self._nodes()[1:])
                time.sleep(1)

            def _nodes(self) -> list[Any]:
                said = answers["node"] if isinstance(answers["node"], list) else [answers["node"]]
                return [{**item, "metadata": {"uid": "1", "resourceVersion": "2"}} for item in said]

        monkeypatch.setattr(module, "Api", Api)
        monkeypatch.setattr(module, "k3s_credentials", lambda server="here": server)
        monkeypatch.setattr(module, "kubelet_credentials", lambda: "kubelet")
        monkeypatch.setattr(module, "SUBNET_ENV", tmp_path / "none")
        monkeypatch.setattr(module, "POLL", 0.01)
        monkeypatch.setattr(module, "WATCH", wait)
        monkeypatch.setattr(module, "SETTLE", settle)
        monkeypatch.setattr(module.node, "PATH", f"{tmp_path}:{module.node.PATH}")
        with patch_module_args({"node": "n", **arguments}), pytest.raises(SystemExit):
            module.main()
        log = tmp_path / "systemctl.log"
        asked = [line for line in log.read_text().splitlines() if not line.startswith("show")] if log.exists() else []
        return {**json.loads(capsys.readouterr().out), "asked": asked}

    return run


def now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(time.time() + 60))


def test_an_agent_is_restarted_and_waited_for(restart: Run) -> None:
    result = restart("k3s-agent.service", {"node": node(lastHeartbeatTime=now())})
    assert (result["changed"], result["unit"]) == (True, "k3s-agent.service")
    assert result["asked"] == ["restart k3s-agent.service"]


def test_check_mode_restarts_nothing(restart: Run) -> None:
    result = restart("k3s-agent.service", {}, _ansible_check_mode=True)
    assert (result["changed"], result["asked"]) == (True, [])


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        ((500, "[+]ping ok\n[-]etcd failed: reason withheld\n"), "10.0.0.102 is not ready (etcd)"),
        (ApiError("https://10.0.0.102:6443 cannot be reached"), "cannot be reached"),
    ],
)
@pytest.mark.parametrize("check_mode", [True, False])
def test_no_server_is_restarted_while_another_is_not_well(
    restart: Run, answer: Any, said: str, check_mode: bool
) -> None:
    answers = {"https://10.0.0.101:6443": (200, "ok"), "https://10.0.0.102:6443": answer}
    servers = ["10.0.0.101", "10.0.0.102"]
    result = restart("k3s.service", answers, servers=servers, _ansible_check_mode=check_mode)
    assert result["failed"] is True
    assert said in result["msg"]
    assert result["asked"] == []


def test_a_server_that_is_not_well_yet_is_waited_for(restart: Run) -> None:
    unwell = (500, "[-]etcd failed: reason withheld\n")
    answers = {"https://10.0.0.101:6443": [unwell, unwell, (200, "ok")], "here": (200, "ok")}
    answers["node"] = node(lastHeartbeatTime=now())
    result = restart("k3s.service", answers, settle=60, servers=["10.0.0.101"])
    assert result["asked"] == ["restart k3s.service"]
    assert answers["https://10.0.0.101:6443"] == []


def test_the_only_server_may_be_restarted(restart: Run) -> None:
    result = restart("k3s.service", {"here": (200, "ok"), "node": node(lastHeartbeatTime=now())})
    assert result["asked"] == ["restart k3s.service"]


def test_where_k3s_does_not_run_nothing_is_restarted(restart: Run) -> None:
    result = restart("other.service", {})
    assert result["failed"] is True
    assert result["asked"] == []


def test_what_was_stopped_is_started_where_it_is_named(restart: Run) -> None:
    answers = {"here": (200, "ok"), "node": node(lastHeartbeatTime=now())}
    result = restart("other.service", answers, unit="k3s.service")
    assert (result["changed"], result["asked"]) == (True, ["restart k3s.service"])


def test_files_are_there_and_gone_before_the_restart(restart: Run, tmp_path: Path) -> None:
    new, old, link, none = (tmp_path / name for name in ("config.yaml.d/90.yaml", "old.yaml", "link", "none.yaml"))
    old.write_text("flannel-cni-conf: a\n")
    link.symlink_to("/opt/cni/bin/calico")
    files = {str(new): 'flannel-backend: "none"\n', str(old): None, str(link): None, str(none): None}
    answers = {"here": (200, "ok"), "node": node(lastHeartbeatTime=now())}
    checked = restart("k3s.service", answers, files=files, _ansible_check_mode=True)
    assert (new.exists(), old.exists(), link.is_symlink()) == (False, True, True)
    result = restart("k3s.service", answers, files=files)
    assert result["asked"] == ["restart k3s.service"]
    assert (new.read_text(), new.stat().st_mode & 0o777) == ('flannel-backend: "none"\n', 0o600)
    assert new.parent.stat().st_mode & 0o777 == 0o700
    assert not old.exists()
    assert not link.is_symlink()
    assert checked["diff"] == result["diff"]
    assert result["diff"]["after"] == f'{new}: flannel-backend: "none"\nk3s.service restarted\n'
    assert result["diff"]["before"].startswith(
        f"{old}: flannel-cni-conf: a\n{link}: -> /opt/cni/bin/calico\nk3s.service active"
    )
    again = restart("k3s.service", answers, files=files)
    assert again["diff"]["after"] == "k3s.service restarted\n"


def test_links_are_put_where_they_are_to_lead(restart: Run, tmp_path: Path) -> None:
    new, old = tmp_path / "cni/calico", tmp_path / "calico-ipam"
    old.symlink_to("/nowhere")
    answers = {"node": node(lastHeartbeatTime=now())}
    links = {str(new): "/opt/cni/bin/calico", str(old): "/opt/cni/bin/calico-ipam"}
    result = restart("k3s-agent.service", answers, links=links)
    assert [str(path.readlink()) for path in (new, old)] == list(links.values())
    assert result["diff"]["before"].startswith(f"{old}: -> /nowhere\nk3s-agent.service active")
    told = "".join(f"{path}: -> {target}\n" for path, target in links.items())
    assert result["diff"]["after"] == f"{told}k3s-agent.service restarted\n"
    again = restart("k3s-agent.service", answers, links=links)
    assert again["diff"]["after"] == "k3s-agent.service restarted\n"


def test_files_are_left_where_the_restart_is_refused(restart: Run, tmp_path: Path) -> None:
    answers = {"https://10.0.0.101:6443": (500, "[-]etcd failed: reason withheld\n")}
    result = restart("k3s.service", answers, servers=["10.0.0.101"], files={str(tmp_path / "new.yaml"): "a: b\n"})
    assert result["failed"] is True
    assert not (tmp_path / "new.yaml").exists()


def test_that_the_node_is_ready_is_told_by_a_watch(restart: Run) -> None:
    answers = {"here": [(500, ""), (200, "ok")], "node": [node(status="False"), node(lastHeartbeatTime=now())]}
    result = restart("k3s.service", answers, wait=60, timeout=60)
    assert result["asked"] == ["restart k3s.service"]
    assert result["seconds"] < 60
    assert answers["here"] == []  # and it is not asked again


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"answers": {"node": node(lastHeartbeatTime="2026-01-01T00:00:00Z")}}, "has not reported n as Ready"),
        ({"answers": {"node": node(status="False", lastHeartbeatTime="2099-01-01T00:00:00Z")}}, "as Ready"),
    ],
)
def test_what_is_still_to_come_is_said(restart: Run, more: dict[str, Any], said: str) -> None:
    result = restart("k3s-agent.service", more.pop("answers", {}), timeout=1, **more)
    assert result["failed"] is True
    assert said in result["msg"]


def test_k3s_that_does_not_start_is_said(restart: Run) -> None:
    result = restart("other.service", {}, unit="k3s.service", code=1)
    assert (result["failed"], result["asked"]) == (True, ["restart k3s.service"])
    assert "k3s.service was restarted, and it has not come up again (inactive) after" in result["msg"]


def test_ready_since() -> None:
    reported = node(lastHeartbeatTime="1970-01-01T00:01:40Z")
    assert [ready_since(reported, when) for when in (99.0, 100.9, 101.0)] == [True, True, False]
    assert not ready_since({"status": {}}, 0.0)
