"""netmend_iptables_rule, run in a network namespace of its own that holds a real node's rules."""

from __future__ import annotations

import json

import pytest

RUN = """
import json, runpy, sys
from ansible.module_utils.testing import patch_module_args
with patch_module_args(json.load(sys.stdin)):
    runpy.run_path("library/netmend_iptables_rule.py", run_name="__main__")
"""
OPTIONS = {
    "name": "pods",
    "rules": [{"source": "10.42.0.0/16"}, {"destination": "10.42.0.0/16", "ctstate": ["ESTABLISHED", "RELATED"]}],
    "after": ["cali-*", "KUBE-*"],
    "before": ["deny"],
    "persistent": False,
}
REJECT = "-s 10.42.0.0/16 -j REJECT --reject-with icmp-port-unreachable"


@pytest.fixture
def node(namespace, fixtures):
    """A node with UFW enabled after K3s was."""
    saved = (fixtures / "k3s-1.36.3/flannel-ufw-blocks/agent0/iptables-save.txt").read_text()
    namespace("iptables-nft-restore", text=saved)
    return namespace


def module(node, check: bool = False, ok: bool = True, **options) -> dict:
    """One run of the module: what it returns."""
    arguments = {**OPTIONS, **options, "_ansible_check_mode": check}
    return json.loads(node.python(RUN, json.dumps(arguments), ok=ok))


def forward(node, backend: str = "nft") -> list[str]:
    saved = node(f"iptables-{backend}-save", "-t", "filter").splitlines()
    return [line.partition(" FORWARD ")[2] for line in saved if line.startswith("-A FORWARD")]


def test_check_apply_again_check_again_and_back(node):
    before = forward(node)
    planned = module(node, check=True)
    assert planned["changed"]
    assert forward(node) == before

    done = module(node)
    assert (done["changed"], done["commands"], done["diff"]) == (True, planned["commands"], planned["diff"])
    assert [line for line in forward(node) if "netmend:" in line] == forward(node)[4:6]
    assert done["diff"]["after"].splitlines()[2:] == [f"-A FORWARD {rule}" for rule in forward(node)]

    for check in (False, True):
        again = module(node, check=check)
        assert (again["changed"], again["diff"]) == (False, {"before": "", "after": ""})

    assert module(node, state="absent")["changed"]
    assert forward(node) == before


def test_only_the_named_foreign_rule_goes(node):
    before = forward(node)
    node("iptables-nft", "-I", "FORWARD", "1", *REJECT.split())
    refused = module(node, ok=False)
    assert f"rule 1 ({REJECT})" in refused["msg"]
    assert forward(node) == [REJECT, *before]

    reject = {"backend": "nft", "table": "filter", "chain": "FORWARD", "spec": REJECT}
    assert module(node, remove_rules=[reject])["changed"]
    assert [rule for rule in forward(node) if "netmend:" not in rule] == before
    assert not module(node, remove_rules=[reject])["changed"]


def test_backend_that_holds_the_chains_of_kubernetes_counts(node):
    node("iptables-legacy", "-P", "FORWARD", "DROP")
    module(node, backend="legacy")
    assert len(forward(node, "legacy")) == 2
    module(node)
    assert forward(node, "legacy") == []
    assert len([rule for rule in forward(node) if "netmend:" in rule]) == 2
