"""Whether a copy of a cluster's state can be restored from."""

from __future__ import annotations

import hashlib
import sqlite3
from contextlib import closing
from pathlib import Path

_SQLITE = b"SQLite format 3\0"  # https://www.sqlite.org/fileformat.html
_PAGE = 512  # bytes; what a snapshot has beyond its last page is the digest
_DIGEST = hashlib.sha256().digest_size


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
