"""An inventory from a servers.tsv: a line a machine, a tab between columns. A wrong file adds no machine at all."""

from __future__ import annotations

import ipaddress
import re
from pathlib import Path
from typing import Any, Callable, Iterator, NamedTuple

from ansible.errors import AnsibleParserError
from ansible.plugins.inventory import BaseInventoryPlugin

DOCUMENTATION = r"""
name: servers_tsv
short_description: Machines from a tab-separated servers.tsv
description:
  - Reads a file whose name ends with C(.tsv), given by C(-i) or in an inventory's directory beside other files.
  - Each line is a machine. Empty lines and those that begin with C(#) are skipped. The first of the others is the
    header, which names the columns, unless O(columns) does.
  - The columns are, in any order and case, V(hostname) (or V(host), V(name), V(server)), V(private) and V(public) (also
    V(private_ip), V(ip_private), V(private_address), V(internal_ip), V(ip_privee), and likewise), V(role), V(user)
    (or V(ssh_user), V(user_ssh)) and V(port) (or V(ssh_port)). Only V(hostname) is needed. A column whose name begins
    with C(ansible_) is the variable of that name. All others are ignored.
  - Servers come into the group C(k3s_servers), agents into C(k3s_agents), both within C(k3s_cluster). A machine is what
    its role says, which is V(server), V(master) or V(control-plane), or V(agent), V(worker) or V(node). Where it says
    something else or nothing, the names C(k3s-master-NN) and C(k3s-worker-NN) do. All others are of no cluster, and
    stay in C(ungrouped).
  - The variables C(ansible_host), C(ansible_user) and C(ansible_port) are set where the line says something. Both
    addresses are in C(servers_tsv_private) and C(servers_tsv_public).
  - A file with a wrong line is refused as a whole, with the number and the column of all that is wrong.
author: netmend maintainers
options:
  columns:
    description: The columns' names in their order, where the file has no header line.
    type: list
    elements: str
    env: [{name: NETMEND_SERVERS_TSV_COLUMNS}]
    ini: [{section: servers_tsv, key: columns}]
  connect_by:
    description: The address that Ansible connects to. Where a line has only the other one, that is taken.
    type: str
    choices: [private, public]
    default: private
    env: [{name: NETMEND_SERVERS_TSV_CONNECT_BY}]
    ini: [{section: servers_tsv, key: connect_by}]
"""

EXAMPLES = r"""
# servers.tsv, with a tab between columns:
#
#   hostname        private       public         role     user
#   k3s-master-01   10.0.0.100    203.0.113.10   server   root
#   k3s-worker-01   10.0.0.110    203.0.113.20   agent    root
#
#   ansible-playbook -i servers.tsv diagnose.yml

# A file without a header line, and machines that are reached from outside. In ansible.cfg:
#
#   [servers_tsv]
#   columns = hostname, public, private, role
#   connect_by = public
"""

HOSTNAME = "hostname"
PRIVATE = "private"
PUBLIC = "public"
ROLE = "role"
USER = "user"
PORT = "port"
ALIASES = {
    "host": HOSTNAME, "name": HOSTNAME, "server": HOSTNAME,
    "private_ip": PRIVATE, "ip_private": PRIVATE, "private_address": PRIVATE, "internal_ip": PRIVATE,
    "ip_privee": PRIVATE,
    "public_ip": PUBLIC, "ip_public": PUBLIC, "public_address": PUBLIC, "external_ip": PUBLIC, "ip_publique": PUBLIC,
    "ssh_user": USER, "user_ssh": USER,
    "ssh_port": PORT,
}  # fmt: skip
CLUSTER = "k3s_cluster"
SERVERS = "k3s_servers"
AGENTS = "k3s_agents"
GROUPS = {
    **dict.fromkeys(("server", "master", "control-plane"), SERVERS),
    **dict.fromkeys(("agent", "worker", "node"), AGENTS),
}
VARIABLE = "ansible_"


def _is_address(text: str) -> bool:
    try:
        ipaddress.IPv4Address(text)
    except ValueError:
        return False
    return True


def _is_port(text: str) -> bool:
    return bool(re.fullmatch(r"[0-9]{1,5}", text)) and 1 <= int(text) <= 65535


# What a cell must be, and how that is called. A hyphen in front would be an option of ssh.
CHECKS: dict[str, tuple[Callable[[str], object], str]] = {
    HOSTNAME: (re.compile(r"[A-Za-z0-9]([A-Za-z0-9.-]*[A-Za-z0-9])?").fullmatch, "a host name"),
    PRIVATE: (_is_address, "an IPv4 address"),
    PUBLIC: (_is_address, "an IPv4 address"),
    ROLE: (str.isprintable, "a role"),
    USER: (re.compile(r"[A-Za-z_][\w.-]*").fullmatch, "a user's name"),
    PORT: (_is_port, "a port from 1 to 65535"),
}


class Line(NamedTuple):
    number: int
    cells: list[str]


