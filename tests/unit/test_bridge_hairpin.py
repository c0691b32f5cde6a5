"""netmend_bridge_hairpin, on a bridge of a network namespace of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import Any, Callable

import pytest

from tests.unit.loaded import ROOT

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="network namespaces need root")

MODULE = ROOT / "library/netmend_bridge_hairpin.py"
SET_UP = """
set -e
mount -t sysfs sysfs /sys
ip link add cni0 type bridge
ip link add veth0 type veth peer name inside0
ip link add veth1 type veth peer name inside1
ip link set veth0 master cni0
ip link set veth1 master cni0
bridge link set dev veth1 hairpin on
"""
# Each run is a process, as on a node; what the bridge then says is behind what the module said.
RUN = """
import json, pathlib, sys
from ansible.module_utils.testing import patch_module_args
import runpy
try:
    with patch_module_args(json.loads(sys.argv[2])):
        runpy.run_path(sys.argv[1], run_name="__main__")
except SystemExit:
    pass
"""

Run = Callable[..., list[dict[str, Any]]]


@pytest.fixture
def run() -> Run:
    """Runs the module once for each of the arguments, on one bridge with two ports."""

    def run(*given: dict[str, Any]) -> list[dict[str, Any]]:
        runs = "".join(f'"$1" -c "$2" {MODULE} \'{json.dumps(each)}\'\n' for each in given)
        modes = "cat /sys/class/net/cni0/brif/*/hairpin_mode | tr -d '\\n'\n"
        argv = ["unshare", "--net", "--mount", "sh", "-c", SET_UP + runs + modes, "sh", sys.executable, RUN]
        *said, after = subprocess.run(argv, capture_output=True, text=True, check=True).stdout.split("\n")
        return [*(json.loads(line) for line in said if line), {"modes": after}]

    return run


def test_the_ports_where_it_is_off_are_turned_on_and_the_second_run_has_nothing_to_do(run: Run) -> None:
    first, second, after = run({}, {})
    assert (first["changed"], first["ports"]) == (True, ["veth0"])
    assert first["diff"] == {
        "before": "veth0 hairpin off\nveth1 hairpin on\n",
        "after": "veth0 hairpin on\nveth1 hairpin on\n",
    }
    assert (second["changed"], second["ports"]) == (False, [])
    assert after == {"modes": "11"}


def test_check_mode_says_so_and_changes_nothing(run: Run) -> None:
    checked, after = run({"_ansible_check_mode": True})
    assert (checked["changed"], checked["ports"]) == (True, ["veth0"])
    assert after == {"modes": "01"}


def test_what_is_no_bridge_is_named(run: Run) -> None:
    refused, _ = run({"bridge": "br-none"})
    assert refused["msg"] == "br-none is no bridge of this node"
