from __future__ import annotations

from pathlib import Path

import pytest
from ansible.module_utils.netmend.parse import ip


@pytest.fixture
def node(fixtures: Path) -> Path:
    return fixtures / "k3s-1.36.3/both-overlays/agent0"


def test_interfaces(node: Path) -> None:
    found = ip.interfaces((node / "ip-link.json").read_text(), (node / "ip-addr.json").read_text())
    by_name = {interface["name"]: interface for interface in found}
    vxlan = by_name["flannel.1"]
    assert (vxlan["kind"], vxlan["mtu"], vxlan["addresses"][0]) == ("vxlan", 1400, "10.42.1.0/32")
    assert (vxlan["info"]["id"], vxlan["info"]["port"], vxlan["info"]["local"]) == (1, 8472, "10.0.0.110")
    assert vxlan["rx_packets"] > 0
    assert (by_name["tunl0"]["kind"], by_name["tunl0"]["mtu"]) == ("ipip", 1430)
    assert [i["master"] for i in found if i["kind"] == "veth"] == ["cni0"]
    assert by_name["vec0"]["addresses"][0] == "10.0.0.110/32"
    assert by_name["lo"]["kind"] == ""


def test_routes(node: Path) -> None:
    routes = ip.routes((node / "ip-route-all.json").read_text())
    by_destination = {route["destination"]: route for route in routes if route["table"] == "main"}
    tunnel = by_destination["10.42.137.64/26"]
    assert (tunnel["gateway"], tunnel["device"], tunnel["flags"]) == ("10.0.0.111", "tunl0", ["onlink"])
    assert (tunnel["protocol"], tunnel["mtu"]) == ("80", 1430)
    assert (by_destination["10.42.191.192/26"]["type"], by_destination["10.42.191.192/26"]["device"]) == (
        "blackhole",
        "",
    )
    assert by_destination["default"]["mtu"] == 0
    assert {route["table"] for route in routes} == {"main", "local"}


def test_rules(node: Path) -> None:
    assert [rule["table"] for rule in ip.rules((node / "ip-rule.json").read_text())] == ["local", "main", "default"]


def test_neighbours_and_fdb_name_the_same_peers(fixtures: Path) -> None:
    node = fixtures / "k3s-1.36.3/flannel/agent0"
    macs = {n["mac"] for n in ip.neighbours((node / "ip-neigh.json").read_text()) if n["device"] == "flannel.1"}
    fdb = ip.fdb((node / "bridge-fdb.json").read_text())
    assert {entry["mac"] for entry in fdb} == macs
    assert {entry["destination"] for entry in fdb} == {"10.0.0.100", "10.0.0.111"}


def test_nothing_printed_is_nothing_there() -> None:
    assert ip.rules("") == []
    assert ip.neighbours("[{},{}]") == []
    with pytest.raises(ValueError, match="list"):
        ip.rules("{}")
