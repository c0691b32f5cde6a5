"""Container images without a registry or a builder: docker-archive tars that containerd imports."""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

PATH = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


@dataclass(frozen=True)
class Image:
    """An image of an archive: full name with tag, command, and the files of its one layer (path inside to source)."""

    name: str
    entrypoint: Sequence[str]
    files: Mapping[str, Path]


def write(archive: Path, images: Sequence[Image]) -> None:
    """Write images into one archive: the same inputs give the same bytes, and the same files are one layer."""
    members: dict[str, bytes] = {}
    manifest = []
    for image in images:
        layer = _layer(image.files)
        digest = hashlib.sha256(layer).hexdigest()
        config = _config(image, digest)
        config_name = f"{hashlib.sha256(config).hexdigest()}.json"
        members[f"{digest}/layer.tar"] = layer
        members[config_name] = config
        manifest.append({"Config": config_name, "RepoTags": [image.name], "Layers": [f"{digest}/layer.tar"]})
    members["manifest.json"] = json.dumps(manifest).encode()
    with tarfile.open(archive, "w") as tar:
        for name, content in members.items():
            _add(tar, name, content, mode=0o644)


def _layer(files: Mapping[str, Path]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        scratch = tarfile.TarInfo("tmp")
        scratch.type, scratch.mode = tarfile.DIRTYPE, 0o1777
        tar.addfile(scratch)
        for inside, source in sorted(files.items()):
            _add(tar, inside.lstrip("/"), source.read_bytes(), mode=0o755)
    return buffer.getvalue()


def _config(image: Image, layer: str) -> bytes:
    document = {
        "architecture": "amd64",
        "os": "linux",
        "config": {"Entrypoint": list(image.entrypoint), "Env": [PATH]},
        "rootfs": {"type": "layers", "diff_ids": [f"sha256:{layer}"]},
    }
    return json.dumps(document, sort_keys=True).encode()


def _add(tar: tarfile.TarFile, name: str, content: bytes, mode: int) -> None:
    # A fresh TarInfo has owner 0:0 without names and the time 0.
    info = tarfile.TarInfo(name)
    info.size, info.mode = len(content), mode
    tar.addfile(info, io.BytesIO(content))
