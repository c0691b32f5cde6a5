"""On a swapped cluster, what Flannel or K3s's policy controller left takes packets again: fix_network.yml ends that."""

from __future__ import annotations

from typing import Callable

import pytest

from lab import cluster
from lab.playbooks import Playbooks
from lab.spec import Lab

from . import runs

POLICY = """
iptables -w -N KUBE-ROUTER-FORWARD
iptables -w -N KUBE-POD-FW-33KCQI252C7LCMNY
iptables -w -A KUBE-POD-FW-33KCQI252C7LCMNY -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
iptables -w -A KUBE-POD-FW-33KCQI252C7LCMNY -m mark ! --mark 0x10000/0x10000 -j REJECT
for pod in $(ip route show | awk '/ dev cali/ {print $1}'); do
    iptables -w -A KUBE-ROUTER-FORWARD -d "$pod" -j KUBE-POD-FW-33KCQI252C7LCMNY
done
iptables -w -I FORWARD 1 -m comment --comment 'kube-router netpol - TEMCG2JMHZYE7H7T' -j KUBE-ROUTER-FORWARD
iptables -w -S KUBE-ROUTER-FORWARD | grep -q -- '-d 10.42.* -j KUBE-POD-FW'
"""


@pytest.fixture(scope="module", autouse=True)
def _swapped(playbooks: Playbooks) -> None:
    run = runs.swap(playbooks)
    assert run.code == 0, run.output


def flannel(lab: Lab) -> None:
    cluster.put_in(lab, "flannel-leftovers")


def policy(lab: Lab) -> None:
    cluster.must(lab, lab.machines[-1], POLICY)


@pytest.mark.parametrize(
    ("put_in", "fault"), [(flannel, "flannel-leftovers"), (policy, "stale-network-policy")], ids=["flannel", "policy"]
)
def test_it_is_named_and_taken_away(lab: Lab, playbooks: Playbooks, put_in: Callable[[Lab], None], fault: str) -> None:
    put_in(lab)
    run = playbooks.run("fix_network.yml", *runs.arguments(lab), limit=runs.LIMIT)
    row = run.first["matrix"]["rows"]["pod-pod"]
    assert row["ok"] < row["total"], run.output
    assert (run.code, run.report["healthy"], run.named[0]) == (0, True, fault), run.output
    assert {change["role"] for change in run.report["changes"]} == {"cni_leftovers"}, run.output
    assert run.report["verdict"].startswith(f"Mended: {fault}. ")
    runs.assert_on_calico(lab)
    for found in runs.traces(lab).values():
        assert "kube-router" not in found
