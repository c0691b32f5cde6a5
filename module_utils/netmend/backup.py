"""What is in a backup, and whether a cluster's state can be restored from it."""

from __future__ import annotations

import hashlib
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Dict, List, TypedDict

_SQLITE = b"SQLite format 3\0"  # https://www.sqlite.org/fileformat.html
_PAGE = 512  # bytes; what a snapshot has beyond its last page is the digest
_DIGEST = hashlib.sha256().digest_size
_STATES = {"etcd-snapshot": "etcd", "state.db": "sqlite"}  # as role k3s_backup calls them
_TOKEN = "var/lib/rancher/k3s/server/token"


class Backup(TypedDict):
    """A directory that role k3s_backup made."""

    name: str
    path: str
    kind: str  # of the cluster's state: etcd, sqlite; "" for none
    state: str  # its path
    whole: bool
    token: str  # the path of a server's; "" for none
    tokens: List[str]  # SHA-256 of those of the servers, each once
    servers: Dict[str, List[str]]  # name in the inventory -> the files that were kept of it, by their paths there


def read(path: Path) -> Backup:
    """What a directory holds; of one that is not there nothing. OSError where it cannot be read."""
    path = path.expanduser().resolve()
    folders = sorted(each for each in path.iterdir() if each.is_dir()) if path.is_dir() else []
    states = [path / name for name in _STATES if (path / name).is_file()]
    tokens = [each / _TOKEN for each in folders if (each / _TOKEN).is_file()]
    return Backup(
        name=path.name,
        path=str(path),
        kind=_STATES[states[0].name] if states else "",
        state=str(states[0]) if states else "",
        whole=bool(states) and is_whole(states[0]),
        token=str(tokens[0]) if tokens else "",
        tokens=sorted({hashlib.sha256(each.read_bytes()).hexdigest() for each in tokens}),
        servers={
            each.name: sorted(f"/{file.relative_to(each)}" for file in each.rglob("*") if file.is_file())
            for each in folders
        },
    )


def is_whole(path: Path) -> bool:
    """Whether a file is a snapshot of etcd with the SHA-256 that etcd put behind it, or a sound SQLite database.

    The digest is what `etcdutl snapshot restore` checks (etcd, etcdutl/snapshot/v3_snapshot.go).
    """
    content = path.read_bytes()
    if content.startswith(_SQLITE):
        return _is_sound(path)
    has_digest = len(content) > _DIGEST and len(content) % _PAGE == _DIGEST
    return has_digest and hashlib.sha256(content[:-_DIGEST]).digest() == content[-_DIGEST:]


def _is_sound(path: Path) -> bool:
    try:
        with closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as database:
            return bool(database.execute("pragma integrity_check").fetchall() == [("ok",)])
    except sqlite3.DatabaseError:
        return False
