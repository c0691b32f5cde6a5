"""Names and dates of certificates: one that ends before 2050 (UTCTime), one after (GeneralizedTime)."""

from __future__ import annotations

from datetime import datetime, timezone
from pathlib import Path

import pytest
from ansible.module_utils.netmend.parse.x509 import validity


def seconds(text: str) -> float:
    return datetime.fromisoformat(text).replace(tzinfo=timezone.utc).timestamp()


@pytest.mark.parametrize(
    ("name", "subject", "not_after"),
    [
        ("until-2027.crt", "etcd-server", "2027-11-21 13:21:47"),
        ("until-2081.crt", "system:node:k3s-worker-01", "2081-08-24 13:21:47"),
    ],
)
def test_whose_it_is_and_until_when_it_holds(fixtures: Path, name: str, subject: str, not_after: str) -> None:
    text = (fixtures / "certificates" / name).read_text()
    assert validity(text) == (subject, seconds("2026-11-21 13:21:47"), seconds(not_after))


def test_the_first_of_a_chain_counts(fixtures: Path) -> None:
    names = ("until-2081.crt", "until-2027.crt")
    text = "".join((fixtures / "certificates" / name).read_text() for name in names)
    assert validity(f"remark\n{text}").subject == "system:node:k3s-worker-01"


@pytest.mark.parametrize(
    "text",
    [
        "",
        "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n",
        "-----BEGIN CERTIFICATE-----\nMIIBgDCC\n-----END CERTIFICATE-----\n",
        "-----BEGIN CERTIFICATE-----\n\n-----END CERTIFICATE-----\n",
    ],
)
def test_what_is_no_certificate_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="certificate"):
        validity(text)
