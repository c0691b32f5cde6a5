"""The faults that are known here. To add one: a function under @fault, a row in docs/faults.md, a test of its name.

A fault's function yields a Suspicion for every node or pair where it is in. It looks at nothing but the facts and the
probes, and at no other fault, so that several at once are each found.
"""

from __future__ import annotations

from typing import Callable, Dict, FrozenSet, Iterator, List, NamedTuple, Optional, Sequence

from ..model import Remedy
from .case import Case
from .path import Paths

# Layers, causes before what they cause. Inside a layer, what explains more comes first.
NODE, CONTROL_PLANE, KERNEL, FLUSH, CNI, FIREWALL, SERVICE, FABRIC, WORKLOAD, SYMPTOM = range(10)


class Suspicion(NamedTuple):
    where: str  # a node, "a>b" or "namespace/service"
    evidence: List[str]
    remedy: Remedy
    confidence: float  # 0..1
    explains: FrozenSet[str] = frozenset()  # ids of failing probes
    ruled_out: Sequence[str] = ()


Find = Callable[[Case, Paths], Iterator[Suspicion]]


class Fault(NamedTuple):
    name: str
    number: int  # in the catalogue; 0: not in it
    title: str
    layer: int
    find: Optional[Find] = None  # None: found from what the others leave
    gate: bool = False  # while it is in, nothing else is mended


FAULTS: Dict[str, Fault] = {}


def is_gate(name: str) -> bool:
    return name in FAULTS and FAULTS[name].gate


def fault(name: str, number: int, title: str, layer: int, gate: bool = False) -> Callable[[Find], Find]:
    def register(find: Find) -> Find:
        FAULTS[name] = Fault(name, number, title, layer, find, gate)
        return find

    return register
