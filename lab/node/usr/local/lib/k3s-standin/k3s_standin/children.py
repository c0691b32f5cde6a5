"""The processes of a node: they run as long as the unit does, and the first that ends ends it."""

from __future__ import annotations

import asyncio
import os
import signal
from asyncio.subprocess import DEVNULL, Process
from pathlib import Path

from .log import Fatal, info

# Whoever uses a service stops before it; each group gets its seconds, and all of them end within TimeoutStopSec=4.
STOP_ORDER = (
    (("kubelet", "kube-proxy", "flanneld", "kube-controller-manager", "kube-scheduler", "containerd"), 1.5),
    (("kube-apiserver",), 0.3),  # it would wait for its watchers, for up to a minute
    (("etcd",), 1.5),
)


class Children:
    def __init__(self) -> None:
        self._running: dict[str, Process] = {}
        self._watchers: set[asyncio.Task[None]] = set()
        self._stopping = False
        self.died: asyncio.Future[str] = asyncio.get_running_loop().create_future()

    async def start(self, argv: list[str], log: Path | None = None, **environment: str) -> None:
        """Starts one; it writes to the journal, or to the file where K3s has its log in one."""
        name = os.path.basename(argv[0])
        info(f"Running {' '.join(argv)}")
        inherited = {k: v for k, v in os.environ.items() if k != "NOTIFY_SOCKET"}
        output = log.open("ab") if log else None
        # Should the stand-in itself be killed, none of these may outlive it and hold the ports of the next one.
        process = await asyncio.create_subprocess_exec(
            "setpriv", "--pdeathsig", "KILL", *argv,
            stdin=DEVNULL, stdout=output, stderr=output, env={**inherited, **environment},
        )  # fmt: skip
        if output:
            output.close()
        self._running[name] = process
        watcher = asyncio.create_task(self._watch(name, process, log))
        self._watchers.add(watcher)

    async def _watch(self, name: str, process: Process, log: Path | None) -> None:
        status = await process.wait()
        if self._stopping or self.died.done():
            return
        tail = "; its last lines: " + " | ".join(log.read_text(errors="replace").splitlines()[-10:]) if log else ""
        self.died.set_exception(Fatal(f"{name} exited: status {status}{tail}"))

    async def stop(self) -> None:
        """Ends all but containerd's shims: pods run on."""
        self._stopping = True
        for names, seconds in STOP_ORDER:
            group = [(name, self._running[name]) for name in names if name in self._running]
            for name, process in group:
                # Flannel would take its rules along; K3s, which has it inside, leaves them standing.
                _signal(process, signal.SIGKILL if name == "flanneld" else signal.SIGTERM)
            await _wait(group, seconds)
            for _, process in group:
                _signal(process, signal.SIGKILL)
            await _wait(group, 0.5)


async def _wait(group: list[tuple[str, Process]], seconds: float) -> None:
    if group:
        await asyncio.wait([asyncio.ensure_future(process.wait()) for _, process in group], timeout=seconds)


def _signal(process: Process, number: int) -> None:
    if process.returncode is None:
        process.send_signal(number)
