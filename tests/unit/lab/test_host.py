"""What a host lacks is said in one message, before anything is started."""

from __future__ import annotations

import os

import pytest

from lab import host

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="being root is checked first")


@as_root
def test_too_little_memory():
    with pytest.raises(host.HostError, match=r"take 1048576\.0 GiB of memory and .* GiB are available: end something"):
        host.prepare_run(1 << 50)


@as_root
def test_too_little_disk(monkeypatch, tmp_path):
    monkeypatch.setenv("NETMEND_CACHE", str(tmp_path / "cache"))
    with pytest.raises(host.HostError, match=rf"{tmp_path}/cache has .* GiB free: make room, or set NETMEND_CACHE"):
        host.prepare_build(1 << 60)


def test_not_root(monkeypatch):
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    for prepare in (host.prepare_build, host.prepare_run):
        with pytest.raises(host.HostError, match=r"needs root.* sudo"):
            prepare(0)


def test_missing_packages_are_those_that_dpkg_does_not_have():
    assert host.missing_packages(["dpkg", "netmend-no-such-package"]) == ["netmend-no-such-package"]


@pytest.mark.parametrize(("version", "taken"), [("go1.26.0", True), ("go1.9.7", False), ("go2.0", True), ("", False)])
def test_a_go_that_is_too_old_is_not_taken(monkeypatch, tmp_path, version, taken):
    go = tmp_path / "go"
    go.write_text(f"#!/bin/sh\necho go version {version} linux/amd64\n")
    go.chmod(0o755)
    monkeypatch.setattr(host, "go_candidates", lambda: [tmp_path / "absent", go])
    if taken:
        assert host.go() == go
    else:
        with pytest.raises(host.HostError, match=r"no Go 1\.26 or newer"):
            host.go()
