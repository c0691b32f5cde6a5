"""Programs out of Debian's packages, with the libraries that they need, to be run where no package is installed."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

from . import apt, system
from .steps import Steps

LIBRARIES = "usr/lib/x86_64-linux-gnu"
LOADER = "lib64/ld-linux-x86-64.so.2"


def build(packages: Sequence[str], wanted: Sequence[str], steps: Steps, out: Path) -> None:
    """Make the tree of the wanted files (patterns) with the libraries that they need, as plain files below out."""
    work = out / "work"
    work.mkdir()
    steps.run(
        "mmdebstrap",
        "--mode=root",
        "--variant=extract",
        f"--keyring={apt.keyring()}",
        f"--include={','.join(packages)}",
        '--aptopt=APT::Sandbox::User "root"',
        "--aptopt=Acquire::Retries 3",
        *(f"--dpkgopt=path-exclude={pattern}" for pattern in system.NOT_UNPACKED),
        system.SUITE,
        work / "tree",
        apt.mirror(),
        env={"TMPDIR": str(work)},
    )
    tree = work / "tree"
    names = [str(path.relative_to(tree)) for pattern in wanted for path in sorted(tree.glob(pattern))]
    for name in [*names, *_libraries(tree, names)]:
        _copy(tree / name, out / name)
    _copy(tree / "usr" / LOADER, out / LOADER)
    shutil.rmtree(work)


def _libraries(tree: Path, names: list[str]) -> list[str]:
    """The libraries that these files need, and those that they need in turn."""
    found: list[str] = []
    for name in names:
        listing = subprocess.run(["objdump", "-p", tree / name], capture_output=True, text=True, check=True).stdout
        for library in re.findall(r"^ +NEEDED +(\S+)$", listing, re.MULTILINE):
            path = f"{LIBRARIES}/{library}"
            if path not in found and (tree / path).exists():
                found.append(path)
    new = [path for path in found if path not in names]
    return [*new, *(path for path in (_libraries(tree, new) if new else []) if path not in new)]


def _copy(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(source, target)
    target.chmod(0o755)
