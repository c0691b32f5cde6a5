"""What a build decides: where from, which kernel, and whether the kernel took its options."""

from __future__ import annotations

import dataclasses

import pytest

from lab import build
from lab.build import BuildError, ensure, places
from lab.build.apt import choose_mirror
from lab.build.kernel import choose_source, mend, unmet
from lab.build.steps import Steps

LISTS_READ = """\
Docker bookworm main https://docker.example.org/debian/
Debian-Security bookworm-security main http://mirror.example.org/debian-security/
Debian bookworm-updates main http://mirror.example.org/debian/
Debian bookworm contrib http://other.example.org/debian/
Debian bookworm main http://mirror.example.org/debian/
"""
LISTS_NOT_READ = """\
$(ORIGIN) bookworm main cdrom:[Debian 12]/
$(ORIGIN) bookworm main http://mirror.example.org/debian/
"""


@pytest.mark.parametrize("listing", [LISTS_READ, LISTS_NOT_READ])
def test_the_mirror_is_the_one_of_the_hosts_own_release(listing):
    assert choose_mirror(listing, "bookworm") == "http://mirror.example.org/debian"


def test_without_a_source_of_debian_it_says_so():
    with pytest.raises(LookupError, match="no source for Debian trixie main"):
        choose_mirror(LISTS_READ, "trixie")


@pytest.mark.parametrize(
    ("names", "chosen"),
    [
        (["linux-source-7.3", "linux-source-7.2", "linux-source-6.12"], "linux-source-7.2"),
        (["linux-source-7.10", "linux-source-7.4", "linux-source-6.12"], "linux-source-7.4"),
        (["linux-source-6.12", "linux-source-7.9-rt"], None),
    ],
)
def test_the_kernel_proven_or_the_next(names, chosen):
    assert choose_source(names) == chosen


def test_a_patch_that_does_not_fit_is_left_out_as_a_whole(tmp_path):
    def patch(name, *hunks):
        path = tmp_path / f"{name}.patch"
        text = "".join(f"--- a/{file}\n+++ b/{file}\n@@ -1 +1 @@\n-{old}\n+{new}\n" for file, old, new in hunks)
        path.write_text(text)
        return path

    tree = tmp_path / "tree"
    tree.mkdir()
    (tree / "irq.c").write_text("lost\n")
    (tree / "core.c").write_text("renamed\n")
    half = patch("half", ("irq.c", "lost", "dropped"), ("core.c", "resolved", "dropped"))
    whole = patch("whole", ("irq.c", "lost", "kept"))
    mend(Steps("kernel", tmp_path / "log"), tree, [half, whole])
    assert {path.name: path.read_text() for path in tree.iterdir()} == {"irq.c": "kept\n", "core.c": "renamed\n"}


def test_options_that_the_kernel_did_not_take_are_named():
    asked = (
        "# why\nCONFIG_SMP=y\nCONFIG_NR_CPUS=2\nCONFIG_VXLAN=y\n# CONFIG_QUOTA is not set\n# CONFIG_HID is not set\n"
    )
    config = "CONFIG_SMP=y\nCONFIG_NR_CPUS=4\nCONFIG_VXLAN=m\nCONFIG_HID=y\n"
    assert unmet(asked, config) == ["CONFIG_NR_CPUS", "CONFIG_VXLAN", "CONFIG_HID"]


def test_an_unknown_part_is_named_with_those_there_are():
    with pytest.raises(BuildError, match="no part kernle; there are kernel, system, kube, "):
        ensure(parts=["kernle"])


def test_a_changed_part_changes_those_that_need_it_and_no_other(monkeypatch, tmp_path):
    before = places()
    changed = dataclasses.replace(build.PARTS["pod"], inputs=(tmp_path,))
    monkeypatch.setitem(build.PARTS, "pod", changed)
    after = places()
    assert {name for name in before if before[name] != after[name]} == {"pod", "containers", "disk"}
