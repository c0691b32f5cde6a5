"""How K3s's control plane is restored from a backup: what stands against it, and who does what. Pure.

K3s's own way: all servers are stopped, one is reset to the snapshot, the others join it with empty databases
(https://docs.k3s.io/cli/etcd-snapshot, pkg/cli/server/server.go).
"""

from __future__ import annotations

from typing import Any, Dict, Iterator, List, Mapping, TypedDict
from urllib.parse import urlsplit

from .backup import Backup
from .gather import DATA
from .model import NodeFacts
from .parse.k3s import REDACTED
from .without_flannel import DROP_IN, drop_in

FLAGS = ("ExecStart", "environment")  # sources of settings that K3s does not read by itself when it is run by hand


class Plan(TypedDict):
    server: str  # who is reset, as all of these by its name in the inventory
    others: List[str]
    data: Dict[str, str]  # server -> K3s's data-dir
    flags: List[str]  # of `k3s server`, beside those of the reset
    drop_ins: Dict[str, Dict[str, Any]]  # server -> path, content, and whether the backup has it


def reset_by(nodes: Mapping[str, NodeFacts], wanted: str = "") -> str:
    """The server that is reset: the one that is wanted, or that joins no other; "" for none."""
    return wanted or next((name for name, facts in nodes.items() if not _joins(facts)), "")


def refusals(
    backup: Backup, servers: List[str], nodes: Mapping[str, NodeFacts], tokens: Mapping[str, str], wanted: str = ""
) -> List[str]:
    """Why the servers must not be restored from this; empty where they may. tokens: of each server that has one."""
    return [*_of_backup(backup), *_of_servers(backup, servers, nodes, tokens), *_of_roles(servers, nodes, wanted)]


def notes(backup: Backup, nodes: Mapping[str, NodeFacts], wanted: str = "") -> List[str]:
    """What forbids nothing, and a person should know before."""
    found = [
        f"The backup is of {name}, too, which is not in the inventory: K3s must not run there with the state of before."
        for name in backup["servers"]
        if name not in nodes
    ]
    server = reset_by(nodes, wanted)
    addresses = [address.partition("/")[0] for each in nodes[server]["interfaces"] for address in each["addresses"]]
    for name, facts in nodes.items():
        if name != server and urlsplit(_joins(facts)).hostname not in addresses:
            found.append(f"{name} joins by {_joins(facts)}: that has to lead to {server}.")
    return found


def plan(backup: Backup, nodes: Mapping[str, NodeFacts], wanted: str = "") -> Plan:
    """Of servers that nothing stands against."""
    server = reset_by(nodes, wanted)
    drop_ins = {}
    for name, facts in nodes.items():
        path, content = drop_in(facts)
        saved = backup["servers"].get(name, backup["servers"].get(server, []))
        drop_ins[name] = {
            "path": path,
            "content": content,
            "there": any(each.endswith(f"/{DROP_IN}") for each in saved),
        }
    return Plan(
        server=server,
        others=[name for name in nodes if name != server],
        data={name: str(facts["k3s"]["config"].get("data-dir", DATA)) for name, facts in nodes.items()},
        flags=_flags(nodes[server]),
        drop_ins=drop_ins,
    )


def _of_backup(backup: Backup) -> Iterator[str]:
    if not backup["state"]:
        yield f"{backup['path']} holds neither etcd-snapshot nor state.db: name the directory of a backup."
    elif not backup["whole"]:
        yield f"{backup['state']} is not whole: nothing can be restored from it, take another backup."
    if not backup["tokens"]:
        yield f"{backup['path']} holds no server's token, without which K3s cannot read its own certificates in there."
    if len(backup["tokens"]) > 1:
        yield f"{backup['path']} holds tokens that differ: it is not of one cluster."


def _of_servers(
    backup: Backup, servers: List[str], nodes: Mapping[str, NodeFacts], tokens: Mapping[str, str]
) -> Iterator[str]:
    for name in servers:
        if name not in nodes:
            yield f"{name} could not be asked for its facts: make it reachable by SSH, or take it out of k3s_servers."
            continue
        k3s = nodes[name]["k3s"]
        if k3s["role"] != "server":
            yield f"{name} has no unit that runs K3s as a server: install K3s there, or take it out of k3s_servers."
        if "datastore-endpoint" in k3s["config"]:
            yield f"{name} keeps its state in a database of its own (datastore-endpoint): restore that one."
        if backup["tokens"] and name in tokens and tokens[name] not in backup["tokens"]:
            yield f"{name} has another token than the backup: it is of another cluster, or its token was changed since."
    if backup["kind"] == "sqlite" and len(servers) > 1:
        yield f"{backup['state']} is of one server, and k3s_servers has {len(servers)}: keep the one that it is of."


def _of_roles(servers: List[str], nodes: Mapping[str, NodeFacts], wanted: str) -> Iterator[str]:
    """Who joins another server cannot be reset, and who does not makes a cluster of its own."""
    if wanted and wanted not in servers:
        yield f"k3s_restore_server must be one of {', '.join(servers)}, and is {wanted!r}."
        return
    server = reset_by(nodes, wanted)
    if not server:
        yield (
            "Each server's configuration has `server`, with which K3s resets nothing: take it out of one's, and name "
            "that one as k3s_restore_server."
        )
    for name, facts in nodes.items():
        if name == server and _joins(facts):
            source = facts["k3s"]["sources"].get("server", "its configuration")
            yield f"{name} has `server` in {source}, with which K3s resets nothing: take it out, or choose another."
        if name != server and server and not _joins(facts):
            yield (
                f"{name} has no `server` in its configuration, and would make a cluster of its own: give it the "
                f"address of {server}, or choose it as k3s_restore_server."
            )


def _joins(facts: NodeFacts) -> str:
    return str(facts["k3s"]["config"].get("server", ""))


def _flags(facts: NodeFacts) -> List[str]:
    """What the unit says of K3s; its secrets are in the files that K3s has of them."""
    k3s = facts["k3s"]
    found = []
    for key, source in k3s["sources"].items():
        value = k3s["config"].get(key)
        if source in FLAGS and value != REDACTED:
            found += [f"--{key}={_text(each)}" for each in (value if isinstance(value, list) else [value])]
    return found


def _text(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)
