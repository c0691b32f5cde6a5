"""The file that describes a lab, read and checked: which machines, which network, which K3s, what is in it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path
from typing import Any

import yaml

from module_utils.netmend import calico_manifest

from . import release, upstream

LABS = Path(__file__).parent / "labs"
FAULTS = Path(__file__).parent / "faults.yml"

DEFAULTS: dict[str, Any] = {
    "name": "default",
    "servers": 1,
    "agents": 2,
    "addresses": {"servers": "10.0.0.100", "agents": "10.0.0.110"},
    "memory": {"server": 2560, "agent": 1792},
    "mtu": {"public": 1500, "private": 1450},
    "k3s": {"source": "stand-in", "release": None, "flannel-backend": "vxlan", "config": {}},
    "calico": None,
    "ingress": False,
    "balancers": [],
    "apps": [],
    "faults": [],
}
# Of the key calico, where it is given; not applied, its images lie ready and nothing runs them.
CALICO: dict[str, Any] = {
    "applied": True,
    "version": max(upstream.CALICO),
    "backend": "felix",
    "pool": None,
    "ipip": "Always",
    "mtu": 0,
    "autodetection": "cidr=10.0.0.0/16",
    "typha": 0,
}
SOURCES = ("stand-in", "release")
BACKENDS = ("vxlan", "host-gw", "none")
SMALLEST_MEMORY = 256
POD_NETWORK = "10.42.0.0/16"  # K3s's default
NAMES = {"server": "k3s-master", "agent": "k3s-worker"}


class SpecError(Exception):
    """A lab's file is wrong; the message names the file and the key."""


@dataclass(frozen=True)
class Machine:
    name: str
    role: str  # server or agent
    private: str  # IPv4 address on enp7s0
    public: str  # IPv4 address on eth0
    memory: int  # MiB


@dataclass(frozen=True)
class Balancer:
    name: str
    private: str  # IPv4 address that the machines see
    public: str  # IPv4 address that clients ask


@dataclass(frozen=True)
class Lab:
    name: str
    machines: tuple[Machine, ...]  # servers first; the first one starts the cluster
    mtu_public: int
    mtu_private: int
    k3s_release: Mapping[str, Any] | None  # version, binary, images of K3s's own; None: the stand-in
    flannel_backend: str
    k3s_config: Mapping[str, Any]  # keys for every server's config.yaml
    calico: Mapping[str, Any] | None  # the keys of CALICO; None: Calico is not installed
    ingress: bool  # whether role ingress_nginx is to bring its controller in
    balancers: tuple[Balancer, ...]  # in front of the agents' NodePorts
    apps: tuple[Path, ...]  # manifests
    faults: tuple[str, ...]  # names in faults.yml
    plain: bool = False  # nothing starts K3s

    @property
    def agents(self) -> tuple[Machine, ...]:
        return tuple(machine for machine in self.machines if machine.role == "agent")

    def machine(self, name: str) -> Machine:
        for machine in self.machines:
            if machine.name == name:
                return machine
        raise SpecError(f"lab {self.name} has no node {name}; it has {', '.join(m.name for m in self.machines)}")

    @property
    def servers(self) -> tuple[Machine, ...]:
        return tuple(machine for machine in self.machines if machine.role == "server")

    @property
    def kind(self) -> str:
        """What faults.yml means by lab: default, edge, calico (Felix makes the routes), calico-bird (BGP does), or
        swapped (it begins with Flannel, and has Calico's images for a swap)."""
        if self.ingress:
            return "edge"
        if self.calico is None:
            return "default"
        if not self.calico["applied"]:
            return "swapped"
        return "calico-bird" if self.calico["backend"] == "bird" else "calico"

    @property
    def memory(self) -> int:
        """MiB of all machines."""
        return sum(machine.memory for machine in self.machines)


def load(path: Path, name: str | None = None) -> Lab:
    """Read a lab's file, or one of lab/labs by its bare name; SpecError when something is wrong with it.

    `name` stands in for the file's own.
    """
    file = path if path.exists() else LABS / f"{path}.yml"
    try:
        content = yaml.safe_load(file.read_text())
    except FileNotFoundError:
        known = ", ".join(sorted(found.stem for found in LABS.glob("*.yml") if not found.stem.endswith("apps")))
        raise SpecError(f"{path}: no such file, and no lab of this name; there are {known}") from None
    except (OSError, yaml.YAMLError) as problem:
        raise SpecError(f"{file}: {' '.join(str(problem).split())}") from problem
    if name and isinstance(content, dict):
        content["name"] = name
    return parse(content, file)


