"""Building what a lab is made of, once: `ensure()` gives the paths and builds what the cache does not have."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from .. import cache, host
from . import calico, debian, edge, image, kernel, programs, system
from .steps import BuildError, Steps

__all__ = ["CALICO", "EDGE", "LAB", "PARTS", "Artifacts", "BuildError", "ensure"]

Progress = Callable[[str], None]
HERE = Path(__file__).parent
SIGN_OF_LIFE = 30  # seconds without news


@dataclass(frozen=True)
class Part:
    """What is built by `make(steps, directory, {need: its directory})` from `inputs` and the parts that it needs."""

    make: Callable[[Steps, Path, Mapping[str, Path]], None]
    inputs: tuple[Path, ...]
    needs: tuple[str, ...] = ()
    disk: int = 1 << 28  # bytes that building it takes for a while, Go's caches included


def _program(name: str) -> Part:
    def make(steps: Steps, out: Path, _made: Mapping[str, Path]) -> None:
        (programs.build_kube if name == "kube" else partial(programs.build, name))(steps, out)

    module = programs.MODULE
    inputs = (HERE / "programs.py", module / "go.mod", module / "go.sum", module / name)
    return Part(make, inputs, disk=3 << 30 if name == "kube" else Part.disk)


def _tools(name: str, packages: Sequence[str], wanted: Sequence[str]) -> Part:
    def make(steps: Steps, out: Path, _made: Mapping[str, Path]) -> None:
        debian.build(packages, wanted, steps, out)

    return Part(make, tuple(HERE / f"{each}.py" for each in (name, "debian", "system")))


PARTS: dict[str, Part] = {
    "kernel": Part(
        lambda steps, out, _: kernel.build(steps, out),
        (HERE / "kernel.py", kernel.FRAGMENT, *kernel.PATCHES),
        disk=5 << 29,
    ),
    "system": Part(lambda steps, out, _: system.build(steps, out), (HERE / "system.py",), disk=3 << 29),
    "kube": _program("kube"),
    "coredns": _program("coredns"),
    "pod": _program("pod"),
    "containers": Part(image.build_containers, (HERE / "image.py", HERE.parent / "images.py"), ("coredns", "pod")),
    "calico": _program("calico"),
    "calico-tools": _tools("calico", calico.PACKAGES, calico.WANTED),
    "ingress": _program("ingress"),
    "edge-tools": _tools("edge", edge.PACKAGES, (edge.NGINX, edge.HAPROXY)),
    "disk": Part(image.build_disk, (HERE / "image.py", image.NODE), ("system", "kube", "containers"), disk=3 << 29),
}


# What every lab takes, and what one with Calico, or with an ingress controller or balancers, takes besides.
LAB = ("kernel", "containers", "disk")
CALICO = ("calico", "calico-tools")
EDGE = ("ingress", "edge-tools")


@dataclass(frozen=True)
class Artifacts:
    """Where the built things are; all of them are read-only for their users."""

    kernel: Path  # the user-mode Linux executable
    image: Path  # the ext4 file that machines' copy-on-write disks start from
    containers: Path  # directory of docker-archive tars; they are in the image, too
    kubectl: Path  # for the host
    calico: Path  # the program that stands in for those of Calico's images; there when CALICO was asked for
    calico_tools: Path  # directory of what it runs, by the path inside its images
    ingress: Path  # the program that stands in for ingress-nginx's controller; there when EDGE was asked for
    edge_tools: Path  # directory of nginx, HAProxy and their libraries, by the path on a Debian


def places() -> dict[str, Path]:
    """Where each part is, or will be: a part's hash takes in those of the parts that it needs."""
    hashes: dict[str, str] = {}
    for name, part in PARTS.items():
        hashes[name] = cache.digest(name, *part.inputs, *(hashes[need] for need in part.needs))
    return {name: cache.root() / "artifacts" / f"{name}-{value}" for name, value in hashes.items()}


def ensure(progress: Progress = print, parts: Collection[str] = PARTS.keys()) -> Artifacts:
    """Have `parts` and what they need, building side by side what is missing; BuildError when one fails.

    Interrupted, it ends what it started and leaves nothing half made.
    """
    if unknown := set(parts) - PARTS.keys():
        raise BuildError(f"no part {', '.join(sorted(unknown))}; there are {', '.join(PARTS)}")
    where = places()
    wanted = _with_needs(parts)
    if missing := [name for name in wanted if not where[name].is_dir()]:
        host.prepare_build(sum(PARTS[name].disk for name in missing), progress)
    _Build(where, progress).run(wanted)
    return Artifacts(
        kernel=where["kernel"] / "linux",
        image=where["disk"] / "disk.img",
        containers=where["containers"],
        kubectl=where["kube"] / "kubectl",
        calico=where["calico"] / "calico",
        calico_tools=where["calico-tools"],
        ingress=where["ingress"] / "ingress",
        edge_tools=where["edge-tools"],
    )


def _with_needs(parts: Collection[str]) -> list[str]:
    wanted = set(parts)
    for name in reversed(PARTS):
        if name in wanted:
            wanted.update(PARTS[name].needs)
    return [name for name in PARTS if name in wanted]


class _Build:
    def __init__(self, where: Mapping[str, Path], progress: Progress) -> None:
        self._where = where
        self._progress = progress
        self._start = time.monotonic()
        self._say_lock = threading.Lock()
        self._building: set[str] = set()
        logs = cache.root() / "logs"
        self._steps = {name: Steps(name, logs / f"{name}.log") for name in where}

    def run(self, names: list[str]) -> None:
        done: dict[str, Future[None]] = {}
        pool = ThreadPoolExecutor(max_workers=len(names))
        try:
            for name in names:
                done[name] = pool.submit(self._have, name, [done[need] for need in PARTS[name].needs])
            left = set(done.values())
            while left:
                finished, left = wait(left, timeout=SIGN_OF_LIFE, return_when=FIRST_COMPLETED)
                for each in finished:
                    each.result()
                if not finished:
                    self._say("still building", ", ".join(sorted(self._building)))
        finally:
            for steps in self._steps.values():
                steps.stop()
            pool.shutdown(cancel_futures=True)

    def _have(self, name: str, needs: list[Future[None]]) -> None:
        for need in needs:
            need.result()
        made = {need: self._where[need] for need in PARTS[name].needs}
        start = time.monotonic()

        def make(out: Path) -> None:
            self._say(name, "building")
            self._building.add(name)
            PARTS[name].make(self._steps[name], out, made)
            self._building.discard(name)
            if places()[name] != self._where[name]:
                raise BuildError(f"{name}: its sources were changed while it was built; build it again")

        built = cache.produce(self._where[name], make, lambda: self._say(name, "waiting for another build of it"))
        self._say(name, f"built in {_duration(time.monotonic() - start)}" if built else "cached")

    def _say(self, name: str, what: str) -> None:
        with self._say_lock:
            self._progress(f"{_duration(time.monotonic() - self._start):>8}  {name}: {what}")


def _duration(seconds: float) -> str:
    return f"{int(seconds) // 60} min {int(seconds) % 60:02} s" if seconds >= 60 else f"{seconds:.1f} s"
