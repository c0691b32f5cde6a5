"""The lab's command line: real Linux machines with a K3s-like cluster, made on the spot."""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime
from pathlib import Path

from module_utils.netmend import calico_manifest

from . import balancer, bench, build, cluster, demo, fabric, host, load, machines, network, release, spec

ERRORS = (
    balancer.BalancerError,
    build.BuildError,
    calico_manifest.ManifestError,
    cluster.ClusterError,
    fabric.FabricError,
    host.HostError,
    machines.MachineError,
    network.NetworkError,
    release.ReleaseError,
    spec.SpecError,
)


def main(argv: Sequence[str]) -> int:
    # What comes after -- is another program's, whatever it looks like.
    own, command = _split(list(argv))
    arguments = parser().parse_args(own)
    arguments.command = command
    try:
        return int(arguments.do(arguments) or 0)
    except ERRORS as problem:
        print(f"lab: {problem}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("lab: interrupted; nothing that was being started is left", file=sys.stderr)
        return 130


def parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser(prog="python -m lab", description=__doc__)
    commands = top.add_subparsers(metavar="COMMAND", required=True)

    own = os.environ.get("NETMEND_LAB", "default")  # the lab that this runs in

    def add(name: str, do: object, text: str, *, named: str = "") -> argparse.ArgumentParser:
        command = commands.add_parser(name, help=text, description=text)
        command.set_defaults(do=do)
        if named:
            command.add_argument("name", nargs="?", default=named, metavar="NAME", help=f"the lab; default: {named}")
        return command

    command = add("build", _build, "build what the cache lacks of kernel, system, Kubernetes and images")
    command.add_argument("parts", nargs="*", metavar="PART", help=f"only these of {', '.join(build.PARTS)}")
    add("prepare", _prepare, "install the packages that the unit tests need")
    command = add("up", _up, "start a lab and wait until all of its nodes are Ready")
    command.add_argument(
        "file", nargs="?", type=Path, default=Path("default"), metavar="FILE",
        help="the file that describes it, or the name of one in lab/labs; default: default",
    )  # fmt: skip
    command.add_argument("--name", help="another name than the file's: the same lab once more, beside the first")
    command.add_argument("--plain", action="store_true", help="machines that answer on SSH, and nothing starts K3s")
    add("down", _down, "end a lab from any state; nothing of it is left", named="default")
    add("status", _status, "show a lab's machines, nodes and faults", named="default")
    command = add("ssh", _ssh, "a shell on a node, or with -- a command there")
    command.add_argument("node", metavar="NODE")
    command.add_argument("--lab", default=own, metavar="NAME", help="its lab")
    add("inventory", _inventory, "print the path of a lab's Ansible inventory", named="default")
    add("run", _run, "with -- CMD: run it inside a lab's network, as Ansible does", named="default")
    add("outside", _outside, "with -- CMD: run it as a client on the internet", named="default")
    command = add("with", _with, "start a lab, run what is behind -- inside its network, and end it")
    command.add_argument("file", type=Path, metavar="FILE")
    command.add_argument("--name", help="another name than the file's")
    command = add("demo", _demo, "break a small cluster as the operators' was, find the cause, mend it, prove it")
    command.add_argument("--keep", action="store_true", help="leave the lab up afterwards")
    command = add("fault", _fault, "put a fault of lab/faults.yml into a lab, or take it out again")
    command.add_argument("words", nargs="+", metavar="[NAME] in|out FAULT", help="see lab/faults.yml for their names")
    command = add("fabric", _fabric, "faults of the network between a lab's nodes")
    command.add_argument("words", nargs="+", metavar="[NAME] add FAULT... | clear | list", help=fabric.HELP)
    command = add("balancer", _balancer, "show a lab's balancers with what their checks say, or change them")
    command.add_argument("words", nargs="+", metavar="[NAME] set CHANGE | reset | list", help=balancer.HELP)
    text = "ask a lab's applications, while CMD behind -- runs if there is one, and count what is lost"
    command = add("load", _load, text, named=own)
    command.add_argument("--seconds", type=float, default=5, help="how long, without CMD; default: 5")
    command.add_argument("--rate", type=float, default=load.RATE, help=f"requests a second; default: {load.RATE}")
    waits = f"seconds until a request without an answer is lost; default: {load.PATIENCE}"
    command.add_argument("--patience", type=float, default=load.PATIENCE, help=waits)
    command = add("bench", _bench, "start a lab, measure it, and end it")
    command.add_argument("file", nargs="?", type=Path, default=Path("default"), metavar="FILE")
    return top


def _split(argv: list[str]) -> tuple[list[str], list[str]]:
    if "--" not in argv:
        return argv, []
    at = argv.index("--")
    return argv[:at], argv[at + 1 :]


def _build(arguments: argparse.Namespace) -> None:
    build.ensure(_say, arguments.parts or build.PARTS.keys())


def _prepare(arguments: argparse.Namespace) -> None:
    host.prepare_tests(_say)


def _up(arguments: argparse.Namespace) -> None:
    lab = spec.load(arguments.file, arguments.name)
    cluster.up(replace(lab, plain=arguments.plain), _say)
    _say(f"         inventory: {machines.state(lab.name) / 'inventory.yml'}")


def _down(arguments: argparse.Namespace) -> None:
    machines.destroy(arguments.name)


def _status(arguments: argparse.Namespace) -> int:
    return cluster.show(machines.recall(arguments.name))


def _ssh(arguments: argparse.Namespace) -> None:
    lab = machines.recall(arguments.lab)
    _become(machines.ssh(lab.name, lab.machine(arguments.node), *arguments.command))


def _inventory(arguments: argparse.Namespace) -> None:
    print(machines.state(machines.recall(arguments.name).name) / "inventory.yml")


def _run(arguments: argparse.Namespace) -> None:
    _enter(arguments, outside=False)


def _outside(arguments: argparse.Namespace) -> None:
    _enter(arguments, outside=True)


def _enter(arguments: argparse.Namespace, *, outside: bool) -> None:
    lab = machines.recall(arguments.name)
    _become(_inside(lab, arguments.command, outside=outside))


def _with(arguments: argparse.Namespace) -> int:
    lab = spec.load(arguments.file, arguments.name)
    argv = _inside(lab, arguments.command)
    cluster.up(lab, _say)
    try:
        return subprocess.run(argv, check=False).returncode
    finally:
        machines.destroy(lab.name)


def _inside(lab: spec.Lab, command: Sequence[str], *, outside: bool = False) -> list[str]:
    """The command in a lab's network; it finds the lab's name and inventory in its environment."""
    if not command:
        raise machines.MachineError("nothing to run: put the command behind --")
    os.environ["NETMEND_LAB"] = lab.name
    os.environ["NETMEND_INVENTORY"] = str(machines.state(lab.name) / "inventory.yml")
    return network.inside(lab.name, *command, outside=outside)


def _demo(arguments: argparse.Namespace) -> int:
    return demo.run(_say, keep=arguments.keep)


def _fault(arguments: argparse.Namespace) -> None:
    *name, verb, fault = arguments.words
    if verb not in ("in", "out") or len(name) > 1 or fault not in spec.faults():
        raise spec.SpecError(f"`fault [NAME] in|out FAULT`, with FAULT one of {', '.join(spec.faults())}")
    change = cluster.put_in if verb == "in" else cluster.take_out
    change(machines.recall(*(name or ["default"])), fault)


def _become(argv: Sequence[str]) -> None:
    """The command in this process's place: signals and the exit code are its own."""
    sys.stdout.flush()
    os.execvp(argv[0], argv)


def _fabric(arguments: argparse.Namespace) -> None:
    words = arguments.words
    name = "default" if words[0] in ("add", "clear", "list") else words.pop(0)
    for line in fabric.command(machines.recall(name), words):
        print(line)


def _balancer(arguments: argparse.Namespace) -> None:
    words = arguments.words
    name = "edge" if words[0] in ("set", "reset", "list") else words.pop(0)
    _say(balancer.command(machines.recall(name), words))


def _load(arguments: argparse.Namespace) -> int:
    lab, code = machines.recall(arguments.name), 0
    ask = load.load_at_edge if lab.balancers else load.load
    with ask(lab, rate=arguments.rate, patience=arguments.patience) as clients:
        if arguments.command:
            code = subprocess.run(arguments.command, check=False).returncode
        else:
            time.sleep(arguments.seconds)
    for name, client in clients.items():
        for when, target, how in client.lost:
            _say(f"lost at {datetime.fromtimestamp(when):%T}: {' '.join(map(str, target))}: {how}")
        _say(f"{name}: {client.asked} asked, {len(client.lost)} lost, 99 % within {client.p99:.3f} s")
    return code or int(any(client.lost for client in clients.values()))


def _bench(arguments: argparse.Namespace) -> None:
    bench.run(spec.load(arguments.file), _say)


def _say(text: str) -> None:
    print(text, flush=True)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
