"""Who may change the cluster: one run, unless it is dead."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from datetime import datetime, timedelta, timezone
from types import SimpleNamespace

import pytest
from ansible.module_utils.netmend import kube, lease
from ansible.module_utils.netmend.kube import ApiError
from ansible.module_utils.netmend.lease import Claim, LeaseHeld

from tests.unit.loaded import ROOT, loaded

NOW = datetime(2026, 11, 21, 3, 0, tzinfo=timezone.utc)
PLUGIN = "plugins/action/netmend_lease.py"
MINE, OTHER = "me@here/10", "you@there/20"
CLAIM = Claim(MINE, 600)


def held_by(holder: str, ago: int = 0) -> lease.Lease:
    return lease.taken(None, Claim(holder, 600), NOW - timedelta(seconds=ago))


def test_a_free_lease_is_taken():
    spec = lease.taken(None, CLAIM, NOW)["spec"]
    assert spec == {
        "holderIdentity": MINE,
        "acquireTime": "2026-11-21T03:00:00.000000Z",
        "renewTime": "2026-11-21T03:00:00.000000Z",
        "leaseDurationSeconds": 600,
        "leaseTransitions": 0,
    }


def test_a_run_that_is_alive_is_waited_for_and_named():
    message = f"{OTHER} since 2026-11-21T02:58:20.*taken over after 2026-11-21T03:08:20"
    with pytest.raises(LeaseHeld, match=message) as refusal:
        lease.taken(held_by(OTHER, ago=100), CLAIM, NOW)
    assert refusal.value.holder == OTHER


@pytest.mark.parametrize(("ago", "dead"), [(601, ""), (5, OTHER)], ids=["silent", "known to be dead"])
def test_a_dead_runs_lease_is_taken_over(ago, dead):
    spec = lease.taken(held_by(OTHER, ago), CLAIM._replace(dead=dead), NOW)["spec"]
    assert (spec["holderIdentity"], spec["leaseTransitions"]) == (MINE, 1)


def test_the_own_lease_is_renewed():
    before = held_by(MINE, ago=100)
    after = lease.taken(before, CLAIM, NOW)["spec"]
    assert after["acquireTime"] == before["spec"]["acquireTime"]
    assert after["renewTime"] > before["spec"]["renewTime"]
    assert after["leaseTransitions"] == 0


def test_only_the_own_lease_is_given_back():
    assert lease.given_back(held_by(MINE), MINE)["spec"]["holderIdentity"] == ""
    assert lease.given_back(held_by(OTHER), MINE) is None
    assert lease.given_back(None, MINE) is None


class Api:
    """An API server with one lease, which takes a write only on top of what was read."""

    server = "https://api"
    item = kube.Api.item

    def __init__(self, stored=None, meanwhile=None):
        self.stored, self.meanwhile, self.version = stored, meanwhile, 1

    def get(self, path):
        answer = (404, "") if self.stored is None else (200, json.dumps(self._versioned(self.stored)))
        if self.meanwhile:
            self._store(self.meanwhile)
        return answer

    def send(self, method, path, content):
        expected = self.stored is None if method == "POST" else self._version_of(content) == self.version
        if not expected:
            return 409, "conflict"
        self._store(content)
        return 201 if method == "POST" else 200, ""

    def _store(self, content):
        self.stored, self.version = content, self.version + 1

    def _versioned(self, content):
        return {**content, "metadata": {**content["metadata"], "resourceVersion": str(self.version)}}

    def _version_of(self, content):
        return int(content["metadata"].get("resourceVersion", 0))


def test_it_is_taken_renewed_and_given_back():
    api = Api()
    lease.take(api, CLAIM)
    lease.take(api, CLAIM)
    with pytest.raises(LeaseHeld):
        lease.take(api, Claim(OTHER, 600))
    assert lease.give_back(api, MINE)
    assert not lease.give_back(api, MINE)
    lease.take(api, Claim(OTHER, 600))


@pytest.mark.parametrize("stored", [None, lease.given_back(held_by(OTHER), OTHER)], ids=["none yet", "free"])
def test_of_two_at_the_same_moment_one_has_it(stored):
    with pytest.raises(LeaseHeld, match="at the same moment"):
        lease.take(Api(stored, meanwhile=held_by(OTHER)), CLAIM)


def test_an_answer_that_is_none_is_an_error():
    api = Api()
    api.get = lambda path: (503, "etcd is gone")
    with pytest.raises(ApiError, match="503: etcd is gone"):
        lease.take(api, CLAIM)


# --- the controller's part ---


@pytest.fixture
def plugin():
    return loaded(PLUGIN)


@pytest.mark.parametrize(
    ("place", "process", "dead"),
    [("here", "gone", True), ("here", "alive", False), ("here", "namesake", True), ("elsewhere", "gone", False)],
)
def test_only_a_run_whose_process_was_here_and_is_gone_is_dead(plugin, monkeypatch, place, process, dead):
    with subprocess.Popen(["true"]) as ended:
        pass
    there = plugin.place() if place == "here" else plugin.place()[:-8] + "00000000"
    alive = plugin.identity(os.getpid())
    identities = {"gone": f"{ended.pid}.1", "alive": alive, "namesake": f"{os.getpid()}.1"}
    holder = f"{there}/{identities[process]}"
    asked = []

    def run(self, tmp, task_vars):
        asked.append(dict(self._task.args))
        return {"failed": True, "holder": holder}

    monkeypatch.setattr(plugin.Bare, "run", run)
    action = object.__new__(plugin.ActionModule)
    action._task = SimpleNamespace(args={})
    action.run()
    own = {"holder": f"{plugin.place()}/{plugin.identity(os.getppid())}"}
    assert asked == ([own, {**own, "dead": holder}] if dead else [own])


def test_a_container_of_the_same_name_is_another_place(plugin):
    if os.geteuid() != 0:
        pytest.skip("process namespaces need root")
    code = f"from tests.unit.loaded import loaded; print(loaded({PLUGIN!r}).place())"
    inside = ["unshare", "--pid", "--fork", "--mount-proc", sys.executable, "-c", code]
    said = subprocess.run(inside, cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()
    assert said.rpartition("/")[0] == plugin.place().rpartition("/")[0]
    assert said != plugin.place()
