"""Confirm or roll back: a change that nobody confirms in time is taken back by the node itself.

Before a change, the guard saves files and live state and starts a timer of systemd, which needs no controller. A
confirmation stops the timer and keeps what was saved as the way back; else the timer puts everything back.

    DIRECTORY/guard/ID/    armed: state.json, files/ ...; after a roll-back only rolled_back.json
    DIRECTORY/undo/ID/     confirmed: the way back

``python3 -m netmend.guard ID`` rolls back, if ID is still armed.
"""

from __future__ import annotations

import fcntl
import glob
import json
import os
import shutil
import sys
import time
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Callable, Dict, Iterable, Iterator, List, TypedDict

from . import node, rules
from .ordered import Foreign, put_back
from .parse.iptables import parse_save

DIRECTORY = node.STATE
UFW_INIT = "/lib/ufw/ufw-init"
UFW_DEFAULTS = Path("/etc/default/ufw")
CODE = (*rules.CODE, "guard")


class GuardError(Exception):
    """The change is not guarded, or was taken back."""


class Scope(TypedDict):
    """What a change may touch."""

    files: List[str]  # paths and globs; a directory stands for all that is in it
    undo: List[str]  # iptables, ufw, sysctl: what of the live state is brought back
    sysctls: List[str]
    rules: List[Foreign]  # foreign rules that the change takes away


class Guard:
    """The guard of one change, by its id."""

    def __init__(self, name: str, directory: Path = DIRECTORY) -> None:
        self.name = name
        self.armed = directory / "guard" / name
        self.undo = directory / "undo" / name
        self.lock = directory / "guard" / f".{name}.lock"
        self.timer = f"netmend-guard-{name}"

    def is_armed(self) -> bool:
        return (self.armed / "state.json").exists()

    def is_confirmed(self) -> bool:
        return self.undo.exists() and not self.armed.exists()

    def rolled_back(self) -> Dict[str, Any]:
        """When, why and with which errors; empty where it was not."""
        path = self.armed / "rolled_back.json"
        return dict(json.loads(path.read_text())) if path.exists() else {}

    def arm(self, scope: Scope, timeout: int) -> None:
        """Saves the state and starts the timer. GuardError or CommandError: not armed, so nothing may be changed."""
        with self._locked():
            if self.is_armed():
                raise GuardError(f"{self.name} is armed already, by a run that has not ended or was interrupted")
            node.install(CODE)
            shutil.rmtree(self.armed, ignore_errors=True)
            save(scope, self.armed, timeout)
            try:
                self._start_timer(timeout)
            except node.CommandError:
                shutil.rmtree(self.armed)
                raise

    def confirm(self) -> None:
        """Stops the timer and keeps the way back. GuardError where the change was taken back, or is not guarded."""
        with self._locked():
            back = self.rolled_back()
            if back:
                raise GuardError(f"{self.name} was rolled back at {back['time']} because {back['reason']}")
            if not self.is_armed():
                raise GuardError(f"{self.name} is not armed: nothing to confirm")
            self._stop_timer()
            shutil.rmtree(self.undo, ignore_errors=True)
            self.undo.parent.mkdir(mode=0o700, exist_ok=True)
            self.armed.rename(self.undo)

    def roll_back(self, reason: str, confirmed: bool = False) -> List[str]:
        """Takes back an armed change, or a confirmed one, too, as far as it can; what it could not."""
        with self._locked():
            if self.is_armed():
                self._stop_timer()
            elif confirmed and self.is_confirmed():
                self.undo.rename(self.armed)
            else:
                return []
            errors = restore(self.armed)
            back = {"time": time.strftime("%Y-%m-%d %H:%M:%S %z"), "reason": reason, "errors": errors}
            node.write(self.armed / "rolled_back.json", json.dumps(back).encode())
            (self.armed / "state.json").unlink()
            return errors

    def discard(self) -> None:
        """Forgets the change as it is now, and the way back."""
        with self._locked():
            self._stop_timer()
            shutil.rmtree(self.armed, ignore_errors=True)
            shutil.rmtree(self.undo, ignore_errors=True)

    @contextmanager
    def _locked(self) -> Iterator[None]:
        """Confirmation and timer may come at the same moment: only one of them finds the guard armed."""
        for directory in (self.lock.parent.parent, self.lock.parent):
            directory.mkdir(mode=0o700, exist_ok=True)
        with self.lock.open("w") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield

    def _start_timer(self, timeout: int) -> None:
        # A daemon-reload, such as a change of units makes, starts --on-active anew, but not --on-boot, which in turn
        # counts from elsewhere in a container. The earlier one fires.
        times = [f"--on-active={timeout}", f"--on-boot={time.monotonic() + timeout:.1f}"]
        argv = ["systemd-run", "--unit", self.timer, *times, "--timer-property=AccuracySec=100ms", "--collect"]
        node.run([*argv, f"--working-directory={node.LIB}", "/usr/bin/python3", "-m", "netmend.guard", self.name])

    def _stop_timer(self) -> None:
        # The timer's unit vanishes once it has fired.
        node.run(["systemctl", "stop", f"{self.timer}.timer"], check=False)