def parse(content: object, file: Path) -> Lab:
    """Make a Lab of a file's content; paths in it are relative to the file."""
    check = _Check(file)
    values = check.keys("", content if content is not None else {}, DEFAULTS)
    addresses, memory, mtu, k3s = (
        check.keys(key, values[key], DEFAULTS[key]) for key in ("addresses", "memory", "mtu", "k3s")
    )
    name = values["name"]
    check.that("name", isinstance(name, str) and re.fullmatch(r"[a-z][a-z0-9-]{0,19}", name), "1 to 20 of a-z, 0-9, -")
    check.integer("servers", values["servers"], 1, 9)
    check.integer("agents", values["agents"], 0, 99)
    for role in memory:
        check.integer(f"memory.{role}", memory[role], SMALLEST_MEMORY, 1 << 20)
    for nic in mtu:
        check.integer(f"mtu.{nic}", mtu[nic], 1280, 1500)
    check.one_of("k3s.source", k3s["source"], SOURCES)
    if k3s["source"] == "release":
        check.release("k3s.release", k3s["release"])
    check.one_of("k3s.flannel-backend", k3s["flannel-backend"], BACKENDS)
    check.that("k3s.config", isinstance(k3s["config"], dict), "keys of K3s's config.yaml")
    calico = _calico(check, values["calico"], k3s["config"]) if values["calico"] is not None else None
    check.that("ingress", isinstance(values["ingress"], bool), "true or false")
    for key in ("apps", "balancers", "faults"):
        texts = isinstance(values[key], list) and all(isinstance(item, str) for item in values[key])
        check.that(key, texts, "a list of names")
    apps = tuple(file.parent / app for app in values["apps"])
    for app in apps:
        check.that("apps", app.is_file(), f"manifests beside this file; there is no {app}")
    for fault in values["faults"]:
        check.one_of("faults", fault, list(faults()))
    machines = (
        *_machines(check, "server", values["servers"], addresses["servers"], memory["server"]),
        *_machines(check, "agent", values["agents"], addresses["agents"], memory["agent"]),
    )
    balancers = tuple(
        Balancer(f"lb-{number}", *_addresses(check, f"balancers[{number - 1}]", address))
        for number, address in enumerate(values["balancers"], 1)
    )
    public = [each.public for each in (*machines, *balancers)]
    check.that("addresses", len(set(public)) == len(public), "such that no two machines have the same last byte")
    return Lab(
        name=name,
        machines=machines,
        mtu_public=mtu["public"],
        mtu_private=mtu["private"],
        k3s_release=k3s["release"] if k3s["source"] == "release" else None,
        flannel_backend=k3s["flannel-backend"],
        k3s_config=k3s["config"],
        calico=calico,
        ingress=values["ingress"],
        balancers=balancers,
        apps=apps,
        faults=tuple(values["faults"]),
    )


def faults() -> dict[str, dict[str, Any]]:
    """The faults that a lab can be given: name -> the fault as faults.yml has it."""
    content: dict[str, dict[str, Any]] = yaml.safe_load(FAULTS.read_text())
    return content


def _calico(check: _Check, content: object, k3s_config: Mapping[str, Any]) -> dict[str, Any]:
    calico = check.keys("calico", content, CALICO)
    check.that("calico.applied", isinstance(calico["applied"], bool), "true or false")
    check.one_of("calico.version", calico["version"], sorted(upstream.CALICO))
    check.one_of("calico.backend", calico["backend"], calico_manifest.BACKENDS)
    check.one_of("calico.ipip", calico["ipip"], calico_manifest.IPIP_MODES)
    check.that("calico.autodetection", isinstance(calico["autodetection"], str), "an IP_AUTODETECTION_METHOD")
    check.integer("calico.mtu", calico["mtu"], 0, 1500)
    check.integer("calico.typha", calico["typha"], 0, 20)
    pool = calico["pool"] or k3s_config.get("cluster-cidr", POD_NETWORK)
    check.network("calico.pool", pool)
    return {**calico, "pool": pool}


def _machines(check: _Check, role: str, count: int, first: object, memory: int) -> list[Machine]:
    start, _ = _addresses(check, f"addresses.{role}s", first)
    addresses = [_addresses(check, f"addresses.{role}s", str(IPv4Address(start) + index)) for index in range(count)]
    return [
        Machine(f"{NAMES[role]}-{number:02}", role, private, public, memory)
        for number, (private, public) in enumerate(addresses, 1)
    ]


def _addresses(check: _Check, key: str, private: object) -> tuple[str, str]:
    """The private address, and the public one: the last byte tells a machine on both of its networks."""
    right = isinstance(private, str) and re.fullmatch(r"10\.0\.\d+\.\d+", private)
    check.that(key, right, "an address in 10.0.0.0/16")
    return str(private), f"203.0.113.{int(IPv4Address(str(private))) & 255}"


class _Check:
    """Says what is wrong with a value: file, key, what would be right."""

    def __init__(self, file: Path) -> None:
        self._file = file

    def that(self, key: str, right: object, wanted: str) -> None:
        if not right:
            raise SpecError(f"{self._file}: {key} must be {wanted}")

    def keys(self, key: str, content: object, defaults: Mapping[str, Any]) -> dict[str, Any]:
        """The mapping `content` over its defaults, without a key that has none."""
        if not isinstance(content, dict):
            raise SpecError(f"{self._file}: {key or 'a lab'} must be keys and values: {', '.join(defaults)}")
        for unknown in content.keys() - defaults.keys():
            where = f"{key}.{unknown}" if key else unknown
            raise SpecError(f"{self._file}: {where} is not known; there are {', '.join(defaults)}")
        return {**defaults, **content}

    def release(self, key: str, content: object) -> None:
        try:
            release.parse(content)
        except release.ReleaseError as problem:
            raise SpecError(f"{self._file}: {key}: {problem}") from None

    def integer(self, key: str, value: object, least: int, most: int) -> None:
        right = isinstance(value, int) and not isinstance(value, bool) and least <= value <= most
        self.that(key, right, f"a whole number from {least} to {most}")

    def network(self, key: str, value: object) -> None:
        try:
            IPv4Network(str(value))
        except ValueError:
            self.that(key, False, f"an IPv4 network, not {value!r}")

    def one_of(self, key: str, value: object, choices: Any) -> None:
        self.that(key, value in choices, f"one of {', '.join(choices)}, not {value!r}")
