"""Directories of built things, each under the hash of what it was made from.

A directory that exists is whole: it was made beside its place and renamed into it. Two that want the same one at the
same time make it once. What an interrupted run left is removed by the next.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

KEEP = 3


def root() -> Path:
    """Where everything of the lab is kept: $NETMEND_CACHE, or ~/.cache/netmend."""
    return Path(os.environ.get("NETMEND_CACHE") or Path.home() / ".cache" / "netmend").absolute()


def digest(*inputs: Path | str) -> str:
    """Hash strings, and files and trees by name, content, link target and executable bit (not by time or owner)."""
    total = hashlib.sha256()
    for item in inputs:
        for line in _describe(item) if isinstance(item, Path) else [f"text {item}"]:
            total.update(f"{len(line)} {line}".encode())
    return total.hexdigest()[:16]


def _describe(top: Path) -> Iterator[str]:
    paths = [top, *sorted(top.rglob("*"))] if top.is_dir() and not top.is_symlink() else [top]
    for path in paths:
        if "__pycache__" in path.parts:
            continue
        name = path.relative_to(top.parent)
        mode = path.lstat().st_mode
        if stat.S_ISLNK(mode):
            yield f"link {name} {os.readlink(path)}"
        elif stat.S_ISDIR(mode):
            yield f"directory {name}"
        else:
            content = hashlib.sha256(path.read_bytes()).hexdigest()
            yield f"file {name} {'x' if mode & stat.S_IXUSR else '-'} {content}"


@contextmanager
def lock(path: Path, waiting: Callable[[], None] = lambda: None) -> Iterator[None]:
    """Hold the lock file `path`; calls `waiting` once when somebody else has it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            waiting()
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def produce(place: Path, make: Callable[[Path], None], waiting: Callable[[], None] = lambda: None) -> bool:
    """Have the directory `place`: unless it is there, `make(temporary)` fills one that then becomes it.

    Returns whether it had to be made. `place` is named KIND-HASH: of a kind one is made at a time, and the KEEP that
    were used last stay (who needs one for longer links its files).
    """
    kind, _, _ = place.name.rpartition("-")
    if place.is_dir():
        os.utime(place)
        return False
    with lock(place.with_name(f"{kind}.lock"), waiting):
        if place.is_dir():
            return False
        for leftover in place.parent.glob(f"{kind}-*.tmp"):
            shutil.rmtree(leftover)
        temporary = place.with_name(f"{place.name}.tmp")
        temporary.mkdir()
        try:
            make(temporary)
            temporary.rename(place)
        except BaseException:
            shutil.rmtree(temporary)
            raise
        _forget_old(place.parent, kind)
    return True


def _forget_old(directory: Path, kind: str) -> None:
    made = [path for path in directory.glob(f"{kind}-*") if path.is_dir() and path.name.rpartition("-")[0] == kind]
    for path in sorted(made, key=lambda path: path.stat().st_mtime, reverse=True)[KEEP:]:
        shutil.rmtree(path)
