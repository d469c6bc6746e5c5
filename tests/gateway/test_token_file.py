"""A token that somebody else writes into a file: the new one as soon as it is there, the old one until then."""

from __future__ import annotations

import pytest

from harmony.gateway.token_file import TokenFile


def test_another_token(tmp_path) -> None:
    path = tmp_path / "token"
    path.write_text("first\n")
    file = TokenFile(path)
    assert file.token() == "first"
    path.write_text("second.token\n")
    assert file.token() == "second.token"
    (tmp_path / "new").write_text("third")  # as who does it without a gap
    (tmp_path / "new").rename(path)
    assert file.token() == "third"


def test_no_token_changes_nothing(tmp_path, caplog) -> None:
    path = tmp_path / "token"
    path.write_text("first")
    file = TokenFile(path)
    for content in ("", " \n", "two words", "sec\u00e9ret", "x" * 17000):
        path.write_text(content)
        assert file.token() == "first"
        assert file.token() == "first"
    assert len(caplog.records) == 5
    path.unlink()
    assert [file.token(), file.token()] == ["first", "first"]
    assert [record.getMessage() for record in caplog.records[5:]] == [
        f"{path} cannot be read, its token is kept: No such file or directory"
    ]
    assert "secret" not in caplog.text
    assert "two words" not in caplog.text
    path.write_text("second")
    assert file.token() == "second"


def test_there_must_be_one_at_first(tmp_path) -> None:
    path = tmp_path / "token"
    with pytest.raises(FileNotFoundError):
        TokenFile(path)
    path.write_bytes(b"a\0b")
    with pytest.raises(ValueError, match="must hold a token: printable ASCII, at most 16384 bytes"):
        TokenFile(path)


def test_the_token_is_not_shown(tmp_path) -> None:
    (tmp_path / "token").write_text("s3cret")
    assert "s3cret" not in repr(TokenFile(tmp_path / "token"))
