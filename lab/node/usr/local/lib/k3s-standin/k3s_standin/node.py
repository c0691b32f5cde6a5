"""How a node comes up: what starts, in which order, and what waits for what."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import Any, Callable
from urllib.parse import urlsplit
from urllib.request import urlopen

from . import cluster, components, etcd, pki
from .api import Api, ApiError
from .balancer import PORT, Balancer
from .children import Children
from .cluster import Cluster
from .config import PACKAGED, Config
from .log import Fatal, error, info, log, write
from .paths import (
    AGENT,
    BALANCER_STATE,
    CNI_BIN,
    CNI_CONF,
    CONTAINERD,
    CONTAINERD_CONFIG,
    CONTAINERD_SOCKET,
    CONTAINERD_STATE,
    CRED,
    IMAGES,
    KUBE,
    KUBECONFIG,
    KUBELET_CONF_D,
    MANIFESTS,
    NET_CONF,
    RESET_FLAG,
    RESOLV_CONF,
    SERVER,
    STANDIN,
    SUBNET_ENV,
    TLS,
)
from .version import VERSION

LOCAL_API = "https://127.0.0.1:6443"
READY_SECONDS = 300
# What K3s's cloud controller deletes when it starts without servicelb.
SERVICELB = "/apis/apps/v1/namespaces/kube-system/daemonsets?labelSelector=svccontroller.k3s.cattle.io%2Fnodeselector"
SYSCTLS = {
    # K3s sets these at each start.
    "net/ipv4/conf/all/forwarding": "1",
    "net/ipv6/conf/all/forwarding": "1",
    "net/bridge/bridge-nf-call-iptables": "1",
    "net/bridge/bridge-nf-call-ip6tables": "1",
    "net/netfilter/nf_conntrack_max": "131072",
    "net/netfilter/nf_conntrack_tcp_timeout_established": "86400",
    "net/netfilter/nf_conntrack_tcp_timeout_close_wait": "3600",
}


def run(config: Config) -> int:
    """Runs a node until it is told to stop (0) or something that it needs ends (1)."""
    status = asyncio.run(_supervise(config))
    sys.stderr.flush()
    # A thread that still asks some server must not hold up the end.
    os._exit(status)


async def _supervise(config: Config) -> int:
    children = Children()
    told = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, told.set)
    info(f"Starting k3s {config.role} {VERSION} (stand-in for netmend's lab)")
    role = server if config.role == "server" else agent

    async def work() -> None:
        await role(config, children)
        await told.wait()

    tasks: set[asyncio.Future[Any]] = {asyncio.create_task(work()), asyncio.create_task(told.wait()), children.died}
    done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    status = 0 if told.is_set() else 1
    for problem in [p for p in (task.exception() for task in done) if p and status]:
        _report(problem)
    for task in tasks:
        task.cancel()
    await children.stop()
    return status


async def server(config: Config, children: Children) -> None:
    """One server: etcd, the control plane, and a node like any other."""
    own = Cluster.of(config)
    async with asyncio.TaskGroup() as tasks:
        runtime = tasks.create_task(_runtime(config, own, children))
        await _etcd(config, children)
        await asyncio.to_thread(_server_files, config)
        await children.start(components.apiserver(config))
        authority = (TLS / "server-ca.crt").read_text()
        api = Api(LOCAL_API, authority, certificate=TLS / "client-admin")
        await asyncio.to_thread(_agent_files, config, own, TLS, LOCAL_API)
        await until(lambda: api.text("/readyz") == "ok", "the API server")
        info("Kube API server is now running")
        await children.start(components.controller_manager(config))
        await children.start(components.scheduler(config))
        await persist(lambda: cluster.publish(api, config), "what joining nodes need to know")
        info("k3s is up and running")
        notify_ready()
        tasks.create_task(_deploy(config))
        if "servicelb" in config.disable:
            tasks.create_task(persist(lambda: api.delete(SERVICELB), "the end of servicelb's DaemonSets"))
        await runtime
        await _node(config, own, children, api)
        labels = {f"node-role.kubernetes.io/{role}": "true" for role in ("control-plane", "etcd")}
        member = {"etcd.k3s.cattle.io/node-address": config.node_ip}
        await persist(lambda: _describe(api, config, labels, member), "the node's labels")


async def agent(config: Config, children: Children) -> None:
    """One agent: it takes over the cluster's settings, and reaches the servers through its own balancer."""
    known = _known_servers()
    addresses = [config.server, *(f"https://{s}" for s in known if s != _address(config.server))]
    async with asyncio.TaskGroup() as tasks:
        joining = tasks.create_task(cluster.join(config, addresses))
        tasks.create_task(_import_ahead(config))
    bootstrap = joining.result()
    with tempfile.TemporaryDirectory(dir="/run") as authorities:
        bootstrap.write_authorities(Path(authorities))
        local = f"https://127.0.0.1:{PORT}"
        await asyncio.to_thread(_agent_files, config, bootstrap.cluster, Path(authorities), local)
    balancer = Balancer(config.server, [_address(a) for a in addresses])
    await balancer.start()
    async with asyncio.TaskGroup() as tasks:
        runtime = tasks.create_task(_runtime(config, bootstrap.cluster, children))
        authority = (AGENT / "server-ca.crt").read_text()
        api = Api(local, authority, certificate=AGENT / "client-k3s-controller")
        tasks.create_task(_follow_servers(api, balancer))
        await runtime
        await _node(config, bootstrap.cluster, children, api)
        info("k3s agent is up and running")
        await persist(lambda: _describe(api, config, {}, {}), "the node's annotations")


