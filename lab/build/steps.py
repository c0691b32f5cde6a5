"""Running the commands of a build: logged, on low priority, and never outliving the build."""

from __future__ import annotations

import os
import subprocess
import threading
from collections.abc import Mapping
from pathlib import Path

# A process namespace of its own, so that the end of the command or of the build is the end of all that it started; a
# mount namespace of its own, so that what is mounted below a half-made tree is never reached by removing it.
CONFINED = ["setpriv", "--pdeathsig", "KILL", "unshare", "--pid", "--fork", "--kill-child", "--mount-proc"]
LOG_LINES = 20


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
                    [*CONFINED, "nice", "-n", "10", *words],
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
        lines = self.log.read_text(errors="replace").splitlines()[-LOG_LINES:]
        return BuildError(f"{self.part}: {why}; the end of {self.log}:\n" + "\n".join(f"    {line}" for line in lines))

    def stop(self) -> None:
        """End what runs, and let nothing more start."""
        with self._guard:
            self._stopped = True
            if self._running:
                self._running.kill()
