"""What the guard saves and brings back. Its timer needs systemd, and is tested on the lab's machines."""

from __future__ import annotations

import json
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from ansible.errors import AnsibleConnectionFailure
from ansible.module_utils.netmend.guard import Guard, GuardError, Scope, restore, save

from tests.unit.loaded import loaded

ACCEPT = '-s 10.42.0.0/16 -m comment --comment "netmend:pods" -j ACCEPT'
REJECT = "-s 10.42.0.0/16 -j REJECT --reject-with icmp-port-unreachable"
CALL = "import json, sys; from pathlib import Path; from ansible.module_utils.netmend import guard\n"
SAVE = CALL + "scope, directory = json.load(sys.stdin); guard.save(scope, Path(directory), 30)"
RESTORE = CALL + "print(json.dumps(guard.restore(Path(json.load(sys.stdin)))))"


def scope(*files: Path, **other) -> Scope:
    return Scope(**{"files": [str(path) for path in files], "undo": [], "sysctls": [], "rules": [], **other})


class Timerless(Guard):
    """A guard whose time never runs out by itself."""

    def _start_timer(self, timeout: int) -> None:
        assert self.is_armed()

    def _stop_timer(self) -> None:
        pass


@pytest.fixture
def guard(tmp_path, monkeypatch) -> Guard:
    monkeypatch.setattr("ansible.module_utils.netmend.node.LIB", tmp_path / "lib")
    return Timerless("ufw", tmp_path / "state")


@pytest.fixture
def config(tmp_path) -> Path:
    path = tmp_path / "etc" / "ufw"
    path.mkdir(parents=True)
    (path / "user.rules").write_text("old")
    (path / "user.rules").chmod(0o640)
    (path / "link").symlink_to("user.rules")
    return path


def tree(path: Path) -> dict[str, tuple[int, str]]:
    return {
        one.name: (one.lstat().st_mode, os.readlink(one) if one.is_symlink() else one.read_text())
        for one in path.iterdir()
    }


def change(config: Path) -> None:
    (config / "user.rules").unlink()
    (config / "user.rules").write_text("new")
    (config / "link").unlink()
    (config / "added").write_text("new")


def test_files_come_back_with_modes_and_links(config, tmp_path):
    before = tree(config)
    sysctl = tmp_path / "99-netmend.conf"
    save(scope(config, sysctl), tmp_path / "saved", 30)
    change(config)
    sysctl.write_text("new")
    assert restore(tmp_path / "saved") == []
    assert tree(config) == before
    assert not sysctl.exists()


def test_what_cannot_be_brought_back_is_said_and_stops_nothing(config, tmp_path):
    other = tmp_path / "a-file"
    other.write_text("old")
    save(scope(other, config / "user.rules"), tmp_path / "saved", 30)
    other.unlink()
    other.mkdir()
    change(config)
    errors = restore(tmp_path / "saved")
    assert len(errors) == 1
    assert "a-file" in errors[0]
    assert (config / "user.rules").read_text() == "old"


def test_confirmed_change_stays_and_can_be_taken_back_later(guard, config):
    before = tree(config)
    guard.arm(scope(config), 30)
    change(config)
    guard.confirm()
    assert guard.roll_back("the timer came late") == []
    assert (config / "user.rules").read_text() == "new"
    assert guard.roll_back("it was asked for", confirmed=True) == []
    assert tree(config) == before


def test_confirmation_after_the_timer_says_when_and_why(guard, config):
    before = tree(config)
    guard.arm(scope(config), 30)
    guard.confirm()
    guard.arm(scope(config), 30)
    change(config)
    guard.roll_back("no confirmation came within 30 s")
    assert tree(config) == before
    with pytest.raises(GuardError, match=r"ufw was rolled back at 20.* because no confirmation came within 30 s"):
        guard.confirm()
    assert guard.rolled_back()["errors"] == []
    guard.arm(scope(config), 30)
    assert guard.rolled_back() == {}


