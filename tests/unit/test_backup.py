"""A backup from which nothing could be restored is known as such."""

from __future__ import annotations

import hashlib
import sqlite3
from pathlib import Path

import pytest
from ansible.module_utils.netmend.backup import is_whole

PAGES = bytes(range(256)) * 64
SNAPSHOT = PAGES + hashlib.sha256(PAGES).digest()


@pytest.mark.parametrize(
    ("content", "whole"),
    [
        (SNAPSHOT, True),
        (PAGES, False),
        (SNAPSHOT[:-600], False),
        (b"\0" + SNAPSHOT[1:], True),
        (b"\1" + SNAPSHOT[1:], False),
        (b"", False),
    ],
    ids=["whole", "without a digest", "cut off", "the same", "damaged", "empty"],
)
def test_a_snapshot_of_etcd(content: bytes, whole: bool, tmp_path: Path) -> None:
    file = tmp_path / "snapshot"
    file.write_bytes(content)
    assert is_whole(file) is whole


def test_a_database_of_sqlite(tmp_path: Path) -> None:
    file = tmp_path / "state.db"
    with sqlite3.connect(file) as database:
        database.execute("create table kine (name text)")
        database.executemany("insert into kine values (?)", [("x" * 999,) for _ in range(99)])
    database.close()
    assert is_whole(file)
    content = bytearray(file.read_bytes())
    content[4096:12288] = bytes(8192)
    file.write_bytes(content)
    assert not is_whole(file)
