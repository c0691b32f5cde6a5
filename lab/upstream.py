"""Other projects' manifests, by version and checksum: below $NETMEND_UPSTREAM where that is set, or downloaded."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from pathlib import Path

from .release import File, ReleaseError, have

Progress = Callable[[str], None]

CALICO_URL = "https://raw.githubusercontent.com/projectcalico/calico/{version}/manifests/calico-vxlan.yaml"
# Of the variant without BIRD; calico.yaml differs from it in values that are patched anyway.
CALICO = {
    "v3.31.7": "324475bc90d0fc6b432092b91a011190fdaed47823fcc936762ea58507c6a5a3",
    "v3.32.1": "c2ab4f9a4ecde01d66e6f040d6745cd7f174d5ded573164c809ffb9f40a9d566",
}


def calico(version: str, progress: Progress = print) -> Path:
    """The manifest of a version of CALICO, verified. ReleaseError when it cannot be had."""
    file = File(CALICO_URL.format(version=version), CALICO[version])
    directory = os.environ.get("NETMEND_UPSTREAM")
    if not directory:
        return have(file, progress)
    path = Path(directory, "calico", version, file.name)
    if not path.is_file():
        raise ReleaseError(f"NETMEND_UPSTREAM has no {path}")
    found = hashlib.sha256(path.read_bytes()).hexdigest()
    if found != file.sha256:
        raise ReleaseError(f"{path} has the SHA-256 {found}, and {file.sha256} is asked for: not used")
    return path
