"""The ingress controller of a lab: an image in the place of ingress-nginx's, and certificates of the lab's authority.

The image cannot be had from package registries. Ours has the name that role ingress_nginx asks for and lies ready on
each machine; lab/README.md says what is in it, and in what it differs.
"""

from __future__ import annotations

import base64
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml

from . import images
from .build import Artifacts, edge
from .spec import Lab

ROLE = Path(__file__).parents[1] / "roles/ingress_nginx/defaults/main.yml"
PLAYBOOK = "playbooks/ingress_nginx.yml"
PROGRAM = "/nginx-ingress-controller"
USER = "101"  # as in ingress-nginx's own image
AUTHORITY = "ca.crt"  # in a lab's state directory
# The image has no digest that anybody could know before.
VARIABLES = {"ingress_nginx_digest": ""}
# ingress-nginx's programs have the file capability for ports below 1024, which the machines' disks cannot keep.
FILES = {"etc/sysctl.d/90-lab-ingress.conf": ("net.ipv4.ip_unprivileged_port_start = 80\n", 0o644)}


def container_images(artifacts: Artifacts) -> list[images.Image]:
    defaults = yaml.safe_load(ROLE.read_text())
    tree = artifacts.edge_tools
    files = {f"/{path.relative_to(tree)}": path for path in tree.rglob("*") if path.is_file()}
    del files[f"/{edge.HAPROXY}"]
    return [
        images.Image(
            f"{defaults['ingress_nginx_image']}:{defaults['ingress_nginx_version']}",
            [PROGRAM],
            {PROGRAM: artifacts.ingress},
            links={"/wait-shutdown": PROGRAM},
            base=files,
            user=USER,
        )
    ]


def certificates(lab: Lab, state: Path) -> list[dict[str, Any]]:
    """The Secrets that the Ingresses of the lab's manifests name, of an authority that is made for it."""
    wanted = list(_wanted(lab))
    if wanted:
        extension = ["-addext", "basicConstraints=critical,CA:TRUE"]
        _openssl(state / "ca.key", state / AUTHORITY, "netmend lab's authority", extension)
    return [_secret(state, namespace, name, hosts) for namespace, name, hosts in wanted]


def hosts(lab: Lab) -> list[str]:
    """The hosts of the Ingresses of the lab's manifests."""
    rules = [rule for ingress in _ingresses(lab) for rule in ingress["spec"]["rules"]]
    return sorted({rule["host"] for rule in rules})


def _wanted(lab: Lab) -> Iterator[tuple[str, str, list[str]]]:
    found: dict[tuple[str, str], set[str]] = {}
    for ingress in _ingresses(lab):
        for entry in ingress["spec"].get("tls", []):
            key = ingress["metadata"]["namespace"], entry["secretName"]
            found.setdefault(key, set()).update(entry["hosts"])
    for (namespace, name), names in sorted(found.items()):
        yield namespace, name, sorted(names)


def _ingresses(lab: Lab) -> list[dict[str, Any]]:
    items = (item for app in lab.apps for item in yaml.safe_load_all(app.read_text()))
    return [item for item in items if item["kind"] == "Ingress"]


def _secret(state: Path, namespace: str, name: str, hosts: Sequence[str]) -> dict[str, Any]:
    key, certificate = state / "tls.key", state / "tls.crt"
    names = ",".join(f"DNS:{host}" for host in hosts)
    signed = ["-CA", str(state / AUTHORITY), "-CAkey", str(state / "ca.key"), "-addext", f"subjectAltName={names}"]
    _openssl(key, certificate, hosts[0], [*signed, "-addext", "basicConstraints=critical,CA:FALSE"])
    data = {path.name: base64.b64encode(path.read_bytes()).decode() for path in (certificate, key)}
    metadata = {"namespace": namespace, "name": name}
    return {"apiVersion": "v1", "kind": "Secret", "metadata": metadata, "type": "kubernetes.io/tls", "data": data}


def _openssl(key: Path, certificate: Path, name: str, more: Sequence[str]) -> None:
    new = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-noenc", "-days", "3650"]
    paths = ["-keyout", str(key), "-out", str(certificate), "-subj", f"/CN={name}"]
    subprocess.run([*new, *paths, *more], check=True, capture_output=True)
