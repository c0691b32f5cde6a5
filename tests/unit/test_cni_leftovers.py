"""netmend_cni_leftovers: in which order it takes things away, and where it stops. The API is stood in for."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Callable

import pytest
from ansible.module_utils.testing import patch_module_args

from tests.unit.loaded import loaded

Run = Callable[..., dict[str, Any]]


@pytest.fixture
def take_away(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs the module; "done": what was done, in its order."""
    module = loaded("library/netmend_cni_leftovers.py")
    log = tmp_path / "log"
    log.touch()

    def run(status: int = 200, **arguments: Any) -> dict[str, Any]:
        class Api:
            server = "https://127.0.0.1:6444"

            def __init__(self, *_: Any, **__: Any) -> None:
                pass

            def send(self, method: str, path: str, content: Any, content_type: str) -> tuple[int, str]:
                with log.open("a") as file:
                    file.write(f"{method} {path} {json.dumps(content)} {content_type}\n")
                return status, "no"

        monkeypatch.setattr(module, "Api", Api)
        monkeypatch.setattr(module, "kubelet_credentials", lambda: None)
        with patch_module_args({"node": "n", **arguments}), pytest.raises(SystemExit):
            module.main()
        return {**json.loads(capsys.readouterr().out), "done": log.read_text().splitlines()}

    return run


def shell(tmp_path: Path, text: str, stdin: str = "") -> dict[str, Any]:
    return {"argv": ["sh", "-c", f"{text} >>{tmp_path}/log"], "stdin": stdin}


CONDITION = {"status": {"conditions": [{"$patch": "delete", "type": "NetworkUnavailable"}]}}
ANNOTATION = {"metadata": {"annotations": {"projectcalico.org/IPv4Address": None}}}


def test_conditions_go_first_and_annotations_last(take_away: Run, tmp_path: Path) -> None:
    arguments = {
        "conditions": ["NetworkUnavailable"],
        "commands": [shell(tmp_path, "cat", "read\n"), shell(tmp_path, "echo second")],
        "annotations": ["projectcalico.org/IPv4Address"],
    }
    checked = take_away(**arguments, _ansible_check_mode=True)
    assert (checked["changed"], checked["done"]) == (True, [])
    result = take_away(**arguments)
    assert result["changed"] is True
    assert result["done"] == [
        f"PATCH /api/v1/nodes/n/status {json.dumps(CONDITION)} application/strategic-merge-patch+json",
        "read",
        "second",
        f"PATCH /api/v1/nodes/n {json.dumps(ANNOTATION)} application/merge-patch+json",
    ]
    before = result["diff"]["before"].splitlines()
    assert (before[0], before[-1]) == ("condition NetworkUnavailable", "annotation projectcalico.org/IPv4Address")
    assert checked["diff"] == result["diff"]


def test_nothing_is_nothing_changed(take_away: Run) -> None:
    result = take_away()
    assert (result["changed"], result["commands"], result["done"]) == (False, [], [])


def test_it_stops_at_the_first_command_that_fails(take_away: Run, tmp_path: Path) -> None:
    commands = [
        shell(tmp_path, "echo first"),
        {"argv": ["sh", "-c", "echo why >&2; exit 3"]},
        shell(tmp_path, "echo third"),
    ]
    result = take_away(commands=commands, annotations=["a/b"])
    assert result["failed"] is True
    assert "why (exit code 3). 1 of 3 had run before." in result["msg"]
    assert (result["changed"], result["done"]) == (True, ["first"])


def test_what_the_api_refuses_is_said(take_away: Run) -> None:
    result = take_away(status=403, annotations=["a/b"])
    assert result["failed"] is True
    answer = "https://127.0.0.1:6444 answers PATCH /api/v1/nodes/n with 403: no"
    assert (result["msg"], result["changed"]) == (f"The Node cannot be changed: {answer}", False)
