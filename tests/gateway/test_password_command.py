"""`python -m harmony hash-password`."""

from __future__ import annotations

import io

import pytest

from harmony.gateway.command_line import main
from harmony.gateway.passwords import PasswordHash, prepared


def test_prints_a_hash(monkeypatch, capsys) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO("open sesame\n"))
    assert main(["hash-password"]) == 0
    assert PasswordHash.parse(capsys.readouterr().out.strip()).verify(prepared("open sesame"))


@pytest.mark.parametrize("text", ["", "\n", "a\tb\n"])
def test_what_is_no_password(monkeypatch, capsys, text) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO(text))
    assert main(["hash-password"]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "must not be empty" in captured.err
