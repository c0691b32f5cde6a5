"""Embedded etcd: membership, snapshots and the way back from one."""

from __future__ import annotations

import asyncio
import json
import secrets
import shutil
import subprocess
import time
import urllib.request
from contextlib import suppress
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import yaml

from .config import Config
from .log import Fatal, info, write
from .paths import DB, ETCD, RESET_FLAG, SNAPSHOTS, TLS

RESET_SECONDS = 60
HEALTH = "http://127.0.0.1:2381/health"
_NAME = ETCD / "name"
_CONFIG = ETCD / "config"
_LEARNER = ETCD / "learner"  # there while this server has not become a voter


def initialised() -> bool:
    """Whether this server has been a voting member before."""
    return (ETCD / "member/wal").is_dir() and not _LEARNER.exists()


def configuration(config: Config, name: str, initial_cluster: str, state: str) -> dict[str, Any]:
    """etcd's configuration as K3s generates it: TLS everywhere, on the node's address and on loopback."""
    tls = TLS / "etcd"

    def security(kind: str) -> dict[str, Any]:
        prefix = "peer-" if kind == "peer" else ""
        authority = "peer-ca.crt" if kind == "peer" else "server-ca.crt"
        leaf = f"{tls}/{prefix}server-client"
        return {
            "cert-file": f"{leaf}.crt",
            "client-cert-auth": True,
            "key-file": f"{leaf}.key",
            "trusted-ca-file": f"{tls}/{authority}",
        }

    def urls(port: int) -> str:
        return f"https://127.0.0.1:{port},https://{config.node_ip}:{port}"

    return {
        "name": name,
        "data-dir": str(ETCD),
        "advertise-client-urls": f"https://{config.node_ip}:2379",
        "client-transport-security": security("client"),
        # K3s has 5000 and 500, and a lone member may wait for twice as long before it elects itself.
        "election-timeout": 2000,
        "heartbeat-interval": 200,
        "initial-advertise-peer-urls": f"https://{config.node_ip}:2380",
        "initial-cluster": initial_cluster,
        "initial-cluster-state": state,
        "listen-client-http-urls": "https://127.0.0.1:2382",
        "listen-client-urls": urls(2379),
        "listen-metrics-urls": "http://127.0.0.1:2381",
        "listen-peer-urls": urls(2380),
        "log-outputs": ["stderr"],
        "logger": "zap",
        "peer-transport-security": security("peer"),
        "snapshot-count": 10000,
        "experimental-initial-corrupt-check": True,
        "experimental-watch-progress-notify-interval": 5_000_000_000,
        **{name: yaml.safe_load(value) for name, _, value in (each.partition("=") for each in config.etcd_arg)},
    }


def argv() -> list[str]:
    return ["etcd", f"--config-file={_CONFIG}"]


def prepare_first(config: Config) -> None:
    """The configuration of a new cluster's first member, or of a member that is back."""
    name = _member_name(config)
    _write_configuration(configuration(config, name, f"{name}=https://{config.node_ip}:2380", "new"))


def prepare_return() -> None:
    """A member that has data keeps the configuration it was started with."""
    if not _CONFIG.exists():
        raise Fatal(f"etcd data without a configuration: {_CONFIG} is missing")


async def prepare_join(config: Config, server: str) -> int:
    """Registers this server as a learner, as only one may be at a time: waits for its turn. Returns the member's ID."""
    name, peer = _member_name(config), f"https://{config.node_ip}:2380"
    said = False
    while True:
        members = json.loads(await _ctl(server, "member", "list", "-w", "json"))["members"]
        mine = [m for m in members if peer in m["peerURLs"] and m.get("name", "") in ("", name)]
        if not mine and any(m.get("name", "").rpartition("-")[0] == config.node_name for m in members):
            _NAME.unlink(missing_ok=True)
            raise Fatal("etcd cluster join failed: duplicate node name found, please use a unique name for this node")
        if mine:
            break
        with suppress(Fatal):
            await _ctl(server, "member", "add", name, "--learner", f"--peer-urls={peer}")
            continue
        if not said:
            info("Waiting for other members to finish joining etcd cluster")
            said = True
        await asyncio.sleep(0.5)
    others = [f"{m['name']}={m['peerURLs'][0]}" for m in members if m.get("name") and m not in mine]
    _write_configuration(configuration(config, name, ",".join([*others, f"{name}={peer}"]), "existing"))
    write(_LEARNER, "")
    return int(mine[0]["ID"])


async def promote(server: str, member: int) -> None:
    """Makes the learner a voter as soon as it has caught up."""
    while True:
        with suppress(Fatal):
            await _ctl(server, "member", "promote", f"{member:x}")
            _LEARNER.unlink()
            info("Promoted this server to a voting etcd member")
            return
        await asyncio.sleep(0.2)


def healthy() -> bool:
    """Whether the local member has a leader."""
    try:
        with urllib.request.urlopen(HEALTH, timeout=2) as answer:
            return bool(json.load(answer)["health"] == "true")
    except (OSError, ValueError):
        return False