def test_no_confirmation_without_arming_and_no_second_arming(guard, config):
    with pytest.raises(GuardError, match="not armed"):
        guard.confirm()
    guard.arm(scope(config), 30)
    with pytest.raises(GuardError, match="armed already"):
        guard.arm(scope(config), 30)


def test_failure_to_arm_leaves_nothing_armed(guard, config, monkeypatch):
    monkeypatch.setattr("ansible.module_utils.netmend.node.PATH", "/nonexistent")
    monkeypatch.setattr(Timerless, "_start_timer", Guard._start_timer)
    with pytest.raises(Exception, match="systemd-run"):
        guard.arm(scope(config), 30)
    assert not guard.is_armed()


def test_live_state_comes_back_in_a_namespace(namespace, tmp_path):
    def forward() -> list[str]:
        saved = namespace("iptables-nft-save", "-t", "filter").splitlines()
        return [line.partition(" FORWARD ")[2] for line in saved if line.startswith("-A FORWARD")]

    def iptables(action: str, rule: str, *number: str) -> None:
        namespace("iptables-nft", action, "FORWARD", *number, *rule.replace('"', "").split())

    namespace("sysctl", "-w", "net.ipv4.ip_forward=0")
    iptables("-A", REJECT)
    iptables("-A", "-s 192.0.2.1/32 -j DROP")
    before = forward()
    rule = {"backend": "nft", "table": "filter", "chain": "FORWARD", "spec": REJECT}
    saving = scope(undo=["iptables", "sysctl"], sysctls=["net.ipv4.ip_forward", "net.no.such"], rules=[rule])
    namespace.python(SAVE, json.dumps([saving, str(tmp_path / "saved")]))

    iptables("-D", REJECT)
    iptables("-I", ACCEPT, "1")
    iptables("-I", "-j ACCEPT", "1")  # somebody else's, meanwhile
    namespace("sysctl", "-w", "net.ipv4.ip_forward=1")
    assert json.loads(namespace.python(RESTORE, json.dumps(str(tmp_path / "saved")))) == []
    assert forward() == ["-j ACCEPT", *before]
    assert namespace("sysctl", "-n", "net.ipv4.ip_forward").strip() == "0"


# --- over which connection ---


class Confirming:
    """The action plugin, whose module is not reached in its first attempts."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, failures: int, **arguments: Any) -> None:
        self.done: list[str] = []
        plugin = loaded("plugins/action/netmend_guard.py")
        clock = iter(range(1000))
        monkeypatch.setattr(plugin, "time", SimpleNamespace(monotonic=lambda: next(clock), sleep=lambda _: None))

        def module(*_: Any) -> dict[str, Any]:
            self.done.append("module")
            if self.done.count("module") <= failures:
                raise AnsibleConnectionFailure("timed out")
            return {"changed": True}

        monkeypatch.setattr(plugin.Normal, "run", module)
        made = object.__new__(plugin.ActionModule)
        made._task = SimpleNamespace(args={"id": "ufw", **arguments}, check_mode=False)
        made._connection = SimpleNamespace(reset=lambda: self.done.append("reset"))
        self.result = made.run()


def test_it_is_confirmed_over_a_new_connection(monkeypatch: pytest.MonkeyPatch) -> None:
    once = Confirming(monkeypatch, failures=0, state="confirmed")
    assert (once.done, once.result) == (["reset", "module"], {"changed": True})
    later = Confirming(monkeypatch, failures=2, state="confirmed")
    assert (later.done, later.result) == (["reset", "module"] * 3, {"changed": True})


def test_a_node_that_is_not_reached_again_is_a_failure_that_can_be_rescued(monkeypatch: pytest.MonkeyPatch) -> None:
    never = Confirming(monkeypatch, failures=99, state="confirmed", timeout=5)
    assert never.result == {"failed": True, "msg": "not reached over a new connection within 5 s: timed out"}
    assert set(never.done) == {"reset", "module"}


def test_all_else_goes_over_the_connection_that_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    assert Confirming(monkeypatch, failures=0, state="armed").done == ["module"]
