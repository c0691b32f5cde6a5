"""The user-mode Linux kernel, from Debian's package of the kernel's sources."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from . import apt
from .steps import BuildError, Steps

SUITES = ["trixie-backports", "sid"]
WANTED = "linux-source-7.2"
UNPACK = """
dpkg-deb --fsys-tarfile "$1" | tar -xO --wildcards "./usr/src/linux-source-*.tar.xz" | tar -xJ --strip-components=1
"""
FRAGMENT = Path(__file__).parent.parent / "kernel.config"
PATCHES = (
    FRAGMENT.with_name("kernel-interrupts.patch"),  # they get lost, so that a machine waits for its disk for good
    FRAGMENT.with_name("kernel-clashes.patch"),  # a switch to drop as older kernels did
    FRAGMENT.with_name("kernel-folios.patch"),  # a page fault brings many pages, where each cost 44 µs
)


def build(steps: Steps, out: Path) -> None:
    """Make out/linux and out/config."""
    sources = apt.PrivateApt(steps, out / "apt", apt.mirror(), SUITES)
    sources.update()
    package = choose_source(sources.names("linux-source-"))
    if package is None:
        raise steps.error(f"neither {WANTED} nor anything newer is in {' or '.join(SUITES)}")
    archive = sources.download(package)
    tree = out / "tree"
    tree.mkdir()
    steps.run("bash", "-o", "pipefail", "-c", UNPACK, "unpack", archive, cwd=tree)

    mend(steps, tree, PATCHES)
    make = ["make", "ARCH=um", f"-j{os.cpu_count()}", "KBUILD_BUILD_USER=netmend", "KBUILD_BUILD_HOST=netmend"]
    steps.run(*make, "defconfig", cwd=tree)
    config = tree / ".config"
    with config.open("a") as file:
        file.write(FRAGMENT.read_text())
    steps.run(*make, "olddefconfig", cwd=tree)
    if missing := unmet(FRAGMENT.read_text(), config.read_text()):
        raise steps.error(f"{package} does not take these options: {', '.join(missing)}")
    steps.run(*make, "linux", cwd=tree)
    steps.run("strip", "-o", out / "linux", tree / "linux")
    config.rename(out / "config")
    shutil.rmtree(tree)
    shutil.rmtree(out / "apt")


def mend(steps: Steps, tree: Path, patches: Iterable[Path]) -> None:
    """Apply the patches; one that does not fit a newer kernel is left out, as a whole, and the log tells."""
    for patch in patches:
        apply = ["patch", "--strip=1", "--forward", f"--input={patch}"]
        with suppress(BuildError):
            steps.run(*apply, "--dry-run", cwd=tree)
            steps.run(*apply, cwd=tree)


def choose_source(names: list[str]) -> str | None:
    """WANTED, or the oldest that is newer: backports drop a version soon after the next one is there."""
    versions = sorted((version(name), name) for name in names if re.fullmatch(r"linux-source-\d+\.\d+", name))
    return next((name for number, name in versions if number >= version(WANTED)), None)


def version(package: str) -> tuple[int, ...]:
    return tuple(int(number) for number in package.rpartition("-")[2].split("."))


def unmet(asked: str, config: str) -> list[str]:
    """The options of a fragment that a .config does not have as asked, because something they depend on is off."""
    return [name for name, value in options(asked).items() if options(config).get(name, "n") != value]


def options(text: str) -> dict[str, str]:
    """Option to value, "n" for "# X is not set"."""
    found = re.findall(r"^(?:(CONFIG_\w+)=(.*)|# (CONFIG_\w+) is not set)$", text, re.MULTILINE)
    return {name or off: value or "n" for name, value, off in found}
