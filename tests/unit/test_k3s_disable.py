"""What of K3s's own has ports, and what tells a server to do without it."""

from __future__ import annotations

from typing import Any

import pytest
from ansible.module_utils.netmend.k3s_disable import Plan, left, owners, plan, read, refusal
from ansible.module_utils.netmend.parse.k3s import effective, parse_config

CONFIG = "/etc/rancher/k3s/config.yaml"
OWN = f"{CONFIG}.d/90-netmend-disable.yaml"
BOTH = ["servicelb", "traefik"]
STARTED = 1000.0
SVCLB = {"svccontroller.k3s.cattle.io/svcname": "traefik", "svccontroller.k3s.cattle.io/svcnamespace": "kube-system"}
TRAEFIK = {"app.kubernetes.io/name": "traefik"}


def server(arguments: list[tuple[str, Any]] | None = None, changed: float = 1.0, **files: str) -> dict[str, Any]:
    """A server's facts by its files, "main" and those of config.yaml.d, all last changed at that time."""
    paths = {CONFIG if name == "main" else f"{CONFIG}.d/{name.replace('_', '-')}.yaml": files[name] for name in files}
    parsed = [(path, parse_config(text, path)) for path, text in paths.items()]
    config, sources = effective(parsed, arguments or [], {})
    known = {"role": "server", "config": config, "sources": sources, "files": dict.fromkeys(paths, changed)}
    return {"k3s": {**known, "started": STARTED}}


def pod(name: str, labels: dict[str, str], namespace: str = "kube-system", ready: bool = True) -> dict[str, Any]:
    phase = "Running" if ready else "Pending"
    return {"namespace": namespace, "name": name, "labels": labels, "phase": phase, "reason": "", "ready": ready}


# --- what is declared ---


