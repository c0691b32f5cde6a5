"""What a control plane is not restored from, and how it is."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import pytest
from ansible.module_utils.netmend.backup import Backup, read
from ansible.module_utils.netmend.restore import notes, plan, refusals

PAGES = bytes(512)
TOKEN = b"K10abc::server:secret\n"
CHECKSUM = hashlib.sha256(TOKEN).hexdigest()
SERVERS = ["a", "b", "c"]
DROP_IN = "/etc/rancher/k3s/config.yaml.d/90-netmend-cni.yaml"


def server(address: str, **config: Any) -> Any:
    return {
        "k3s": {"role": "server", "config": config, "sources": {}},
        "interfaces": [{"name": "eth0", "addresses": [f"{address}/24"]}],
    }


@pytest.fixture
def nodes() -> dict[str, Any]:
    joining = {"server": "https://10.0.0.1:6443"}
    return {
        "a": server("10.0.0.1", **{"cluster-init": True}),
        "b": server("10.0.0.2", **joining),
        "c": server("10.0.0.3", **joining),
    }


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    place = tmp_path / "netmend-1"
    for name in SERVERS:
        keep(place / name / "var/lib/rancher/k3s/server/token", TOKEN)
        keep(place / name / "etc/rancher/k3s/config.yaml", b"cluster-init: true\n")
    keep(place / "etcd-snapshot", PAGES + hashlib.sha256(PAGES).digest())
    return place


def keep(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)


def refused(saved: Path, nodes: dict[str, Any], token: str = CHECKSUM, wanted: str = "") -> list[str]:
    return refusals(read(saved), SERVERS, nodes, dict.fromkeys(nodes, token), wanted)


def test_a_backup_tells_what_it_holds(saved: Path) -> None:
    assert read(saved) == Backup(
        name="netmend-1",
        path=str(saved),
        kind="etcd",
        state=str(saved / "etcd-snapshot"),
        whole=True,
        token=str(saved / "a/var/lib/rancher/k3s/server/token"),
        tokens=[CHECKSUM],
        servers={name: ["/etc/rancher/k3s/config.yaml", "/var/lib/rancher/k3s/server/token"] for name in SERVERS},
    )


def test_one_server_is_reset_and_the_others_join_it(saved: Path, nodes: dict[str, Any]) -> None:
    assert refused(saved, nodes) == []
    assert notes(read(saved), nodes) == []
    found = plan(read(saved), nodes)
    assert (found["server"], found["others"], found["flags"]) == ("a", ["b", "c"], [])
    assert found["data"] == dict.fromkeys(SERVERS, "/var/lib/rancher/k3s")
    assert {each["there"] for each in found["drop_ins"].values()} == {False}


def test_a_swaps_drop_in_is_as_the_backup_has_it(saved: Path, nodes: dict[str, Any]) -> None:
    keep(saved / "a" / DROP_IN[1:], b"")
    found = plan(read(saved), {**nodes, "later": nodes["b"]})["drop_ins"]
    assert {name: each["there"] for name, each in found.items()} == {"a": True, "b": False, "c": False, "later": True}
    assert found["a"]["path"] == DROP_IN
    assert 'flannel-backend: "none"' in found["a"]["content"]


def test_what_the_unit_says_is_said_again(saved: Path, nodes: dict[str, Any]) -> None:
    k3s = nodes["a"]["k3s"]
    k3s["config"].update({"data-dir": "/srv/k3s", "tls-san": ["one", "two"], "token": "(redacted)", "node-ip": ["9"]})
    k3s["sources"].update(dict.fromkeys(("cluster-init", "tls-san", "token"), "ExecStart"))
    k3s["sources"].update({"data-dir": "environment", "node-ip": "/etc/rancher/k3s/config.yaml"})
    found = plan(read(saved), nodes)
    assert found["flags"] == ["--cluster-init=true", "--tls-san=one", "--tls-san=two", "--data-dir=/srv/k3s"]
    assert found["data"]["a"] == "/srv/k3s"


def test_who_is_not_asked_and_who_joins_elsewhere_is_named(saved: Path, nodes: dict[str, Any]) -> None:
    nodes["c"]["k3s"]["config"]["server"] = "https://api.example:6443"
    del nodes["b"]
    gone, elsewhere = notes(read(saved), nodes)
    assert gone.startswith("The backup is of b, too, which is not in the inventory")
    assert elsewhere == "c joins by https://api.example:6443: that has to lead to a."


def no_state(saved: Path, nodes: dict[str, Any]) -> None:
    (saved / "etcd-snapshot").unlink()


def cut_off(saved: Path, nodes: dict[str, Any]) -> None:
    keep(saved / "etcd-snapshot", PAGES)


def no_token(saved: Path, nodes: dict[str, Any]) -> None:
    for path in saved.rglob("token"):
        path.unlink()


def two_tokens(saved: Path, nodes: dict[str, Any]) -> None:
    keep(saved / "z/var/lib/rancher/k3s/server/token", b"other")


def not_reached(saved: Path, nodes: dict[str, Any]) -> None:
    del nodes["b"]


def an_agent(saved: Path, nodes: dict[str, Any]) -> None:
    nodes["b"]["k3s"]["role"] = "agent"


def another_database(saved: Path, nodes: dict[str, Any]) -> None:
    nodes["b"]["k3s"]["config"]["datastore-endpoint"] = "(redacted)"


def all_join(saved: Path, nodes: dict[str, Any]) -> None:
    nodes["a"]["k3s"]["config"]["server"] = "https://10.0.0.2:6443"


def two_join_nobody(saved: Path, nodes: dict[str, Any]) -> None:
    del nodes["b"]["k3s"]["config"]["server"]


def sqlite(saved: Path, nodes: dict[str, Any]) -> None:
    (saved / "etcd-snapshot").rename(saved / "state.db")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (no_state, "holds neither etcd-snapshot nor state.db: name the directory of a backup."),
        (cut_off, "etcd-snapshot is not whole: nothing can be restored from it"),
        (no_token, "holds no server's token"),
        (two_tokens, "holds tokens that differ: it is not of one cluster."),
        (not_reached, "b could not be asked for its facts"),
        (an_agent, "b has no unit that runs K3s as a server"),
        (another_database, "b keeps its state in a database of its own"),
        (all_join, "Each server's configuration has `server`, with which K3s resets nothing"),
        (two_join_nobody, "b has no `server` in its configuration, and would make a cluster of its own"),
        (sqlite, "state.db is of one server, and k3s_servers has 3"),
    ],
)
def test_what_stands_against_it(saved: Path, nodes: dict[str, Any], change: Any, said: str) -> None:
    change(saved, nodes)
    (message,) = refused(saved, nodes)
    assert said in message


def test_of_another_cluster_nothing_is_restored(saved: Path, nodes: dict[str, Any]) -> None:
    assert [each.partition(" ")[0] for each in refused(saved, nodes, token="other")] == SERVERS


@pytest.mark.parametrize(
    ("wanted", "said"),
    [
        ("d", "k3s_restore_server must be one of a, b, c, and is 'd'."),
        ("b", "b has `server` in its configuration, with which K3s resets nothing: take it out, or choose another."),
    ],
)
def test_a_server_that_cannot_be_reset(saved: Path, nodes: dict[str, Any], wanted: str, said: str) -> None:
    assert said in refused(saved, nodes, wanted=wanted)


def test_a_directory_that_is_not_there(tmp_path: Path, nodes: dict[str, Any]) -> None:
    no_state_there, no_token_there = refused(tmp_path / "nothing", nodes)
    assert "nothing holds neither" in no_state_there
    assert "nothing holds no server's token" in no_token_there