class Machine(NamedTuple):
    number: int  # of its line
    cells: dict[str, str]  # by column; those that are filled

    @property
    def group(self) -> str:
        """ "" for a machine of no cluster."""
        named = re.fullmatch(r"k3s-(master|worker)-\d+", self.cells[HOSTNAME])
        said = self.cells.get(ROLE, "").lower()
        return GROUPS.get(said) or GROUPS.get(named[1] if named else "", "")

    def variables(self, connect_by: str) -> dict[str, str | int]:
        other = PUBLIC if connect_by == PRIVATE else PRIVATE
        named = {name: text for name, text in self.cells.items() if name.startswith(VARIABLE)}
        found = {
            "ansible_host": self.cells.get(connect_by) or self.cells.get(other, ""),
            "ansible_user": self.cells.get(USER, ""),
            "ansible_port": int(self.cells.get(PORT, 0)),
            "servers_tsv_private": self.cells.get(PRIVATE, ""),
            "servers_tsv_public": self.cells.get(PUBLIC, ""),
        }
        return {**{name: value for name, value in found.items() if value}, **named}


class InventoryModule(BaseInventoryPlugin):  # type: ignore[misc]  # ansible ships no types
    NAME = "servers_tsv"

    def verify_file(self, path: str) -> bool:
        return bool(super().verify_file(path)) and path.endswith(".tsv")

    def parse(self, inventory: Any, loader: Any, path: str, cache: bool = True) -> None:
        super().parse(inventory, loader, path, cache)
        self.set_options()
        try:
            found = machines(Path(path).read_text(encoding="utf-8-sig"), self.get_option("columns") or [])
        except (OSError, ValueError) as error:
            raise AnsibleParserError(f"{path}: {error}") from error
        self.inventory.add_group(CLUSTER)
        for group in (SERVERS, AGENTS):
            self.inventory.add_group(group)
            self.inventory.add_child(CLUSTER, group)
        for machine in found:
            name = self.inventory.add_host(machine.cells[HOSTNAME], group=machine.group or None)
            for variable, value in machine.variables(self.get_option("connect_by")).items():
                self.inventory.set_variable(name, variable, value)


def machines(text: str, columns: list[str]) -> list[Machine]:
    """What the file's text says; ``columns`` are empty where a header line names them.

    Raises ValueError that says all that is wrong, by the line's number and the column's name.
    """
    lines = [Line(number, line.split("\t")) for number, line in enumerate(text.split("\n"), 1) if _says_something(line)]
    if not lines:
        raise ValueError("it has no line but empty ones and comments")
    names = _columns(columns, "option columns") if columns else _columns(lines[0].cells, f"line {lines[0].number}")
    found: list[Machine] = []
    wrong: list[str] = []
    for line in lines if columns else lines[1:]:
        cells = {name: cell.strip() for name, cell in zip(names, line.cells) if name and cell.strip()}
        machine = Machine(line.number, {HOSTNAME: "", **cells})
        complaints = [*_shape(line, len(names)), *_cells(machine), *_again(machine, found)]
        wrong += [f"line {line.number}, {complaint}" for complaint in complaints]
        found.append(machine)
    if wrong:
        raise ValueError("; ".join(wrong))
    if not any(machine.group for machine in found):
        raise ValueError(
            f"none of its {len(found)} machines is a server or an agent, neither by a column role nor by a name like "
            "k3s-master-01 or k3s-worker-01"
        )
    return found


def _says_something(line: str) -> bool:
    return bool(line.strip()) and not line.lstrip().startswith("#")


def _columns(names: list[str], where: str) -> list[str]:
    """The columns by their own names; "" for those that mean nothing here."""
    plain = (re.sub(r"[\s-]+", "_", name.strip().lower()) for name in names)
    meant = (ALIASES.get(name, name) for name in plain)
    known = [name if name in CHECKS or name.startswith(VARIABLE) else "" for name in meant]
    twice = sorted({name for name in known if name and known.count(name) > 1})
    if twice:
        raise ValueError(f"{where}: there is more than one column {' and '.join(twice)}")
    if HOSTNAME not in known:
        there = ", ".join(repr(name.strip()) for name in names)
        raise ValueError(f"{where}: no column is named hostname; between the tabs stands {there}")
    return known


def _shape(line: Line, width: int) -> Iterator[str]:
    for number, cell in enumerate(line.cells[width:], width + 1):
        if cell.strip():
            yield f"column {number}: {cell.strip()!r} stands behind the last of {width} columns"


def _cells(machine: Machine) -> Iterator[str]:
    for column, (is_right, what) in CHECKS.items():
        cell = machine.cells.get(column, "")
        if (cell or column == HOSTNAME) and not is_right(cell):
            yield f"column {column}: {cell!r} is not {what}"


def _again(machine: Machine, earlier: list[Machine]) -> Iterator[str]:
    for column in (HOSTNAME, PRIVATE, PUBLIC):
        cell = machine.cells.get(column)
        first = next((other.number for other in earlier if cell and other.cells.get(column) == cell), 0)
        if first:
            yield f"column {column}: {cell!r} stands in line {first} already"
