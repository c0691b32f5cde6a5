"""Other projects' manifests, by version and checksum: below $NETMEND_UPSTREAM where that is set, or downloaded."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from pathlib import Path

from .release import File, ReleaseError, have

Progress = Callable[[str], None]

CALICO_URL = "https://raw.githubusercontent.com/projectcalico/calico/{version}/manifests/{variant}.yaml"
# Of the variant without BIRD, and of the one with Typha; calico.yaml differs from the first in values that are patched
# anyway.
WITHOUT_TYPHA, WITH_TYPHA = "calico-vxlan", "calico-typha"
CALICO = {
    "v3.31.7": {
        WITHOUT_TYPHA: "324475bc90d0fc6b432092b91a011190fdaed47823fcc936762ea58507c6a5a3",
        WITH_TYPHA: "86bdaabf6098f98320773a257f3408f70a8654e9ccf26a48e717ef2d028d71b7",
    },
    "v3.32.1": {
        WITHOUT_TYPHA: "c2ab4f9a4ecde01d66e6f040d6745cd7f174d5ded573164c809ffb9f40a9d566",
        WITH_TYPHA: "7ecc42a5ca2bd47764384f5c52b89b007c06cbf907fd3214c1cf4abc75ead76f",
    },
}


def variant(typha: int) -> str:
    """Of Calico's manifests the one for so many replicas of Typha."""
    return WITH_TYPHA if typha else WITHOUT_TYPHA


def calico(version: str, variant: str = WITHOUT_TYPHA, progress: Progress = print) -> Path:
    """The manifest of a version of CALICO, verified. ReleaseError when it cannot be had."""
    file = File(CALICO_URL.format(version=version, variant=variant), CALICO[version][variant])
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
