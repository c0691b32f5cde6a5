"""K3s's configuration: files merged in order, then the command line, by K3s's rules."""

from __future__ import annotations

import os
import re
import socket
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import yaml

from .log import Fatal
from .paths import CONFIG_FILE

PACKAGED = ("coredns",)
IGNORED = {
    # What K3s can switch off and the stand-in does not have.
    "disable-cloud-controller",
    "disable-helm-controller",
    "disable-kube-proxy-metrics",
    "disable-apiserver-lb",
    "selinux",
}


@dataclass(frozen=True)
class Config:
    """The effective configuration of one node; a field's default tells its kind: text, switch or list."""

    role: str
    token: str = ""
    server: str = ""
    node_name: str = ""
    node_ip: str = ""
    node_external_ip: str = ""
    node_label: tuple[str, ...] = ()
    flannel_iface: str = ""
    flannel_cni_conf: str = ""
    pause_image: str = "docker.io/netmend/pause:1"
    kubelet_arg: tuple[str, ...] = ()
    kube_proxy_arg: tuple[str, ...] = ()
    # From here on: servers only.
    cluster_init: bool = False
    cluster_reset: bool = False
    cluster_reset_restore_path: str = ""
    flannel_backend: str = "vxlan"
    cluster_cidr: str = "10.42.0.0/16"
    service_cidr: str = "10.43.0.0/16"
    cluster_dns: str = "10.43.0.10"
    cluster_domain: str = "cluster.local"
    disable: tuple[str, ...] = ()
    disable_network_policy: bool = False
    tls_san: tuple[str, ...] = ()
    write_kubeconfig_mode: str = "0600"
    etcd_arg: tuple[str, ...] = ()
    kube_apiserver_arg: tuple[str, ...] = ()
    kube_controller_manager_arg: tuple[str, ...] = ()
    kube_scheduler_arg: tuple[str, ...] = ()
    arguments: tuple[str, ...] = ()  # what K3s writes into the annotation k3s.io/node-args


_FIELDS = {f.name.replace("_", "-"): f for f in fields(Config) if f.name not in ("role", "arguments")}
_NAMES = list(_FIELDS)
_SERVER_ONLY = set(_NAMES[_NAMES.index("cluster-init") :])
_ENVIRONMENT = {"K3S_TOKEN": "token", "K3S_URL": "server", "K3S_NODE_NAME": "node-name"}
_SECRET = {"token"}


def load(role: str, argv: list[str]) -> Config:
    """Reads the files that K3s would read; raises Fatal for what it does not understand."""
    path, flags = _config_flag(argv)
    values = {key: os.environ[name] for name, key in _ENVIRONMENT.items() if os.environ.get(name)}
    values.update(merge_files(config_files(path)))
    values.update(parse_flags(flags))
    return make(role, values)


def config_files(path: Path) -> list[Path]:
    """The main file and its drop-ins, in the order in which K3s reads them."""
    drop_ins = Path(f"{path}.d")
    found = sorted(p for p in drop_ins.glob("*") if p.suffix in (".yaml", ".yml")) if drop_ins.is_dir() else []
    return ([path] if path.exists() else []) + found


def merge_files(files: list[Path]) -> dict[str, Any]:
    """The last value wins, and a list replaces an earlier one, unless its key ends in "+"."""
    values: dict[str, Any] = {}
    for file in files:
        try:
            content = yaml.safe_load(file.read_text()) or {}
        except yaml.YAMLError as problem:
            raise Fatal(f"failed to parse config file {file}: {' '.join(str(problem).split())}") from problem
        if not isinstance(content, dict):
            raise Fatal(f"failed to parse config file {file}: expected keys and values")
        for key, value in content.items():
            name = str(key).removesuffix("+")
            values[name] = value if name == key else _as_list(values.get(name)) + _as_list(value)
    return values


def parse_flags(argv: list[str]) -> dict[str, Any]:
    """Flags as K3s takes them: --flag value, --flag=value, --switch; a list's flag may come more than once."""
    values: dict[str, Any] = {}
    rest = list(argv)
    while rest:
        flag = rest.pop(0)
        matched = re.fullmatch(r"--?([a-z0-9-]+)(?:=(.*))?", flag)
        if not matched:
            raise Fatal(f"unexpected argument: {flag}")
        name, value = matched.groups()
        field = _FIELDS.get(name)
        if value is None:
            is_switch = name in IGNORED or (field is not None and isinstance(field.default, bool))
            if not is_switch and not rest:
                raise Fatal(f"flag needs an argument: -{name}")
            value = "true" if is_switch else rest.pop(0)
        if field is not None and isinstance(field.default, tuple):
            values[name] = [*values.get(name, []), value]
        else:
            values[name] = value
    return values


def make(role: str, values: dict[str, Any]) -> Config:
    """Checks merged values and gives them their kinds."""
    known: dict[str, Any] = {}
    for name, value in values.items():
        field = _FIELDS.get(name)
        if name in IGNORED:
            continue
        if field is None or (role == "agent" and name in _SERVER_ONLY):
            raise Fatal(f"flag provided but not defined: -{name} (k3s {role}, stand-in)")
        known[field.name] = _convert(name, field.default, value)
    known["node_name"] = (known.get("node_name") or socket.gethostname()).lower()
    known["node_ip"] = known.get("node_ip") or _default_address()
    config = Config(role=role, arguments=_arguments(role, values), **known)
    if role == "agent" and not (config.token and config.server):
        raise Fatal("--token and --server are required" if not config.token else "--server is required")
    if config.flannel_backend not in ("vxlan", "host-gw", "none"):
        raise Fatal(f"unknown flannel backend {config.flannel_backend!r}: the stand-in has vxlan, host-gw and none")
    return config


def _config_flag(argv: list[str]) -> tuple[Path, list[str]]:
    for i, flag in enumerate(argv):
        if flag in ("--config", "-c") and i + 1 < len(argv):
            return Path(argv[i + 1]), argv[:i] + argv[i + 2 :]
        if flag.startswith("--config="):
            return Path(flag.partition("=")[2]), argv[:i] + argv[i + 1 :]
    return Path(os.environ.get("K3S_CONFIG_FILE") or CONFIG_FILE), argv


def _convert(name: str, default: Any, value: Any) -> Any:
    if isinstance(default, bool):
        text = str(value).lower()
        if text not in ("true", "false", "1", "0"):
            raise Fatal(f'invalid boolean value "{value}" for -{name}')
        return text in ("true", "1")
    if isinstance(default, tuple):
        # Only these values may hold commas of their own; K3s splits the others.
        parts = _as_list(value)
        return tuple(parts) if name.endswith("-arg") else tuple(s for part in parts for s in part.split(",") if s)
    if isinstance(value, list):
        return ",".join(str(v) for v in value)
    return str(value)


def _as_list(value: Any) -> list[str]:
    if value is None:
        return []
    return [str(v) for v in value] if isinstance(value, list) else [str(value)]


def _arguments(role: str, values: dict[str, Any]) -> tuple[str, ...]:
    out = [role]
    for name, value in values.items():
        for text in _as_list(value):
            shown = text.lower() if text in ("True", "False") else text
            out += [f"--{name}", "********" if name in _SECRET else shown]
    return tuple(out)


def _default_address() -> str:
    """The address that the default route uses, as K3s takes it; nothing is sent."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))
        except OSError as problem:
            raise Fatal("no default route, and no --node-ip") from problem
        return str(probe.getsockname()[0])
