"""Calico's own manifest is patched for a cluster, and refused in one sentence when it is not of the known shape."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from lab import release, upstream
from module_utils.netmend import calico_manifest
from module_utils.netmend.calico_manifest import ManifestError, Options, patch

WITHOUT_BIRD = Options("10.42.128.0/17")
DIGEST = "sha256:" + "a" * 64


# What calico-typha.yaml has besides, as far as it is patched.
TYPHA = """
---
apiVersion: v1
kind: Service
metadata: {name: calico-typha, namespace: kube-system}
spec:
  selector: {k8s-app: calico-typha}
  ports: [{name: calico-typha, port: 5473}]
---
apiVersion: policy/v1
kind: PodDisruptionBudget
metadata: {name: calico-typha, namespace: kube-system}
spec: {maxUnavailable: 1, selector: {matchLabels: {k8s-app: calico-typha}}}
---
apiVersion: apps/v1
kind: Deployment
metadata: {name: calico-typha, namespace: kube-system}
spec:
  replicas: 1
  selector: {matchLabels: {k8s-app: calico-typha}}
  template:
    metadata: {labels: {k8s-app: calico-typha}}
    spec:
      hostNetwork: true
      containers: [{name: calico-typha, image: "quay.io/calico/typha:VERSION"}]
"""
NAMED = """
            - name: FELIX_TYPHAK8SSERVICENAME
              valueFrom: {configMapKeyRef: {name: calico-config, key: typha_service_name}}
            - name: CALICO_IPV4POOL_IPIP
"""


@pytest.fixture(scope="module", params=sorted(upstream.CALICO))
def manifest(request):
    return upstream.calico(request.param).read_text()


@pytest.fixture(scope="module", params=[(v, own) for v in sorted(upstream.CALICO) for own in (True, False)], ids=str)
def with_typha(request):
    """Calico's own manifest where it can be had, and one that is made of the other one and what it has besides."""
    version, own = request.param
    if own:
        try:
            return upstream.calico(version, upstream.WITH_TYPHA).read_text()
        except release.ReleaseError as problem:
            pytest.skip(str(problem))
    text = upstream.calico(version).read_text()
    return text.replace("            - name: CALICO_IPV4POOL_IPIP\n", NAMED[1:]) + TYPHA.replace("VERSION", version)


@pytest.fixture(scope="module")
def newest():
    return upstream.calico(max(upstream.CALICO)).read_text()


def documents(manifest):
    return list(yaml.load_all(manifest, yaml.CSafeLoader))


def one(calico, kind, name):
    (found,) = (o for o in calico.objects if (o["kind"], o["metadata"]["name"]) == (kind, name))
    return found


def main_container(calico):
    (container,) = one(calico, "DaemonSet", "calico-node")["spec"]["template"]["spec"]["containers"]
    return container


def environment(calico):
    return {variable["name"]: variable.get("value") for variable in main_container(calico)["env"]}


def settings(calico):
    return {item["kind"]: item["spec"] for item in calico.settings}


def config(calico):
    return one(calico, "ConfigMap", "calico-config")["data"]


def test_without_bird_felix_makes_the_routes_over_ipip(manifest):
    patched = patch(manifest, WITHOUT_BIRD)
    assert config(patched)["calico_backend"] == "vxlan"
    assert main_container(patched)["readinessProbe"]["exec"]["command"] == ["/bin/calico-node", "-felix-ready"]
    assert settings(patched)["FelixConfiguration"] == {"programClusterRoutes": "Enabled"}
    assert settings(patched)["IPPool"] == {
        "cidr": "10.42.128.0/17", "blockSize": 26, "ipipMode": "Always", "vxlanMode": "Never", "natOutgoing": True,
        "nodeSelector": "all()",
    }  # fmt: skip
    wanted = {"CALICO_IPV4POOL_IPIP": "Always", "CALICO_IPV4POOL_VXLAN": "Never", "NO_DEFAULT_POOLS": "true"}
    assert wanted.items() <= environment(patched).items()


def test_bird_is_switched_on_where_it_has_a_switch_and_felix_off(manifest):
    patched = patch(manifest, WITHOUT_BIRD._replace(backend="bird"))
    container = main_container(patched)
    assert config(patched)["calico_backend"] == "bird"
    assert container["readinessProbe"]["exec"]["command"][1:] == ["-felix-ready", "-bird-ready"]
    assert container["livenessProbe"]["exec"]["command"][1:] == ["-felix-live", "-bird-live"]
    assert settings(patched)["FelixConfiguration"] == {"programClusterRoutes": "Disabled"}
    switch = {"BGPConfiguration": {"programClusterRoutes": "Enabled"}} if patched.version.startswith("v3.32.") else {}
    assert {kind: spec for kind, spec in settings(patched).items() if kind == "BGPConfiguration"} == switch


