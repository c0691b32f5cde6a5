"""A lab's file gives the operators' machines and addresses; what is wrong with it is told by file and key."""

from __future__ import annotations

from pathlib import Path

import pytest

from lab import spec

FILE = Path("some.yml")


def test_an_empty_file_is_one_server_and_two_agents():
    lab = spec.parse(None, FILE)
    assert [(m.name, m.role, m.private, m.public, m.memory) for m in lab.machines] == [
        ("k3s-master-01", "server", "10.0.0.100", "203.0.113.100", 2560),
        ("k3s-worker-01", "agent", "10.0.0.110", "203.0.113.110", 1792),
        ("k3s-worker-02", "agent", "10.0.0.111", "203.0.113.111", 1792),
    ]
    assert (lab.name, lab.mtu_public, lab.mtu_private, lab.memory) == ("default", 1500, 1450, 6144)


def test_a_key_of_a_section_leaves_the_others_at_their_defaults():
    lab = spec.parse({"mtu": {"private": 1400}, "k3s": {"flannel-backend": "host-gw"}}, FILE)
    assert (lab.mtu_public, lab.mtu_private) == (1500, 1400)
    assert (lab.k3s_release, lab.flannel_backend) == (None, "host-gw")


def test_a_release_of_k3s_is_told_by_its_files_and_checksums():
    file = {"url": "http://127.0.0.1/k3s", "sha256": "0" * 64}
    release = {"version": "v1.36.3+k3s1", "binary": file, "images": file}
    assert spec.parse({"k3s": {"source": "release", "release": release}}, FILE).k3s_release == release
    with pytest.raises(spec.SpecError, match=r"some.yml: k3s.release: binary.sha256 of a release must be 64"):
        spec.parse({"k3s": {"source": "release", "release": {**release, "binary": {**file, "sha256": "0"}}}}, FILE)


def test_calicos_pool_is_the_pods_network_unless_it_is_told():
    assert spec.parse(None, FILE).calico is None
    assert spec.parse({"calico": {}}, FILE).calico == {
        "applied": True, "version": "v3.32.1", "backend": "felix", "pool": "10.42.0.0/16", "ipip": "Always", "mtu": 0,
        "autodetection": "cidr=10.0.0.0/16", "typha": 0,
    }  # fmt: skip
    k3s = {"config": {"cluster-cidr": "10.233.0.0/16"}}
    assert spec.parse({"k3s": k3s, "calico": {"backend": "bird"}}, FILE).calico["pool"] == "10.233.0.0/16"
    assert spec.parse({"k3s": k3s, "calico": {"pool": "10.233.128.0/17"}}, FILE).calico["pool"] == "10.233.128.0/17"


@pytest.mark.parametrize("name", ["calico", "calico-bird", "default", "demo", "edge", "ha", "swap", "swap-ha"])
def test_the_labs_that_come_with_it_are_right(name):
    assert spec.load(Path(name)).name == name


def test_balancers_have_an_address_on_each_network():
    lab = spec.parse({"balancers": ["10.0.0.5"]}, FILE)
    assert lab.balancers == (spec.Balancer("lb-1", "10.0.0.5", "203.0.113.5"),)


def test_a_lab_can_have_another_name():
    assert spec.load(Path("default"), "second").name == "second"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (["servers"], "some.yml: a lab must be keys and values: name, servers,"),
        ({"sarvers": 3}, "some.yml: sarvers is not known; there are name, servers,"),
        ({"mtu": {"pubic": 1}}, "some.yml: mtu.pubic is not known; there are public, private"),
        ({"mtu": 1400}, "some.yml: mtu must be keys and values: public, private"),
        ({"name": "Big Lab"}, "some.yml: name must be 1 to 20 of a-z, 0-9, -"),
        ({"servers": 0}, "some.yml: servers must be a whole number from 1 to 9"),
        ({"agents": True}, "some.yml: agents must be a whole number from 0 to 99"),
        ({"memory": {"agent": "2G"}}, "some.yml: memory.agent must be a whole number from 256 to"),
        ({"addresses": {"agents": "192.168.0.1"}}, "some.yml: addresses.agents must be an address in 10.0.0.0/16"),
        ({"addresses": {"agents": "10.0.0.100"}}, "some.yml: addresses must be such that no two machines"),
        ({"calico": []}, "some.yml: calico must be keys and values: applied, version, backend, pool,"),
        ({"calico": {"applied": 1}}, "some.yml: calico.applied must be true or false"),
        ({"calico": {"version": "v3.27.0"}}, "some.yml: calico.version must be one of v3.31.7, v3.32.1, not 'v3.27.0'"),
        ({"calico": {"backend": "bgp"}}, "some.yml: calico.backend must be one of felix, bird, vxlan, not 'bgp'"),
        ({"calico": {"pool": "10.42.0.1/16"}}, "some.yml: calico.pool must be an IPv4 network"),
        ({"k3s": {"source": "git"}}, "some.yml: k3s.source must be one of stand-in, release, not 'git'"),
        ({"k3s": {"source": "release"}}, "some.yml: k3s.release: a release must have version, binary and images"),
        ({"k3s": {"config": "x"}}, "some.yml: k3s.config must be keys of K3s's config.yaml"),
        ({"ingress": {}}, "some.yml: ingress must be true or false"),
        ({"balancers": ["10.1.0.5"]}, "some.yml: balancers[0] must be an address in 10.0.0.0/16"),
        ({"balancers": ["10.0.0.5", "10.0.1.5"]}, "some.yml: addresses must be such that no two machines"),
        ({"apps": ["none.yml"]}, "some.yml: apps must be manifests beside this file; there is no none.yml"),
        ({"faults": ["rust"]}, "some.yml: faults must be one of "),
    ],
)
def test_what_is_wrong_is_named(content, message):
    with pytest.raises(spec.SpecError) as raised:
        spec.parse(content, FILE)
    assert str(raised.value).startswith(message)


def test_a_lab_that_is_not_there_names_those_that_are():
    with pytest.raises(spec.SpecError, match=r"nowhere: no such file.*calico-bird, default, demo, edge, ha"):
        spec.load(Path("nowhere"))