def save(scope: Scope, directory: Path, timeout: int) -> None:
    """Writes the present state of the scope into the directory."""
    directory.mkdir(mode=0o700)
    patterns = [*scope["files"], *(rules.FILES if "iptables" in scope["undo"] else ())]
    files = expand(patterns)
    for path in files:
        copy(path, _copy_of(directory, path))
    state = {
        "timeout": timeout,
        "undo": scope["undo"],
        "patterns": patterns,
        "files": files,
        "sysctls": {name: _sysctl(name).read_text().strip() for name in scope["sysctls"] if _sysctl(name).exists()},
        "iptables": rules.saved(),
        "rules": scope["rules"],
    }
    node.write(directory / "state.json", json.dumps(state, indent=2).encode())


def restore(directory: Path) -> List[str]:
    """Puts back what `save` wrote: files first, then the live state. What fails is returned, and stops nothing else."""
    state = json.loads((directory / "state.json").read_text())
    errors: List[str] = []

    def attempt(action: Callable[..., object], *arguments: Any) -> None:
        try:
            action(*arguments)
        except (OSError, ValueError, node.CommandError) as error:
            errors.append(str(error))

    present = expand(state["patterns"])
    for path in present:
        if path not in state["files"]:
            attempt(os.unlink, path)
    for path in state["files"]:
        attempt(copy, _copy_of(directory, path), path)
    if "sysctl" in state["undo"]:
        for name, value in state["sysctls"].items():
            attempt(_sysctl(name).write_text, value)
    if "iptables" in state["undo"]:
        attempt(_restore_rules, state["iptables"], state["rules"])
    if "ufw" in state["undo"]:  # takes seconds: what may be enough to be reachable again comes before it
        attempt(_restart_ufw, state["iptables"])
    if any(path.startswith("/etc/systemd/") for path in (*present, *state["files"])):
        attempt(node.run, ["systemctl", "daemon-reload"])
    return errors


def expand(patterns: Iterable[str]) -> List[str]:
    """The files and symbolic links that paths, directories and globs stand for now."""
    found = set()
    for pattern in patterns:
        for path in glob.glob(pattern):
            if os.path.isdir(path) and not os.path.islink(path):
                found |= {os.path.join(top, name) for top, _, names in os.walk(path) for name in names}
            else:
                found.add(path)
    return sorted(found)


def copy(source: str, destination: str) -> None:
    """A copy with owner, mode and times; it takes its place in one step."""
    os.makedirs(os.path.dirname(destination), mode=0o700, exist_ok=True)
    new = f"{destination}.netmend"
    shutil.copy2(source, new, follow_symlinks=False)
    status = os.lstat(source)
    os.chown(new, status.st_uid, status.st_gid, follow_symlinks=False)
    os.replace(new, destination)


def _copy_of(directory: Path, path: str) -> str:
    return f"{directory}/files{path}"


def _sysctl(name: str) -> Path:
    return Path("/proc/sys") / name.replace(".", "/")


def _restart_ufw(saved: Dict[str, str]) -> None:
    """Starts the firewall with the restored files where it was enabled, and stops it where it was not."""
    defaults = UFW_DEFAULTS.read_bytes()
    # With MANAGE_BUILTINS=yes this would flush all rules, those of Kubernetes too: that is nobody's way back.
    UFW_DEFAULTS.write_bytes(defaults.replace(b"MANAGE_BUILTINS=yes", b"MANAGE_BUILTINS=no"))
    try:
        node.run([UFW_INIT, "force-stop"])
        node.run([UFW_INIT, "start"])
    finally:
        UFW_DEFAULTS.write_bytes(defaults)
    # Stopping it leaves ACCEPT as the policies, whatever they were. Only once it runs: a DROP alone locks out.
    for backend, text in saved.items():
        for name, chain in parse_save(text).get("filter", {}).items():
            if chain["policy"]:
                node.run([f"iptables-{backend}", "-w", "-t", "filter", "-P", name, chain["policy"]])


def _restore_rules(saved: Dict[str, str], removed: List[Foreign]) -> None:
    for backend, current in rules.read().items():
        named = [rule for rule in removed if rule["backend"] == backend]
        for step in put_back(parse_save(saved.get(backend, "")), current, named):
            node.run([f"iptables-{backend}", "-w", *step])


def main() -> int:
    """What the timer runs."""
    guard = Guard(sys.argv[1])
    timeout = json.loads((guard.armed / "state.json").read_text())["timeout"] if guard.is_armed() else 0
    errors = guard.roll_back(f"no confirmation came within {timeout} s")
    print(*errors, sep="\n", file=sys.stderr)
    return 1 if errors else 0


if __name__ == "__main__":
    sys.exit(main())
