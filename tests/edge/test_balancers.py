"""What a lab's balancers are set to wrongly is named, and set right by an API that answers as Hetzner's documents."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from lab import balancer, cluster
from lab.playbooks import Outcome, Playbooks
from lab.spec import Balancer, Lab
from tests import hetzner

FAULTS = ("external-traffic-policy-local", "balancer-checks-wrong-port", "proxy-protocol-mismatch")


class Project(hetzner.Hetzner):
    """The lab's machines and balancers as a project at Hetzner; what is changed there, HAProxy does."""

    def __init__(self, lab: Lab) -> None:
        super().__init__()
        self.lab, self.heals = lab, False
        self.servers = [hetzner.server(n, each.name, each.private, {}) for n, each in enumerate(lab.machines, 1)]

    def answer(self, token: str, method: str, url: str, body: hetzner.Object) -> hetzner.Object:
        seen = zip(self.lab.balancers, balancer.seen(self.lab), strict=True)
        self.balancers = [self._balancer(number, *each) for number, each in enumerate(seen, 1)]
        said = super().answer(token, method, url, body)
        if method == "POST":
            wanted = [[settings(each) for each in whole["services"]] for whole in self.balancers]
            balancer.configure(self.lab, dict(zip(self.lab.balancers, wanted, strict=True)))
        return said

    def _balancer(self, number: int, at: Balancer, seen: dict[str, Any]) -> hetzner.Object:
        ids = {each["private_net"][0]["ip"]: each["id"] for each in self.servers}
        targets = [hetzner.target(ids[each["address"]]) for each in seen["targets"]]
        whole = hetzner.balancer(number, seen["name"], seen["address"], targets)
        whole["private_net"][0]["ip"] = at.private
        for target, each in zip(targets, seen["targets"], strict=True):
            for health in target["health_status"]:
                health["status"] = each["status"][str(health["listen_port"])]
        for service, each in zip(whole["services"], seen["services"], strict=True):
            check = each["health"]
            service.update(destination_port=each["destination_port"], proxyprotocol=each["proxy_protocol"])
            service["health_check"].update(protocol=check["protocol"], port=check["port"])
            service["health_check"]["http"].update(path=check["path"], status_codes=[*map(str, check["codes"])])
        return whole


def settings(service: hetzner.Object) -> dict[str, Any]:
    """A service of Hetzner's as netmend_balancers has it."""
    check = service["health_check"]
    return {
        **{key: service[key] for key in ("protocol", "listen_port", "destination_port")},
        "proxy_protocol": service["proxyprotocol"],
        "health": {
            **{key: check[key] for key in ("protocol", "port")},
            "path": check["http"]["path"],
            "codes": [*map(int, check["http"]["status_codes"])],
        },
    }


@pytest.fixture
def project(lab: Lab) -> Iterator[Project]:
    api = Project(lab)
    yield api
    api.close()


@pytest.fixture
def fault(request: pytest.FixtureRequest, lab: Lab) -> Iterator[str]:
    try:
        cluster.put_in(lab, request.param)
        yield request.param
    finally:
        cluster.take_out(lab, request.param)


def set_right(playbooks: Playbooks, project: Project) -> Outcome:
    given = {
        "balancers_token": hetzner.TOKEN,
        "balancers_endpoint": project.url,
        "balancers_repair": True,
        "balancers_settle": 20,
    }
    return playbooks.run("playbooks/balancers.yml", "-e", json.dumps(given))


@pytest.mark.parametrize("fault", FAULTS, indirect=True)
def test_what_a_balancer_is_set_to_wrongly_is_set_right(playbooks: Playbooks, project: Project, fault: str) -> None:
    found = playbooks.run("diagnose.yml")
    assert found.named[:1] == [fault], found.output
    run = set_right(playbooks, project)
    assert run.code == 0, run.output
    assert project.changes
    proven = playbooks.run("fix_network.yml")
    assert (proven.code, proven.named, proven.changed) == (0, [], 0), proven.output
    project.asked.clear()
    again = set_right(playbooks, project)
    assert (again.code, again.changed, project.changes) == (0, 0, []), again.output
