"""What an ingress controller says itself, read from its log's file and from a server on this machine."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Iterator
from datetime import datetime, timedelta, timezone
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest
from ansible.module_utils.netmend import controllers
from ansible.module_utils.netmend.model import Controller

CONTROLLER = Controller(pod="ingress-nginx/controller-1", uid="uid-1", pid=0)


class Status(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        known = self.path == "/configuration/backends"
        self.send_response(200 if known else 404)
        self.end_headers()
        endpoints = [{"address": "10.42.1.5", "port": "8080"}]
        self.wfile.write(json.dumps([{"name": "shop-web-80", "endpoints": endpoints}] if known else []).encode())

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def status_port(monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    with HTTPServer(("127.0.0.1", 0), Status) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        monkeypatch.setattr(controllers, "_STATUS_PORT", server.server_port)
        yield server.server_port
        server.shutdown()
        thread.join()


def wrote(root: Path, file: str, *ages: float) -> None:
    """Requests that were answered with 504, so many seconds ago."""
    path = root / f"var/log/pods/ingress-nginx_controller-1_uid-1/{file}"
    path.parent.mkdir(parents=True, exist_ok=True)
    moments = [(datetime.now(timezone.utc) - timedelta(seconds=age)).isoformat() for age in ages]
    request = '"GET / HTTP/1.1" 504 160 "-" "-" 80 15.0 [shop-web-80] [] 10.42.1.5:8080 0 5.0 504 a'
    path.write_text("".join(f"{moment} stdout F 10.0.0.5 - - [now] {request}\n" for moment in moments))


@pytest.mark.usefixtures("status_port")
def test_the_last_minutes_of_the_log_and_the_list_of_endpoints(tmp_path: Path) -> None:
    wrote(tmp_path, "controller/0.log", 900.0, 20.0, 1.0)
    (said,) = controllers.said([CONTROLLER], tmp_path)
    assert said["log"] == {"answers": {"shop-web-80": {"504": 2}}, "tries": {"10.42.1.5:8080": 2}, "failures": {}}
    assert said["endpoints"] == {"shop-web-80": ["10.42.1.5:8080"]}
    assert (said["pod"], said["errors"]) == ("ingress-nginx/controller-1", {})


@pytest.mark.usefixtures("status_port")
def test_only_the_end_of_a_long_log_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wrote(tmp_path, "controller/0.log", *[1.0] * 100)
    monkeypatch.setattr(controllers, "_MOST", 2000)
    (said,) = controllers.said([CONTROLLER], tmp_path)
    assert said["log"]
    assert 5 < said["log"]["answers"]["shop-web-80"]["504"] < 20


def test_what_cannot_be_had_is_said_and_is_no_failure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        free = server.getsockname()[1]
    monkeypatch.setattr(controllers, "_STATUS_PORT", free)
    (said,) = controllers.said([CONTROLLER], tmp_path)
    assert (said["log"], said["endpoints"]) == (None, None)
    assert said["errors"]["log"].startswith("no log in ")
    assert said["errors"]["endpoints"].startswith("/configuration/backends: ")


@pytest.mark.usefixtures("status_port")
def test_what_is_no_list_of_endpoints_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(controllers, "_LIST", "/healthz")
    (said,) = controllers.said([CONTROLLER], tmp_path)
    assert (said["endpoints"], said["errors"]["endpoints"]) == (None, "/healthz: status 404")
