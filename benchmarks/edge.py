"""How long it takes from 504 on every site to sites that are proven to answer, and validate.yml with a checklist.

.venv/bin/python -m lab up edge && .venv/bin/python benchmarks/edge.py [--lab NAME] [--runs N]

The operators' fault is put in, with the balancers let in at the ingress and the sites' pods moved to another node.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.diagnosis import show  # noqa: E402  it is not installed, and found by the line above
from lab import cluster, ingress, machines  # noqa: E402  as above
from lab.load import load_at_edge  # noqa: E402  as above
from lab.playbooks import Outcome, Playbooks  # noqa: E402  as above
from lab.spec import Lab  # noqa: E402  as above

FAULT = "operators"
SITES = "-n keybuzz"
CONTROLLER = "-n ingress-nginx service ingress-nginx-controller"
PATIENCE = 30  # seconds: more than a 504 takes


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lab", default="edge", help="a lab that is up, with an ingress controller and balancers")
    parser.add_argument("--runs", type=int, default=3)
    arguments = parser.parse_args()
    lab = machines.recall(arguments.lab)
    with tempfile.TemporaryDirectory() as reports, sites_on_the_server(lab):
        playbooks = Playbooks(lab, Path(reports))
        mended = [from_504_to_proven(lab, playbooks) for _ in range(arguments.runs)]
        urls = [f"http://{host}/" for host in ingress.hosts(lab)]
        checklist = {"nodes": len(lab.machines), "urls": urls, "balancers": [each.public for each in lab.balancers]}
        wanted = json.dumps({"netmend_checklist": checklist})
        validated = [timed(playbooks, "validate.yml", "-e", wanted) for _ in range(arguments.runs)]
    runs = zip(mended, validated, strict=True)
    show("seconds", [{"fix_network.yml, from 504s to proven": one, "validate.yml": other} for one, other in runs])


def from_504_to_proven(lab: Lab, playbooks: Playbooks) -> float:
    """Seconds of fix_network.yml, whose last measurement asks every site by every balancer."""
    cluster.put_in(lab, FAULT)
    for agent in lab.agents:
        for balancer in lab.balancers:
            cluster.must(lab, agent, f"ufw allow from {balancer.private} to any port 80,443 proto tcp")
    try:
        before = answers(lab)
        took = timed(playbooks, "fix_network.yml")
        after = answers(lab)
        print(f"before {dict(before)}, mended in {took:.1f} s, after {dict(after)}", flush=True)
        assert (set(before), set(after)) == ({"504"}, {"200"})
    finally:
        playbooks.run("playbooks/undo.yml")
        cluster.take_out(lab, FAULT)
    return took


def answers(lab: Lab) -> Counter[str]:
    """How often the sites said what, each asked by each balancer over HTTP and TLS."""
    with load_at_edge(lab, rate=4, patience=PATIENCE) as clients:
        time.sleep(6)
    (client,) = clients.values()
    status = re.compile(r"HTTP/1.1 (\d+)")
    lost = [status.search(what) for _, _, what in client.lost]
    return Counter([*("200" for _ in client.answered), *(said[1] if said else "none" for said in lost)])


def timed(playbooks: Playbooks, book: str, *arguments: str) -> float:
    began = time.monotonic()
    run: Outcome = playbooks.run(book, *arguments)
    took = time.monotonic() - began
    assert run.code == 0, run.output
    return took


@contextmanager
def sites_on_the_server(lab: Lab) -> Iterator[None]:
    """So that a request stays on the node that it comes to, and finds no pod there."""
    place(lab, lab.servers[0].name, "Local")
    try:
        yield
    finally:
        place(lab, None, "Cluster")


def place(lab: Lab, node: str | None, policy: str) -> None:
    local = json.dumps({"spec": {"externalTrafficPolicy": policy}})
    cluster.must(lab, lab.machines[0], f"k3s kubectl patch {CONTROLLER} -p '{local}'")
    template = {"spec": {"nodeSelector": {"kubernetes.io/hostname": node}}}
    patch = json.dumps({"spec": {"template": template}})
    for site in cluster.must(lab, lab.machines[0], f"k3s kubectl get deployments {SITES} -o name").split():
        cluster.must(lab, lab.machines[0], f"k3s kubectl patch {site} {SITES} -p '{patch}'")
        cluster.must(lab, lab.machines[0], f"k3s kubectl rollout status {site} {SITES} --timeout=180s")


if __name__ == "__main__":
    main()
