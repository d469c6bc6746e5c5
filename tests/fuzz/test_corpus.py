"""What fuzzing starts from and what it has found, once more, without the fuzzer."""

from collections.abc import Iterator

import pytest

from tests.fuzz import targets  # noqa: F401 - registers them
from tests.fuzz.seeds import seeds
from tests.fuzz.target import CORPUS, TARGETS, close_loop

MAXIMUM_CORPUS_BYTES = 300 * 1024


@pytest.fixture(autouse=True)
def one_loop() -> Iterator[None]:
    yield
    close_loop()


@pytest.mark.parametrize("name", TARGETS)
def test_the_corpus_shows_no_defect(name: str) -> None:
    inputs = sorted(TARGETS[name].corpus.iterdir())
    assert inputs
    for path in inputs:
        try:
            TARGETS[name](path.read_bytes())
        except Exception as error:
            error.add_note(f"python -m tests.fuzz {name} --input {path}")
            raise


@pytest.mark.parametrize("name", TARGETS)
def test_no_input_and_any_first_byte(name: str) -> None:
    TARGETS[name](b"")
    for first in range(256):
        TARGETS[name](bytes((first,)))


def test_every_target_starts_from_something() -> None:
    assert seeds().keys() == TARGETS.keys()


def test_the_corpus_is_small_and_belongs_to_targets() -> None:
    files = [path for path in CORPUS.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) <= MAXIMUM_CORPUS_BYTES
    assert {path.parent.name for path in files if path.parent != CORPUS} == TARGETS.keys()
