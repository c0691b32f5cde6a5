"""Gathers all that a node can tell about its network. It reads only, and never fails: what it cannot have is an error.

Commands run side by side; whatever stands in a file is read from there. The facts hold no secret: files that consist
of secrets are not opened, and values that are secrets are replaced while they are parsed.
"""

from __future__ import annotations

import ctypes
import json
import os
import re
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, Callable, Dict, Iterable, List, Optional, Tuple, TypeVar, cast

from . import node
from .model import Certificate, Cni, Iptables, K3s, NodeFacts, PodProcess, Ruleset, Space, Ufw
from .parse import ip, nft, proc, ufw, x509
from .parse import k3s as k3s_files
from .parse.iptables import parse_save
from .pods import processes

Run = Callable[[List[str]], str]  # argv -> what it prints; node.CommandError where it fails or is missing
Units = Dict[str, Dict[str, str]]  # unit -> property -> value, as systemctl show has them
Config = Tuple[Dict[str, Any], Dict[str, str]]  # the configuration, and where each key comes from
T = TypeVar("T")

K3S_UNITS = ("k3s.service", "k3s-agent.service")
CLOCK_UNITS = {"chrony.service": "chrony", "chronyd.service": "chrony", "systemd-timesyncd.service": "timesyncd"}
DATA = "/var/lib/rancher/k3s"  # K3s's data-dir, unless it is given another one
PLUGINS = "/opt/cni/bin"  # of a CNI other than K3s's own
FLANNEL_CNI = "agent/etc/cni/net.d"  # below K3s's data-dir
FLANNEL = ("/run/flannel/subnet.env", "/var/lib/cni/flannel", "/var/lib/cni/networks/cbr0")
# What else is in these folders other networks of pods may use, too.
CALICO = (
    *(f"{k3s_files.CNI_CONF_DIR}/{name}" for name in ("10-calico.conflist", "calico-kubeconfig")),
    *(f"{PLUGINS}/{name}" for name in ("calico", "calico-ipam")),
)
CERTIFICATES = ("agent", "server/tls", "server/tls/etcd", "server/tls/kube-*")  # below K3s's data-dir
SYSCTLS = (
    "net/bridge/bridge-nf-call-*tables",
    "net/ipv4/conf/*/accept_local",
    "net/ipv4/conf/*/forwarding",
    "net/ipv4/conf/*/rp_filter",
    "net/ipv4/ip_forward",
    "net/ipv4/ip_no_pmtu_disc",
    "net/ipv4/tcp_mtu_probing",
    "net/ipv6/conf/all/forwarding",
    "net/netfilter/nf_conntrack_max",
    "net/netfilter/nf_conntrack_tcp_be_liberal",
)
BGP = "( sport = :179 or dport = :179 )"  # a filter of ss
NOTHING: Dict[str, Any] = {
    "interfaces": [],
    "routes": [],
    "routing_rules": [],
    "neighbours": [],
    "fdb": [],
    "sysctls": {},
    "iptables": Iptables(backend="", version="", nft={}, legacy={}),
    "nft_tables": [],
    "ipsets": {},
    "ufw": Ufw(
        installed=False, enabled=False, logging="", defaults={}, manage_builtins=False, rules=[], before_rules=[]
    ),
    "conntrack": {},
    "sockets": [],
    "bgp": [],
    "snmp": {},
    "k3s": K3s(role="", unit="", active="", started=0.0, version="", config={}, sources={}, files={}),
    "cni": Cni(conf_dir="", bin_dirs=[], pause_image="", networks={}, unread={}),
    "disk": {},
    "clock": {"synchronized": None, "source": ""},
    "pods": [],
    "certificates": [],
}
TIME_ERROR = 5  # adjtimex(2): the clock is not synchronized


