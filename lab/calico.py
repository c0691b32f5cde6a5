"""Calico on a lab: its own manifest, patched as for any cluster, and images in the place of its own.

Calico's images cannot be had from package registries. Ours have their names and tags and lie ready on each machine, so
that nothing is pulled; lab/README.md says what is in them, and in what they differ.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from module_utils.netmend import calico_manifest
from module_utils.netmend.calico_manifest import Calico, Options

from . import images, upstream
from .build import Artifacts
from .spec import Lab

Progress = Callable[[str], None]

PROGRAM = "/usr/bin/calico"
PLUGINS = "/opt/cni/bin"
NOBODY = "999"  # whom Calico's own image of kube-controllers runs as


def objects(lab: Lab, progress: Progress = print) -> Calico:
    """What a lab that has Calico is to be given; ReleaseError or ManifestError when it cannot be made."""
    assert lab.calico
    options = Options(
        pool=lab.calico["pool"],
        backend=lab.calico["backend"],
        ipip_mode=lab.calico["ipip"],
        autodetection=lab.calico["autodetection"],
        mtu=lab.calico["mtu"],
        typha=lab.calico["typha"],
    )
    manifest = upstream.calico(lab.calico["version"], upstream.variant(options.typha), progress)
    return calico_manifest.patch(manifest.read_text(), options)


def container_images(calico: Calico, artifacts: Artifacts) -> list[images.Image]:
    return [_image(name, calico.version, artifacts) for name in calico.images]


def _image(name: str, version: str, artifacts: Artifacts) -> images.Image:
    tree = artifacts.calico_tools
    tools = {f"/{path.relative_to(tree)}": path for path in tree.rglob("*") if path.is_file()}
    plugins = {f"{PLUGINS}/{path.name}": path for path in tools.values() if path.parent.name == "cni"}
    others = {inside: path for inside, path in tools.items() if path.parent.name != "cni"}
    kind = name.rpartition("/")[2].partition(":")[0]
    files, programs, user = {
        "cni": (plugins, [f"{PLUGINS}/{own}" for own in ("install", "calico", "calico-ipam")], ""),
        "node": (others, ["/bin/calico-node"], ""),
        "kube-controllers": ({}, ["/usr/bin/kube-controllers", "/usr/bin/check-status"], NOBODY),
        "typha": ({}, ["/usr/bin/calico-typha"], NOBODY),
    }[kind]
    return images.Image(
        name,
        programs[:1],
        files,
        links=dict.fromkeys(programs, PROGRAM),
        base={PROGRAM: artifacts.calico},
        environment={"CALICO_VERSION": version},
        user=user,
    )


def steps(calico: Calico) -> list[tuple[str, str]]:
    """The commands that bring Calico into a cluster, each with what it reads; for a server, in this order."""
    # To validate, kubectl asks for the description of the whole API, which each new kind has the server write anew.
    apply = "k3s kubectl apply --server-side --force-conflicts --validate=false -f -"
    defined = " ".join(f"crd/{definition['metadata']['name']}" for definition in calico.definitions)
    return [
        (apply, _list(calico.definitions)),
        (f"k3s kubectl wait --for=condition=Established --timeout=60s {defined}", ""),
        (apply, _list([*calico.settings, *calico.objects])),
    ]


def _list(items: list[dict[str, Any]]) -> str:
    return json.dumps({"apiVersion": "v1", "kind": "List", "items": items})
