"""What the ingress controllers on this node say themselves, once its probes are done: their log and their endpoints."""

from __future__ import annotations

import http.client
import os
import socket
import time
from pathlib import Path
from typing import Dict, Iterable, List

from .model import Controller, ControllerSaid, Probe
from .parse import ingress_nginx
from .sockets import TIMEOUT, Ended, opened

WINDOW = 300.0  # seconds of the log
_MOST = 4 << 20  # bytes of it
_STATUS_PORT = 10246  # ingress-nginx: pkg/flags/flags.go, --status-port
_LIST = "/configuration/backends"  # as its own "/dbg backends all" asks


def said(asked: Iterable[Controller], root: Path = Path("/")) -> List[ControllerSaid]:
    """What cannot be read is None, and why is in ``errors``."""
    return [_said(controller, root) for controller in asked]


def _said(controller: Controller, root: Path) -> ControllerSaid:
    errors: Dict[str, str] = {}
    log, endpoints = None, None
    try:
        log = ingress_nginx.log(_lines(controller, root), time.time() - WINDOW)
    except OSError as error:
        errors["log"] = str(error)
    try:
        endpoints = ingress_nginx.backends(_get(controller["pid"], _STATUS_PORT, _LIST))
    except (Ended, OSError, http.client.HTTPException, ValueError, LookupError) as error:
        errors["endpoints"] = f"{_LIST}: {error}"
    return ControllerSaid(pod=controller["pod"], seconds=WINDOW, log=log, endpoints=endpoints, errors=errors)


def _lines(controller: Controller, root: Path) -> List[str]:
    """The end of the log of the container that wrote last; OSError where there is none."""
    namespace, _, name = controller["pod"].partition("/")
    folder = root / f"var/log/pods/{namespace}_{name}_{controller['uid']}"
    written = sorted(folder.glob("*/*.log"), key=lambda path: path.stat().st_mtime)
    if not written:
        raise FileNotFoundError(f"no log in {folder}")
    with written[-1].open("rb") as file:
        file.seek(max(0, os.fstat(file.fileno()).st_size - _MOST))
        return file.read().decode(errors="replace").splitlines()


def _get(pid: int, port: int, path: str) -> str:
    with opened(Probe(source_pid=pid), socket.SOCK_STREAM) as sock:
        sock.settimeout(TIMEOUT)
        sock.connect(("127.0.0.1", port))
        connection = http.client.HTTPConnection("127.0.0.1", port)
        connection.sock = sock
        connection.request("GET", path)
        answer = connection.getresponse()
        if answer.status != 200:
            raise ValueError(f"status {answer.status}")
        return answer.read().decode()