def save_snapshot(name: str, node: str) -> None:
    target = SNAPSHOTS / f"{name}-{node}-{int(time.time())}"
    SNAPSHOTS.mkdir(parents=True, exist_ok=True, mode=0o700)
    info(f"Saving etcd snapshot to {target}")
    done = subprocess.run(
        _client("127.0.0.1", "snapshot", "save", str(target)), capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise Fatal(f"failed to save etcd snapshot: {done.stderr.strip().splitlines()[-1]}")
    info(f"Snapshot {target.name} saved.")


def snapshot_table(snapshots: list[tuple[str, int, float]], directory: Path) -> str:
    """K3s's list: name, size in bytes and time of change of each snapshot, aligned by columns."""
    rows = [("Name", "Location", "Size", "Created")]
    for name, size, changed in sorted(snapshots):
        created = datetime.fromtimestamp(changed, timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")
        rows.append((name, f"file://{directory / name}", str(size), created))
    widths = [max(len(row[i]) for row in rows) for i in range(4)]
    return "".join(" ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip() + "\n" for row in rows)


def list_snapshots() -> str:
    found = sorted(SNAPSHOTS.iterdir()) if SNAPSHOTS.is_dir() else []
    kept = [(p.name, p.stat().st_size, p.stat().st_mtime) for p in found if p.is_file() and p.suffix != ".part"]
    return snapshot_table(kept, SNAPSHOTS)


def reset(config: Config) -> None:
    """Leaves a cluster of one member, with the data of a snapshot or of this server."""
    if healthy():
        raise Fatal("cluster reset is not possible while this server runs: stop the unit first")
    if RESET_FLAG.exists():
        raise Fatal(
            "Managed etcd cluster membership was already reset, please remove the cluster-reset flag and start k3s "
            f"normally. To perform another cluster reset, you must first manually delete the file at {RESET_FLAG}"
        )
    if config.cluster_reset_restore_path:
        _restore(config, Path(config.cluster_reset_restore_path))
    else:
        _force_new_cluster()
    write(RESET_FLAG, "", 0o600)
    info(
        "Managed etcd cluster membership has been reset, restart without --cluster-reset flag now. "
        f"Backup and delete {DB} on each peer etcd server and rejoin the nodes"
    )


def _restore(config: Config, snapshot: Path) -> None:
    if not snapshot.is_absolute():
        snapshot = SNAPSHOTS / snapshot
    if not snapshot.is_file():
        raise Fatal(f"etcd: snapshot path does not exist: {snapshot}")
    name, peer = _member_name(config), f"https://{config.node_ip}:2380"
    fresh, old = DB / "etcd-new", DB / f"etcd-old-{int(time.time())}"
    shutil.rmtree(fresh, ignore_errors=True)
    command = [
        "etcdutl", "snapshot", "restore", str(snapshot), f"--data-dir={fresh}", f"--name={name}",
        f"--initial-cluster={name}={peer}", f"--initial-advertise-peer-urls={peer}",
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise Fatal(f"failed to restore etcd snapshot {snapshot}: {done.stderr.strip().splitlines()[-1]}")
    if ETCD.exists():
        ETCD.rename(old)
        info(f"Pre-restore etcd database moved to {old}")
    fresh.rename(ETCD)
    write(_NAME, name, 0o600)
    _write_configuration(configuration(config, name, f"{name}={peer}", "new"))


def _force_new_cluster() -> None:
    """etcd itself forgets the other members; nothing of the log is lost, as it would be with a copy of the database."""
    if not initialised():
        raise Fatal("cluster reset needs this server's etcd data, or --cluster-reset-restore-path")
    content = {**yaml.safe_load(_CONFIG.read_text()), "force-new-cluster": True}
    temporary = DB / "etcd-reset.yaml"
    write(temporary, yaml.safe_dump(content), 0o600)
    process = subprocess.Popen(["etcd", f"--config-file={temporary}"])
    try:
        deadline = time.monotonic() + RESET_SECONDS
        while not healthy():
            if process.poll() is not None or time.monotonic() > deadline:
                raise Fatal("etcd did not become healthy as a cluster of one member")
            time.sleep(0.2)
    finally:
        process.terminate()
        process.wait()
        temporary.unlink()


def _member_name(config: Config) -> str:
    if not _NAME.exists():
        write(_NAME, f"{config.node_name}-{secrets.token_hex(4)}", 0o600)
    return _NAME.read_text().strip()


def _write_configuration(content: dict[str, Any]) -> None:
    for directory in (DB, ETCD, SNAPSHOTS):
        directory.mkdir(parents=True, exist_ok=True)
        directory.chmod(0o700)
    write(_CONFIG, yaml.safe_dump(content), 0o600)


def _client(host: str, *arguments: str) -> list[str]:
    tls = TLS / "etcd"
    return ["etcdctl", f"--endpoints=https://{host}:2379", f"--cacert={tls}/server-ca.crt", f"--cert={tls}/client.crt",
            f"--key={tls}/client.key", "--command-timeout=5s", *arguments]  # fmt: skip


async def _ctl(host: str, *arguments: str) -> str:
    def run() -> str:
        done = subprocess.run(_client(host, *arguments), capture_output=True, text=True, check=False)
        if done.returncode:
            raise Fatal(f"etcdctl {' '.join(arguments[:2])} at {host} failed: {done.stderr.strip().splitlines()[-1]}")
        return done.stdout

    return await asyncio.to_thread(run)
