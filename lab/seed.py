"""What is a lab's own: keys, the files laid down on each machine at its first start, the inventory for Ansible."""

from __future__ import annotations

import io
import secrets
import subprocess
import tarfile
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path

import yaml

from . import images, ingress
from .images import Image
from .spec import Lab, Machine

KEY = "id_ed25519"
RELEASE = "release.tar"
IMAGES = "images.tar"
UNITS = {"server": "k3s.service", "agent": "k3s-agent.service"}


def sockets(lab: str) -> Path:
    """Where SSH keeps its shared connections: under /run, because a socket's path may not be long."""
    return Path("/run/netmend") / lab


def prepare(lab: Lab, state: Path, variables: Mapping[str, object]) -> None:
    """Fill a lab's state directory: keys, known_hosts, inventory.yml, and NODE.seed for each machine.

    The inventory has `variables` besides its own.
    """
    sockets(lab.name).mkdir(mode=0o700, parents=True, exist_ok=True)
    user_key = _new_key(state / KEY)
    token = secrets.token_hex(24)
    known_hosts = []
    for machine in lab.machines:
        host_key = state / f"{machine.name}.hostkey"
        public = _new_key(host_key)
        known_hosts.append(f"{machine.name},{machine.private},{machine.public} {public}\n")
        files = {
            **_identity(lab, machine),
            **(ingress.FILES if lab.ingress else {}),
            "etc/ssh/ssh_host_ed25519_key": (host_key.read_text(), 0o600),
            "etc/ssh/ssh_host_ed25519_key.pub": (f"{public}\n", 0o644),
            "root/.ssh/authorized_keys": (f"{user_key}\n", 0o600),
            "etc/rancher/k3s/config.yaml": (yaml.safe_dump(k3s_config(lab, machine, token), sort_keys=False), 0o600),
        }
        _write_private(state / f"{machine.name}.seed", _tar(files, None if lab.plain else UNITS[machine.role]))
    (state / "known_hosts").write_text("".join(known_hosts))
    write_inventory(lab, state, variables)


def write_inventory(lab: Lab, state: Path, variables: Mapping[str, object]) -> None:
    (state / "inventory.yml").write_text(yaml.safe_dump(inventory(lab, state, variables), sort_keys=False))


def pack_release(binary: Path, airgap: Path, state: Path) -> None:
    """Make the archive that puts K3s's own binary and images in the stand-in's place on every machine."""
    with tarfile.open(state / RELEASE, "w") as tar:
        _add(tar, binary, "usr/local/bin/k3s", 0o755)
        _add(tar, airgap, f"var/lib/rancher/k3s/agent/images/{airgap.name}", 0o644)


def pack_images(archives: Mapping[str, Sequence[Image]], state: Path) -> None:
    """Make the archive that lays images down on every machine, where K3s imports them from when it starts."""
    inside = state / "inside.tar"
    with tarfile.open(state / IMAGES, "w") as tar:
        for name, content in archives.items():
            images.write(inside, content)
            _add(tar, inside, f"var/lib/rancher/k3s/agent/images/{name}.tar", 0o644)
            inside.unlink()


def _add(tar: tarfile.TarFile, source: Path, target: str, mode: int) -> None:
    info = tar.gettarinfo(source, target)
    info.uid = info.gid = 0
    info.mode = mode
    with source.open("rb") as content:
        tar.addfile(info, content)


def k3s_config(lab: Lab, machine: Machine, token: str) -> dict[str, object]:
    """A machine's /etc/rancher/k3s/config.yaml."""
    first = lab.machines[0]
    config: dict[str, object] = {"token": token, "node-ip": machine.private, "flannel-iface": "enp7s0"}
    if machine == first:
        config["cluster-init"] = True
    else:
        config["server"] = f"https://{first.private}:6443"
    if machine.role == "server":
        config["flannel-backend"] = lab.flannel_backend
        config["disable"] = ["traefik", "servicelb", "metrics-server", "local-storage"]
        config.update(lab.k3s_config)
    return config


def inventory(lab: Lab, state: Path, variables: Mapping[str, object]) -> dict[str, object]:
    """Ansible's inventory; it holds inside the lab's network namespace."""

    def group(role: str) -> dict[str, object]:
        return {"hosts": {m.name: {"ansible_host": m.private} for m in lab.machines if m.role == role}}

    return {
        "k3s_cluster": {
            "children": {"k3s_servers": group("server"), "k3s_agents": group("agent")},
            "vars": {
                "netmend_lab": lab.name,
                "ansible_user": "root",
                "ansible_python_interpreter": "/usr/bin/python3",
                "ansible_ssh_private_key_file": str(state / KEY),
                # Two labs have machines of the same addresses, so they may not share a directory for connections.
                "ansible_ssh_common_args": (
                    f"-o UserKnownHostsFile={state / 'known_hosts'} -o StrictHostKeyChecking=yes"
                    f" -o ControlPath={sockets(lab.name)}/%C"
                ),
                **(ingress.VARIABLES if lab.ingress else {}),
                **variables,
            },
        }
    }


def _identity(lab: Lab, machine: Machine) -> dict[str, tuple[str, int]]:
    environment = {
        "ROLE": machine.role,
        "PUBLIC": machine.public,
        "PUBLIC_MTU": lab.mtu_public,
        "PRIVATE": machine.private,
        "PRIVATE_MTU": lab.mtu_private,
    }
    hosts = ["127.0.0.1 localhost", *(f"{other.private} {other.name}" for other in lab.machines)]
    return {
        "etc/lab/machine.env": ("".join(f"{key}={value}\n" for key, value in environment.items()), 0o644),
        "etc/hostname": (f"{machine.name}\n", 0o644),
        "etc/hosts": ("".join(f"{line}\n" for line in hosts), 0o644),
        "etc/machine-id": (f"{uuid.uuid4().hex}\n", 0o444),
    }


def _tar(files: Mapping[str, tuple[str, int]], unit: str | None) -> bytes:
    """An archive of root's files, path -> (content, mode), and of the link that enables a unit, if one is given."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        home = tarfile.TarInfo("root/.ssh")
        home.type, home.mode = tarfile.DIRTYPE, 0o700
        tar.addfile(home)
        for path, (content, mode) in files.items():
            info = tarfile.TarInfo(path)
            info.size, info.mode = len(content.encode()), mode
            tar.addfile(info, io.BytesIO(content.encode()))
        if unit:
            link = tarfile.TarInfo(f"etc/systemd/system/multi-user.target.wants/{unit}")
            link.type, link.linkname = tarfile.SYMTYPE, f"/etc/systemd/system/{unit}"
            tar.addfile(link)
    return buffer.getvalue()


def _new_key(path: Path) -> str:
    """Make a key pair; returns the public half."""
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", path.stem, "-f", path], check=True)
    return path.with_name(f"{path.name}.pub").read_text().strip()


def _write_private(path: Path, content: bytes) -> None:
    path.touch(mode=0o600)
    path.write_bytes(content)
