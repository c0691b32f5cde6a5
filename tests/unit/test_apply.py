"""Objects come into a cluster by server-side apply, and only what differs is told and written."""

from __future__ import annotations

import copy
import json
from urllib.parse import parse_qs, urlsplit

import pytest
from ansible.module_utils.netmend import apply as applying
from ansible.module_utils.netmend.apply import Change, apply, named, put, remove
from ansible.module_utils.netmend.kube import Api, ApiError

CORE = {"Namespace": ("namespaces", False), "ConfigMap": ("configmaps", True)}
DEFINITION = {
    "apiVersion": "apiextensions.k8s.io/v1",
    "kind": "CustomResourceDefinition",
    "metadata": {"name": "ippools.crd.projectcalico.org"},
    "spec": {"names": {"kind": "IPPool", "plural": "ippools"}},
}
POOL = {
    "apiVersion": "crd.projectcalico.org/v1",
    "kind": "IPPool",
    "metadata": {"name": "pool"},
    "spec": {"cidr": "10.42.128.0/17"},
}
NAMESPACE = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "calico"}}
CONFIG = {
    "apiVersion": "v1",
    "kind": "ConfigMap",
    "metadata": {"name": "config", "namespace": "calico"},
    "data": {"mtu": "1430"},
}
ALL = [CONFIG, POOL, NAMESPACE, DEFINITION]


class Server:
    """An API server's memory: it merges what is applied, keeps versions, and learns kinds from definitions."""

    server = "https://api"
    item = Api.item

    def __init__(self, *, establishes: bool = True) -> None:
        self.stored: dict[str, dict] = {}
        self.written: list[str] = []
        self.establishes = establishes

    def kinds(self, root: str) -> dict[str, tuple[str, bool]]:
        if root == "/api/v1":
            return CORE
        if root == "/apis/apiextensions.k8s.io/v1":
            return {"CustomResourceDefinition": ("customresourcedefinitions", False)}
        defined = root == "/apis/crd.projectcalico.org/v1" and any("ippools." in path for path in self.stored)
        return {"IPPool": ("ippools", False)} if defined and self.establishes else {}

    def get(self, path: str) -> tuple[int, str]:
        if path in self.stored:
            return 200, json.dumps(self.stored[path])
        kinds = self.kinds(path)
        if not kinds:
            return 404, ""
        listed = [{"kind": kind, "name": name, "namespaced": inside} for kind, (name, inside) in kinds.items()]
        return 200, json.dumps({"resources": [*listed, {"kind": "Scale", "name": "x/scale", "namespaced": True}]})

    def send(self, method: str, path: str, content=None, content_type: str = "") -> tuple[int, str]:
        place, query = urlsplit(path).path, parse_qs(urlsplit(path).query)
        if method == "DELETE":
            self.written.append(f"- {place}")
            return (200, "{}") if self.stored.pop(place, None) else (404, "")
        assert (method, content_type) == ("PATCH", "application/apply-patch+yaml")
        assert query["fieldManager"] == ["netmend"]
        if content.get("data", {}).get("mtu") == "wide":
            return 422, json.dumps({"message": "mtu is not a number"})
        namespace = place.partition("/namespaces/")[2].split("/")
        if len(namespace) > 1 and f"/api/v1/namespaces/{namespace[0]}" not in self.stored:
            return 404, json.dumps({"message": f'namespaces "{namespace[0]}" not found'})
        live = self.stored.get(place, {"metadata": {"resourceVersion": "1", "uid": "u"}, "status": {"phase": "Active"}})
        after = merged(live, content)
        if "dryRun" not in query:
            self.written.append(place)
            self.stored[place] = after
        return 200, json.dumps({**after, "metadata": {**after["metadata"], "resourceVersion": "2"}})

    def watch(self, path: str, seconds: int):
        status = {"conditions": [{"type": "Established", "status": "True"}]} if self.establishes else {}
        for place, item in self.stored.items():
            if place.startswith(path):
                yield {"type": "ADDED", "object": {**item, "status": status}}


def merged(live, content):
    if not isinstance(live, dict) or not isinstance(content, dict):
        return content
    return {**live, **{key: merged(live.get(key), value) for key, value in copy.deepcopy(content).items()}}


