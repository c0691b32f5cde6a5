"""Every module's documentation says what the module takes and gives."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml

from tests.unit.loaded import ROOT, loaded

MODULES = sorted(ROOT.glob("library/netmend_*.py"))
# What an option's documentation and its argument_spec must say alike, with what each of them means where it is silent.
FIELDS = {"type": "str", "required": False, "default": None, "choices": None, "elements": None}


class Started(Exception):
    """Carries the arguments with which a module made its AnsibleModule."""


def arguments(module: ModuleType, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    def start(argument_spec: dict[str, Any], **more: Any) -> None:
        raise Started({"argument_spec": argument_spec, **more})

    monkeypatch.setattr(module, "AnsibleModule", start)
    with pytest.raises(Started) as started:
        module.main()
    return started.value.args[0]


def described(options: dict[str, Any], nested: str) -> dict[str, Any]:
    """Options in the one shape in which documentation and argument_spec can be compared."""
    return {
        name: {
            **{field: option.get(field, silent) for field, silent in FIELDS.items()},
            "aliases": sorted(option.get("aliases", [])),
            "options": described(option.get(nested) or {}, nested),
        }
        for name, option in options.items()
    }


def flat(tasks: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Tasks and those of their blocks."""
    return [
        inner
        for task in tasks
        for inner in [task, *(flat(task.get("block", []) + task.get("rescue", []) + task.get("always", [])))]
    ]


@pytest.mark.parametrize("path", MODULES, ids=lambda path: path.stem)
def test_documentation_is_the_argument_spec(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = loaded(path)
    documentation = yaml.safe_load(module.DOCUMENTATION)
    given = arguments(module, monkeypatch)
    assert documentation["module"] == path.stem
    assert described(documentation.get("options") or {}, "suboptions") == described(given["argument_spec"], "options")
    support = documentation.get("attributes", {}).get("check_mode", {}).get("support", "full")
    assert given.get("supports_check_mode", False) == (support != "none")


@pytest.mark.parametrize("path", MODULES, ids=lambda path: path.stem)
def test_everything_is_described(path: Path) -> None:
    module = loaded(path)
    documentation = yaml.safe_load(module.DOCUMENTATION)
    returned = yaml.safe_load(module.RETURN)
    assert documentation["short_description"]
    assert documentation["description"]

    def undescribed(entries: dict[str, Any], *below: str) -> list[str]:
        found = []
        for name, entry in entries.items():
            found += [] if entry.get("description") else [name]
            found += [f"{name}.{inner}" for key in below for inner in undescribed(entry.get(key) or {}, *below)]
        return found

    assert undescribed(documentation.get("options") or {}, "suboptions") == []
    assert undescribed(returned, "contains") == []
    assert [name for name, value in returned.items() if not (value.get("type") and value.get("returned"))] == []


@pytest.mark.parametrize("path", MODULES, ids=lambda path: path.stem)
def test_examples_are_tasks_of_the_module(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = loaded(path)
    options = set(arguments(module, monkeypatch)["argument_spec"])
    tasks = [task for task in flat(yaml.safe_load(module.EXAMPLES)) if path.stem in task]
    assert tasks
    for task in tasks:
        assert task["name"]
        assert set(task[path.stem] or {}) <= options
