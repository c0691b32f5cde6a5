"""The module as Ansible runs it, against real sockets of this machine."""

from __future__ import annotations

import os
import socket
import subprocess
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Iterator

import pytest
import yaml
from ansible.module_utils.netmend.pods import network_pid

from tests.unit.loaded import loaded, said

module = loaded("library/netmend_connectivity.py")

CLOSED = 9  # discard; nothing listens there


def run(**arguments: Any) -> dict[str, Any]:
    return said(module, **arguments)


@pytest.fixture
def port() -> Iterator[int]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


def test_targets_that_are_reached(port: int) -> None:
    result = run(targets=[{"address": "127.0.0.1", "port": port}, {"address": "127.0.0.1", "protocol": "icmp"}])
    observations = result["netmend_connectivity"]["observations"]
    assert [observation["id"] for observation in observations] == [f"tcp 127.0.0.1:{port}", "icmp 127.0.0.1"]
    assert (result["changed"], result["met"], result["unmet"]) == (False, True, [])


@pytest.mark.parametrize("check_mode", [False, True])
def test_what_is_not_reached_is_said_and_is_no_failure(port: int, check_mode: bool) -> None:
    targets = [{"address": "127.0.0.1", "port": CLOSED}, {"address": "127.0.0.1", "port": port, "expect": "blocked"}]
    result = run(targets=targets, _ansible_check_mode=check_mode)
    assert "failed" not in result
    assert (result["changed"], result["met"]) == (False, False)
    assert result["unmet"] == [
        "tcp 127.0.0.1:9: expected ok, found refused (RST)",
        f"tcp 127.0.0.1:{port}: expected blocked, found ok ()",
    ]


def test_an_expectation_for_all_targets() -> None:
    result = run(targets=[{"address": "127.0.0.1", "port": CLOSED}], expect="blocked")
    assert result["met"] is True


def test_planned_probes(port: int) -> None:
    probe = {"id": "host-host a>b tcp", "row": "host-host", "source_node": "a", "target_node": "b", "protocol": "tcp"}
    result = run(probes=[{**probe, "address": "127.0.0.1", "port": port, "timeout": 1.0, "expect": "ok"}])
    assert result["netmend_connectivity"]["node"] == "a"
    assert result["netmend_connectivity"]["observations"][0]["id"] == "host-host a>b tcp"
    assert result["met"] is True


def test_no_probes() -> None:
    assert run(probes=[])["netmend_connectivity"]["observations"] == []


def test_from_inside_a_namespace(port: int) -> None:
    name = f"nm-connectivity-{os.getpid()}"
    subprocess.run(["ip", "netns", "add", name], check=True)
    try:
        with subprocess.Popen(
            ["ip", "netns", "exec", name, "sh", "-c", "ip link set lo up; echo; exec sleep infinity"], stdout=-1
        ) as inside:
            assert inside.stdout
            inside.stdout.readline()
            result = run(targets=[{"address": "127.0.0.1", "port": port}], source={"pid": inside.pid})
            inside.kill()
    finally:
        subprocess.run(["ip", "netns", "del", name], check=True)
    assert result["unmet"] == [f"tcp 127.0.0.1:{port}: expected ok, found refused (RST)"]


def test_rounds(port: int) -> None:
    result = run(targets=[{"address": "127.0.0.1", "port": port}], rounds=3)
    (observation,) = result["netmend_connectivity"]["observations"]
    assert (result["met"], observation["attempts"], observation["failed"]) == (True, 3, 0)


