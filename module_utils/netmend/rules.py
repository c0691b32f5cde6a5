"""Live iptables rule sets: read them, bring own rules into order, and keep them so through restarts and reboots.

``python3 -m netmend.rules`` brings into order whatever /etc/netmend/iptables.d wants.
"""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Dict, List, NamedTuple, Sequence, Tuple

from . import node
from .model import Ruleset
from .ordered import Foreign, OrderError, Step, Wanted, apply, lines, plan, removal
from .parse.iptables import parse_save

STATE = Path("/etc/netmend/iptables.d")
UNIT = Path("/etc/systemd/system/netmend-iptables.service")
CODE = ("__init__", "model", "parse/__init__", "parse/iptables", "node", "ordered", "rules")
BACKENDS = ("nft", "legacy")
ATTEMPTS = 3  # others write to the same chains at the same time

# PartOf: a restart of K3s or UFW runs this again; WantedBy: so does a start. With Type=notify K3s counts as started
# once it is ready. What kube-proxy, kube-router and Felix insert later goes to the top of a chain, above these rules.
FILES = (str(STATE), str(UNIT), f"/etc/systemd/system/*.wants/{UNIT.name}")  # all that keeps rules
UNIT_TEXT = """\
[Unit]
Description=Bring netmend's iptables rules into order
After=network-pre.target ufw.service k3s.service k3s-agent.service
PartOf=ufw.service k3s.service k3s-agent.service

[Service]
Type=oneshot
RemainAfterExit=yes
WorkingDirectory=/usr/local/lib/netmend
ExecStart=/usr/bin/python3 -m netmend.rules

[Install]
WantedBy=multi-user.target ufw.service k3s.service k3s-agent.service
"""

Rulesets = Dict[str, Ruleset]  # by backend


class Change(NamedTuple):
    """What was done, or would be."""

    commands: List[List[str]]
    before: str  # the chains that change, as iptables-save prints them
    after: str


def saved() -> Dict[str, str]:
    """What iptables-save prints, for the backends that are installed."""
    # iptables-save, unlike iptables -L, makes no tables where there are none.
    return {
        backend: node.run([f"iptables-{backend}-save"])
        for backend in BACKENDS
        if shutil.which(f"iptables-{backend}-save", path=node.PATH)
    }


def read() -> Rulesets:
    """The rule sets of the backends that are installed."""
    return {backend: parse_save(text) for backend, text in saved().items()}


def backend_that_counts(rulesets: Rulesets) -> str:
    """The one that holds the chains of Kubernetes; where none or both do, the one that `iptables` is."""
    kube = [
        backend
        for backend, tables in rulesets.items()
        if any(chain.startswith(("KUBE-FORWARD", "KUBE-SERVICES", "cali-")) for t in tables.values() for chain in t)
    ]
    if len(kube) == 1:
        return kube[0]
    return "legacy" if "(legacy)" in node.run(["iptables", "--version"]) else "nft"


def preview(wanted: Wanted, remove: Sequence[Foreign] = ()) -> Change:
    """What `order` would do. OrderError where there is no right place for the rules."""
    before = read()
    todo = _plan(before, wanted, remove)
    after = {
        backend: apply(tables, [step for which, step in todo if which == backend]) for backend, tables in before.items()
    }
    return _change(todo, before, after)


def order(wanted: Wanted, remove: Sequence[Foreign] = ()) -> Change:
    """Brings the rules of one name into order. OrderError as in `preview`, and where somebody else interferes."""
    before = read()
    done: List[Tuple[str, Step]] = []
    failure = "other rules keep changing"
    for attempt in range(ATTEMPTS + 1):
        now = read()
        todo = _plan(now, wanted, remove)
        if not todo:
            return _change(done, before, now)
        if attempt == ATTEMPTS:
            break
        try:
            for backend, step in todo:
                node.run(_argv(backend, step))
                done.append((backend, step))
        except node.CommandError as error:  # the chain may have changed meanwhile: the next plan sees that
            failure = str(error)
    left = "; ".join(" ".join(_argv(backend, step)) for backend, step in todo)
    raise OrderError(f"{wanted['chain']}: after {ATTEMPTS} attempts there is still to do: {left} ({failure})")


def kept(wanted: Wanted) -> bool:
    """Whether the next start will find the rules as wanted."""
    path = STATE / f"{wanted['name']}.json"
    if not wanted["rules"]:
        return not path.exists()
    return (
        path.exists()
        and path.read_bytes() == _content(wanted)
        and UNIT.exists()
        and UNIT.read_text() == UNIT_TEXT
        and not node.stale(CODE)
        and node.run(["systemctl", "is-enabled", UNIT.name], check=False).strip() == "enabled"
    )


def keep(wanted: Wanted) -> None:
    """Makes the rules last; where none are wanted, forgets them, and with the last ones the unit."""
    path = STATE / f"{wanted['name']}.json"
    if wanted["rules"]:
        node.install(CODE)
        node.write(path, _content(wanted))
        node.write(UNIT, UNIT_TEXT.encode(), 0o644)
        node.run(["systemctl", "daemon-reload"])
        node.run(["systemctl", "enable", "--now", UNIT.name])
        return
    if path.exists():
        path.unlink()
    if UNIT.exists() and not any(STATE.glob("*.json")):
        node.run(["systemctl", "disable", "--now", UNIT.name])
        UNIT.unlink()
        node.run(["systemctl", "daemon-reload"])


def main() -> int:
    """Brings all that is kept into order; what fails is said, and does not stop the rest."""
    failed = 0
    for path in sorted(STATE.glob("*.json")):
        try:
            change = order(json.loads(path.read_text()))
        except (OrderError, node.CommandError, ValueError) as error:
            failed = 1
            print(f"{path.stem}: {error}", file=sys.stderr)
        else:
            print(f"{path.stem}: {len(change.commands)} changes")
    return failed


def _plan(rulesets: Rulesets, wanted: Wanted, remove: Sequence[Foreign]) -> List[Tuple[str, Step]]:
    chosen = wanted["backend"] if wanted["backend"] != "auto" else backend_that_counts(rulesets)
    if chosen not in rulesets:
        raise OrderError(f"iptables-{chosen} is not installed")
    steps: List[Tuple[str, Step]] = []
    for backend, tables in rulesets.items():
        named = [foreign for foreign in remove if foreign["backend"] == backend]
        if backend == chosen:
            steps += [(backend, step) for step in plan(tables, wanted, named)]
        elif wanted["backend"] == "auto":  # rules left where they do not count any more
            steps += [(backend, step) for step in plan(tables, {**wanted, "rules": []}, named)]
        else:
            steps += [(backend, step) for step in removal(tables, named)]
    return steps


def _change(steps: Sequence[Tuple[str, Step]], before: Rulesets, after: Rulesets) -> Change:
    def text(rulesets: Rulesets) -> str:
        return "".join(
            f"# iptables-{backend}\n" + lines(tables, [(step[1], step[3]) for which, step in steps if which == backend])
            for backend, tables in rulesets.items()
            if any(which == backend for which, _ in steps)
        )

    return Change([_argv(backend, step) for backend, step in steps], text(before), text(after))


def _argv(backend: str, step: Step) -> List[str]:
    return [f"iptables-{backend}", "-w", *step]


def _content(wanted: Wanted) -> bytes:
    return (json.dumps(wanted, indent=2) + "\n").encode()


if __name__ == "__main__":
    sys.exit(main())