async def until(check: Callable[[], bool], what: str, seconds: float | None = READY_SECONDS) -> None:
    """Asks in short intervals; a refusal to answer is a no. Raises Fatal when it takes longer than `seconds`."""
    async with asyncio.timeout(seconds) as limit:
        with suppress(TimeoutError):
            while True:
                with suppress(OSError, ApiError, KeyError):
                    if await asyncio.to_thread(check):
                        return
                await asyncio.sleep(0.25)
    if limit.expired():
        raise Fatal(f"{what} was not ready after {seconds} s")


async def persist(do: Callable[[], None], what: str) -> None:
    """Does something at the API server that may have to be done more than once until it succeeds."""

    def attempt() -> bool:
        do()
        return True

    await until(attempt, what)


def notify_ready() -> None:
    """Tells systemd that the unit has started; nothing to tell when run by hand."""
    path = os.environ.get("NOTIFY_SOCKET")
    if path:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as channel:
            channel.sendto(b"READY=1", path.replace("@", "\0", 1) if path.startswith("@") else path)


async def _etcd(config: Config, children: Children) -> None:
    """Brings up this server's member: of a new cluster, of one that it joins, or of the one it has been in."""
    RESET_FLAG.unlink(missing_ok=True)
    if etcd.initialised():
        etcd.prepare_return()
        await children.start(etcd.argv())
        await until(etcd.healthy, "etcd", seconds=None)
        return
    if not config.server:
        await asyncio.to_thread(pki.ensure_authorities)
        await asyncio.to_thread(pki.ensure, pki.etcd_leaves(config), TLS, TLS)
        etcd.prepare_first(config)
        await children.start(etcd.argv())
        await until(etcd.healthy, "etcd", seconds=None)
        return
    bootstrap = await cluster.join(config, [config.server])
    cluster.check_critical(config, bootstrap.cluster)
    bootstrap.write_authorities(TLS)
    await asyncio.to_thread(pki.ensure, pki.etcd_leaves(config), TLS, TLS)
    host = urlsplit(config.server).hostname or ""
    member = await etcd.prepare_join(config, host)
    await children.start(etcd.argv())
    await etcd.promote(host, member)
    await until(etcd.healthy, "etcd", seconds=None)


def _server_files(config: Config) -> None:
    pki.ensure(pki.server_leaves(config), TLS, TLS)
    cluster.keep_token(config)
    authority = TLS / "server-ca.crt"
    for name, leaf in (
        ("admin", "client-admin"),
        ("controller", "client-controller"),
        ("scheduler", "client-scheduler"),
    ):
        write(CRED / f"{name}.kubeconfig", components.kubeconfig(LOCAL_API, authority, TLS / leaf), 0o600)
    mode = int(config.write_kubeconfig_mode, 8)
    write(KUBECONFIG, components.admin_kubeconfig(LOCAL_API, authority, TLS / "client-admin"), mode)
    for directory in (SERVER, CRED, TLS, MANIFESTS):
        directory.mkdir(parents=True, exist_ok=True)
        directory.chmod(0o700)


