"""The report of `python -m benchmarks all`: what is planned, how the time is shared, where the targets go."""

from pathlib import Path

import pytest

from benchmarks import plots
from benchmarks.__main__ import main
from benchmarks.survey import BENCHMARKS, Benchmark, Outcome, allowance_s, document, picture, taken
from benchmarks.targets import Target, print_targets

SOAK = Benchmark("soak", "Soaking", ("--quick",), is_drawn=True)


def report(*outcomes: Outcome) -> str:
    return document(outcomes, elapsed_s=61.0, budget_s=105.0, load_before=(1.5, 0.5, 0.25))


def test_targets_are_taken_out_of_what_was_printed(capsys: pytest.CaptureFixture[str]) -> None:
    print("first\n\n| a | b |\n|---|--:|\n| 1 | 2 |")
    print_targets(
        [Target("fast / slow", 2.5, least=2, spread=(2.0, 3.0)), Target("lost", 1, most=0, unit="objects")]
    )
    print("\nlast")
    rows, rest = taken(capsys.readouterr().out)
    assert rows == [
        ("fast / slow", "at least 2 x", "2.5 x (2-3)", "met"),
        ("lost", "at most 0 objects", "1 objects", "**not met**"),
    ]
    assert rest == "first\n\n| a | b |\n|---|--:|\n| 1 | 2 |\n\n\nlast"


def test_what_has_no_targets_stays_as_it_is() -> None:
    assert taken("one\n| a |\n") == ([], "one\n| a |")
    assert taken("") == ([], "")


def test_all_targets_stand_in_one_table_in_front(capsys: pytest.CaptureFixture[str]) -> None:
    outcomes = []
    for name, measured in (("store", 1.0), ("soak", 3.0)):
        print(f"figures of {name}")
        print_targets([Target(f"{name}: cost", measured, most=2)])
        benchmark = Benchmark(name, name.title(), ())
        outcomes.append(Outcome(benchmark, name, capsys.readouterr().out, elapsed_s=1.0, status=0))
    text = report(*outcomes)
    front, _, rest = text.partition("## Store")
    assert "1 of 2 met." in front
    assert front.count("| store: cost ") == front.count("| soak: cost ") == 1
    assert "cost" not in rest
    assert "figures of store" in rest
    assert "1.5, 0.5, 0.2" in front  # the load before


def test_what_was_interrupted_or_left_out_says_so() -> None:
    text = report(
        Outcome(SOAK, "soak", "some figures", elapsed_s=20.0, status=None), Outcome(SOAK, "soak again")
    )
    assert "Interrupted after 20 s" in text
    assert "some figures" in text
    assert "Left out" in text


def test_without_matplotlib_the_report_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plots, "is_available", lambda: False)
    assert "matplotlib is missing" in report(Outcome(SOAK, "soak", elapsed_s=1.0, status=0))


def test_nobody_takes_all_of_the_budget() -> None:
    assert allowance_s(100.0, [1, 3, 1]) == 30.0
    assert allowance_s(100.0, [1]) == 100.0
    assert allowance_s(-1.0, [1, 1]) == 0.0


def test_pictures_lie_beside_the_report() -> None:
    assert picture(Path("docs/report.md"), SOAK) == Path("docs/report-soak.svg")


@pytest.mark.parametrize("benchmark", BENCHMARKS, ids=lambda each: f"{each.name}: {each.title}")
@pytest.mark.parametrize("kind", ["quick", "full"])
def test_what_is_chosen_of_each_is_what_it_understands(benchmark: Benchmark, kind: str) -> None:
    arguments = getattr(benchmark, kind)
    if arguments is None:
        return
    if benchmark.is_drawn:
        arguments = (*arguments, "--plot", "FILE.svg")
    # Help ends the program once everything before it has been understood.
    with pytest.raises(SystemExit) as ended:
        main([benchmark.name, *arguments, "--help"])
    assert ended.value.code == 0
