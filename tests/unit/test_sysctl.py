"""Kernel parameters are planned on paper, and set on a copy of the kernel's files."""

from __future__ import annotations

from pathlib import Path

import pytest
from ansible.module_utils.netmend import sysctl
from ansible.module_utils.netmend.sysctl import State

FORWARD, BRIDGED = "net.ipv4.ip_forward", "net.bridge.bridge-nf-call-iptables"


@pytest.fixture
def proc(tmp_path, monkeypatch) -> Path:
    for name, value in (("net/ipv4/ip_forward", "0\n"), ("net/ipv4/conf/eth0.10/rp_filter", "1\n")):
        path = tmp_path / "proc" / name
        path.parent.mkdir(parents=True)
        path.write_text(value)
    monkeypatch.setattr(sysctl, "PROC", tmp_path / "proc")
    return tmp_path / "proc"


def test_a_change_is_live_and_kept_and_a_second_plan_is_empty(proc, tmp_path):
    file = tmp_path / "99-netmend.conf"
    before = sysctl.read([FORWARD], file)
    after = sysctl.plan(before, {FORWARD: "1"})
    assert sysctl.changes(before, after, file) == [f"{FORWARD}: 0 -> 1", f"{file}: {FORWARD} = 1"]
    sysctl.apply(before, after, file)
    assert (proc / "net/ipv4/ip_forward").read_text() == "1"
    assert sysctl.parse(file.read_text()) == {FORWARD: "1"}
    again = sysctl.read([FORWARD], file)
    assert sysctl.changes(again, sysctl.plan(again, {FORWARD: "1"}), file) == []


def test_what_is_kept_already_stays():
    state = State({FORWARD: "1"}, {BRIDGED: "1"})
    assert sysctl.plan(state, {FORWARD: "1"}).kept == {BRIDGED: "1", FORWARD: "1"}


def test_absent_removes_the_file_and_leaves_the_kernel(proc, tmp_path):
    file = tmp_path / "99-netmend.conf"
    file.write_text(f"{FORWARD} = 1\n")
    before = sysctl.read([FORWARD], file)
    after = sysctl.plan(before, {FORWARD: "1"}, present=False)
    assert sysctl.changes(before, after, file) == [f"{file}: no {FORWARD}"]
    sysctl.apply(before, after, file)
    assert not file.exists()
    assert (proc / "net/ipv4/ip_forward").read_text() == "0\n"


def test_a_dot_in_an_interfaces_name_is_a_slash(proc, tmp_path):
    assert sysctl.read(["net.ipv4.conf.eth0/10.rp_filter"], tmp_path / "none").live.popitem()[1] == "1"


def test_a_parameter_that_is_not_there_is_named(proc, tmp_path):
    with pytest.raises(sysctl.SysctlError, match=r"net\.ipv4\.no_such"):
        sysctl.read(["net.ipv4.no_such"], tmp_path / "none")


def test_without_a_bridge_what_is_about_bridges_is_left_out():
    wanted = {FORWARD: "1", BRIDGED: "1"}
    assert sysctl.applicable(wanted, bridges=False) == {FORWARD: "1"}
    assert sysctl.applicable(wanted, bridges=True) == wanted


def test_a_file_is_read_as_sysctl_does():
    text = "# a comment\n; another\n\n-kernel.a = 1\nnet.b=4096\t131072  6291456\nno value\n"
    assert sysctl.parse(text) == {"kernel.a": "1", "net.b": "4096 131072 6291456"}