def test_felix_and_bird_never_both_make_routes_nor_neither(newest):
    for backend in ("felix", "bird"):
        found = settings(patch(newest, WITHOUT_BIRD._replace(backend=backend)))
        switches = [found[kind]["programClusterRoutes"] for kind in ("FelixConfiguration", "BGPConfiguration")]
        assert sorted(switches) == ["Disabled", "Enabled"]


def test_vxlan_takes_the_place_of_ipip(manifest):
    patched = patch(manifest, WITHOUT_BIRD._replace(backend="vxlan"))
    pool = settings(patched)["IPPool"]
    assert (pool["ipipMode"], pool["vxlanMode"]) == ("Never", "Always")
    assert environment(patched)["CALICO_IPV4POOL_VXLAN"] == "Always"


def test_pods_may_forward_and_the_rest_of_the_plugins_stays(manifest):
    before = next(d for d in documents(manifest) if d["metadata"]["name"] == "calico-config")["data"]
    after = config(patch(manifest, WITHOUT_BIRD._replace(mtu=1430)))

    def plugins(data):
        return json.loads(data["cni_network_config"].replace("__CNI_MTU__", "0"))

    wanted = plugins(before)
    wanted["plugins"][0]["container_settings"] = {"allow_ip_forwarding": True}
    assert plugins(after) == wanted
    assert (before["veth_mtu"], after["veth_mtu"]) == ("0", "1430")
    assert '"mtu": __CNI_MTU__' in after["cni_network_config"]


def test_typha_is_there_by_its_replicas(with_typha):
    patched = patch(with_typha, WITHOUT_BIRD._replace(typha=3))
    assert config(patched)["typha_service_name"] == "calico-typha"
    assert one(patched, "Deployment", "calico-typha")["spec"]["replicas"] == 3
    assert one(patched, "Service", "calico-typha")["spec"]["ports"][0]["port"] == 5473
    assert f"quay.io/calico/typha:{patched.version}" in patched.images
    assert "FELIX_TYPHAK8SSERVICENAME" in environment(patched)


def test_without_it_a_manifest_that_has_it_is_as_one_that_has_not(with_typha):
    patched = patch(with_typha, WITHOUT_BIRD)
    assert config(patched)["typha_service_name"] == "none"
    assert not [item for item in patched.objects if item["metadata"]["name"] == "calico-typha"]
    assert not [image for image in patched.images if "typha" in image]
    other = patch(upstream.calico(patched.version).read_text(), WITHOUT_BIRD)
    assert [(o["kind"], o["metadata"]["name"]) for o in patched.objects] == [
        (o["kind"], o["metadata"]["name"]) for o in other.objects
    ]
    assert patched.settings == other.settings


def test_typha_has_to_be_in_the_manifest(newest):
    with pytest.raises(ManifestError, match=r"is one without Typha: with typha, name calico-typha\.yaml"):
        patch(newest, WITHOUT_BIRD._replace(typha=1))


def test_the_role_takes_the_same_manifests_as_the_lab():
    defaults = yaml.safe_load((Path(__file__).parents[2] / "roles/calico_ipip/defaults/main.yml").read_text())
    by_variant = defaults["calico_ipip_manifests"]
    assert {version: {name: by_variant[name][version] for name in by_variant} for version in upstream.CALICO} == (
        upstream.CALICO
    )


def test_images_come_from_another_registry_by_their_digests(manifest):
    patched = patch(manifest, WITHOUT_BIRD._replace(registry="mirror.example/a/", digests={"node": DIGEST}))
    assert patched.images == [
        f"mirror.example/a/calico/cni:{patched.version}",
        f"mirror.example/a/calico/kube-controllers:{patched.version}",
        f"mirror.example/a/calico/node:{patched.version}@{DIGEST}",
    ]


def test_detection_and_selector_are_the_clusters(manifest):
    options = WITHOUT_BIRD._replace(autodetection="cidr=10.0.0.0/16", node_selector={"netmend/calico": "yes"})
    patched = patch(manifest, options)
    assert environment(patched)["IP_AUTODETECTION_METHOD"] == "cidr=10.0.0.0/16"
    pod = one(patched, "DaemonSet", "calico-node")["spec"]["template"]["spec"]
    assert pod["nodeSelector"] == {"kubernetes.io/os": "linux", "netmend/calico": "yes"}


