"""The container images, and the disk image that every machine starts from."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path

from .. import images
from .steps import Steps

NODE = Path(__file__).parent.parent / "node"
DISK_SIZE = "6G"
AIRGAP_IMAGES = "var/lib/rancher/k3s/agent/images"


def build_containers(steps: Steps, out: Path, made: Mapping[str, Path]) -> None:
    """Make out/*.tar from the programs for pods."""
    del steps
    pod = {"/pod": made["pod"] / "pod"}
    images.write(
        out / "netmend.tar",
        [
            images.Image(f"docker.io/netmend/{name}:1", ["/pod", name], pod)
            for name in ("pause", "app", "target")
        ],
    )  # fmt: skip
    coredns = images.Image("docker.io/netmend/coredns:1", ["/coredns"], {"/coredns": made["coredns"] / "coredns"})
    images.write(out / "coredns.tar", [coredns])


def build_disk(steps: Steps, out: Path, made: Mapping[str, Path]) -> None:
    """Make out/disk.img: the system, Kubernetes, the container images and everything under lab/node."""
    tree = out / "tree"
    tree.mkdir()
    steps.run("tar", "--extract", "--numeric-owner", "--file", made["system"] / "root.tar", "--directory", tree)
    steps.run("cp", "-dr", "--preserve=mode,links", f"{made['kube']}/.", tree / "usr/local/bin")
    (tree / AIRGAP_IMAGES).mkdir(parents=True)
    steps.run("cp", "-r", f"{made['containers']}/.", tree / AIRGAP_IMAGES)
    _overlay(NODE, tree)
    _settle(steps, tree)
    # Inode tables that are filled now need not be filled by each machine in the background.
    layout = ["-m", "0", "-J", "size=16", "-E", "lazy_itable_init=0,nodiscard"]
    steps.run("mke2fs", "-q", "-t", "ext4", *layout, "-d", tree, out / "disk.img", DISK_SIZE)
    shutil.rmtree(tree)


def _overlay(source: Path, tree: Path) -> None:
    """Copy files and links in with the modes that git knows, whatever this checkout's umask made of them."""
    for path in sorted(source.rglob("*")):
        if "__pycache__" in path.parts:
            continue
        target = tree / path.relative_to(source)
        if path.is_dir() and not path.is_symlink():
            target.mkdir(exist_ok=True)
        else:
            target.unlink(missing_ok=True)
            shutil.copyfile(path, target, follow_symlinks=False)
            if not path.is_symlink():
                target.chmod(0o755 if path.stat().st_mode & 0o100 else 0o644)


def _settle(steps: Steps, tree: Path) -> None:
    (tree / "etc/fstab").write_text("/dev/ubda / ext4 defaults,noatime 0 1\n")
    (tree / "etc/hostname").write_text("lab\n")
    (tree / "etc/resolv.conf").unlink(missing_ok=True)
    (tree / "etc/resolv.conf").touch()
    # Every machine gets keys and an identity of its own. Empty and not absent: a first boot would apply presets.
    (tree / "etc/machine-id").write_text("")
    for key in (tree / "etc/ssh").glob("ssh_host_*"):
        key.unlink()
    (tree / "opt/cni").mkdir(parents=True)
    (tree / "opt/cni/bin").symlink_to("/usr/lib/cni")
    steps.run("chroot", tree, "systemctl", "preset-all")
