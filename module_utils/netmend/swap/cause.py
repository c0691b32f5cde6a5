"""Whether a measurement calls for Calico in the place of Flannel. Pure."""

from __future__ import annotations

from typing import Collection, Mapping, Optional

from .. import overlays
from ..diagnose.registry import is_gate
from ..model import ClusterFacts, NodeFacts, Underlay
from .state import read

FAULT = "vxlan-dropped-by-fabric"
OVERLAY = "vxlan-8472"  # Flannel's, as overlays.OVERLAYS has it


def why(
    consent: str,
    faults: Collection[str],
    nodes: Mapping[str, NodeFacts],
    cluster: ClusterFacts,
    underlay: Optional[Underlay],
) -> str:
    """The reason to swap now, as a sentence; "" where there is none.

    consent: always, never, or auto: where Flannel's packets pass between no two nodes, measured from both ends, and to
    finish a swap that was begun, as long as something is wrong. Whether Calico's packets pass is asked by the gates.
    """
    if consent == "always":
        return "netmend_swap is always."
    if consent == "never" or not faults or any(map(is_gate, faults)):
        return ""
    state = read(nodes, cluster)
    if any(node["drop_in"] for node in state["nodes"].values()) and state["phase"] not in ("done", "none"):
        return f"A swap was begun, and stands at: {state['phase']}."
    if FAULT in faults and not state["flipped"] and _passes_nowhere(underlay):
        label = overlays.label(overlays.OVERLAYS[OVERLAY][0])
        return f"The network between the nodes lets {label} through between no two of them: no smaller repair helps."
    return ""


def _passes_nowhere(underlay: Optional[Underlay]) -> bool:
    if not underlay or not underlay["pairs"] or underlay["unknown"]:
        return False
    kind = overlays.OVERLAYS[OVERLAY][0]
    return all(pair["kinds"][kind]["verdict"] == "fabric" for pair in underlay["pairs"].values())
