"""Debian packages from the host's own mirror, verified by apt, without touching the host's own apt state."""

from __future__ import annotations

import platform
import subprocess
from pathlib import Path

from .steps import Steps

KEYRINGS = [
    Path("/usr/share/keyrings/debian-archive-keyring.gpg"),
    Path("/usr/share/keyrings/debian-archive-keyring.pgp"),
]


def mirror() -> str:
    """The URI that the host's apt takes Debian's main archive from (sources.list and *.sources, as apt reads them).

    LookupError when apt knows of none.
    """
    columns = "$(ORIGIN) $(RELEASE) $(COMPONENT) $(REPO_URI)"
    listing = subprocess.run(
        ["apt-get", "indextargets", "--format", columns, "Created-By: Packages"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    return choose_mirror(listing, platform.freedesktop_os_release()["VERSION_CODENAME"])


def choose_mirror(listing: str, codename: str) -> str:
    """Debian's own of the lines "origin release component uri"; apt knows no origin before the host's first update."""
    rows = [line.split(" ", 3) for line in listing.splitlines()]
    for wanted in ("Debian", "$(ORIGIN)"):
        for origin, release, component, uri in rows:
            if origin == wanted and release == codename and component == "main" and not uri.startswith("cdrom:"):
                return uri.rstrip("/")
    raise LookupError(f"apt on this host has no source for Debian {codename} main; see /etc/apt/sources.list.d")


def keyring() -> Path:
    return next(path for path in KEYRINGS if path.exists())


class PrivateApt:
    """An apt with sources, lists and downloads of its own under `directory`; the first suite is preferred."""

    def __init__(self, steps: Steps, directory: Path, uri: str, suites: list[str]) -> None:
        self._steps = steps
        self._directory = directory
        for name in ("lists/partial", "archives/partial"):
            (directory / name).mkdir(parents=True)
        (directory / "status").touch()
        lines = [f"deb [signed-by={keyring()}] {uri} {suite} main\n" for suite in suites]
        (directory / "sources.list").write_text("".join(lines))
        settings = {
            "Dir::State": directory,
            "Dir::State::status": directory / "status",
            "Dir::Cache": directory,
            "Dir::Etc::sourcelist": directory / "sources.list",
            "Dir::Etc::sourceparts": "-",
            "Dir::Etc::preferences": "-",
            "Dir::Etc::preferencesparts": "-",
            "APT::Default-Release": suites[0],
            "APT::Sandbox::User": "root",
            "Acquire::Languages": "none",
            "Acquire::Retries": "3",
        }
        self._options = [f"-o{name}={value}" for name, value in settings.items()]

    def update(self) -> None:
        self._steps.run("apt-get", *self._options, "update")

    def names(self, prefix: str) -> list[str]:
        argv = ["apt-cache", *self._options, "pkgnames", prefix]
        return subprocess.run(argv, capture_output=True, text=True, check=True).stdout.split()

    def download(self, package: str) -> Path:
        """Fetch a package's newest version of the preferred suite."""
        self._steps.run("apt-get", *self._options, "download", package, cwd=self._directory)
        return next(self._directory.glob(f"{package}_*.deb"))
