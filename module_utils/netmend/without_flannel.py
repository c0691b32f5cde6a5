"""What tells a server's K3s to do without Flannel and the policy controller. Pure."""

from __future__ import annotations

from typing import Tuple

from .model import NodeFacts
from .parse import k3s

DROP_IN = "90-netmend-cni.yaml"  # in config.yaml.d of every server
WANTED = {"flannel-backend": "none", "disable-network-policy": "true"}  # what it says


def drop_in(facts: NodeFacts) -> Tuple[str, str]:
    """Its path and content. An agent that had these keys in its configuration would not start."""
    path = k3s.drop_in(facts["k3s"]["config"], DROP_IN)
    return path, "".join(f"{key}: {_yaml(value)}\n" for key, value in WANTED.items())


def would_decide(facts: NodeFacts) -> bool:
    """Whether it would, where it is not there yet: later files of its folder and the unit's own words come after it."""
    path, _ = drop_in(facts)
    folder = path.rpartition("/")[0]
    sources = [facts["k3s"]["sources"].get(key, "/") for key in WANTED]
    files = [source for source in sources if source.startswith("/")]
    return len(files) == len(sources) and all(file < path for file in files if file.startswith(folder))


def _yaml(value: str) -> str:
    return value if value == "true" else f'"{value}"'
