"""Which interpreters and event loops are compared, and how; `python -m benchmarks loops` measures."""

import subprocess
import sys

import pytest

from benchmarks.loops import WITHOUT_UVLOOP, Run, Variant, ratios, targets, variants
from benchmarks.peers import PeerError


def test_this_python_is_compared_with_uvloop_and_without() -> None:
    found = variants([sys.executable])
    assert [variant.loop.partition(" ")[0] for variant in found] == ["uvloop", "asyncio"]
    assert {variant.version for variant in found} == {sys.version.split()[0]}


def test_an_interpreter_that_does_not_run_is_named() -> None:
    with pytest.raises(PeerError, match="no-such-python"):
        variants(["no-such-python"])


def test_a_variant_replaces_how_harmony_is_started_and_nothing_else() -> None:
    command = [sys.executable, "-m", "harmony", "--config", "FILE"]
    uvloop = Variant("/usr/bin/python3.13", "3.13.5", "uvloop 0.23.0")
    assert uvloop.command(command) == ["/usr/bin/python3.13", "-m", "harmony", "--config", "FILE"]
    asyncio = Variant("/usr/bin/python3.13", "3.13.5", "asyncio")
    assert asyncio.command(command) == ["/usr/bin/python3.13", "-c", WITHOUT_UVLOOP, "--config", "FILE"]


def test_without_uvloop_harmony_still_starts() -> None:
    command = [sys.executable, "-c", WITHOUT_UVLOOP, "--version"]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout.startswith("harmony")


def test_ratios_are_of_the_same_round() -> None:
    runs = [
        Run(variant, "ct", turn, 100, 1.0, cpu_s)
        for variant, turn, cpu_s in (
            ("a", 0, 1.0),
            ("b", 0, 2.0),
            ("a", 1, 4.0),
            ("b", 1, 6.0),
            ("b", 2, 1.0),
        )
    ]
    assert ratios(runs, "b", "a") == [2.0, 1.5]
    assert ratios(runs, "c", "a") == []


def test_the_default_is_held_against_asyncio() -> None:
    default = Variant("python", "3.11.7", "uvloop 0.23.0")
    other = Variant("python", "3.11.7", "asyncio")
    runs = [Run(each.title, "ct", 0, 100, 1.0, cpu_s) for each, cpu_s in ((default, 2.0), (other, 1.0))]
    (target,) = targets(runs, [default, other])
    assert (target.measured, target.is_met) == (2.0, False)
    assert targets(runs, [other]) == []
