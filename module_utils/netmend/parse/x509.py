"""Reads of a certificate whose it is and how long it holds, and nothing else (RFC 5280, 4.1; DER: X.690)."""

from __future__ import annotations

import base64
import re
from datetime import datetime, timezone
from typing import Iterator, NamedTuple, Tuple

_PEM = re.compile(r"-----BEGIN CERTIFICATE-----\s(.+?)-----END CERTIFICATE-----", re.S)
_COMMON_NAME = bytes.fromhex("0603550403")  # the object identifier 2.5.4.3
_VERSION, _UTC_TIME, _GENERALIZED_TIME = 0xA0, 0x17, 0x18  # tags


class Validity(NamedTuple):
    subject: str  # its common name; "" where it has none
    not_before: float  # seconds since the epoch
    not_after: float


def validity(pem: str) -> Validity:
    """Of the first certificate in a PEM file. ValueError where there is none, or where it cannot be read."""
    found = _PEM.search(pem)
    if not found:
        raise ValueError("no certificate in it")
    try:
        (_, certificate), *_ = _elements(base64.b64decode(found[1]))
        (_, to_be_signed), *_ = _elements(certificate)
        fields = [content for tag, content in _elements(to_be_signed) if tag != _VERSION]
        # serialNumber, signature, issuer, validity, subject
        not_before, not_after = (_time(*element) for element in _elements(fields[3]))
        return Validity(_common_name(fields[4]), not_before, not_after)
    except (IndexError, ValueError) as error:
        raise ValueError(f"not a certificate that can be read: {error}") from error


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
