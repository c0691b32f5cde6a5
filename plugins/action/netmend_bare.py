"""An action whose module runs on the node without Ansible's own code: what is in plugins/bare, and why."""

from __future__ import annotations

import ast
import base64
import importlib.util
import json
import zlib
from contextlib import suppress
from itertools import accumulate
from pathlib import Path
from types import ModuleType
from typing import Any, Iterator

import ansible.module_utils
from ansible.plugins.action.normal import ActionModule as Normal
from ansible.plugins.loader import module_loader

_ROOT = Path(__file__).resolve().parents[2]
_CORE = _ROOT / "module_utils"
if str(_CORE) not in ansible.module_utils.__path__:
    ansible.module_utils.__path__.append(str(_CORE))
module_loader.add_directory(str(_ROOT / "plugins/bare"))

_PREFIX = "ansible.module_utils"


class ActionModule(Normal):  # type: ignore[misc]  # ansible ships no types
    """Plugins derive from it, each for the module of its name, whose ``contract()`` are AnsibleModule's arguments."""

    _is_bare = False

    def __init_subclass__(cls) -> None:
        cls._name = cls.__module__.rpartition(".")[2]
        cls._file = _ROOT / f"library/{cls._name}.py"
        cls._contract, cls._sources = _prepared(cls._file)  # once, and not in each process that works on a host

    def _execute_module(
        self, module_name: str | None = None, module_args: dict[str, Any] | None = None, **more: Any
    ) -> dict[str, Any]:
        if Path(module_loader.find_plugin(self._name)).resolve() != self._file:  # another's, in its place
            return super()._execute_module(module_name, module_args, **more)  # type: ignore[no-any-return]
        arguments = self.validate_argument_spec(**self._contract)[0].validated_parameters
        given = {"module": self._name, "sources": self._sources, "arguments": arguments}
        self._is_bare = True
        return super()._execute_module(module_name="netmend_bare", module_args=given, **more)  # type: ignore[no-any-return]

    def _parse_returned_data(self, res: dict[str, Any], profile: str) -> dict[str, Any]:
        """Ansible's own way looks through all of it for what these modules never say."""
        if self._is_bare:
            with suppress(ValueError):
                return {**json.loads(res["stdout"]), "_ansible_parsed": True}
        return super()._parse_returned_data(res, profile)  # type: ignore[no-any-return]


def _prepared(path: Path) -> tuple[dict[str, Any], str]:
    """A module's file -> what its arguments have to be, and what it consists of, as netmend_bare takes it."""
    contract = {key: value for key, value in _loaded(path).contract().items() if key != "supports_check_mode"}
    packed = zlib.compress(json.dumps(sources(path)).encode())
    return contract, base64.b64encode(packed).decode()


def sources(path: Path) -> dict[str, str]:
    """A module's file -> the texts of the Python modules that run where it runs, by name."""
    found = {"ansible": "", _PREFIX: "", path.stem: path.read_text()}
    pending = [path.stem]
    while pending:
        importing = pending.pop()
        for imported in _imported(importing, found):
            if imported not in found and (file := _file(imported)):
                found[imported] = _lean(file.read_text())
                pending.append(imported)
    return found


def _lean(text: str) -> str:
    """The text of a Python module, line by line, with TypedDicts as the dicts that they are where no type is checked.

    To make those of the core is a tenth of what a call takes a node.
    """
    lines, typed = text.splitlines(), {"TypedDict"}
    for node in ast.parse(text).body:
        if isinstance(node, ast.ClassDef) and typed & {base.id for base in node.bases if isinstance(base, ast.Name)}:
            typed.add(node.name)
            last = node.end_lineno or node.lineno
            lines[node.lineno - 1 : last] = [f"{node.name} = dict", *[""] * (last - node.lineno)]
    return "\n".join(lines) + "\n"


def _imported(name: str, texts: dict[str, str]) -> Iterator[str]:
    """Whatever a Python module may import: of what stands in its ``from`` some may be functions."""
    file = _file(name)
    package = name if file and file.name == "__init__.py" else name.rpartition(".")[0]
    for node in ast.walk(ast.parse(texts[name])):
        if isinstance(node, ast.ImportFrom):
            origin = importlib.util.resolve_name("." * node.level + (node.module or ""), package)
            parents = accumulate(origin.split("."), "{}.{}".format)
            yield from (*parents, *(f"{origin}.{alias.name}" for alias in node.names))


def _file(name: str) -> Path | None:
    """Of one of the core's modules."""
    place = _CORE.joinpath(*name.removeprefix(f"{_PREFIX}.").split("."))
    files = (place.with_suffix(".py"), place / "__init__.py")
    return next((file for file in files if name.startswith(_PREFIX) and file.exists()), None)


def _loaded(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
