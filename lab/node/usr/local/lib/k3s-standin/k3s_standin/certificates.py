"""`k3s certificate check`: which certificates there are and until when they hold."""

from __future__ import annotations

import re
import subprocess
import time
from datetime import datetime, timezone
from pathlib import Path

from .log import info, log
from .paths import AGENT, TLS

# In K3s's order: services of the server, then those of the agent and of etcd in between.
FILES = (
    TLS / "client-kube-apiserver.crt",
    TLS / "serving-kube-apiserver.crt",
    TLS / "client-controller.crt",
    TLS / "kube-controller-manager/kube-controller-manager.crt",
    AGENT / "client-kubelet.crt",
    AGENT / "serving-kubelet.crt",
    TLS / "client-admin.crt",
    TLS / "client-auth-proxy.crt",
    TLS / "etcd/client.crt",
    TLS / "etcd/server-client.crt",
    TLS / "etcd/peer-server-client.crt",
    TLS / "client-scheduler.crt",
    TLS / "kube-scheduler/kube-scheduler.crt",
    AGENT / "client-kube-proxy.crt",
    AGENT / "client-k3s-controller.crt",
)
WARN_DAYS = 120
_USES = {
    "TLS Web Server Authentication": "ServerAuth",
    "TLS Web Client Authentication": "ClientAuth",
    "Certificate Sign": "CertSign",
}


def check() -> None:
    """Prints a line a certificate, in K3s's words."""
    info(f"{'Server' if TLS.is_dir() else 'Agent'} detected, checking agent and server certificates")
    for file in FILES:
        for pem in split(file.read_text()) if file.exists() else []:
            log(*describe(file, facts(pem), time.time()))


def describe(file: Path, said: str, now: float) -> tuple[str, str]:
    """The level and text of one line, from what openssl says about a certificate."""
    subject = re.search(r"^subject=.*CN ?= ?(.*)$", said, re.M)
    ends = re.search(r"^notAfter=(.*)$", said, re.M)
    if not (subject and ends):
        return "error", f"{file.name}: cannot be read"
    until = datetime.strptime(ends.group(1), "%b %d %H:%M:%S %Y GMT").replace(tzinfo=timezone.utc)
    # The key usage of every leaf is named too; only for an authority does K3s print it.
    uses = [short for long, short in _USES.items() if long in said]
    what = f"{file.name}: certificate {subject.group(1)} ({','.join(uses)})"
    when = until.strftime("%Y-%m-%dT%H:%M:%SZ")
    days = (until.timestamp() - now) / 86400
    if days < 0:
        return "error", f"{what} expired at {when}"
    if days < WARN_DAYS:
        return "warning", f"{what} will expire within {WARN_DAYS} days at {when}"
    return "info", f"{what} is ok, expires at {when}"


def split(text: str) -> list[str]:
    """The certificates of a PEM file, one by one."""
    return re.findall(r"-----BEGIN CERTIFICATE-----.+?-----END CERTIFICATE-----\n", text, re.S)


def facts(pem: str) -> str:
    """What openssl says about one certificate."""
    command = ["openssl", "x509", "-noout", "-subject", "-enddate", "-ext", "keyUsage,extendedKeyUsage"]
    return subprocess.run(command, input=pem, capture_output=True, text=True, check=False).stdout
