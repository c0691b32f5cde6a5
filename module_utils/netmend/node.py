"""What runs on a node: its commands, and a copy of this code that works when no controller is there."""

from __future__ import annotations

import os
import pkgutil
import subprocess
from pathlib import Path
from typing import List, Optional, Sequence, Tuple

LIB = Path("/usr/local/lib/netmend")
STATE = Path("/var/lib/netmend")  # ways back, and changes that nobody has confirmed
PATH = "/usr/sbin:/usr/bin:/sbin:/bin:/usr/local/sbin:/usr/local/bin"


class CommandError(Exception):
    """A command ended with an error."""


def run(argv: List[str], check: bool = True, timeout: float = 60, given: Optional[str] = None) -> str:
    """What the command prints; ``given`` is what it reads.

    CommandError where it fails, is missing or takes longer than ``timeout`` seconds.
    """
    environment = {**os.environ, "LC_ALL": "C", "PATH": PATH}
    try:
        done = subprocess.run(
            argv, env=environment, input=given, capture_output=True, text=True, timeout=timeout, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise CommandError(f"{' '.join(argv)}: {error}") from error
    if check and done.returncode:
        raise CommandError(f"{' '.join(argv)}: {(done.stderr or done.stdout).strip()} (exit code {done.returncode})")
    return done.stdout


def write(path: Path, content: bytes, mode: int = 0o600) -> None:
    """Replaces the file in one step, so that a crash leaves the old or the new one. Nobody may read it before its mode
    says so."""
    new = _beside(path)
    with os.fdopen(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    new.chmod(mode)
    new.replace(path)


def link(path: Path, target: str) -> None:
    """The same for a symbolic link."""
    new = _beside(path)
    new.symlink_to(target)
    new.replace(path)


def _beside(path: Path) -> Path:
    """Where what is to be at the path is made: in its directory, with nothing there of a run that has ended."""
    for directory in reversed(path.parents):  # mkdir gives its mode to the last one only
        directory.mkdir(mode=0o700, exist_ok=True)
    new = path.with_name(f".{path.name}.netmend")
    new.unlink(missing_ok=True)
    return new


def stale(modules: Sequence[str]) -> List[str]:
    """Files of the copy that are missing or of another version."""
    return [str(path) for path, content in _copy(modules) if not path.is_file() or path.read_bytes() != content]


def install(modules: Sequence[str]) -> None:
    """Brings the copy of these modules of this package up to date."""
    for path, content in _copy(modules):
        if not path.is_file() or path.read_bytes() != content:
            write(path, content, 0o644)


def _copy(modules: Sequence[str]) -> List[Tuple[Path, bytes]]:
    # A module's code comes out of Ansible's zip file: only the loader can read it.
    return [(LIB / "netmend" / f"{name}.py", pkgutil.get_data(__package__, f"{name}.py") or b"") for name in modules]
