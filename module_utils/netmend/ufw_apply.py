"""Reads UFW's state from a node, and brings it to a planned one, with UFW's own code for UFW's own files."""

from __future__ import annotations

import builtins
import contextlib
import fcntl
import importlib
import io
import os
import re
import shutil
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, Dict, Iterator, List, Optional

from . import node
from .parse.ufw import settings, user_rules
from .ufw import TAG, Connection, Plan, State

DEFAULT = Path("/etc/default/ufw")
CONF = Path("/etc/ufw/ufw.conf")
BEFORE = Path("/etc/ufw/before.rules")
USER = (Path("/etc/ufw/user.rules"), Path("/etc/ufw/user6.rules"))
LOCK = Path("/run/ufw.lock")
RELOADS = 3
LOCK_TIMEOUT = 20  # seconds; a command of UFW takes less than one


class UfwError(Exception):
    """UFW refused; the state is what it was before."""


def read() -> State:
    """Raises OSError where UFW is not installed, ValueError for a file that is not UFW's."""
    default = DEFAULT.read_text()
    # UFW does not look at user6.rules without IPv6.
    files = USER if settings(default).get("IPV6") == "yes" else USER[:1]
    return State(
        rules=user_rules(*(path.read_text() for path in files)),
        before_rules=BEFORE.read_text(),
        default_ufw=default,
        enabled=settings(CONF.read_text()).get("ENABLED") == "yes",
    )


def apply(plan: Plan) -> None:
    """Raises UfwError, with what was put back, where a step fails."""
    before, after = read(), plan["after"]
    reload = after["before_rules"] != before["before_rules"]
    if reload:
        _test(after["before_rules"])
    with _put_back(before["enabled"]):
        _write(DEFAULT, after["default_ufw"])
        _write(BEFORE, after["before_rules"])
        if plan["commands"]:
            _change_rules(plan["commands"])
        if after["enabled"] != before["enabled"]:
            node.run(["ufw", "--force", "enable" if after["enabled"] else "disable"])
        elif after["enabled"] and reload:
            _reload()


def ssh_connection() -> Optional[Connection]:
    """The SSH connection that this process runs over, None where there is none.

    sudo takes SSH_CONNECTION away, so the processes that this one comes from are asked.
    """
    pid = os.getpid()
    while pid > 1:
        try:
            environment = Path(f"/proc/{pid}/environ").read_bytes()
            status = Path(f"/proc/{pid}/status").read_text()
        except OSError:
            return None
        for entry in environment.split(b"\0"):
            if entry.startswith(b"SSH_CONNECTION="):
                source, _, destination, port = entry.decode().partition("=")[2].split()
                device = node.run(["ip", "-o", "addr", "show", "to", destination], check=False).split()
                return Connection(
                    source=source, destination=destination, port=int(port), interface=device[1] if device else ""
                )
        pid = int(re.search(r"^PPid:\s*(\d+)", status, re.MULTILINE)[1])  # type: ignore[index]  # all have one
    return None


# --- details --------------------------------------------------------------------------------------------------------


def _change_rules(commands: List[List[str]]) -> None:
    """Gives UFW the commands as its own command line does, but writes its files first and loads them once.

    One call of `ufw` takes 0.15 s to 1 s, and a cluster of 300 nodes asks for 600 rules. This way they take hold all at
    once, too: iptables-restore puts the new chains in the old ones' place.
    """
    with _locked(), _as_ufw() as said:
        command, enabled = ["ufw"], "no"
        try:
            # Not before now: these modules look for stdout when they are loaded.
            frontend = importlib.import_module("ufw.frontend")
            interface = frontend.UFWFrontend(False)
            backend: Any = interface.backend
            enabled = backend.defaults["enabled"]
            backend.defaults["enabled"] = "no"
            for command in commands:
                wanted = frontend.parse_command(list(command))
                interface.do_action(wanted.action, wanted.data["rule"], wanted.data["iptype"], True)
            backend.defaults["enabled"] = enabled
            backend._reload_user_rules()
        except (Exception, SystemExit) as error:
            reason = getattr(error, "value", None) or said.getvalue().decode().strip() or repr(error)
            raise UfwError(f"`{' '.join(command)}`: {reason}") from error


@contextlib.contextmanager
def _as_ufw() -> Iterator[io.BytesIO]:
    """What UFW's code takes for granted: its program's path, gettext's _, and output that takes bytes (yielded)."""
    said, argv = io.BytesIO(), sys.argv
    text = io.TextIOWrapper(said)
    builtins.__dict__.setdefault("_", str)
    sys.argv = [shutil.which("ufw", path=node.PATH) or "ufw"]
    try:
        with contextlib.redirect_stdout(text), contextlib.redirect_stderr(text):
            yield said
    finally:
        sys.argv = argv
        text.detach()


@contextlib.contextmanager
def _locked() -> Iterator[None]:
    """Holds the lock that keeps two of UFW's commands apart."""
    with LOCK.open("w") as lock:
        until = time.monotonic() + LOCK_TIMEOUT
        while True:
            try:
                fcntl.lockf(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except OSError:
                if time.monotonic() > until:
                    raise UfwError(f"another ufw has held {LOCK} for {LOCK_TIMEOUT} s") from None
                time.sleep(0.2)
        yield


@contextlib.contextmanager
def _put_back(enabled: bool) -> Iterator[None]:
    """Puts UFW back as it was where what is done with it fails."""
    saved: Dict[Path, str] = {path: path.read_text() for path in (DEFAULT, BEFORE, *USER)}
    try:
        yield
    except (UfwError, node.CommandError) as error:
        for path, text in saved.items():
            _write(path, text)
        if enabled:
            node.run(["ufw", "reload"], check=False)
        elif read()["enabled"]:
            # Only then: disabling what is disabled would still set the policies of the built-in chains.
            node.run(["ufw", "disable"], check=False)
        raise UfwError(f"{error}; UFW was put back as it was") from error


def _reload() -> None:
    """UFW gives up where one of its commands meets another program's change of the rules (kube-proxy's, Felix's)."""
    for left in reversed(range(RELOADS)):
        try:
            node.run(["ufw", "reload"])
            return
        except node.CommandError:
            if not left:
                raise


def _write(path: Path, text: str) -> None:
    if path.read_text() != text:
        node.write(path, text.encode(), path.stat().st_mode & 0o777)


def _test(before_rules: str) -> None:
    """Has iptables read own lines: one that it refuses would end `ufw reload` with no firewall at all."""
    blocks = re.findall(rf"^# BEGIN {TAG}.*?^# END {TAG}", before_rules, re.MULTILINE | re.DOTALL)
    chains = [f":ufw-before-{way} - [0:0]" for way in ("input", "output", "forward")]
    with tempfile.NamedTemporaryFile("w", suffix=".rules") as file:
        file.write("\n".join(["*filter", *chains, *blocks, "COMMIT", ""]))
        file.flush()
        try:
            node.run(["iptables-restore", "-w", "--test", "-n", file.name])
        except node.CommandError as error:
            raise UfwError(f"before_rules: {error}; nothing was changed") from error
