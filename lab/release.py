"""K3s's own release in place of the stand-in: its binary and its images for machines without a registry.

Downloads are kept by their checksum under $NETMEND_CACHE/downloads; an interrupted one goes on where it was.
"""

from __future__ import annotations

import hashlib
import re
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import urlsplit

from . import cache

Progress = Callable[[str], None]

ATTEMPTS = 3
SILENCE = 60  # seconds without a byte
CHUNK = 1 << 20
REPORT_EVERY = 64 << 20


class ReleaseError(Exception):
    """A release is described wrongly, or cannot be had; the message says which file and why."""


@dataclass(frozen=True)
class File:
    url: str
    sha256: str

    @property
    def name(self) -> str:
        return PurePosixPath(urlsplit(self.url).path).name

    @property
    def place(self) -> Path:
        return cache.root() / "downloads" / self.sha256 / self.name


@dataclass(frozen=True)
class Release:
    version: str  # as in v1.36.3+k3s1
    binary: File  # k3s
    images: File  # k3s-airgap-images-amd64.tar.zst, or another form that K3s imports


def parse(content: Any) -> Release:
    """Read {"version", "binary": {"url", "sha256"}, "images": {"url", "sha256"}}; ReleaseError when it is not that."""
    if not isinstance(content, dict) or set(content) != {"version", "binary", "images"}:
        raise ReleaseError("a release must have version, binary and images")
    return Release(str(content["version"]), _file("binary", content["binary"]), _file("images", content["images"]))


def fetch(release: Release, progress: Progress = print) -> tuple[Path, Path]:
    """Have the release's binary and images, verified; returns their paths. ReleaseError when one cannot be had."""
    return have(release.binary, progress), have(release.images, progress)


def _file(key: str, content: Any) -> File:
    if not isinstance(content, dict) or set(content) != {"url", "sha256"}:
        raise ReleaseError(f"{key} of a release must have url and sha256")
    file = File(str(content["url"]), str(content["sha256"]).lower())
    if urlsplit(file.url).scheme not in ("http", "https") or not file.name:
        raise ReleaseError(f"{key}.url of a release must be the http or https address of a file, not {file.url}")
    if not re.fullmatch(r"[0-9a-f]{64}", file.sha256):
        raise ReleaseError(f"{key}.sha256 of a release must be 64 hexadecimal digits")
    return file


def have(file: File, progress: Progress = print) -> Path:
    """Have a file, verified, and downloaded where it is not here yet. ReleaseError when it cannot be had."""
    place = file.place
    if place.exists():
        progress(f"{file.name}: cached")
        return place
    with cache.lock(place.with_name("lock"), lambda: progress(f"{file.name}: waiting for another download of it")):
        if place.exists():
            return place
        partial = place.with_name(f"{file.name}.partial")
        _download(file, partial, progress)
        found = _sha256(partial)
        if found != file.sha256:
            partial.unlink()
            raise ReleaseError(f"{file.url} has the SHA-256 {found}, and {file.sha256} is asked for: not used")
        partial.rename(place)
        progress(f"{file.name}: downloaded and verified")
    return place


def _download(file: File, partial: Path, progress: Progress) -> None:
    """Fill `partial` to its end, going on where an earlier attempt or run stopped."""
    for attempt in range(1, ATTEMPTS + 1):
        try:
            _continue(file, partial, progress)
            return
        except urllib.error.HTTPError as problem:
            raise ReleaseError(f"{file.url}: the server answers {problem.code} {problem.reason}") from problem
        except (OSError, HTTPException) as problem:
            why = getattr(problem, "reason", problem)
            if attempt == ATTEMPTS:
                got = _mib(_size(partial))
                raise ReleaseError(f"{file.url}: {why} after {got}; another run goes on from there") from problem
            progress(f"{file.name}: {why}; trying again")


def _continue(file: File, partial: Path, progress: Progress) -> None:
    have = _size(partial)
    request = urllib.request.Request(file.url, headers={"Range": f"bytes={have}-"} if have else {})
    try:
        response = urllib.request.urlopen(request, timeout=SILENCE)
    except urllib.error.HTTPError as problem:
        # Nothing is left to send: it was stopped between the last byte and the check.
        if problem.code == 416 and have:
            return
        raise
    with response:
        if not response.headers.get("Content-Range", "").startswith(f"bytes {have}-"):
            have = 0
        total = have + int(response.headers.get("Content-Length", 0))
        progress(f"{file.name}: downloading {_mib(total)}" + (f", {_mib(have)} are here" if have else ""))
        with partial.open("r+b" if have else "wb") as output:
            output.seek(have)
            while chunk := response.read(CHUNK):
                output.write(chunk)
                if have // REPORT_EVERY != (have + len(chunk)) // REPORT_EVERY:
                    progress(f"{file.name}: {_mib(have + len(chunk))} of {_mib(total)}")
                have += len(chunk)
    if have < total:
        raise ConnectionError("the connection ended early")


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _mib(size: int) -> str:
    return f"{size / (1 << 20):.1f} MiB"
