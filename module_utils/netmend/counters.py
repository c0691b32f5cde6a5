"""What the kernel counts of packets that did not get through: by rules that drop or reject, and without any rule."""

from __future__ import annotations

from collections import Counter
from contextlib import suppress
from pathlib import Path
from typing import Dict, Iterator, List, Tuple

from . import node
from .model import Moved, Ruleset
from .parse import proc
from .parse.iptables import parse_save

_LEGACY_TABLES = Path("/proc/net/ip_tables_names")
_PROC_NET = Path("/proc/net")
# Packets that the kernel gave up without any rule: damaged, by the reverse path filter, or in tracking connections.
_LOSSES = (
    "Udp.InCsumErrors",
    "TcpExt.IPReversePathFilter",
    "conntrack.drop",
    "conntrack.early_drop",
    "conntrack.insert_failed",
)


def rulesets() -> Dict[str, Ruleset]:
    """The rule sets with their counters, by backend ("nft", "legacy"); one that cannot be read is left out."""
    found = {}
    for backend in ("nft", "legacy"):
        # Without tables there is nothing to read, and iptables-legacy-save would load the kernel's modules to say so.
        if backend == "legacy" and not (_LEGACY_TABLES.exists() and _LEGACY_TABLES.read_text().strip()):
            continue
        with suppress(node.CommandError):
            found[backend] = parse_save(node.run([f"iptables-{backend}-save", "-c"]))
    return found


def moved(before: Dict[str, Ruleset], after: Dict[str, Ruleset]) -> List[Moved]:
    """The DROP and REJECT rules and DROP policies whose counters rose, of the backends that were read both times.

    A rule is the same one when table, chain and text are, wherever it stands by now; a new one counts from 0.
    """
    rises = []
    for backend in (backend for backend in after if backend in before):
        old = {key: packets for key, _, packets in _blocking(before[backend])}
        for key, index, packets in _blocking(after[backend]):
            table, chain, spec, _ = key
            rise = packets - old.get(key, 0)
            if rise > 0:
                rises.append(Moved(backend=backend, table=table, chain=chain, index=index, spec=spec, packets=rise))
    return rises


def losses(directory: Path = _PROC_NET) -> Dict[str, int]:
    """The counters of lost packets, as "group.name"; one that cannot be read is left out."""
    groups: Dict[str, Dict[str, int]] = {}
    for file in ("snmp", "netstat"):
        with suppress(OSError, ValueError):
            groups.update(proc.snmp((directory / file).read_text()))
    with suppress(OSError, ValueError):
        groups["conntrack"] = proc.conntrack((directory / "stat/nf_conntrack").read_text())
    found = {f"{group}.{name}": value for group, counters in groups.items() for name, value in counters.items()}
    return {name: found[name] for name in _LOSSES if name in found}


def risen(before: Dict[str, int], after: Dict[str, int]) -> Dict[str, int]:
    """By how much each counter rose that did; of those that were read both times."""
    return {name: after[name] - before[name] for name in after if after[name] > before.get(name, after[name])}


_Key = Tuple[str, str, str, int]  # table, chain, spec, and which one of those that read alike


def _blocking(ruleset: Ruleset) -> Iterator[Tuple[_Key, int, int]]:
    """Key, index and packets of everything that drops or rejects."""
    for table, chains in ruleset.items():
        for name, chain in chains.items():
            if chain["policy"] == "DROP":
                yield (table, name, "-P DROP", 1), 0, chain["packets"]
            alike: Counter[str] = Counter()
            for index, rule in enumerate(chain["rules"], start=1):
                if rule["target"] in ("DROP", "REJECT"):
                    alike[rule["spec"]] += 1
                    yield (table, name, rule["spec"], alike[rule["spec"]]), index, rule["packets"]
