"""The images in the place of Calico's have the names and commands that its manifest asks for."""

from __future__ import annotations

import json
import tarfile
from pathlib import Path

import pytest

from lab import build, calico, seed, spec


@pytest.fixture(scope="module")
def objects():
    lab = spec.parse({"calico": {"backend": "bird"}}, Path("some.yml"))
    return calico.objects(lab)


@pytest.fixture
def artifacts(tmp_path):
    program, tools = tmp_path / "calico", tmp_path / "tools"
    program.write_bytes(b"calico")
    for name in ("usr/sbin/ipset", "usr/lib/cni/portmap"):
        (tools / name).parent.mkdir(parents=True)
        (tools / name).write_bytes(name.encode())
    nothing = tmp_path / "nothing"
    return build.Artifacts(nothing, nothing, nothing, nothing, program, tools, nothing, nothing)


def read(path):
    with tarfile.open(path) as tar:
        return {m.name: (m.linkname or tar.extractfile(m).read()) for m in tar.getmembers() if not m.isdir()}


def test_every_command_of_the_manifest_is_in_its_image(objects, artifacts, tmp_path):
    state = tmp_path / "state"
    state.mkdir()
    seed.pack_images({"calico": calico.container_images(objects, artifacts)}, state)
    (outer,) = read(state / seed.IMAGES).items()
    assert outer[0] == "var/lib/rancher/k3s/agent/images/calico.tar"
    (tmp_path / "images.tar").write_bytes(outer[1])
    members = read(tmp_path / "images.tar")
    inside = {}
    for image in json.loads(members["manifest.json"]):
        config = json.loads(members[image["Config"]])["config"]
        files = {}
        for layer in image["Layers"]:
            (tmp_path / "layer.tar").write_bytes(members[layer])
            files.update(read(tmp_path / "layer.tar"))
        inside[image["RepoTags"][0]] = (config, files)
    assert sorted(inside) == objects.images

    def commands():
        for item in objects.objects:
            pod = item.get("spec", {}).get("template", {}).get("spec", {})
            for container in [*pod.get("initContainers", []), *pod.get("containers", [])]:
                yield container["image"], container.get("command", inside[container["image"]][0]["Entrypoint"])
                for probe in ("livenessProbe", "readinessProbe"):
                    if probe in container:
                        yield container["image"], container[probe]["exec"]["command"]

    for image, command in commands():
        # A bare name is looked up in the image's PATH, which has /bin.
        path = command[0].lstrip("/") if "/" in command[0] else f"bin/{command[0]}"
        assert inside[image][1][path] == calico.PROGRAM, command
    kinds = {name.rpartition("/")[2].partition(":")[0]: content for name, content in inside.items()}
    assert kinds["node"][1]["usr/sbin/ipset"] == b"usr/sbin/ipset"
    assert kinds["cni"][1]["opt/cni/bin/portmap"] == b"usr/lib/cni/portmap"
    assert "CALICO_VERSION=v3.32.1" in kinds["node"][0]["Env"]
    # The manifest wants it to run as somebody else than root.
    assert kinds["kube-controllers"][0]["User"] == "999"


def test_kinds_are_defined_before_their_objects_are_applied(objects):
    (define, definitions), (wait, _), (apply, rest) = calico.steps(objects)
    assert "apply --server-side" in define
    assert "apply --server-side" in apply
    assert "condition=Established" in wait
    assert {item["kind"] for item in json.loads(definitions)["items"]} == {"CustomResourceDefinition"}
    assert {"IPPool", "FelixConfiguration", "DaemonSet"} <= {item["kind"] for item in json.loads(rest)["items"]}
