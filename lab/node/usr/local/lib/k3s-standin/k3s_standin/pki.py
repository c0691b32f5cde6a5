"""Certificate authorities and certificates at K3s's paths, made by openssl; what exists is kept."""

from __future__ import annotations

import hashlib
import secrets
import ssl
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

from .config import Config
from .log import Fatal, write
from .network import service_address
from .paths import AGENT, STANDIN, TLS

CA_DAYS, LEAF_DAYS = 3650, 365

CAS = {
    "server-ca": "k3s-server-ca",
    "client-ca": "k3s-client-ca",
    "request-header-ca": "k3s-request-header-ca",
    "etcd/server-ca": "etcd-server-ca",
    "etcd/peer-ca": "etcd-peer-ca",
}
SERVICE_KEY = "service.key"
# All that a further server needs to issue the same identities.
SHARED_FILES = [f"{ca}{suffix}" for ca in CAS for suffix in (".crt", ".key")] + [SERVICE_KEY]


@dataclass(frozen=True)
class Leaf:
    """One certificate: where it lies (no suffix), who signs it, whose it is and what for."""

    path: str
    ca: str
    subject: str
    usage: str
    names: tuple[str, ...] = ()


def etcd_leaves(config: Config) -> list[Leaf]:
    names = ("DNS:localhost", "IP:127.0.0.1", f"IP:{config.node_ip}", f"DNS:{config.node_name}")
    return [
        Leaf("etcd/client", "etcd/server-ca", "/CN=etcd-client", "clientAuth"),
        Leaf("etcd/server-client", "etcd/server-ca", "/CN=etcd-server", "serverAuth,clientAuth", names),
        Leaf("etcd/peer-server-client", "etcd/peer-ca", "/CN=etcd-peer", "serverAuth,clientAuth", names),
    ]


def server_leaves(config: Config) -> list[Leaf]:
    domain = config.cluster_domain
    names = (
        *(f"DNS:{n}" for n in ("kubernetes", "kubernetes.default", "kubernetes.default.svc")),
        f"DNS:kubernetes.default.svc.{domain}",
        "DNS:localhost",
        f"DNS:{config.node_name}",
        "IP:127.0.0.1",
        f"IP:{config.node_ip}",
        f"IP:{service_address(config.service_cidr)}",
        *(_alternative_name(n) for n in config.tls_san),
    )
    local = ("DNS:localhost", "IP:127.0.0.1")
    return [
        Leaf("serving-kube-apiserver", "server-ca", "/CN=kube-apiserver", "serverAuth", names),
        Leaf("client-admin", "client-ca", "/O=system:masters/CN=system:admin", "clientAuth"),
        Leaf("client-kube-apiserver", "client-ca", "/O=system:masters/CN=system:apiserver", "clientAuth"),
        Leaf("client-auth-proxy", "request-header-ca", "/CN=system:auth-proxy", "clientAuth"),
        Leaf("client-controller", "client-ca", "/CN=system:kube-controller-manager", "clientAuth"),
        Leaf("client-scheduler", "client-ca", "/CN=system:kube-scheduler", "clientAuth"),
        Leaf("kube-controller-manager/kube-controller-manager", "server-ca", "/CN=kube-controller-manager",
             "serverAuth", local),
        Leaf("kube-scheduler/kube-scheduler", "server-ca", "/CN=kube-scheduler", "serverAuth", local),
    ]  # fmt: skip


def agent_leaves(config: Config) -> list[Leaf]:
    name = config.node_name
    names = (f"DNS:{name}", "DNS:localhost", "IP:127.0.0.1", f"IP:{config.node_ip}")
    return [
        Leaf("client-kubelet", "client-ca", f"/O=system:nodes/CN=system:node:{name}", "clientAuth"),
        Leaf("serving-kubelet", "server-ca", f"/CN={name}", "serverAuth", names),
        Leaf("client-kube-proxy", "client-ca", "/CN=system:kube-proxy", "clientAuth"),
        Leaf("client-k3s-controller", "client-ca", "/CN=system:k3s-controller", "clientAuth"),
    ]


