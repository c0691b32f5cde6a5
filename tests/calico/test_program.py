"""The stand-in's own tests: its rules have real Felix's hashes, its IPAM gives the blocks that Calico's gives."""

from __future__ import annotations

import os
import subprocess

from lab import host
from lab.build import programs


def test_the_programs_own_tests() -> None:
    argv = [host.go(), "test", "-tags=providerless", "./calico"]
    environment = {**os.environ, "CGO_ENABLED": "0", "GOTOOLCHAIN": "local", "GOFLAGS": "-mod=readonly -trimpath"}
    done = subprocess.run(argv, cwd=programs.MODULE, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
