"""Readers of what users declare in variables: each names where the first thing that is wrong stands, and what it is."""

from __future__ import annotations

import re
from ipaddress import IPv4Address
from typing import Any, Callable, Dict, List, Mapping, NamedTuple

from .model import Probe
from .probe import problem

Reader = Callable[[Any, str], Any]  # value, where it stands -> value; ValueError where it is wrong


class Field(NamedTuple):
    reader: Reader
    default: Any = None
    needed: bool = False


def fields(known: Mapping[str, Field]) -> Reader:
    """A mapping with these keys and no others."""

    def reader(given: Any, where: str) -> Dict[str, Any]:
        if not isinstance(given, Mapping):
            raise ValueError(f"{where}: {given!r} is no mapping")
        for key in given:
            if key not in known:
                raise ValueError(f"{where}.{key}: there is only {', '.join(known)}")
        for key, field in known.items():
            if field.needed and key not in given:
                raise ValueError(f"{where}.{key} is missing")
        return {
            key: field.reader(given[key], f"{where}.{key}") if key in given else field.default
            for key, field in known.items()
        }

    return reader


def each(item: Reader, mark: Callable[[Any], Any] = lambda one: one) -> Reader:
    """A list of what another reader reads, no two of them with the same mark."""

    def reader(given: Any, where: str) -> List[Any]:
        if not isinstance(given, list):
            raise ValueError(f"{where}: {given!r} is no list")
        found = [item(one, f"{where}[{place}]") for place, one in enumerate(given)]
        marks = [mark(one) for one in found]
        for place, one in enumerate(marks):
            if one in marks[:place]:
                raise ValueError(f"{where}[{place}]: {one!r} stands in the list already")
        return found

    return reader


def one_of(*words: str) -> Reader:
    def reader(given: Any, where: str) -> str:
        if given not in words:
            raise ValueError(f"{where}: {given!r} is none of {', '.join(words)}")
        return str(given)

    return reader


def number(most: int) -> Reader:
    def reader(given: Any, where: str) -> int:
        if not isinstance(given, int) or isinstance(given, bool) or not 1 <= given <= most:
            raise ValueError(f"{where}: {given!r} is no number from 1 to {most}")
        return given

    return reader


def at_least(least: int) -> Reader:
    """Of a number."""

    def reader(given: Any, where: str) -> Any:
        if given < least:
            raise ValueError(f"{where} is {given}, and has to be {least} at least")
        return given

    return reader


def switch(given: Any, where: str) -> bool:
    if not isinstance(given, bool):
        raise ValueError(f"{where}: {given!r} is neither true nor false")
    return given


def address(given: Any, where: str) -> str:
    try:
        return str(IPv4Address(str(given)))
    except ValueError:
        raise ValueError(f"{where}: {given!r} is no IPv4 address") from None


def object_name(given: Any, where: str) -> str:
    if not re.fullmatch(r"[^/\s]+/[^/\s]+", str(given)):
        raise ValueError(f"{where}: {given!r} is no namespace/name")
    return str(given)


def host(given: Any, where: str) -> str:
    return asked(Probe(protocol="dns-udp", address="0.0.0.0", port=53, name=str(given)), given, where)


def path(given: Any, where: str) -> str:
    return asked(Probe(protocol="http", address="0.0.0.0", port=80, path=str(given)), given, where)


def asked(probe: Probe, given: Any, where: str) -> str:
    """What was given, as text, if it can be probed with."""
    wrong = problem(probe)
    if wrong:
        raise ValueError(f"{where}: {given!r}: {wrong}")
    return str(given)


def label(given: Any, where: str) -> str:
    """What most of Kubernetes' names may be (RFC 1123)."""
    if not re.fullmatch(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?", str(given)):
        raise ValueError(f"{where}: {given!r} is no name of lower-case letters, digits and dashes")
    return str(given)


def word(given: Any, where: str) -> str:
    if not isinstance(given, str) or not re.fullmatch(r"\S+", given):
        raise ValueError(f"{where}: {given!r} is no text without spaces")
    return given
