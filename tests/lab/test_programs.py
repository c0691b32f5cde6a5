"""The stand-ins' own tests: Calico's rules have Felix's hashes and its IPAM Calico's blocks; what nginx is given."""

from __future__ import annotations

import os
import subprocess

import pytest

from lab import host
from lab.build import programs


@pytest.mark.parametrize("program", ["calico", "ingress"])
def test_the_programs_own_tests(program: str) -> None:
    argv = [host.go(), "test", "-tags=providerless", f"./{program}"]
    environment = {**os.environ, "CGO_ENABLED": "0", "GOTOOLCHAIN": "local", "GOFLAGS": "-mod=readonly -trimpath"}
    done = subprocess.run(argv, cwd=programs.MODULE, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