def _agent_files(config: Config, settings: Cluster, authorities: Path, api: str) -> None:
    pki.ensure_agent(config, authorities)
    for name, leaf in (
        ("kubelet", "client-kubelet"),
        ("kubeproxy", "client-kube-proxy"),
        ("k3scontroller", "client-k3s-controller"),
    ):
        text = components.kubeconfig(api, AGENT / "server-ca.crt", AGENT / leaf)
        write(AGENT / f"{name}.kubeconfig", text, 0o600)
    write(KUBELET_CONF_D / "00-k3s-defaults.conf", components.kubelet_configuration(settings), 0o600)
    (AGENT / "pod-manifests").mkdir(mode=0o750, exist_ok=True)
    host = Path("/etc/resolv.conf")
    # A loopback resolver is of no use in a pod; K3s takes a public one then.
    usable = any(
        line.startswith("nameserver") and not line.split()[-1].startswith("127.")
        for line in (host.read_text().splitlines() if host.exists() else [])
    )
    write(RESOLV_CONF, host.read_text() if usable else "nameserver 8.8.8.8\n")


async def _runtime(config: Config, settings: Cluster, children: Children) -> None:
    """containerd with the images that lie ready; runs beside whatever else starts."""
    flannel = settings.flannel_backend != "none"
    _own_plugin_directory()
    for key, value in SYSCTLS.items():
        with suppress(OSError):  # a kernel without IPv6 or the bridge filter lacks some
            Path("/proc/sys", key).write_text(value)
    if flannel:
        write(NET_CONF, components.net_conf(settings))
        own = config.flannel_cni_conf
        write(CNI_CONF / "10-flannel.conflist", Path(own).read_text() if own else components.CONFLIST)
    await _containerd(config, flannel, children)


async def _containerd(config: Config, flannel: bool, children: Children) -> None:
    write(CONTAINERD_CONFIG, components.containerd_configuration(config.pause_image, flannel))
    for directory, mode in (
        (CONTAINERD, 0o700),
        *([(CNI_CONF, 0o700)] if flannel else []),
        (KUBELET_CONF_D, 0o700),
        (CONTAINERD_STATE.parent, 0o711),
        (CONTAINERD_STATE, 0o711),
    ):
        directory.mkdir(parents=True, exist_ok=True)
        directory.chmod(mode)
    CONTAINERD_SOCKET.unlink(missing_ok=True)
    await children.start(components.containerd(), log=CONTAINERD / "containerd.log")
    await until(CONTAINERD_SOCKET.exists, "containerd")
    for image in _missing_images():
        await _import(image)


async def _import_ahead(config: Config) -> None:
    """Imports the images while no server answers yet, by a containerd that does only this.

    K3s's agent starts containerd when a server has told it which network there is; images need not wait for that.
    """
    if not _missing_images():
        return
    children = Children()
    await _containerd(config, flannel=False, children=children)
    await children.stop()


def _missing_images() -> list[Path]:
    """The archives that containerd does not have from an earlier start."""

    def imported(image: Path) -> bool:
        stamp, mark = _stamp(image)
        return stamp.exists() and stamp.read_text() == mark

    return [image for image in sorted(IMAGES.glob("*.tar")) if not imported(image)]


def _stamp(image: Path) -> tuple[Path, str]:
    state = image.stat()
    return CONTAINERD / f".imported-{image.name}", f"{state.st_size} {state.st_mtime_ns}"


async def _import(image: Path) -> None:
    process = await asyncio.create_subprocess_exec(
        "ctr", "-a", str(CONTAINERD_SOCKET), "-n", "k8s.io", "image", "import", str(image), stdout=subprocess.DEVNULL
    )
    if await process.wait():
        raise Fatal(f"failed to import images from {image}")
    info(f"Imported images from {image}")
    write(*_stamp(image))


