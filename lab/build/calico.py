"""What is in the images in the place of Calico's, from Debian's packages: iptables, ipset, BIRD, plain CNI plugins."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

from . import apt, system
from .steps import Steps

PACKAGES = ["iptables", "ipset", "bird2", "containernetworking-plugins"]
PROGRAMS = ["usr/sbin/xtables-nft-multi", "usr/sbin/ipset", "usr/sbin/bird"]
# Those that Calico's own image has, besides its own two.
PLUGINS = [f"usr/lib/cni/{name}" for name in ("bandwidth", "host-local", "loopback", "portmap", "tuning")]
LIBRARIES = "usr/lib/x86_64-linux-gnu"
EXTENSIONS = f"{LIBRARIES}/xtables"
LOADER = "lib64/ld-linux-x86-64.so.2"


def build(steps: Steps, out: Path) -> None:
    """Make the tree of the programs and plugins with the libraries that they need, as plain files below out."""
    work = out / "work"
    work.mkdir()
    steps.run(
        "mmdebstrap",
        "--mode=root",
        "--variant=extract",
        f"--keyring={apt.keyring()}",
        f"--include={','.join(PACKAGES)}",
        '--aptopt=APT::Sandbox::User "root"',
        "--aptopt=Acquire::Retries 3",
        *(f"--dpkgopt=path-exclude={pattern}" for pattern in system.NOT_UNPACKED),
        system.SUITE,
        work / "tree",
        apt.mirror(),
        env={"TMPDIR": str(work)},
    )
    tree = work / "tree"
    extensions = [str(path.relative_to(tree)) for path in sorted((tree / EXTENSIONS).glob("*.so"))]
    wanted = [*PROGRAMS, *PLUGINS, *extensions]
    for name in [*wanted, *_libraries(tree, wanted)]:
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
