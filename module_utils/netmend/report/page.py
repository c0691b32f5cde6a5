"""What the page's template shows beyond the report itself."""

from __future__ import annotations

import json
from typing import Any, Dict, List, NamedTuple, Optional

from ..model import Row
from ..overlays import TITLES
from . import Judgement, Report
from .changes import Same, gathered
from .matrix import MEANINGS, losses, sentences
from .text import agreement, sampled
from .topology import Picture, picture

SENTENCES = 20  # of one row


class Measurement(NamedTuple):
    key: str  # before, now
    title: str
    judgement: Judgement
    picture: Picture
    failing: Dict[str, List[str]]  # row -> sentences
    lost: List[str]


class RowLine(NamedTuple):
    name: str
    meaning: str
    before: Optional[Row]
    now: Row


def context(report: Report) -> Dict[str, Any]:
    """The variables of playbooks/templates/report.html.j2."""
    before, now = report["before"], report["now"]
    judgements = [("before", "Before", before), ("now", "After" if before else "Measured", now)]
    changes: List[Same] = gathered(report["changes"])
    return {
        "report": report,
        "measurements": [
            Measurement(
                key=key,
                title=title,
                judgement=judgement,
                picture=picture(report["nodes"], judgement["matrix"]),
                failing=_failing(judgement),
                lost=losses(judgement["matrix"]),
            )
            for key, title, judgement in judgements
            if judgement
        ],
        "rows": [
            RowLine(name, MEANINGS.get(name, ""), before["matrix"]["rows"].get(name) if before else None, row)
            for name, row in now["matrix"]["rows"].items()
        ],
        "sampled": sampled(now["coverage"]),
        "overlay_titles": TITLES,
        "left": {finding["fault"] for finding in now["findings"]},
        "changes": changes,
        "seconds": sum(phase["seconds"] for phase in report["phases"]),
        "data": embedded(
            {
                "before": before["matrix"] if before else None,
                "now": now["matrix"],
                "walks": {key: _walks(judgement) for key, _, judgement in judgements if judgement},
            }
        ),
    }


def embedded(data: Any) -> str:
    """JSON that may stand in a script element: nothing in it can end the element or open a comment."""
    return json.dumps(data, separators=(",", ":"), ensure_ascii=False).replace("<", "\\u003c")


def _walks(judgement: Judgement) -> List[Dict[str, Any]]:
    return [{**walk, "agreement": agreement(walk)} for walk in judgement["walks"]]


def _failing(judgement: Judgement) -> Dict[str, List[str]]:
    found = {}
    for name in judgement["matrix"]["rows"]:
        said = sentences(judgement["matrix"], name)
        if said:
            more = [f"and {len(said) - SENTENCES} more of the kind"] if len(said) > SENTENCES else []
            found[name] = said[:SENTENCES] + more
    return found