def test_definitions_come_first_then_namespaces_then_the_rest():
    server = Server()
    changes = apply(server, ALL)
    assert [change.what for change in changes] == [
        "CustomResourceDefinition ippools.crd.projectcalico.org",
        "Namespace calico",
        "ConfigMap calico/config",
        "IPPool pool",
    ]
    assert server.written[:2] == [
        "/apis/apiextensions.k8s.io/v1/customresourcedefinitions/ippools.crd.projectcalico.org",
        "/api/v1/namespaces/calico",
    ]
    assert sorted(server.written[2:]) == [
        "/api/v1/namespaces/calico/configmaps/config",
        "/apis/crd.projectcalico.org/v1/ippools/pool",
    ]


def test_of_what_is_not_there_the_api_is_asked_once():
    server, asked = Server(), []
    send = server.send
    server.send = lambda method, path, *rest, **more: asked.append(path) or send(method, path, *rest, **more)
    apply(server, ALL)
    assert len(asked) == len(ALL)
    asked.clear()
    server.stored["/api/v1/namespaces/calico/configmaps/config"]["data"] = {"mtu": "1500"}
    apply(server, ALL)
    assert len([path for path in asked if "dryRun" in path]) == len(ALL)
    assert len(asked) == len(ALL) + 1


def test_a_second_time_changes_nothing():
    server = Server()
    apply(server, ALL)
    server.written.clear()
    assert apply(server, ALL) == []
    assert server.written == []


def test_what_others_set_stays_and_only_what_differs_is_told():
    server = Server()
    apply(server, ALL)
    path = "/api/v1/namespaces/calico/configmaps/config"
    server.stored[path]["data"] = {"mtu": "1500", "theirs": "x"}
    server.written.clear()
    (change,) = apply(server, ALL)
    assert (change.before["data"], change.after["data"]) == (
        {"mtu": "1500", "theirs": "x"},
        {"mtu": "1430", "theirs": "x"},
    )
    assert server.stored[path]["data"] == {"mtu": "1430", "theirs": "x"}
    assert server.written == [path]


def test_a_dry_run_tells_all_and_writes_nothing():
    server = Server()
    changes = apply(server, ALL, dry_run=True)
    assert changes[-1] == Change("IPPool pool", None, POOL)
    assert Change("ConfigMap calico/config", None, CONFIG) in changes
    assert server.stored == {}


def test_a_dry_run_tells_an_object_as_given_whose_namespace_is_to_be_made():
    server = Server()
    assert apply(server, [CONFIG, NAMESPACE], dry_run=True)[-1] == Change("ConfigMap calico/config", None, CONFIG)
    apply(server, [NAMESPACE])
    (change,) = apply(server, [CONFIG, NAMESPACE], dry_run=True)
    assert change.after["metadata"]["resourceVersion"] == "2"


def test_without_its_namespace_an_object_is_refused_when_it_is_to_be_written():
    with pytest.raises(ApiError, match=r"refuses ConfigMap calico/config \(404\): namespaces \"calico\" not found"):
        apply(Server(), [CONFIG])


def test_a_kind_that_never_comes_is_named(monkeypatch):
    with pytest.raises(ApiError, match=r"has not established ippools\.crd\.projectcalico\.org within"):
        apply(Server(establishes=False), ALL)


def test_an_unknown_kind_is_named():
    with pytest.raises(ApiError, match=r"knows no crd\.projectcalico\.org/v1 IPPool, which IPPool pool is"):
        apply(Server(), [POOL])


def test_a_refusal_names_the_object():
    with pytest.raises(ApiError, match=r"refuses ConfigMap calico/config \(422\): mtu is not a number"):
        apply(Server(), [NAMESPACE, {**CONFIG, "data": {"mtu": "wide"}}])


def test_removing_goes_the_other_way_round_and_once():
    server = Server()
    apply(server, ALL)
    server.written.clear()
    assert [change.what for change in remove(server, ALL, dry_run=True)][-1] == named(DEFINITION)
    assert server.written == []
    assert {change.what for change in remove(server, ALL)} == {named(item) for item in ALL}
    assert server.written[-1].endswith("/ippools.crd.projectcalico.org")
    assert server.stored == {}
    assert remove(server, ALL) == []


class Slow(Server):
    """What is deleted there ends when somebody has watched it, or never."""

    def __init__(self, *, ends: bool = True) -> None:
        super().__init__()
        self.ends = ends
        self.policies: dict[str, str] = {}

    def kinds(self, root: str) -> dict[str, tuple[str, bool]]:
        return {"DaemonSet": ("daemonsets", True)} if root == "/apis/apps/v1" else super().kinds(root)

    def send(self, method: str, path: str, content=None, content_type: str = "") -> tuple[int, str]:
        if method != "DELETE":
            return super().send(method, path, content, content_type)
        place, _, policy = path.partition("?propagationPolicy=")
        self.policies[place] = policy
        return 200, "{}"

    def listed(self, path: str):
        found = self.stored.get(path.replace("?fieldSelector=metadata.name%3D", "/"))
        return ([found] if found else []), "7"

    def watch(self, path: str, seconds: int, version: str = ""):
        if not version:
            yield from super().watch(path, seconds)
        elif self.ends:
            gone = self.stored.pop(path.replace("?fieldSelector=metadata.name%3D", "/"))
            yield {"type": "MODIFIED", "object": gone}
            yield {"type": "DELETED", "object": gone}


