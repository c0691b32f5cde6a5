"""The Go programs: Kubernetes with Flannel in one binary as K3s has it, CoreDNS, and what runs in the test pods."""

from __future__ import annotations

import threading
from pathlib import Path

from .. import host
from .steps import Steps

MODULE = Path(__file__).parent.parent / "go"
KUBE_NAMES = [
    "kube-apiserver",
    "kube-controller-manager",
    "kube-scheduler",
    "kubelet",
    "kube-proxy",
    "kubectl",
    "flanneld",
]

# Side by side they would compile the packages that they share twice.
_one_at_a_time = threading.Lock()


def build(program: str, steps: Steps, out: Path) -> None:
    """Make out/PROGRAM, statically linked, from go/PROGRAM."""
    version = _kubernetes_version()
    major, minor, _ = version.lstrip("v").split(".")
    base = "k8s.io/component-base/version"
    stamps = {"gitVersion": f"{version}+k3s1", "gitMajor": major, "gitMinor": minor, "gitTreeState": "clean"}
    link = " ".join(["-s -w", *(f"-X {base}.{name}={value}" for name, value in stamps.items())])
    with _one_at_a_time:
        steps.run(
            host.go(), "build", "-tags=providerless", f"-ldflags={link}", "-o", out / program, f"./{program}",
            cwd=MODULE,
            env={"CGO_ENABLED": "0", "GOTOOLCHAIN": "local", "GOFLAGS": "-mod=readonly -buildvcs=false -trimpath"},
        )  # fmt: skip


def build_kube(steps: Steps, out: Path) -> None:
    build("kube", steps, out)
    for name in KUBE_NAMES:
        (out / name).symlink_to("kube")


def _kubernetes_version() -> str:
    lines = (MODULE / "go.mod").read_text().splitlines()
    return next(line.split()[1] for line in lines if line.strip().startswith("k8s.io/kubernetes "))
