"""`k3s crictl`, as far as containerd's own records carry it: pods, ps, inspectp, inspect, images, inspecti and pull.

Debian has no crictl. What is missing: what else changes something, exec, logs, stats, and the CRI's own view (the
network status of a sandbox, reasons and exit codes of containers). A pull is containerd's own, without K3s's mirrors.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timezone
from typing import Any

from .log import Fatal
from .paths import CONTAINERD_SOCKET

CTR = ("ctr", "-a", str(CONTAINERD_SOCKET), "-n", "k8s.io")
KIND = "io.cri-containerd.kind"
_STATES = {
    "SANDBOX_READY": "Ready",
    "SANDBOX_NOTREADY": "NotReady",
    "CONTAINER_RUNNING": "Running",
    "CONTAINER_EXITED": "Exited",
}
USAGE = (
    "crictl of the k3s stand-in: pods | ps [-a] | images, each with -o json or -q; inspectp ID; inspect ID; "
    "inspecti IMAGE; pull IMAGE"
)


def main(argv: list[str]) -> int:
    words = [a for a in argv if not a.startswith("-") and a not in ("json", "table")]
    options = set(argv) - set(words)
    if not words or words[0] not in ("pods", "ps", "inspectp", "inspect", "images", "inspecti", "pull"):
        raise Fatal(USAGE)
    verb = words[0]
    if verb in ("inspectp", "inspect", "inspecti", "pull") and len(words) != 2:
        raise Fatal(USAGE)
    if verb in ("inspecti", "pull"):
        return _image(words[1], verb == "pull")
    if verb == "images":
        if _as_json(options):
            names = _ctr("images", "ls", "-q").split()
            json.dump({"images": [{"repoTags": [name], "repoDigests": []} for name in names]}, sys.stdout, indent=2)
            print()
        else:
            print(_ctr("images", "ls", *(["-q"] if "-q" in options else [])), end="")
        return 0
    if verb.startswith("inspect"):
        json.dump(inspect(_info(words[1]), _pids()), sys.stdout, indent=2)
        print()
        return 0
    containers, pids = _containers(), _pids()
    kind, make = ("sandbox", sandbox) if verb == "pods" else ("container", container)
    found = [make(c, pids) for c in containers if c["Labels"].get(KIND) == kind]
    if verb == "ps" and not options & {"-a", "--all"}:
        found = [c for c in found if c["state"] == "CONTAINER_RUNNING"]
    if "-q" in options:
        print("".join(f"{c['id']}\n" for c in found), end="")
    elif _as_json(options):
        json.dump({"items" if verb == "pods" else "containers": found}, sys.stdout, indent=2)
        print()
    else:
        print(table(found), end="")
    return 0


def _image(image: str, pull: bool) -> int:
    if pull:
        _ctr("images", "pull", image)
    found = _ctr("images", "ls", "-q", f"name=={image}").split()
    if not found:
        raise Fatal(f"no such image {image!r} present")
    json.dump({"status": {"repoTags": found}}, sys.stdout, indent=2)
    print()
    return 0


def _as_json(options: set[str]) -> bool:
    return bool(options & {"json", "-ojson", "--output=json"})


def sandbox(record: dict[str, Any], pids: dict[str, int]) -> dict[str, Any]:
    """A pod sandbox as ListPodSandbox shows it, from containerd's record and the running tasks."""
    return {
        "id": record["ID"],
        "metadata": {**_pod(record), "attempt": 0},
        "state": "SANDBOX_READY" if record["ID"] in pids else "SANDBOX_NOTREADY",
        "createdAt": str(_nanoseconds(record["CreatedAt"])),
        "labels": _plain(record["Labels"]),
        "annotations": {},
        "runtimeHandler": "",
    }


def container(record: dict[str, Any], pids: dict[str, int]) -> dict[str, Any]:
    """A container as ListContainers shows it."""
    return {
        "id": record["ID"],
        "podSandboxId": record.get("SandboxID") or _annotation(record, "io.kubernetes.cri.sandbox-id"),
        "metadata": {"name": record["Labels"].get("io.kubernetes.container.name", ""), "attempt": 0},
        "image": {"image": record["Image"]},
        "imageRef": record["Image"],
        "state": "CONTAINER_RUNNING" if record["ID"] in pids else "CONTAINER_EXITED",
        "createdAt": str(_nanoseconds(record["CreatedAt"])),
        "labels": _plain(record["Labels"]),
        "annotations": {},
    }


def inspect(record: dict[str, Any], pids: dict[str, int]) -> dict[str, Any]:
    """Status and runtime part of one container or sandbox; info.pid and info.runtimeSpec are what callers ask for."""
    make = sandbox if record["Labels"].get(KIND) == "sandbox" else container
    return {
        "status": make(record, pids),
        "info": {
            "pid": pids.get(record["ID"], 0),
            "runtimeSpec": record["Spec"],
            "runtimeType": record["Runtime"]["Name"],
        },
    }


def table(found: list[dict[str, Any]]) -> str:
    rows = [["ID", "CREATED", "STATE", "NAME", "NAMESPACE", "POD"]]
    for c in found:
        labels = c["labels"]
        created = datetime.fromtimestamp(int(c["createdAt"]) / 1e9, timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")
        state = _STATES[c["state"]]
        pod, namespace = (labels.get(f"io.kubernetes.pod.{k}", "") for k in ("name", "namespace"))
        rows.append([c["id"][:13], created, state, c["metadata"]["name"], namespace, pod])
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return "".join("   ".join(v.ljust(w) for v, w in zip(row, widths)).rstrip() + "\n" for row in rows)


def _pod(record: dict[str, Any]) -> dict[str, str]:
    labels = record["Labels"]
    return {key: labels.get(f"io.kubernetes.pod.{key}", "") for key in ("name", "uid", "namespace")}


def _plain(labels: dict[str, str]) -> dict[str, str]:
    """The pod's labels without those that containerd adds."""
    return {k: v for k, v in labels.items() if not k.startswith(("io.cri-containerd", "io.containerd"))}


def _annotation(record: dict[str, Any], name: str) -> str:
    return str(record["Spec"].get("annotations", {}).get(name, ""))


def _nanoseconds(stamp: str) -> int:
    whole, _, fraction = stamp.rstrip("Z").partition(".")
    seconds = datetime.strptime(whole, "%Y-%m-%dT%H:%M:%S").replace(tzinfo=timezone.utc).timestamp()
    return int(seconds) * 10**9 + int(fraction.ljust(9, "0")[:9] or 0)


def _containers() -> list[dict[str, Any]]:
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        return list(pool.map(_info, _ctr("containers", "ls", "-q").split()))


def _info(container: str) -> dict[str, Any]:
    known = [c for c in _ctr("containers", "ls", "-q").split() if c.startswith(container)]
    if len(known) != 1:
        raise Fatal(f"no container or pod sandbox {container!r}" if not known else f"{container!r} is not unique")
    record: dict[str, Any] = json.loads(_ctr("containers", "info", known[0]))
    return {**record, "Labels": record.get("Labels") or {}}


def _pids() -> dict[str, int]:
    """Running tasks: container -> process ID."""
    rows = [line.split() for line in _ctr("tasks", "ls").splitlines()[1:]]
    return {row[0]: int(row[1]) for row in rows if row[2] == "RUNNING"}


def _ctr(*arguments: str) -> str:
    done = subprocess.run([*CTR, *arguments], capture_output=True, text=True, check=False)
    if done.returncode:
        raise Fatal(done.stderr.strip())
    return done.stdout