async def _node(config: Config, settings: Cluster, children: Children, api: Api) -> None:
    """The kubelet, kube-proxy and, unless another network is to be installed, Flannel."""
    await children.start(components.kubelet(config))
    await children.start(components.kube_proxy(config, settings))
    await until(lambda: _answers("http://127.0.0.1:10248/healthz"), "the kubelet")
    if config.role == "agent":
        notify_ready()
    path = f"/api/v1/nodes/{config.node_name}"
    await until(lambda: bool(api.get(path)["spec"]["podCIDR"]), "the node's pod network", seconds=None)
    if settings.flannel_backend != "none":
        SUBNET_ENV.parent.mkdir(exist_ok=True)
        await children.start(components.flanneld(config))


async def _deploy(config: Config) -> None:
    """Applies server/manifests, the packaged ones among them. What is disabled goes, and its file with it."""
    for name in PACKAGED:
        if name not in config.disable:
            write(MANIFESTS / f"{name}.yaml", components.manifest(name, config), 0o600)
    for target in [MANIFESTS / f"{name}.yaml" for name in config.disable]:
        if target.exists():
            await _kubectl("delete", "--ignore-not-found", "--wait=false", "-f", str(target))
            target.unlink()
    if any(MANIFESTS.glob("*.yaml")):
        await _kubectl("apply", "--server-side", "--force-conflicts", "-f", str(MANIFESTS))


async def _kubectl(*arguments: str) -> None:
    process = await asyncio.create_subprocess_exec(
        "kubectl", "--kubeconfig", str(CRED / "admin.kubeconfig"), *arguments,
        executable=str(KUBE), stdout=subprocess.DEVNULL,
    )  # fmt: skip
    if await process.wait():
        error(f"failed to {arguments[0]} the manifests in {MANIFESTS}")


async def _follow_servers(api: Api, balancer: Balancer) -> None:
    """Servers come and go: the API server's own endpoints say which there are."""
    path = "/apis/discovery.k8s.io/v1/namespaces/default/endpointslices/kubernetes"
    while True:
        with suppress(OSError, ApiError, KeyError):
            found = await asyncio.to_thread(api.get, path)
            addresses = [a for e in found["endpoints"] or [] for a in e["addresses"]]
            balancer.update(f"{a}:{p['port']}" for a in addresses for p in found["ports"] or [])
        await asyncio.sleep(10)


def _describe(api: Api, config: Config, labels: dict[str, str], annotations: dict[str, str]) -> None:
    """K3s's annotations on the node; labels of roles only a server may set."""
    said = {
        "k3s.io/hostname": config.node_name,
        "k3s.io/internal-ip": config.node_ip,
        "k3s.io/node-args": json.dumps(config.arguments, separators=(",", ":")),
        **({"k3s.io/external-ip": config.node_external_ip} if config.node_external_ip else {}),
        **annotations,
    }
    patch: dict[str, Any] = {"metadata": {"annotations": said, **({"labels": labels} if labels else {})}}
    api.merge(f"/api/v1/nodes/{config.node_name}", patch)


def _own_plugin_directory() -> None:
    """K3s's plugins stand in a directory of its own, and /opt/cni/bin is where containerd looks without Flannel.

    Debian's containerd looks in /usr/lib/cni instead, where Debian's plugins are: they move, a link takes their place.
    """
    debian, usual = Path("/usr/lib/cni"), Path("/opt/cni/bin")
    if usual.is_symlink():
        usual.unlink()
    usual.mkdir(parents=True, exist_ok=True)
    if not debian.is_symlink():
        CNI_BIN.parent.mkdir(parents=True, exist_ok=True)
        debian.rename(CNI_BIN)
        debian.symlink_to(usual)
    plugin = CNI_BIN / "flannel"
    if not plugin.is_symlink():
        plugin.symlink_to(STANDIN / "cni/flannel")


def _known_servers() -> list[str]:
    if not BALANCER_STATE.exists():
        return []
    return list(json.loads(BALANCER_STATE.read_text())["ServerAddresses"])


def _address(url: str) -> str:
    parts = urlsplit(url)
    return f"{parts.hostname}:{parts.port or 6443}"


def _answers(url: str) -> bool:
    with urlopen(url, timeout=2) as answer:
        return bool(answer.status == 200)


def _report(problem: BaseException) -> None:
    """One line a cause: a group of tasks that fail together has several."""
    parts = getattr(problem, "exceptions", ())
    for part in parts:
        _report(part)
    if not parts:
        log("fatal", str(problem) if isinstance(problem, Fatal) else f"{type(problem).__name__}: {problem}")
