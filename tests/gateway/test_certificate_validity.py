"""When certificates end, of files that others made."""

from datetime import UTC, datetime, timedelta

import pytest

from harmony.gateway.certificate_validity import not_after


@pytest.mark.parametrize("days", [30, -5, 365 * 60], ids=["soon", "past", "GeneralizedTime"])
def test_the_end_of_a_certificate(authority, days):
    path = authority.issue(valid_days=(-10, days)).certificate
    expected = datetime.now(UTC) + timedelta(days=days)
    assert abs(not_after(path) - expected) < timedelta(minutes=1)


def test_the_first_of_a_chain_counts(authority, tmp_path):
    path = tmp_path / "chain.pem"
    leaf = authority.issue(valid_days=(-1, 7)).certificate
    path.write_text("a comment\n" + leaf.read_text() + authority.certificate.read_text())
    assert not_after(path) == not_after(leaf)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("nothing", "holds no certificate in PEM"),
        ("-----BEGIN CERTIFICATE-----\nMAA=\n-----END CERTIFICATE-----", "cannot be read"),
        ("-----BEGIN CERTIFICATE-----\nMIQ=\n-----END CERTIFICATE-----", "cannot be read"),
    ],
)
def test_what_is_no_certificate(tmp_path, text, message):
    path = tmp_path / "odd.pem"
    path.write_text(text)
    with pytest.raises(ValueError, match=message):
        not_after(path)
