"""As much of a Kubernetes client as the stand-in needs."""

from __future__ import annotations

import http.client
import json
import socket
import ssl
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

TIMEOUT = 10  # seconds; every caller asks again
FIELD_MANAGER = "k3s-standin"


class ApiError(Exception):
    """The server's answer was not 2xx, or not an answer (status 0)."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


class Api:
    """One API server, asked as one identity: a client certificate or a bearer token. Raises ApiError and OSError."""

    def __init__(self, url: str, authority: str, *, certificate: Path | None = None, token: str = "") -> None:
        parts = urlsplit(url)
        self.url, self._host, self._port = url, parts.hostname or "", parts.port or 6443
        self._tls = ssl.create_default_context(cadata=authority)
        if certificate:
            self._tls.load_cert_chain(f"{certificate}.crt", f"{certificate}.key")
        self._headers = {"Authorization": f"Bearer {token}"} if token else {}

    def get(self, path: str) -> Any:
        return json.loads(self._ask("GET", path))

    def text(self, path: str) -> str:
        return self._ask("GET", path)

    def apply(self, path: str, thing: dict[str, Any], manager: str = FIELD_MANAGER) -> None:
        """Server-side apply of one object."""
        query = f"{path}?fieldManager={manager}&force=true"
        self._ask("PATCH", query, json.dumps(thing), "application/apply-patch+yaml")

    def merge(self, path: str, patch: dict[str, Any]) -> None:
        self._ask("PATCH", path, json.dumps(patch), "application/merge-patch+json")

    def delete(self, path: str) -> None:
        """One object, or all that a list would have."""
        self._ask("DELETE", path)

    def _ask(self, method: str, path: str, body: str | None = None, kind: str = "application/json") -> str:
        connection = http.client.HTTPSConnection(self._host, self._port, timeout=TIMEOUT, context=self._tls)
        try:
            connection.request(method, path, body, {**self._headers, "Content-Type": kind})
            answer = connection.getresponse()
            text = answer.read().decode()
        except http.client.HTTPException as problem:
            raise ApiError(0, f"{self.url}: {type(problem).__name__}") from problem
        finally:
            connection.close()
        if answer.status >= 300:
            raise ApiError(answer.status, f"{self.url}{path.partition('?')[0]}: {answer.status} {answer.reason}")
        return text


def presented_authority(url: str) -> str:
    """The certificate authority in the chain that a server presents, unverified, as PEM; raises OSError."""
    parts = urlsplit(url)
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    address = (parts.hostname or "", parts.port or 6443)
    with socket.create_connection(address, TIMEOUT) as plain, context.wrap_socket(plain) as secured:
        return ssl.DER_cert_to_PEM_cert(secured.get_unverified_chain()[-1])
