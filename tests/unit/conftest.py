"""Network namespaces for tests that need real iptables."""

from __future__ import annotations

import os
import subprocess
import sys
import uuid
from pathlib import Path
from typing import Iterator

import pytest

ROOT = Path(__file__).parents[2]
CORE = "import ansible.module_utils; ansible.module_utils.__path__.append('module_utils')\n"


class Namespace:
    """A network namespace; calling it runs a command in it, from the root of the repository."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __call__(self, *argv: str, text: str = "", ok: bool = True) -> str:
        """What the command prints, having read ``text``."""
        argv = ("ip", "netns", "exec", self.name, *argv)
        done = subprocess.run(argv, input=text, capture_output=True, text=True, cwd=ROOT, timeout=60, check=False)
        assert not ok or done.returncode == 0, done.stderr + done.stdout
        return done.stdout

    def python(self, code: str, text: str = "", ok: bool = True) -> str:
        """What the code prints; it finds the core where modules find it."""
        return self(sys.executable, "-c", CORE + code, text=text, ok=ok)


@pytest.fixture
def namespace() -> Iterator[Namespace]:
    if os.geteuid() != 0:
        pytest.skip("network namespaces need root")
    name = f"netmend-{uuid.uuid4().hex[:8]}"
    subprocess.run(["ip", "netns", "add", name], check=True)
    yield Namespace(name)
    subprocess.run(["ip", "netns", "del", name], check=True)
