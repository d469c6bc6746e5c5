"""Each fault in its short form: some seconds with a gateway of its own. `python -m tests.faults` is the long one."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.faults.__main__ import MODULES
from tests.faults.trial import FAULTS, NotHere, ProgramMissing, perform

assert MODULES  # importing them registers the faults


@pytest.mark.parametrize("name", FAULTS)
async def test_fault(name: str, tmp_path: Path):
    try:
        row = await perform(FAULTS[name], tmp_path / "trial", short=True)
    except NotHere as reason:
        if isinstance(reason, ProgramMissing) and os.environ.get("HARMONY_REQUIRE_PEERS") == "1":
            pytest.fail(str(reason), pytrace=False)
        pytest.skip(str(reason))
    assert row.lost == 0