def test_nothing_takes_over_from_an_older_ipam_or_prepares_ebpf(manifest):
    def first(daemonset):
        return [container["name"] for container in daemonset["spec"]["template"]["spec"]["initContainers"]]

    (before,) = [item for item in yaml.safe_load_all(manifest) if item and item["kind"] == "DaemonSet"]
    assert first(before) == ["upgrade-ipam", "install-cni", "ebpf-bootstrap"]
    assert first(one(patch(manifest, WITHOUT_BIRD), "DaemonSet", "calico-node")) == ["install-cni"]


def test_what_is_not_patched_goes_through_as_it_is(manifest):
    patched = patch(manifest, WITHOUT_BIRD)
    changed = {("ConfigMap", "calico-config"), ("DaemonSet", "calico-node")}
    before = documents(manifest)
    after = [*patched.definitions, *patched.objects]
    assert len(before) == len(after)
    for item in before:
        if (item["kind"], item["metadata"]["name"]) not in changed:
            assert item in after


def test_patching_twice_is_patching_once(manifest):
    for backend in calico_manifest.BACKENDS:
        options = WITHOUT_BIRD._replace(backend=backend, digests={"cni": DIGEST}, mtu=1400)
        once = patch(manifest, options)
        assert patch(manifest, options) == once
        assert patch(yaml.dump_all([*once.definitions, *once.objects], Dumper=yaml.CSafeDumper), options) == once


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("  name: calico-config\n", "  name: other\n", "has 0 ConfigMap calico-config, and one is expected"),
        ("calico_backend:", "backend:", "has no calico_backend in the ConfigMap calico-config"),
        ('"type": "calico",', '"type": "other",', "has a cni_network_config without the plugin calico"),
        ("- name: calico-node\n", "- name: node\n", "has no container calico-node in its DaemonSet"),
        ("- name: CALICO_IPV4POOL_IPIP\n", "- name: POOL\n", "does not set CALICO_IPV4POOL_IPIP on calico-node"),
        ("livenessProbe:", "startupProbe:", "has no livenessProbe with a command on calico-node"),
        ("image: quay.io/calico/cni:", "image: cni:", "and REGISTRY/calico/NAME:vX.Y.Z is expected"),
        ("quay.io/calico/node:v3.32.1", "quay.io/calico/node:v3.32.0", "has images of 2 versions"),
        (":v3.32.1", ":v3.40.0", "is of v3.40.0, and v3.31 and v3.32 are known"),
        ("name: felixconfigurations.crd", "name: others.crd", "does not define felixconfigurations"),
        ("\nkind: DaemonSet", "\nkind DaemonSet", "Calico's manifest is not YAML"),
    ],
)
def test_another_shape_is_refused_by_what_is_wrong_with_it(newest, old, new, message):
    assert old in newest
    with pytest.raises(ManifestError, match=message):
        patch(newest.replace(old, new), WITHOUT_BIRD)


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"backend": "bgp"}, "backend must be one of felix, bird, vxlan, and is 'bgp'"),
        ({"pool": "10.42.0.1/16"}, "pool must be an IPv4 network: 10.42.0.1/16 has host bits set"),
        ({"block_size": 16}, "block_size must be from 20 to 32 and within the pool 10.42.128.0/17, and is 16"),
        ({"ipip_mode": "Never"}, "ipip_mode must be one of Always, CrossSubnet, and is 'Never'"),
        ({"mtu": 100}, "mtu must be 0 or from 1280 to 9000, and is 100"),
        ({"typha": 21}, "typha must be from 0 to 20, and is 21"),
        ({"autodetection": "cidr="}, "autodetection must be one of first-found, .*, and is 'cidr='"),
        ({"digests": {"node": "latest"}}, "digests must be sha256:"),
    ],
)
def test_an_option_that_cannot_be_is_told_by_its_name(newest, option, message):
    with pytest.raises(ManifestError, match=message):
        patch(newest, WITHOUT_BIRD._replace(**option))


def test_the_manifests_are_found_where_the_environment_says_and_verified(tmp_path, monkeypatch):
    monkeypatch.setenv("NETMEND_UPSTREAM", str(tmp_path))
    with pytest.raises(release.ReleaseError, match=r"NETMEND_UPSTREAM has no .*v3\.32\.1/calico-vxlan\.yaml"):
        upstream.calico("v3.32.1")
    place = tmp_path / "calico/v3.32.1/calico-vxlan.yaml"
    place.parent.mkdir(parents=True)
    place.write_text("other")
    with pytest.raises(release.ReleaseError, match="has the SHA-256"):
        upstream.calico("v3.32.1")
