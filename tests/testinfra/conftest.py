"""The end state of a cluster: run by Molecule, or by pytest alone with --ansible-inventory and --hosts=ansible://k3s_cluster."""

from __future__ import annotations

import json
from typing import Any

import pytest
import testinfra
from testinfra.host import Host


@pytest.fixture(scope="session")
def server(pytestconfig: pytest.Config) -> Host:
    """The first server of the inventory."""
    inventory = pytestconfig.getoption("ansible_inventory")
    return testinfra.get_hosts(["ansible://k3s_servers"], ansible_inventory=inventory)[0]


@pytest.fixture(scope="session")
def pods(server: Host) -> list[dict[str, Any]]:
    """The pods of the DaemonSet `web`, one on every node."""
    items = json.loads(server.check_output("k3s kubectl get pods -l app=web -o json"))["items"]
    assert items, "the application `web` (lab/labs/apps.yml) is not there"
    return items


@pytest.fixture
def get(host: Host):
    """Asks for a page over HTTP from the node; returns the answer's JSON, and fails where none comes within 5 s."""

    def ask(address: str) -> dict[str, Any]:
        return json.loads(host.check_output("curl --silent --show-error --fail --max-time 5 http://%s/", address))

    return ask