AGENT = {"apiVersion": "apps/v1", "kind": "DaemonSet", "metadata": {"name": "agent", "namespace": "calico"}}
AGENT_PATH = "/apis/apps/v1/namespaces/calico/daemonsets/agent"


def test_what_is_removed_is_waited_for_with_its_pods():
    server = Slow()
    server.stored = {AGENT_PATH: AGENT, "/api/v1/namespaces/calico": NAMESPACE}
    assert len(remove(server, [AGENT, NAMESPACE], wait=5)) == 2
    assert server.stored == {}
    assert server.policies == {AGENT_PATH: "Foreground", "/api/v1/namespaces/calico": "Background"}


def test_what_does_not_go_is_named():
    server = Slow(ends=False)
    server.stored = {AGENT_PATH: AGENT}
    with pytest.raises(ApiError, match=r"DaemonSet calico/agent was removed, and is still there after 0\.01 s"):
        remove(server, [AGENT], wait=0.01)


def test_a_diff_leaves_out_what_the_server_keeps():
    shown = applying.text({**NAMESPACE, "status": {}, "metadata": {"name": "calico", "resourceVersion": "7"}})
    assert json.loads(shown) == NAMESPACE
    assert applying.text(None) == ""


# --- fields of what is there ---


class Patched(Server):
    """Merges as the API does, by either kind of patch."""

    def __init__(self) -> None:
        super().__init__()
        self.sent: list[tuple[str, bool]] = []
        apply(self, ALL)

    def send(self, method: str, path: str, content=None, content_type: str = "") -> tuple[int, str]:
        if method == "PATCH" and "apply-patch" not in content_type:
            self.sent.append((content_type.partition("/")[2].partition("+")[0], "dryRun" in path))
            content_type = "application/apply-patch+yaml"
        return super().send(method, path, content, content_type)


WIDER = {**CONFIG, "data": {"mtu": "1450"}}
DISABLED = {**POOL, "spec": {"disabled": True}}


def test_fields_are_given_to_what_is_there_and_nothing_else_changes():
    server = Patched()
    changes = put(server, [WIDER, DISABLED])
    assert [change.what for change in changes] == ["ConfigMap calico/config", "IPPool pool"]
    assert server.stored["/apis/crd.projectcalico.org/v1/ippools/pool"]["spec"] == {**POOL["spec"], "disabled": True}
    # Kinds that were defined in the API have no lists that it could merge by their keys.
    assert server.sent == [
        ("strategic-merge-patch", True),
        ("strategic-merge-patch", False),
        ("merge-patch", True),
        ("merge-patch", False),
    ]
    server.sent.clear()
    assert put(server, [WIDER, DISABLED]) == []
    assert [kind for kind, dry in server.sent if not dry] == []


def test_a_dry_run_of_fields_writes_nothing():
    server = Patched()
    (change,) = put(server, [WIDER], dry_run=True)
    assert (change.before["data"], change.after["data"]) == ({"mtu": "1430"}, {"mtu": "1450"})
    assert server.stored["/api/v1/namespaces/calico/configmaps/config"]["data"] == {"mtu": "1430"}


def test_what_is_not_there_gets_no_fields():
    server = Patched()
    with pytest.raises(ApiError, match=r"has no ConfigMap calico/other, which is to be changed"):
        put(server, [{**CONFIG, "metadata": {"name": "other", "namespace": "calico"}}])


def test_a_node_goes_before_what_waits_for_it(monkeypatch):
    gone = []
    monkeypatch.setattr(applying, "_delete", lambda api, path, what, wait: gone.append(what))
    server = Server()
    nodes = {"apiVersion": "v1", "kind": "Node", "metadata": {"name": "n"}}
    server.kinds = lambda root: {"Node": ("nodes", False), **CORE}
    server.stored = {"/api/v1/nodes/n": nodes, "/api/v1/namespaces/calico/configmaps/config": CONFIG}
    remove(server, [CONFIG, nodes])
    assert gone == ["Node n", "ConfigMap calico/config"]
