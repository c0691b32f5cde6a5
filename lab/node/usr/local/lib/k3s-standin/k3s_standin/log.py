"""Log lines and files as K3s writes them."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path


class Fatal(Exception):
    """Ends the program with one line that says why."""


def log(level: str, message: str) -> None:
    stamp = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    print(f'time="{stamp}" level={level} msg={json.dumps(message, ensure_ascii=False)}', file=sys.stderr, flush=True)


def info(message: str) -> None:
    log("info", message)


def error(message: str) -> None:
    log("error", message)


def write(path: Path, text: str, mode: int = 0o644) -> None:
    """Replaces a file whole, so that nobody ever reads half of it; a secret is never readable by others in between."""
    path.parent.mkdir(parents=True, exist_ok=True)
    new = path.with_name(f".{path.name}.new")
    new.unlink(missing_ok=True)
    new.touch(mode=mode)
    new.write_text(text)
    new.replace(path)
