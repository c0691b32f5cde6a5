"""netmend_images, with a crictl that has some images and may pull others."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.unit.loaded import loaded, said

module = loaded("library/netmend_images.py")

# Knows what has a file, and pulls what has "free" in its name.
CRICTL = """#!/bin/sh
file=$(dirname "$0")/$(echo "$2" | tr /: __)
test "$1" = images || echo "$1 $2" >> "$(dirname "$0")/asked"
case $1 in
    images) test -e "$(dirname "$0")/list" || exit 1; cat "$(dirname "$0")/list" ;;
    inspecti) test -e "$file" || { echo "no such image $2" >&2; exit 1; } ;;
    pull) case $2 in *free*) touch "$file" ;; *) echo "dial tcp: i/o timeout" >&2; exit 1 ;; esac ;;
esac
"""


@pytest.fixture
def crictl(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    program = tmp_path / "crictl"
    program.write_text(CRICTL)
    program.chmod(0o755)
    (tmp_path / "calico_node_v3").touch()
    monkeypatch.setattr(module, "CRICTL", [str(program)])
    return tmp_path


def run(*images: str, **arguments: Any) -> dict[str, Any]:
    return said(module, images=images, **arguments)


def test_what_is_there_is_asked_of_no_registry(crictl: Path) -> None:
    result = run("calico/node:v3")
    assert (result["changed"], result["pulled"]) == (False, [])
    assert (crictl / "asked").read_text() == "inspecti calico/node:v3\n"


def test_what_is_listed_is_not_asked_for_one_by_one(crictl: Path) -> None:
    names = {"repoTags": ["quay.io/calico/cni:v3", "quay.io/calico/node:v3"], "repoDigests": ["free/cni@sha256:1"]}
    (crictl / "list").write_text(json.dumps({"images": [names]}))
    result = run("quay.io/calico/cni:v3", "free/cni@sha256:1", "calico/node:v3")
    assert (result["changed"], result["pulled"]) == (False, [])
    assert (crictl / "asked").read_text() == "inspecti calico/node:v3\n"


def test_what_is_not_there_is_pulled_and_the_second_run_has_nothing_to_do(crictl: Path) -> None:
    first, second = run("calico/node:v3", "free/cni:v3"), run("calico/node:v3", "free/cni:v3")
    assert (first["changed"], first["pulled"]) == (True, ["free/cni:v3"])
    assert first["diff"] == {"before": "calico/node:v3\n", "after": "calico/node:v3\nfree/cni:v3\n"}
    assert (second["changed"], second["pulled"]) == (False, [])


def test_in_check_mode_nothing_is_pulled(crictl: Path) -> None:
    result = run("free/cni:v3", "elsewhere/cni:v3", _ansible_check_mode=True)
    assert (result["changed"], result["pulled"]) == (True, ["elsewhere/cni:v3", "free/cni:v3"])
    assert "pull" not in (crictl / "asked").read_text()


@pytest.mark.usefixtures("crictl")
def test_all_that_cannot_be_had_is_named_with_why_and_what_to_do() -> None:
    result = run("calico/node:v3", "elsewhere/cni:v3", "elsewhere/node:v3")
    assert result["failed"]
    assert "elsewhere/cni:v3: " in result["msg"]
    assert "elsewhere/node:v3: " in result["msg"]
    assert "calico/node" not in result["msg"]
    assert "dial tcp: i/o timeout" in result["msg"]
    assert "k3s ctr images import" in result["msg"]
