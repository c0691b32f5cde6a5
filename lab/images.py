"""Container images without a registry or a builder: docker-archive tars that containerd imports."""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

PATH = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


@dataclass(frozen=True)
class Image:
    """An image of an archive: full name with tag, command, and files (path inside to source).

    What is below `base` has a layer of its own, so that images that share it share its bytes, too.
    """

    name: str
    entrypoint: Sequence[str]
    files: Mapping[str, Path]
    links: Mapping[str, str] = field(default_factory=dict)  # path inside to what it leads to
    base: Mapping[str, Path] = field(default_factory=dict)
    environment: Mapping[str, str] = field(default_factory=dict)
    user: str = ""  # number; empty: root


def write(archive: Path, images: Sequence[Image]) -> None:
    """Write images into one archive: the same inputs give the same bytes, and the same files are one layer."""
    members: dict[str, bytes] = {}
    manifest = []
    for image in images:
        layers = {}
        for layer in [_layer(image.base, {})] * bool(image.base) + [_layer(image.files, image.links)]:
            layers[hashlib.sha256(layer).hexdigest()] = layer
        config = _config(image, list(layers))
        config_name = f"{hashlib.sha256(config).hexdigest()}.json"
        members.update({f"{digest}/layer.tar": layer for digest, layer in layers.items()})
        members[config_name] = config
        names = [f"{digest}/layer.tar" for digest in layers]
        manifest.append({"Config": config_name, "RepoTags": [image.name], "Layers": names})
    members["manifest.json"] = json.dumps(manifest).encode()
    with tarfile.open(archive, "w") as tar:
        for name, content in members.items():
            _add(tar, name, content, mode=0o644)


def _layer(files: Mapping[str, Path], links: Mapping[str, str]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        scratch = tarfile.TarInfo("tmp")
        scratch.type, scratch.mode = tarfile.DIRTYPE, 0o1777
        tar.addfile(scratch)
        for inside, source in sorted(files.items()):
            _add(tar, inside.lstrip("/"), source.read_bytes(), mode=0o755)
        for inside, target in sorted(links.items()):
            link = tarfile.TarInfo(inside.lstrip("/"))
            link.type, link.linkname = tarfile.SYMTYPE, target
            tar.addfile(link)
    return buffer.getvalue()


def _config(image: Image, layers: Sequence[str]) -> bytes:
    environment = [PATH, *(f"{name}={value}" for name, value in image.environment.items())]
    config = {"Entrypoint": list(image.entrypoint), "Env": environment, **({"User": image.user} if image.user else {})}
    document = {
        "architecture": "amd64",
        "os": "linux",
        "config": config,
        "rootfs": {"type": "layers", "diff_ids": [f"sha256:{layer}" for layer in layers]},
    }
    return json.dumps(document, sort_keys=True).encode()


def _add(tar: tarfile.TarFile, name: str, content: bytes, mode: int) -> None:
    # A fresh TarInfo has owner 0:0 without names and the time 0.
    info = tarfile.TarInfo(name)
    info.size, info.mode = len(content), mode
    tar.addfile(info, io.BytesIO(content))