def gather_node(run: Run = node.run, root: str = "/") -> NodeFacts:
    """All facts of this node in one pass. root: where its files are, / except in tests."""
    began = time.time()
    source = _Source(run, Path(root))
    with ThreadPoolExecutor(max_workers=16) as pool:
        units = pool.submit(source.units)
        tasks: Dict[str, Callable[[], Any]] = {
            "interfaces": lambda: ip.interfaces(run(["ip", "-j", "-d", "-s", "link"]), run(["ip", "-j", "addr"])),
            "routes": lambda: ip.routes(run(["ip", "-j", "-d", "route", "show", "table", "all"])),
            "routing_rules": lambda: ip.rules(run(["ip", "-j", "rule"])),
            "neighbours": lambda: ip.neighbours(run(["ip", "-j", "neigh"])),
            "fdb": lambda: ip.fdb(run(["bridge", "-j", "fdb"])),
            "sysctls": source.sysctls,
            "iptables": source.iptables,
            "nft_tables": source.nft_tables,
            "ipsets": lambda: proc.ipsets(run(["ipset", "save"])),
            "ufw": source.ufw,
            "conntrack": source.conntrack,
            "sockets": lambda: proc.sockets(run(["ss", "-H", "-lntup"])),
            # BGP is looked at and never probed: a connection that asks nothing makes an established session start anew.
            "bgp": lambda: proc.bgp(run(["ss", "-H", "-tn", "state", "connected", BGP])),
            "snmp": lambda: proc.snmp(source.read("proc/net/snmp"), source.read("proc/net/netstat")),
            "k3s": lambda: source.k3s(units.result()),
            "clock": lambda: source.clock(units.result()),
            "pods": source.pods,
        }
        begun = {what: pool.submit(source.attempt, what, read, NOTHING[what]) for what, read in tasks.items()}
        facts = {what: future.result() for what, future in begun.items()}
    config = facts["k3s"]["config"]
    data = str(config.get("data-dir", DATA))
    facts["cni"] = source.attempt("cni", lambda: source.cni(data), NOTHING["cni"])
    facts["flannel"] = [path for path in (f"{data}/{FLANNEL_CNI}/10-flannel.conflist", *FLANNEL) if source.exists(path)]
    facts["calico"] = [path for path in CALICO if source.exists(path)]
    facts["disk"] = source.attempt("disk", lambda: source.disk(data, PLUGINS), NOTHING["disk"])
    facts["certificates"] = source.certificates(data)
    facts["unconfirmed"] = source.unconfirmed()
    facts["name"] = source.name(config)
    return cast(NodeFacts, {**facts, "time": began, "took": time.time() - began, "errors": source.errors})


