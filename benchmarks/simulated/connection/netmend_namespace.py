"""Runs modules in the network namespace of a simulated node, and lets those that read facts say what was made up.

A module is run in any case, so that what it costs is in the figures. In NETMEND_SIMULATED, a directory, ``answers``
has what it says in place of its own, and ``used`` gets a line a call: the node, the module, its CPU seconds.
"""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

from ansible.plugins.connection.local import Connection as Local

DOCUMENTATION = """
    name: netmend_namespace
    short_description: Run modules in a network namespace
    description: Runs modules in the network namespace that has the host's name.
    extends_documentation_fragment: [connection_pipelining]
"""

MODULE = re.compile(rb'"module": "(\w+)"|ansible\.(?:modules|legacy)\.(\w+)')
STREAMS = ("stdin", "stdout", "stderr")
CLOCK = re.compile(rb'"time": ([0-9.]+), "took": ([0-9.e-]+)')


class Connection(Local):  # type: ignore[misc]  # ansible ships no types
    transport = "netmend_namespace"

    def exec_command(self, cmd: str, in_data: bytes | None = None, sudoable: bool = True) -> tuple[int, bytes, bytes]:
        node, directory = self._play_context.remote_addr, Path(os.environ["NETMEND_SIMULATED"])
        run = Measured(["ip", "netns", "exec", node, "sh", "-c", cmd], **dict.fromkeys(STREAMS, subprocess.PIPE))
        out, errors = run.communicate(in_data)
        found = MODULE.search(in_data or b"")
        module = (found[1] or found[2]).decode() if found else "command"
        with (directory / "used").open("a") as file:
            file.write(f"{node} {module} {run.used:.4f}\n")
        answer = directory / "answers" / f"{node}.{module}"
        return (0, _timed(answer.read_bytes(), out), b"") if answer.exists() else (run.returncode, out, errors)


class Measured(subprocess.Popen[bytes]):
    """A program that many threads wait for, each for its own, and ``used``, its CPU seconds."""

    used = 0.0

    def _try_wait(self, flags: int) -> tuple[int, int]:
        process, status, usage = os.wait4(self.pid, flags)
        self.used = usage.ru_utime + usage.ru_stime
        return process, status


def _timed(answer: bytes, said: bytes) -> bytes:
    """The node's clock and the time that gathering took are the module's own."""
    clock = CLOCK.search(said)
    return answer.replace(b'"time": 0.0, "took": 0.0', clock[0]) if clock else answer
