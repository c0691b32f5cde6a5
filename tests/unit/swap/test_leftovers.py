"""What a finding has role cni_leftovers take away, from hosts' variables as the playbook has them."""

from __future__ import annotations

import json
from typing import Any

from tests.unit.loaded import loaded
from tests.unit.test_filters import HostVars

from .conftest import Captured

filters = loaded("plugins/filter/netmend.py")


def planned(cluster: Captured, **asked: Any) -> dict[str, Any]:
    remedies = {
        "agent0": {"cni_leftovers": {f"cni_leftovers_{key}": value for key, value in asked.items()}},
        "agent1": {},
    }
    kept = {
        "netmend_facts": {"cluster": cluster.cluster},
        "netmend_now": json.dumps({"remedies": remedies}),
        "netmend_read": {"answers": {name: {"netmend_node": facts} for name, facts in cluster.nodes.items()}},
    }
    found: dict[str, Any] = filters.netmend_leftovers(["server0"], HostVars(server0=kept))
    assert list(found) == ["agent0"]
    return found["agent0"]


def test_flannels_go_with_its_annotations(leftovers: Captured) -> None:
    found = planned(leftovers, of=["flannel"])
    assert ["ip", "link", "del", "flannel.1"] in [each["argv"] for each in found["commands"]]
    assert all(name.startswith("flannel.alpha.coreos.com/") for name in found["annotations"])
    assert found["annotations"]


def test_a_file_is_set_aside_and_kept(leftovers: Captured) -> None:
    found = planned(leftovers, files=["/etc/cni/net.d/05-other.conflist"])
    (command,) = found["commands"]
    assert command["argv"][-2:] == [
        "/etc/cni/net.d/05-other.conflist",
        "/etc/cni/net.d/05-other.conflist.netmend-aside",
    ]
    assert found["annotations"] == []
