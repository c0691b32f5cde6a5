"""Kernel parameters: as they are now, and as a file of /etc/sysctl.d keeps them for the next boot (sysctl.d(5)).

Names are those of sysctl(8): a dot in an interface's name is a slash. Planning again after a change gives no change.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Dict, Iterable, List, Mapping, NamedTuple

from . import node

PROC = Path("/proc/sys")
INTERFACES = Path("/sys/class/net")
HEADER = "# Written by netmend.\n"
BRIDGE = "net.bridge."


class SysctlError(Exception):
    """The kernel has no such parameter, or does not take the value."""


class State(NamedTuple):
    live: Dict[str, str]
    kept: Dict[str, str]  # what the file says; empty where there is none


def read(names: Iterable[str], file: Path) -> State:
    """The live values of these, and all that the file keeps. SysctlError names a parameter that the kernel lacks."""
    live = {}
    for name in names:
        try:
            live[name] = words(_path(name).read_text())
        except OSError as error:
            raise SysctlError(f"{name}: {error.strerror}") from error
    return State(live, parse(file.read_text()) if file.exists() else {})


def plan(state: State, wanted: Mapping[str, str], present: bool = True) -> State:
    """The state that is wanted: these values beside what is kept already, or live values as they are and no file."""
    if not present:
        return State(dict(state.live), {})
    values = {name: words(value) for name, value in wanted.items()}
    return State({**state.live, **values}, {**state.kept, **values})


def changes(before: State, after: State, file: Path) -> List[str]:
    """What `apply` would do, in words."""
    old = before.live
    live = [f"{name}: {old[name]} -> {value}" for name, value in after.live.items() if old[name] != value]
    kept = [f"{file}: {name} = {value}" for name, value in after.kept.items() if before.kept.get(name) != value]
    gone = [f"{file}: no {name}" for name in before.kept if name not in after.kept]
    return live + kept + gone


def apply(before: State, after: State, file: Path) -> None:
    """Only what differs is written. SysctlError where the kernel refuses a value; the file then is as it was."""
    for name, value in after.live.items():
        if before.live[name] != value:
            try:
                _path(name).write_text(value)
            except OSError as error:
                raise SysctlError(f"{name} = {value}: {error.strerror}") from error
    if before.kept == after.kept:
        return
    if after.kept:
        node.write(file, (HEADER + render(after.kept)).encode(), 0o644)
    else:
        file.unlink()


def applicable(wanted: Mapping[str, str], bridges: bool) -> Dict[str, str]:
    """Those that mean something here: without a bridge (Calico has none) nothing passes what net.bridge is about."""
    return {name: value for name, value in wanted.items() if bridges or not name.startswith(BRIDGE)}


def has_bridges() -> bool:
    return any(INTERFACES.glob("*/bridge"))


def parse(text: str) -> Dict[str, str]:
    """What a file of sysctl.d sets, without the dash that makes errors no matter."""
    lines: List[str] = [line.strip() for line in text.splitlines()]
    pairs = (re.match(r"-?([^#;=\s][^=]*?)\s*=\s*(.*)", line) for line in lines)
    return {pair[1]: words(pair[2]) for pair in pairs if pair}


def render(values: Mapping[str, str]) -> str:
    return "".join(f"{name} = {value}\n" for name, value in values.items())


def words(value: str) -> str:
    """The kernel separates several numbers by tabs."""
    return " ".join(value.split())


def _path(name: str) -> Path:
    return PROC / name.translate(str.maketrans("./", "/."))
