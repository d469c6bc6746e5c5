"""One target under atheris, in a process of its own: `python -m tests.fuzz.engine TARGET [libFuzzer's arguments]`.

Started by `tests.fuzz.__main__`. libFuzzer ends the process when its time is over or a defect is found; the input that
showed it is then in the folder that -artifact_prefix names.
"""

from __future__ import annotations

import sys
import warnings

import atheris

with atheris.instrument_imports(include=["harmony"]):
    from tests.fuzz import targets  # noqa: F401 - registers them
    from tests.fuzz.target import TARGETS


def main() -> None:
    warnings.simplefilter("error")
    atheris.Setup([sys.argv[0], *sys.argv[2:]], TARGETS[sys.argv[1]])
    atheris.Fuzz()


if __name__ == "__main__":
    main()
