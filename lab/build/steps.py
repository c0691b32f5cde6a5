"""Running the commands of a build: logged, on low priority, and ended with their children when the build ends."""

from __future__ import annotations

import os
import signal
import subprocess
import threading
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path


class BuildError(Exception):
    """A part could not be built; the message says which, why and where its log is."""


class Steps:
    """Commands of one part, with one log file. `stop` may be called from another thread at any time."""

    def __init__(self, part: str, log: Path) -> None:
        self.part = part
        self.log = log
        self._running: subprocess.Popen[bytes] | None = None
        self._stopped = False
        self._guard = threading.Lock()
        log.parent.mkdir(parents=True, exist_ok=True)
        log.write_bytes(b"")

    def run(self, *argv: str | Path, cwd: Path | None = None, env: Mapping[str, str] | None = None) -> None:
        """Run a command to its end; BuildError with the end of the log when it fails."""
        words = [str(word) for word in argv]
        with self.log.open("ab") as log:
            log.write(f"+ {' '.join(words)}\n".encode())
            log.flush()
            with self._guard:
                if self._stopped:
                    raise BuildError(f"{self.part}: interrupted")
                process = self._running = subprocess.Popen(
                    # A build that is killed outright takes its commands along.
                    ["setpriv", "--pdeathsig", "TERM", "nice", "-n", "10", *words],
                    cwd=cwd,
                    env={**os.environ, "LC_ALL": "C", **(env or {})},
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    start_new_session=True,
                )
            code = process.wait()
        with self._guard:
            self._running = None
            if self._stopped:
                raise BuildError(f"{self.part}: interrupted")
        if code:
            raise self.error(f"{words[0]} ended with exit code {code}")

    def error(self, why: str) -> BuildError:
        tail = "\n".join(f"    {line}" for line in self.log.read_text(errors="replace").splitlines()[-20:])
        return BuildError(f"{self.part}: {why}; the end of {self.log}:\n{tail}")

    def stop(self) -> None:
        """End what runs, children included, and let nothing more start."""
        with self._guard:
            self._stopped = True
            process = self._running
        if process is None:
            return
        # The group may outlive its leader, so what is left of it is killed in any case.
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGTERM)
            with suppress(subprocess.TimeoutExpired):
                process.wait(timeout=10)
            os.killpg(process.pid, signal.SIGKILL)
