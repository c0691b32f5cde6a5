"""The measuring modules as their action plugins have them run: on a node's own Python, without Ansible's code there."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.unit.loaded import ROOT, loaded, said
from tests.unit.playbooks import run

TARGETS = [{"address": "127.0.0.1", "protocol": "icmp"}, {"address": "127.0.0.1", "port": 9, "expect": "refused"}]
QUOTES = "a\"\"\"b'''c\\"  # whatever is said reaches the module as it is
ORDER = {"run": "1", "node": QUOTES, "address": "127.0.0.1", "peers": [], "start": 0.0}

bare = loaded("plugins/action/netmend_bare.py")


def answered(directory: Path, module: str, **arguments: Any) -> tuple[int, str]:
    """The exit code of a playbook with one task, and its result as it is registered, or what it failed with."""
    (directory / "hosts.yml").write_text("all: {hosts: {here: {ansible_connection: local}}}")
    tasks = [
        {"name": "Run it", module: arguments, "register": "result"},
        {"name": "Say", "ansible.builtin.debug": {"msg": "RESULT {{ result | to_json }}"}},
    ]
    (directory / "play.yml").write_text(yaml.safe_dump([{"hosts": "all", "gather_facts": False, "tasks": tasks}]))
    done = run(directory / "play.yml", "-i", directory / "hosts.yml")
    return done.returncode, done.stdout


def result(output: str) -> Any:
    return json.loads(output.partition("RESULT ")[2].splitlines()[0])


@pytest.mark.parametrize(
    ("module", "arguments", "kept"),
    [
        ("netmend_connectivity", {"targets": TARGETS}, ("changed", "met", "unmet")),
        ("netmend_node_info", {}, ("changed",)),
        ("netmend_underlay", ORDER, ("changed",)),
        ("netmend_cni_leftovers", {"node": "a", "commands": [{"argv": ["true"]}]}, ("changed", "commands", "diff")),
        ("netmend_pod_connections", {"node": "a"}, ("changed", "running")),
    ],
)
def test_a_module_says_what_it_says_by_itself(
    module: str, arguments: dict[str, Any], kept: tuple[str, ...], tmp_path: Path
) -> None:
    code, output = answered(tmp_path, module, **arguments)
    assert code == 0, output
    there, here = result(output), said(loaded(f"library/{module}.py"), **arguments)
    own = here.keys() - {"invocation", "warnings"}
    for warning in here.get("warnings", []):  # which Ansible shows, and keeps
        assert " ".join(warning.split()) in " ".join(output.split())
    assert own <= set(there)
    assert "invocation" not in there  # which Ansible's own code would have added
    assert {key: there[key] for key in kept} == {key: here[key] for key in kept}
    if module == "netmend_underlay":
        assert there["netmend_underlay"]["node"] == QUOTES


@pytest.mark.parametrize(
    ("module", "arguments", "message"),
    [
        ("netmend_connectivity", {}, "one of the following is required: probes, targets"),
        ("netmend_connectivity", {"targets": [{"address": "127.0.0.1", "protocol": "sctp"}]},
         "value of protocol must be one of: tcp"),
        ("netmend_connectivity", {"targets": TARGETS, "rounds": 0}, "rounds: 0 is not from 1 to"),
        ("netmend_node_info", {"clusters": True}, "Unsupported parameters for (netmend_node_info) module: clusters."),
        ("netmend_lease", {"state": "taken"}, "value of state must be one of: held, released"),
        ("netmend_pod_replacement", {"cidrs": ["10.42.128/17"]}, "cidrs: '10.42.128/17' does not appear"),
        ("netmend_underlay", {"run": "1"}, "missing required arguments: address, node, peers, start"),
    ],
)  # fmt: skip
def test_wrong_arguments_are_named(module: str, arguments: dict[str, Any], message: str, tmp_path: Path) -> None:
    code, output = answered(tmp_path, module, **arguments)
    assert code == 1
    assert message in output


def test_what_a_module_consists_of_is_what_it_imports_and_what_that_imports() -> None:
    name = "netmend_node_info"
    sources = bare.sources(ROOT / f"library/{name}.py")
    core = {each.removeprefix("ansible.module_utils.netmend") for each in sources} - {"ansible", "ansible.module_utils"}
    # By a function alone; from beside it; from the package above; a package.
    assert {name, ".kube", ".node", ".model", ".parse"} <= core
    assert not core & {".diagnose", ".report", ".probe"}


def test_a_typed_dict_is_a_dict_there_and_every_line_keeps_its_number() -> None:
    text = (ROOT / "module_utils/netmend/model.py").read_text()
    lean: dict[str, Any] = {"__name__": "model"}
    exec(compile(bare._lean(text), "model.py", "exec"), lean)
    assert lean["Route"] is dict
    line = lean["met"].__code__.co_firstlineno
    assert text.splitlines()[line - 1].startswith("def met(")
