"""A DNS question and what its answer says (RFC 1035), as far as a probe needs it."""

from __future__ import annotations

import struct
from typing import List, NamedTuple, Tuple

_HEADER = struct.Struct("!6H")
_RECORD = struct.Struct("!HHIH")
_RECURSION_DESIRED = 0x0100
_RESPONSE = 0x8000
_TRUNCATED = 0x0200
_TYPES = {"A": 1, "AAAA": 28}
_CLASS_IN = 1
_CODES = {
    0: "NOERROR",
    1: "FORMERR",
    2: "SERVFAIL",
    3: "NXDOMAIN",
    4: "NOTIMP",
    5: "REFUSED",
    6: "YXDOMAIN",
    7: "YXRRSET",
    8: "NXRRSET",
    9: "NOTAUTH",
    10: "NOTZONE",
}


class Answer(NamedTuple):
    code: str  # "NOERROR", "NXDOMAIN", "SERVFAIL" ..., "RCODE11" where there is no name for it
    truncated: bool
    addresses: List[str]  # of the A records; those that fitted where truncated


def question(name: str, identifier: int, record: str = "A") -> bytes:
    """The message that asks for a name's IPv4 addresses, by AAAA for IPv6. ValueError where it is no domain name."""
    header = _HEADER.pack(identifier, _RECURSION_DESIRED, 1, 0, 0, 0)
    return header + _encoded(name) + struct.pack("!2H", _TYPES[record], _CLASS_IN)


def is_name(name: str) -> bool:
    """Whether it can be asked for; "" (the root) can."""
    try:
        _encoded(name)
    except ValueError:
        return False
    return True


def answer(message: bytes, asked: bytes) -> Answer:
    """What a message says to the question. Raises ValueError where it is malformed or answers another question."""
    try:
        identifier, flags, questions, records, _, _ = _HEADER.unpack_from(message)
        if identifier != _HEADER.unpack_from(asked)[0] or not flags & _RESPONSE:
            raise ValueError("not the answer to this question")
        code = _CODES.get(flags & 0xF, f"RCODE{flags & 0xF}")
        # A server that could not parse the question may leave it out of its answer.
        end = _HEADER.size if not questions else _after_question(message, asked)
        truncated = bool(flags & _TRUNCATED)
        return Answer(code, truncated, _addresses(message, end, records, truncated))
    except (struct.error, IndexError):
        raise ValueError("the message ends too early") from None


def _encoded(name: str) -> bytes:
    labels = name.rstrip(".").encode("ascii").split(b".") if name.rstrip(".") else []
    if any(not 1 <= len(label) <= 63 for label in labels):
        raise ValueError(f"not a domain name: {name!r}")
    encoded = b"".join(bytes([len(label)]) + label for label in labels) + b"\0"
    if len(encoded) > 255:
        raise ValueError(f"longer than a domain name may be: {name!r}")
    return encoded


def _after_question(message: bytes, asked: bytes) -> int:
    end = len(asked)
    if message[_HEADER.size : end].lower() != asked[_HEADER.size :].lower():
        raise ValueError("answers another question")
    return end


def _addresses(message: bytes, offset: int, records: int, truncated: bool) -> List[str]:
    found = []
    for _ in range(records):
        try:
            kind, data, offset = _record(message, offset)
        except (struct.error, IndexError):
            if truncated:
                break
            raise
        if kind == _TYPES["A"] and len(data) == 4:
            found.append(".".join(str(byte) for byte in data))
    return found


def _record(message: bytes, offset: int) -> Tuple[int, bytes, int]:
    """Type and data of the record at offset, and where the next one begins."""
    while message[offset]:
        if message[offset] & 0xC0:  # a pointer ends a name
            offset += 1
            break
        offset += 1 + message[offset]
    kind, _, _, length = _RECORD.unpack_from(message, offset + 1)
    start = offset + 1 + _RECORD.size
    if start + length > len(message):
        raise IndexError
    return kind, message[start : start + length], start + length