TARGET = {"address": "127.0.0.1", "port": 80}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "one of the following is required: probes, targets"),
        ({"targets": [TARGET], "probes": []}, "parameters are mutually exclusive: probes|targets"),
        ({"targets": [TARGET, {"address": "shop.example", "port": 80}]},
         "targets[1]: address 'shop.example' is not an IPv4 address"),
        ({"targets": [{"address": "127.0.0.1"}]}, "targets[0]: protocol tcp needs a port from 1 to 65535"),
        ({"targets": [{"protocol": "dns-udp", "address": "127.0.0.1"}]},
         "targets[0]: protocol dns-udp needs a name to ask for"),
        ({"targets": [TARGET, TARGET]}, "targets[1]: id 'tcp 127.0.0.1:80' is there already"),
        ({"targets": [TARGET], "timeout": 0}, "targets[0]: timeout must be more than 0 seconds"),
        ({"targets": [TARGET], "rounds": 0}, "rounds: 0 is not from 1 to 100"),
        ({"targets": [TARGET], "rounds": 101}, "rounds: 101 is not from 1 to 100"),
        ({"targets": [TARGET], "source": {"pod": "keybuzz/gone", "pid": 1}}, "source: give pod or pid, not both"),
        ({"targets": [TARGET], "source": {"pod": "keybuzz/gone"}}, "source.pod: no pod keybuzz/gone runs on this node"),
        ({"probes": [{**TARGET, "id": "1", "source_node": "a"}, {**TARGET, "id": "2", "source_node": "b"}]},
         "probes: one call runs those of one node, but these are of a, b"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_named(arguments: dict[str, Any], message: str) -> None:
    result = run(**arguments)
    assert (result["failed"], result["msg"]) == (True, message)


def test_the_documentation_is_the_argument_spec() -> None:
    assert shape(yaml.safe_load(module.DOCUMENTATION)["options"], "suboptions") == shape(
        module.contract()["argument_spec"], "options"
    )


def shape(options: dict[str, Any], nested: str) -> dict[str, Any]:
    return {
        name: {
            **{key: option.get(key) for key in ("type", "elements", "required", "default", "choices")},
            "options": shape(option.get(nested, {}), nested),
        }
        for name, option in options.items()
    }


# --- a pod by its name ------------------------------------------------------------------------------------------------

UID, OLD = "b129d998-febc-4b7c-b78d-9e6656ffaa25", "00000000-febc-4b7c-b78d-9e6656ffaa25"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A machine with two pods and the directory of a third that is gone."""
    for pod in (f"keybuzz_api-1_{OLD}", f"keybuzz_api-1_{UID}", f"keybuzz_gone_{OLD}"):
        (tmp_path / "var/log/pods" / pod).mkdir(parents=True)
    host, pods = tmp_path / "host", tmp_path / "pods"
    host.touch()
    pods.touch()
    for pid, uid, network in (("self", "", host), ("7", "", host), ("300", UID, pods), ("40", UID, pods)):
        (tmp_path / "proc" / pid / "ns").mkdir(parents=True)
        (tmp_path / "proc" / pid / "ns/net").symlink_to(network)
        slices = f"kubepods.slice/kubepods-burstable-pod{uid.replace('-', '_')}.slice" if uid else "init.scope"
        (tmp_path / "proc" / pid / "cgroup").write_text(f"0::/{slices}\n")
    return tmp_path


def test_a_pod_is_found_by_its_name(root: Path) -> None:
    assert network_pid("keybuzz/api-1", root) == 40


def test_a_pod_on_the_host_s_network_is_the_host(root: Path) -> None:
    (root / "proc/40/ns/net").unlink()
    (root / "proc/40/ns/net").symlink_to(root / "host")
    assert network_pid("keybuzz/api-1", root) == 0


@pytest.mark.parametrize("pod", ["keybuzz/gone", "keybuzz/api", "default/api-1"])
def test_a_pod_that_is_not_here(root: Path, pod: str) -> None:
    with pytest.raises(LookupError, match=f"no pod {pod} runs on this node"):
        network_pid(pod, root)


def test_ingress_controllers_are_asked_what_they_say_themselves(port: int) -> None:
    result = run(probes=[], controllers=[{"pod": "ingress-nginx/none", "uid": "no-such-uid"}])
    (controller,) = result["netmend_controllers"]
    assert (controller["pod"], controller["log"]) == ("ingress-nginx/none", None)
    assert "no log in /var/log/pods/ingress-nginx_none_no-such-uid" in controller["errors"]["log"]
    assert "netmend_controllers" not in run(targets=[{"address": "127.0.0.1", "port": port}])


# --- beside the node: the controller ---


@pytest.fixture
def action(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The action plugin's run, with a module that says what it was given."""
    plugin = loaded("plugins/action/netmend_connectivity.py")
    monkeypatch.setattr(plugin.Bare, "run", lambda self, *_: {"given": dict(self._task.args)})

    def run(**arguments: Any) -> dict[str, Any]:
        made = object.__new__(plugin.ActionModule)
        made._task = SimpleNamespace(args=arguments)
        return made.run()  # type: ignore[no-any-return]  # Ansible ships no types

    return run


def test_the_controller_asks_while_the_node_probes(action: Any, port: int) -> None:
    here = {"id": "balancer", "protocol": "tcp", "address": "127.0.0.1", "port": port}
    result = action(probes=[], here=[here])
    assert result["given"] == {"probes": []}
    assert result["netmend_here"]["node"] == "the controller"
    assert [(seen["id"], seen["outcome"]) for seen in result["netmend_here"]["observations"]] == [("balancer", "ok")]


def test_what_the_controller_is_not_to_ask_is_not_asked(action: Any) -> None:
    assert action(probes=[], here=[]) == {"given": {"probes": []}}
    refused = action(here=[{"id": "balancer", "protocol": "tcp", "address": "here", "port": 80}])
    assert refused == {"failed": True, "msg": "here[0]: address 'here' is not an IPv4 address"}


def test_the_module_alone_says_that_the_controller_cannot_ask() -> None:
    here = {"id": "balancer", "address": "127.0.0.1", "port": CLOSED}
    assert run(probes=[], here=[here])["msg"] == "here: takes netmend's action plugin, and this is the module alone"
