"""The machines' Debian: what the operators' nodes have installed, and what stands in for parts that K3s embeds."""

from __future__ import annotations

from pathlib import Path

from . import apt
from .steps import Steps

SUITE = "trixie"
BASE = [
    "systemd",
    "systemd-sysv",
    "dbus",
    "udev",
    "kmod",
    "procps",
    "python3",
    "openssh-server",
    "curl",
    "ca-certificates",
]
NETWORK = ["iproute2", "iptables", "nftables", "ufw", "conntrack", "ipset", "iputils-ping", "ethtool", "tcpdump"]
# K3s has runc. crun does the same for a fraction of the processor's time, of which each probe by a command takes some.
EMBEDDED_IN_K3S = ["containerd", "crun", "containernetworking-plugins", "etcd-server", "etcd-client", "openssl"]
OF_THE_STAND_IN = ["python3-yaml"]
NOT_UNPACKED = ["/usr/share/doc/*", "/usr/share/man/*", "/usr/share/locale/*"]


def build(steps: Steps, out: Path) -> None:
    """Make out/root.tar."""
    work = out / "work"
    work.mkdir()
    steps.run(
        "mmdebstrap",
        "--mode=root",
        "--variant=minbase",
        "--format=tar",
        f"--keyring={apt.keyring()}",
        f"--include={','.join(BASE + NETWORK + EMBEDDED_IN_K3S + OF_THE_STAND_IN)}",
        '--aptopt=APT::Sandbox::User "root"',
        "--aptopt=Acquire::Retries 3",
        "--dpkgopt=force-unsafe-io",
        *(f"--dpkgopt=path-exclude={pattern}" for pattern in NOT_UNPACKED),
        SUITE,
        out / "root.tar",
        apt.mirror(),
        env={"TMPDIR": str(work)},
    )
    work.rmdir()
