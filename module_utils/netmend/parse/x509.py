"""Reads of a certificate whose it is and how long it holds, and nothing else (RFC 5280, 4.1; DER: X.690)."""

from __future__ import annotations

import base64
import re
from datetime import datetime, timezone
from typing import Iterator, List, NamedTuple, Tuple

_PEM = re.compile(r"-----BEGIN CERTIFICATE-----\s(.+?)-----END CERTIFICATE-----", re.S)
_COMMON_NAME = bytes.fromhex("0603550403")  # the object identifier 2.5.4.3
_ALTERNATIVE_NAMES = bytes.fromhex("0603551d11")  # 2.5.29.17
_VERSION, _EXTENSIONS, _UTC_TIME, _GENERALIZED_TIME = 0xA0, 0xA3, 0x17, 0x18  # tags
_OCTETS, _DNS_NAME = 0x04, 0x82


class Validity(NamedTuple):
    subject: str  # its common name; "" where it has none
    not_before: float  # seconds since the epoch
    not_after: float


class Identity(NamedTuple):
    subject: str  # common names; "" where there is none
    issuer: str
    names: List[str]  # DNS names that it is for
    not_after: float  # seconds since the epoch


def validity(pem: str) -> Validity:
    """Of the first certificate in a PEM file. ValueError where there is none, or where it cannot be read."""
    found = _PEM.search(pem)
    if not found:
        raise ValueError("no certificate in it")
    try:
        fields = _fields(base64.b64decode(found[1]))
        not_before, not_after = (_time(*element) for element in _elements(fields[3][1]))
        return Validity(_common_name(fields[4][1]), not_before, not_after)
    except (IndexError, ValueError) as error:
        raise ValueError(f"not a certificate that can be read: {error}") from error


def identity(der: bytes) -> Identity:
    """Of a certificate as TLS has it. ValueError where it cannot be read."""
    try:
        fields = _fields(der)
        _, not_after = (_time(*element) for element in _elements(fields[3][1]))
        names = [name for tag, content in fields[5:] if tag == _EXTENSIONS for name in _dns_names(content)]
        return Identity(_common_name(fields[4][1]), _common_name(fields[2][1]), names, not_after)
    except (IndexError, ValueError) as error:
        raise ValueError(f"not a certificate that can be read: {error}") from error


def _fields(der: bytes) -> List[Tuple[int, bytes]]:
    """serialNumber, signature, issuer, validity, subject, and what follows."""
    (_, certificate), *_ = _elements(der)
    (_, to_be_signed), *_ = _elements(certificate)
    return [field for field in _elements(to_be_signed) if field[0] != _VERSION]


def _dns_names(extensions: bytes) -> Iterator[str]:
    for _, listed in _elements(extensions):
        for _, extension in _elements(listed):
            if extension.startswith(_ALTERNATIVE_NAMES):
                octets = next(content for tag, content in _elements(extension) if tag == _OCTETS)
                (_, names), *_ = _elements(octets)
                yield from (name.decode("ascii", "replace") for tag, name in _elements(names) if tag == _DNS_NAME)


def _elements(data: bytes) -> Iterator[Tuple[int, bytes]]:
    """Tag and content of each element that stands in the data, one behind the other."""
    while data:
        length, start = data[1], 2
        if length & 0x80:
            start = 2 + (length & 0x7F)
            length = int.from_bytes(data[2:start], "big")
        if start + length > len(data):
            raise ValueError("an element ends behind the data's end")
        yield data[0], data[start : start + length]
        data = data[start + length :]


def _time(tag: int, content: bytes) -> float:
    # A year of two digits is of 1950 to 2049.
    text = content.decode("ascii")
    if tag == _UTC_TIME:
        text = ("19" if text[:2] >= "50" else "20") + text
    elif tag != _GENERALIZED_TIME:
        raise ValueError(f"tag {tag:#x} is no time")
    return datetime.strptime(text, "%Y%m%d%H%M%SZ").replace(tzinfo=timezone.utc).timestamp()


def _common_name(name: bytes) -> str:
    for _, names in _elements(name):
        for _, attribute in _elements(names):
            if attribute.startswith(_COMMON_NAME):
                (_, value), *_ = _elements(attribute[len(_COMMON_NAME) :])
                return value.decode("utf-8", "replace")
    return ""