def test_what_is_declared() -> None:
    assert read(None) == []
    assert read(BOTH) == BOTH


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["coredns"], r"netmend_k3s_disable\[0\]: 'coredns' is none of servicelb, traefik"),
        ("servicelb", "netmend_k3s_disable: 'servicelb' is no list"),
        (["traefik", "traefik"], "'traefik' stands in the list already"),
    ],
)
def test_what_is_wrongly_declared_is_named(given: Any, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        read(given)


# --- whose a pod is ---


@pytest.mark.parametrize(
    ("labels", "namespace", "whose"),
    [
        (SVCLB, "kube-system", {"servicelb", "traefik"}),
        ({"svccontroller.k3s.cattle.io/svcname": "traefik"}, "kube-system", {"servicelb", "traefik"}),
        ({**SVCLB, "svccontroller.k3s.cattle.io/svcname": "mail"}, "kube-system", {"servicelb"}),
        ({**SVCLB, "svccontroller.k3s.cattle.io/svcnamespace": "shop"}, "kube-system", {"servicelb"}),
        (TRAEFIK, "kube-system", {"traefik"}),
        (TRAEFIK, "shop", set()),
        ({"app.kubernetes.io/name": "ingress-nginx"}, "ingress-nginx", set()),
    ],
)
def test_whose_a_pod_is(labels: dict[str, str], namespace: str, whose: set[str]) -> None:
    assert owners(pod("x", labels, namespace)) == whose  # type: ignore[arg-type]  # a plain dict for a TypedDict


# --- the drop-in ---


@pytest.mark.parametrize(
    "files",
    [{}, {"main": "disable: metrics-server\n"}, {"main": "disable: [local-storage]\n", "a50": "disable+: traefik\n"}],
)
def test_the_drop_in_adds_to_what_the_operators_have(files: dict[str, str]) -> None:
    before = server(**files)
    planned = plan(before, BOTH)  # type: ignore[arg-type]  # as above
    assert (planned.path, planned.restart) == (OWN, True)
    written = parse_config(planned.content, OWN)
    assert written == [("disable+", BOTH)]
    config, _ = effective([*_parsed(files), (OWN, written)], [], {})
    assert {*before["k3s"]["config"].get("disable", []), *BOTH} == set(config["disable"])


def _parsed(files: dict[str, str]) -> list[tuple[str, list[tuple[str, Any]]]]:
    return [(name, parse_config(text, name)) for name, text in files.items()]


def test_planned_twice_is_nothing_to_do() -> None:
    content = plan(server(), BOTH).content  # type: ignore[arg-type]  # as above
    assert plan(server(**{"90_netmend_disable": content}), BOTH) == Plan(OWN, "", restart=False)  # type: ignore[arg-type]


def test_what_was_written_and_not_yet_started_with_is() -> None:
    waits = server(changed=STARTED + 1, **{"90_netmend_disable": "disable+: [servicelb, traefik]\n"})
    assert plan(waits, BOTH) == Plan(OWN, "", restart=True)  # type: ignore[arg-type]  # as above


def test_what_the_drop_in_had_stays_in_it() -> None:
    before = server(main="disable: [metrics-server]\n", **{"90_netmend_disable": "disable+: [traefik]\n"})
    assert plan(before, ["servicelb"]).content.endswith("disable+: [servicelb, traefik]\n")  # type: ignore[arg-type]


def test_what_operators_disabled_themselves_is_not_taken_over() -> None:
    before = server(main="disable: [traefik]\n")
    assert plan(before, ["servicelb"]).content.endswith("disable+: [servicelb]\n")  # type: ignore[arg-type]


def test_the_way_back_starts_k3s_only_where_there_is_a_drop_in() -> None:
    with_it = server(**{"90_netmend_disable": "disable+: [servicelb]\n"})
    assert plan(with_it, []) == Plan(OWN, "", restart=True)  # type: ignore[arg-type]  # as above
    assert plan(server(main="disable: [servicelb]\n"), []) == Plan(OWN, "", restart=False)  # type: ignore[arg-type]


def test_another_configuration_has_its_own_drop_ins() -> None:
    elsewhere = server([("config", "/srv/k3s.yaml")])
    assert plan(elsewhere, BOTH).path == "/srv/k3s.yaml.d/90-netmend-disable.yaml"  # type: ignore[arg-type]


# --- what stands against it ---


@pytest.mark.parametrize(
    ("servers", "said"),
    [
        ([server(), server(main="disable: [coredns]\n")], ""),
        ([server([("disable", "coredns")])], ""),
        ([server(**{"99_site": "disable+: [coredns]\n"}, main="disable: []\n")], ""),
        ([server(), server(**{"99_site": "disable: [coredns]\n"})], f"s1 has a list `disable` in {CONFIG}.d/99-site."),
        ([server(main="disable: [servicelb, traefik]\n")] * 2, "All servers do without servicelb and traefik already"),
        ([server(main="disable: [servicelb, traefik]\n"), server()], ""),
        ([server(main="disable: [servicelb, traefik]\n", changed=STARTED + 1)], ""),
    ],
)
def test_what_stands_against_it(servers: list[Any], said: str) -> None:
    found = refusal({f"s{number}": each for number, each in enumerate(servers)}, BOTH)
    assert found.startswith(said)
    assert bool(found) == bool(said)


# --- what is yet to come ---


def test_it_is_done_when_k3ss_pods_are_gone_and_who_waited_is_ready() -> None:
    waiting = ["ingress-nginx/controller-x"]
    ended = {**pod("svclb-traefik-z", SVCLB), "phase": "Succeeded"}
    pods = [pod("svclb-traefik-y", SVCLB), pod("traefik-1", TRAEFIK), pod("controller-x", {}, "ingress-nginx", False)]
    cluster: Any = {"pods": [ended, *pods]}
    assert left(cluster, BOTH, waiting) == [
        "kube-system/svclb-traefik-y is still there",
        "kube-system/traefik-1 is still there",
        "ingress-nginx/controller-x is not ready (Pending)",
    ]
    cluster = {"pods": [ended, pod("controller-x", {}, "ingress-nginx")]}
    assert left(cluster, BOTH, [*waiting, "kube-system/svclb-traefik-that-went"]) == []
