"""Reads what ingress-nginx says of its upstreams: its log, and the list of endpoints that it sends to."""

from __future__ import annotations

import json
import re
from datetime import datetime
from typing import Any, Dict, Iterable, Iterator, List

# Kubernetes: pkg/kubelet/kuberuntime/logs; a line that containerd took apart has P in the place of F.
_CRI = re.compile(r"(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d)(?:\.\d+)?(Z|[+-]\d\d:\d\d) (?:stdout|stderr) [FP] (.*)")
_LIST = r"[^\s,:][^\s,]*(?:(?:, | : )[^\s,:][^\s,]*)*"
# ingress-nginx's log-format-upstream, unless its ConfigMap has another one.
_ACCESS = re.compile(
    r'"[^"]*" (?P<status>\d{3}) \d+ "[^"]*" "[^"]*" \d+ [\d.]+ '
    rf"\[(?P<upstream>[^\]]*)\] \[[^\]]*\] (?P<endpoints>{_LIST}) {_LIST} {_LIST} {_LIST} \S+$"
)
_ERROR = re.compile(
    r"\[(?:error|crit|alert)\] \d+#\d+: \*\d+ (?P<what>[^,]+), client: .*?, upstream: \"\w+://(?P<endpoint>[^/\"]+)"
)


def log(lines: Iterable[str], since: float) -> Dict[str, Any]:
    """The log's lines from ``since`` on, in seconds since the epoch, counted: of a line nothing else is kept.

    "answers": upstream -> status -> requests, and "tries": endpoint -> how often a request was sent there, both from
    lines of the usual form; "failures": endpoint -> what nginx says of it -> times, from lines of any form.
    """
    answers: Dict[str, Dict[str, int]] = {}
    tries: Dict[str, int] = {}
    failures: Dict[str, Dict[str, int]] = {}
    for line in _of_late(lines, since):
        access = _ACCESS.search(line)
        if access:
            _count(answers.setdefault(access["upstream"], {}), access["status"])
            for endpoint in re.split(r", | : ", access["endpoints"]):
                _count(tries, endpoint)
            continue
        error = _ERROR.search(line)
        if error:
            _count(failures.setdefault(error["endpoint"], {}), error["what"])
    tries.pop("-", None)
    return {"answers": answers, "tries": tries, "failures": failures}


def backends(text: str) -> Dict[str, List[str]]:
    """From /configuration/backends: upstream -> "address:port" of each endpoint. ValueError where it is none."""
    read = json.loads(text)
    if not isinstance(read, list):
        raise ValueError("/configuration/backends: no list")
    return {
        str(backend["name"]): [f"{end['address']}:{end['port']}" for end in backend.get("endpoints") or []]
        for backend in read
    }


def _of_late(lines: Iterable[str], since: float) -> Iterator[str]:
    for line in lines:
        read = _CRI.match(line)
        if read and datetime.fromisoformat(read[1] + read[2].replace("Z", "+00:00")).timestamp() >= since:
            yield read[3]


def _count(counted: Dict[str, int], what: str) -> None:
    counted[what] = counted.get(what, 0) + 1
