"""Container images are archives that containerd takes, the same from the same files."""

from __future__ import annotations

import hashlib
import json
import os
import tarfile

import pytest

from lab import images


@pytest.fixture
def program(tmp_path):
    path = tmp_path / "program"
    path.write_bytes(b"\x7fELF")
    return path


def two(program):
    return [
        images.Image("docker.io/netmend/app:1", ["/program", "app"], {"/program": program}),
        images.Image("docker.io/netmend/pause:1", ["/program", "pause"], {"/program": program}),
    ]


def read(archive):
    with tarfile.open(archive) as tar:
        return {member.name: tar.extractfile(member).read() for member in tar.getmembers()}


def test_the_archive_holds_what_its_manifest_says(program, tmp_path):
    images.write(tmp_path / "two.tar", two(program))
    members = read(tmp_path / "two.tar")
    manifest = json.loads(members["manifest.json"])
    assert [image["RepoTags"] for image in manifest] == [["docker.io/netmend/app:1"], ["docker.io/netmend/pause:1"]]
    for image, command in zip(manifest, ["app", "pause"]):
        config = members[image["Config"]]
        assert image["Config"] == f"{hashlib.sha256(config).hexdigest()}.json"
        document = json.loads(config)
        assert document["config"]["Entrypoint"] == ["/program", command]
        layers = [f"sha256:{hashlib.sha256(members[layer]).hexdigest()}" for layer in image["Layers"]]
        assert document["rootfs"] == {"type": "layers", "diff_ids": layers}


def test_images_of_the_same_files_share_their_layer(program, tmp_path):
    images.write(tmp_path / "two.tar", two(program))
    assert len([name for name in read(tmp_path / "two.tar") if name.endswith("layer.tar")]) == 1


def test_the_layer_is_owned_by_numbers_and_can_be_run(program, tmp_path):
    images.write(tmp_path / "two.tar", two(program))
    layer = next(content for name, content in read(tmp_path / "two.tar").items() if name.endswith("layer.tar"))
    (tmp_path / "layer.tar").write_bytes(layer)
    with tarfile.open(tmp_path / "layer.tar") as tar:
        shape = [(m.name, m.isdir(), m.mode, m.uid, m.gid, m.uname, m.gname, m.mtime) for m in tar.getmembers()]
    assert shape == [("tmp", True, 0o1777, 0, 0, "", "", 0), ("program", False, 0o755, 0, 0, "", "", 0)]


def test_the_same_files_give_the_same_bytes(program, tmp_path):
    images.write(tmp_path / "first.tar", two(program))
    os.utime(program, (1, 1))
    program.chmod(0o600)
    images.write(tmp_path / "second.tar", two(program))
    assert (tmp_path / "first.tar").read_bytes() == (tmp_path / "second.tar").read_bytes()


def test_a_base_is_a_layer_that_others_share_below_files_and_links_of_their_own(program, tmp_path):
    base = {"/usr/bin/tool": program}
    write = [
        images.Image("a:1", ["/a"], {}, links={"/a": "/usr/bin/tool"}, base=base, environment={"VERSION": "1"}),
        images.Image("b:1", ["/b"], {}, links={"/b": "/usr/bin/tool"}, base=base, user="999"),
    ]
    images.write(tmp_path / "two.tar", write)
    members = read(tmp_path / "two.tar")
    first, second = json.loads(members["manifest.json"])
    assert first["Layers"][0] == second["Layers"][0]
    assert first["Layers"][1] != second["Layers"][1]
    configs = [json.loads(members[image["Config"]])["config"] for image in (first, second)]
    assert "VERSION=1" in configs[0]["Env"]
    assert [config.get("User") for config in configs] == [None, "999"]
    (tmp_path / "layer.tar").write_bytes(members[first["Layers"][1]])
    with tarfile.open(tmp_path / "layer.tar") as tar:
        assert tar.getmember("a").linkname == "/usr/bin/tool"