def ensure_authorities() -> None:
    """Makes the authorities of a new cluster; a server that joined has them already."""
    now = int(time.time())
    for path, name in CAS.items():
        if not (TLS / f"{path}.crt").exists():
            _openssl(
                TLS / path,
                ["-subj", f"/CN={name}@{now}", "-days", str(CA_DAYS)],
                "basicConstraints=critical,CA:TRUE",
                "keyUsage=critical,digitalSignature,keyEncipherment,keyCertSign",
            )
    service = TLS / SERVICE_KEY
    if not service.exists():
        # Not genpkey: the API server reads a private key as a public one only in the old form.
        write(service, _run(["openssl", "ecparam", "-genkey", "-name", "prime256v1", "-noout"]), 0o600)


def ensure(leaves: list[Leaf], directory: Path, authorities: Path, mode: int = 0o644) -> None:
    """Issues what is missing, and anew what another authority issued (the node now belongs to a new cluster)."""
    for leaf in leaves:
        certificate = directory / f"{leaf.path}.crt"
        authority = (authorities / f"{leaf.ca}.crt").read_text()
        if certificate.exists() and certificate.read_text().endswith(authority):
            continue
        _openssl(
            directory / leaf.path,
            ["-subj", leaf.subject, "-days", str(LEAF_DAYS),
             "-CA", str(authorities / f"{leaf.ca}.crt"), "-CAkey", str(authorities / f"{leaf.ca}.key")],
            "basicConstraints=critical,CA:FALSE",
            "keyUsage=critical,digitalSignature,keyEncipherment",
            f"extendedKeyUsage={leaf.usage}",
            *([f"subjectAltName={','.join(leaf.names)}"] if leaf.names else []),
        )  # fmt: skip
        # The authority travels with the leaf: a joining node learns it from the handshake.
        write(certificate, certificate.read_text() + authority, mode)


def ensure_agent(config: Config, authorities: Path) -> None:
    """The certificates of a node's own components, with the two authorities that they trust."""
    for name in ("server-ca.crt", "client-ca.crt"):
        write(AGENT / name, (authorities / name).read_text(), 0o600)
    ensure(agent_leaves(config), AGENT, authorities, 0o600)


def ca_hash(certificate: str) -> str:
    """The hash in a K3s token: of the authority's DER form."""
    return hashlib.sha256(ssl.PEM_cert_to_DER_cert(certificate)).hexdigest()


def full_token(password: str) -> str:
    """The token as K3s writes it to server/token."""
    return f"K10{ca_hash((TLS / 'server-ca.crt').read_text())}::server:{password}"


def split_token(token: str) -> tuple[str, str]:
    """A token's authority hash ("" for a short token) and password."""
    if not token.startswith("K10"):
        return "", token
    digest, _, credentials = token[3:].partition("::")
    _, _, password = credentials.partition(":")
    if not (digest and password):
        raise Fatal("failed to normalize server token; must be in format K10<CA-HASH>::<USERNAME>:<PASSWORD>")
    return digest, password


def new_password() -> str:
    return secrets.token_hex(16)


def _alternative_name(name: str) -> str:
    return f"IP:{name}" if name.replace(".", "").isdigit() or ":" in name else f"DNS:{name}"


def _openssl(target: Path, arguments: list[str], *extensions: str) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    # Debian's openssl.cnf would add extensions of its own: this configuration is empty.
    command = [
        "openssl", "req", "-x509", "-new", "-config", f"{STANDIN}/openssl.cnf", "-newkey", "ec",
        "-pkeyopt", "ec_paramgen_curve:P-256", "-noenc", "-keyout", f"{target}.key", "-out", f"{target}.crt",
    ]  # fmt: skip
    for extension in extensions:
        arguments = [*arguments, "-addext", extension]
    _run(command + arguments)
    Path(f"{target}.key").chmod(0o600)


def _run(command: list[str]) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise Fatal(f"{' '.join(command[:3])} failed: {done.stderr.strip()}")
    return done.stdout