class _Source:
    """A node's commands and files, and the errors that they gave."""

    def __init__(self, run: Run, root: Path) -> None:
        self.run = run
        self.root = root
        self.errors: List[Dict[str, str]] = []

    def attempt(self, what: str, read: Callable[[], T], otherwise: T) -> T:
        try:
            return read()
        except (node.CommandError, OSError, ValueError, LookupError) as error:
            self.errors.append({"what": what, "message": str(error) or type(error).__name__})
            return otherwise

    def read(self, path: str) -> str:
        return (self.root / path.lstrip("/")).read_text(encoding="utf-8", errors="replace")

    def exists(self, path: str) -> bool:
        return (self.root / path.lstrip("/")).exists()

    def name(self, config: Dict[str, Any]) -> str:
        host = self.attempt("name", lambda: self.read("proc/sys/kernel/hostname").strip(), "")
        return str(config.get("node-name") or host).lower()

    def units(self) -> Units:
        wanted = [*K3S_UNITS, *CLOCK_UNITS]
        properties = "--property=Id,LoadState,ActiveState,FragmentPath,DropInPaths,ExecMainStartTimestampMonotonic"
        text = self.attempt("units", lambda: self.run(["systemctl", "show", properties, *wanted]), "")
        blocks = (dict(re.findall(r"^(\w+)=(.*)$", block, re.M)) for block in text.split("\n\n"))
        return {block["Id"]: block for block in blocks if block.get("LoadState") == "loaded"}

    def iptables(self) -> Iptables:
        version = self.attempt("iptables", lambda: self.run(["iptables", "--version"]), "")
        number = re.search(r"v(\d[\d.]*)", version)
        backend = "nft" if "nf_tables" in version else "legacy"
        return Iptables(
            backend=backend if number else "",
            version=number[1] if number else "",
            nft=self.attempt("iptables-nft", lambda: parse_save(self.run(["iptables-nft-save", "-c"])), {}),
            legacy=self.attempt("iptables-legacy", self.iptables_legacy, {}),
        )

    def iptables_legacy(self) -> Ruleset:
        # The command would load the kernel's modules; without them, or without tables, there is nothing to read.
        names = "proc/net/ip_tables_names"
        if not self.exists(names) or not self.read(names).strip():
            return {}
        return parse_save(self.run(["iptables-legacy-save", "-c"]))

    def nft_tables(self) -> List[Dict[str, Any]]:
        # Kubernetes' own rules are long and in iptables-save already: only other tables are listed in full.
        found = []
        for table in nft.tables(self.run(["nft", "-j", "list", "chains"])):
            if not nft.is_iptables(table):
                found += nft.tables(self.run(["nft", "-j", "-t", "list", "table", table["family"], table["name"]]))
        return found

    def ufw(self) -> Ufw:
        def read(path: str) -> str:
            return self.attempt(f"ufw {path}", lambda: self.read(path), "") if self.exists(path) else ""

        conf, default = ufw.settings(read("etc/ufw/ufw.conf")), ufw.settings(read("etc/default/ufw"))
        user_rules = [read("etc/ufw/user.rules"), read("etc/ufw/user6.rules")]
        return Ufw(
            installed=self.exists("usr/sbin/ufw"),
            enabled=conf.get("ENABLED", "").lower() == "yes",
            logging=conf.get("LOGLEVEL", ""),
            defaults=ufw.default_policies(default),
            manage_builtins=default.get("MANAGE_BUILTINS", "").lower() == "yes",
            rules=self.attempt("ufw", lambda: ufw.user_rules(*user_rules), []),
            before_rules=ufw.before_rules(read("etc/ufw/before.rules")),
        )

    def k3s(self, units: Units) -> K3s:
        # Where both units are installed, the one that was started counts.
        installed = [units[name] for name in K3S_UNITS if name in units]
        chosen = sorted(installed, key=lambda unit: unit["ActiveState"] == "inactive")[:1]
        if not chosen:
            return cast(K3s, NOTHING["k3s"])
        name, nothing = chosen[0]["Id"], k3s_files.Unit([], {}, [])
        unit = self.attempt("k3s unit", lambda: self.k3s_unit(chosen[0]), nothing)
        binary = (unit.arguments or ["k3s"])[0]
        version = self.attempt("k3s version", lambda: self.run([binary, "--version"]), "")
        unknown: Config = ({}, {})
        files = self.attempt("k3s config", lambda: self.config_files(unit), NOTHING["k3s"]["files"])
        config, sources = self.attempt("k3s config", lambda: self.k3s_config(unit, files), unknown)
        return K3s(
            role=next((word for word in unit.arguments if word in ("server", "agent")), ""),
            unit=name,
            active=chosen[0]["ActiveState"],
            started=_moment(chosen[0].get("ExecMainStartTimestampMonotonic", "")),
            version=(version.split() + [""] * 3)[2],
            config=config,
            sources=sources,
            files=files,
        )

    def k3s_unit(self, properties: Dict[str, str]) -> k3s_files.Unit:
        paths = [properties["FragmentPath"], *properties.get("DropInPaths", "").split()]
        unit = k3s_files.parse_unit(*map(self.read, paths))
        environment = dict(unit.environment)
        for path in unit.environment_files:
            file = path.lstrip("-").replace("%N", properties["Id"].rpartition(".")[0])
            if self.exists(file) or not path.startswith("-"):
                environment.update(k3s_files.parse_environment(self.read(file)))
        return unit._replace(environment=environment)

    def config_files(self, unit: k3s_files.Unit) -> Dict[str, float]:
        flags = k3s_files.flags(unit.arguments, unit.environment)
        main = unit.environment.get("K3S_CONFIG_FILE") or dict(flags).get("config", "/etc/rancher/k3s/config.yaml")
        folder = self.root / f"{main}.d".lstrip("/")
        more = sorted(entry.name for entry in folder.iterdir() if entry.is_file()) if folder.is_dir() else []
        paths = [main] if self.exists(main) else []
        paths += [f"{main}.d/{name}" for name in more if name.lower().endswith((".yaml", ".yml"))]
        return {path: (self.root / path.lstrip("/")).stat().st_mtime for path in paths}

    def k3s_config(self, unit: k3s_files.Unit, paths: Iterable[str]) -> Config:
        files = [(path, k3s_files.parse_config(self.read(path), path)) for path in paths]
        return k3s_files.effective(files, k3s_files.flags(unit.arguments, unit.environment), unit.environment)

    def cni(self, data: str) -> Cni:
        containerd = self.read(f"{data}/agent/etc/containerd/config.toml")
        conf_dir, bin_dirs = k3s_files.containerd_cni(containerd)
        others = [folder for folder in (f"{data}/{FLANNEL_CNI}", k3s_files.CNI_CONF_DIR) if folder != conf_dir]
        return Cni(
            conf_dir=conf_dir,
            bin_dirs=bin_dirs,
            pause_image=k3s_files.pause_image(containerd),
            networks=self.networks(conf_dir),
            unread={f"{folder}/{name}": each for folder in others for name, each in self.networks(folder).items()},
        )

    def networks(self, folder: str) -> Dict[str, Any]:
        place = self.root / folder.lstrip("/")
        names = sorted(entry.name for entry in place.iterdir()) if place.is_dir() else []
        return {
            name: self.attempt(f"cni {name}", partial(self.network, f"{folder}/{name}"), {})
            for name in names
            if name.endswith((".conf", ".conflist", ".json"))
        }

    def network(self, path: str) -> Any:
        return k3s_files.redact("", json.loads(self.read(path)))

    def disk(self, *paths: str) -> Dict[str, Space]:
        """Of the file systems that the paths are on, or are going to be."""
        found = {}
        for path in paths:
            place = self.root / path.lstrip("/")
            while not place.exists():
                place = place.parent
            system = os.statvfs(place)
            found[path] = Space(size=system.f_blocks * system.f_frsize, free=system.f_bavail * system.f_frsize)
        return found

    def certificates(self, data: str) -> List[Certificate]:
        """Those that K3s made: their names and dates. The keys beside them are not opened."""
        base = self.root / data.lstrip("/")
        found = []
        # Not what the API server signs for itself at each start: server/tls/temporary-certs.
        for path in sorted(path for folder in CERTIFICATES for path in base.glob(f"{folder}/*.crt")):
            name = f"/{path.relative_to(self.root)}"
            read = self.attempt(f"certificate {name}", partial(self.validity, name), None)
            if read:
                found.append(Certificate(file=name, subject=read[0], not_before=read[1], not_after=read[2]))
        return found

    def unconfirmed(self) -> List[str]:
        base = self.root / str(node.STATE).lstrip("/")
        return sorted(state.parent.name for state in base.glob("guard/*/state.json"))

    def validity(self, path: str) -> Optional[x509.Validity]:
        return x509.validity(self.read(path))

    def clock(self, units: Units) -> Dict[str, Any]:
        running = [name for name in CLOCK_UNITS if units.get(name, {}).get("ActiveState") == "active"]
        return {
            "synchronized": self.attempt("clock", _synchronized, None),
            "source": CLOCK_UNITS[running[0]] if running else "",
        }

    def sysctls(self) -> Dict[str, str]:
        """Names as sysctl(8) writes them: a dot in an interface's name is a slash."""
        base = self.root / "proc/sys"
        paths = [path for pattern in SYSCTLS for path in base.glob(pattern)]
        swapped = str.maketrans("./", "/.")
        return {str(path.relative_to(base)).translate(swapped): path.read_text().strip() for path in sorted(paths)}

    def conntrack(self) -> Dict[str, int]:
        sizes = {name: int(self.read(f"proc/sys/net/netfilter/nf_conntrack_{name}")) for name in ("count", "max")}
        return {**proc.conntrack(self.read("proc/net/stat/nf_conntrack")), **sizes}

    def pods(self) -> List[PodProcess]:
        """The first process of each pod with a network of its own: in the normal course, its sandbox's."""
        host = os.stat(self.root / "proc/self/ns/net").st_ino
        found: Dict[str, PodProcess] = {}
        for pid, uid in processes(self.root):
            try:
                if uid not in found:
                    network = os.stat(self.root / f"proc/{pid}/ns/net").st_ino
                    listens = [] if network == host else self.listens(pid)
                    found[uid] = PodProcess(uid=uid, pid=pid, netns=network, listens=listens)
            except OSError:
                continue  # ended meanwhile
        return [process for process in found.values() if process["netns"] != host]

    def listens(self, pid: int) -> List[str]:
        paths = [f"proc/{pid}/net/{table}" for table in ("tcp", "tcp6")]
        return [socket for path in paths if self.exists(path) for socket in proc.listening(self.read(path))]


def _moment(timestamp: str) -> float:
    """Seconds since the epoch of what systemd counts in microseconds of the monotonic clock; 0 for never."""
    return time.time() - time.monotonic() + int(timestamp) / 1e6 if int(timestamp or 0) else 0.0


def _synchronized() -> Optional[bool]:
    """The kernel's word, whichever daemon disciplines its clock. Asks only: modes is 0 in an empty struct timex."""
    state = ctypes.CDLL(None).adjtimex(ctypes.create_string_buffer(512))
    return None if state < 0 else bool(state != TIME_ERROR)
