"""How nodes find into a cluster: by the API server on 6443 alone, with the token, as K3s's nodes do.

A server keeps in one Secret what K3s would serve under /v1-k3s: the authorities and the settings that nodes take over.
The token authenticates an identity that may read this Secret and nothing else. K3s signs an agent's certificates on the
server; here the agent gets the authorities, signs for itself and keeps none of their keys.
"""

from __future__ import annotations

import asyncio
import base64
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from . import pki
from .api import Api, ApiError, presented_authority
from .config import Config
from .log import Fatal, error, write
from .paths import CRED, SERVER, TLS

IDENTITY = "k3s-standin-bootstrap"
_SECRETS = "/api/v1/namespaces/kube-system/secrets"
_RBAC = "/apis/rbac.authorization.k8s.io/v1"


@dataclass(frozen=True)
class Cluster:
    """What K3s requires to be the same on all servers, and what an agent takes over from one."""

    flannel_backend: str
    cluster_cidr: str
    service_cidr: str
    cluster_dns: str
    cluster_domain: str
    disable_network_policy: bool

    @classmethod
    def of(cls, config: Config) -> Cluster:
        return cls(**{name: getattr(config, name) for name in cls.__dataclass_fields__})


@dataclass(frozen=True)
class Bootstrap:
    """What a joining node learns."""

    cluster: Cluster
    files: dict[str, str]  # the authorities, by their path below server/tls
    password: str

    def write_authorities(self, directory: Path) -> None:
        for name, content in self.files.items():
            write(directory / name, content, 0o600 if name.endswith(".key") else 0o644)


async def join(config: Config, addresses: list[str]) -> Bootstrap:
    """Asks until a server answers; an agent also until it accepts the token, where K3s's server gives up."""
    said = ""
    while True:
        for address in addresses:
            try:
                return await asyncio.to_thread(_fetch, config, address)
            except (OSError, ApiError, Fatal) as problem:
                refused = isinstance(problem, Fatal) or (isinstance(problem, ApiError) and problem.status == 401)
                message = f"Failed to validate connection to cluster at {address}: failed to validate token: {problem}"
                if refused and config.role == "server":
                    raise Fatal(f"Error: preparing server: failed to bootstrap cluster data: {problem}") from problem
            if message != said:
                error(message)
                said = message
        await asyncio.sleep(0.5)


def publish(api: Api, config: Config) -> None:
    """Puts what nodes need to join into the cluster."""
    for path, thing in [*_permissions(), (f"{_SECRETS}/{IDENTITY}", _secret(config))]:
        # One field manager a server: each owns its own settings, and all own the authorities.
        api.apply(path, thing, manager=f"k3s-standin-{config.node_name}")


def check_critical(config: Config, theirs: Cluster) -> None:
    """K3s compares these when a server joins, and only then."""
    mine = asdict(Cluster.of(config))
    different = [f"{k} ({mine[k]!r} here, {v!r} there)" for k, v in asdict(theirs).items() if mine[k] != v]
    if different:
        raise Fatal(f"critical configuration value mismatch between servers: {', '.join(different)}")


def keep_token(config: Config) -> str:
    """Writes the token where K3s has it, and the file by which the API server knows it; returns the password."""
    file = SERVER / "token"
    kept = pki.split_token(file.read_text().strip())[1] if file.exists() else ""
    password = pki.split_token(config.token)[1] if config.token else kept or pki.new_password()
    if kept and password != kept:
        raise Fatal("bootstrap data already found and encrypted with different token")
    write(file, f"{pki.full_token(password)}\n", 0o600)
    for name in ("node-token", "agent-token"):
        link = SERVER / name
        if not link.is_symlink():
            link.symlink_to(file)
    write(CRED / "passwd", f"{password},{IDENTITY},{IDENTITY}\n", 0o600)
    return password


def _fetch(config: Config, address: str) -> Bootstrap:
    digest, password = pki.split_token(config.token)
    authority = presented_authority(address)
    if digest and digest != pki.ca_hash(authority):
        raise Fatal(
            f"token CA hash does not match the Cluster CA certificate hash: {digest} != {pki.ca_hash(authority)}"
        )
    secret = Api(address, authority, token=password).get(f"{_SECRETS}/{IDENTITY}")
    data = {key: base64.b64decode(value).decode() for key, value in secret["data"].items()}
    settings = {key: value for key, value in data.items() if key.startswith("config.")}
    # A server answers with its own settings; behind a name that several share, with those of any.
    chosen = settings.get(f"config.{urlsplit(address).hostname}") or settings[min(settings)]
    files = {name: data[_key(name)] for name in pki.SHARED_FILES}
    return Bootstrap(Cluster(**json.loads(chosen)), files, password)


def _key(path: str) -> str:
    return path.replace("/", ".")


def _secret(config: Config) -> dict[str, Any]:
    files = {_key(name): (TLS / name).read_text() for name in pki.SHARED_FILES}
    content = {**files, f"config.{config.node_ip}": json.dumps(asdict(Cluster.of(config)))}
    return {
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": {"name": IDENTITY, "namespace": "kube-system"},
        "data": {key: base64.b64encode(value.encode()).decode() for key, value in content.items()},
    }


def _permissions() -> list[tuple[str, dict[str, Any]]]:
    """The bootstrap identity reads its Secret; K3s's controller (Flannel, the balancer) reads and annotates nodes."""
    controller = "system:k3s-controller"
    read_secret = {"apiGroups": [""], "resources": ["secrets"], "resourceNames": [IDENTITY], "verbs": ["get"]}
    nodes = {"apiGroups": [""], "resources": ["nodes"], "verbs": ["get", "list", "watch", "patch"]}
    nodes_status = {"apiGroups": [""], "resources": ["nodes/status"], "verbs": ["patch"]}
    endpoints = {"apiGroups": ["discovery.k8s.io"], "resources": ["endpointslices"], "verbs": ["get", "list", "watch"]}
    return [
        _role("ClusterRole", controller, [nodes, nodes_status, endpoints]),
        _binding("ClusterRole", controller, controller),
        _binding("ClusterRole", "system:node-proxier", "system:kube-proxy"),
        _role("Role", IDENTITY, [read_secret]),
        _binding("Role", IDENTITY, IDENTITY),
    ]


def _role(kind: str, name: str, rules: list[dict[str, Any]]) -> tuple[str, dict[str, Any]]:
    return _rbac(kind, name, {"rules": rules})


def _binding(role_kind: str, role: str, user: str) -> tuple[str, dict[str, Any]]:
    group = "rbac.authorization.k8s.io"
    reference = {"apiGroup": group, "kind": role_kind, "name": role}
    subjects = [{"apiGroup": group, "kind": "User", "name": user}]
    return _rbac(f"{role_kind}Binding", f"{user}-binding", {"roleRef": reference, "subjects": subjects})


def _rbac(kind: str, name: str, content: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    namespaced = not kind.startswith("Cluster")
    metadata = {"name": name, **({"namespace": "kube-system"} if namespaced else {})}
    directory = f"{_RBAC}{'/namespaces/kube-system' if namespaced else ''}/{kind.lower()}s"
    thing = {"apiVersion": "rbac.authorization.k8s.io/v1", "kind": kind, "metadata": metadata, **content}
    return f"{directory}/{name}", thing
