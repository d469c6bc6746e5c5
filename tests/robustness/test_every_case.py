"""Every case of the robustness table, R00 to R40, has a test that is named after it."""

import ast
import re
from pathlib import Path

import pytest

CASES = [f"r{number:02}" for number in range(41)]
TESTS = Path(__file__).parents[1]
ENDS_THE_GATEWAY = "r40"
"""It is in tests/system, which starts one for each test."""


def names(folder: Path) -> dict[str, list[str]]:
    """The tests below a folder by the cases in their names, of which one may have several."""
    found: dict[str, list[str]] = {}
    for path in sorted(folder.rglob("test_*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name.startswith("test_"):
                for case in re.findall(r"(?<=_)r\d\d(?=_)", node.name):
                    found.setdefault(case, []).append(node.name)
    return found


def test_the_table_is_complete() -> None:
    assert sorted(names(TESTS)) == CASES


@pytest.mark.parametrize("case", CASES)
def test_a_running_gateway_is_put_to_it(case: str) -> None:
    folder = TESTS / ("system" if case == ENDS_THE_GATEWAY else "robustness")
    assert case in names(folder)
