"""A module or plugin as Python has it, of a file that no package holds."""

from __future__ import annotations

import importlib.util
import io
import json
from contextlib import redirect_stdout
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from ansible.module_utils.testing import patch_module_args

ROOT = Path(__file__).parents[2]


def loaded(path: str | Path) -> ModuleType:
    """`path`: from the project's root where it is no absolute one: library/netmend_probe.py."""
    spec = importlib.util.spec_from_file_location(Path(path).stem, ROOT / path)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def said(module: ModuleType, **arguments: Any) -> dict[str, Any]:
    """What a module says as Ansible runs it, here."""
    printed = io.StringIO()
    with patch_module_args(arguments), redirect_stdout(printed), pytest.raises(SystemExit):
        module.main()
    return json.loads(printed.getvalue())  # type: ignore[no-any-return]  # JSON is of any type
