"""Pictures: what is drawn of a long line, and that nothing depends on matplotlib."""

from pathlib import Path

import pytest

from benchmarks import plots


def test_a_short_line_is_drawn_as_it_is() -> None:
    assert plots.thinned([(1.0, 2.0), (3.0, 4.0)]) == [(1.0, 2.0), (3.0, 4.0)]
    assert plots.thinned([]) == []


def test_a_long_line_is_drawn_as_means_of_neighbours() -> None:
    line = [(float(n), float(n % 2)) for n in range(10)]
    assert plots.thinned(line, 5) == [(0.5, 0.5), (2.5, 0.5), (4.5, 0.5), (6.5, 0.5), (8.5, 0.5)]


def test_without_matplotlib_it_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plots, "is_available", lambda: False)
    panel = plots.Panel("cost", {"": [(0.0, 1.0)]})
    assert plots.draw(tmp_path / "cost.svg", [panel], title="Cost", x_label="objects") == plots.MISSING
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(not plots.is_available(), reason="matplotlib is missing")
def test_the_same_figures_make_the_same_picture(tmp_path: Path) -> None:
    panel = plots.Panel("cost", {"one": [(n, 200.0 + n % 7) for n in range(1000)]})
    for name in ("first.svg", "second.svg"):
        said = plots.draw(tmp_path / name, [panel], title="Cost", x_label="objects")
        assert said == f"![Cost]({name})"
    picture = (tmp_path / "first.svg").read_bytes()
    assert picture == (tmp_path / "second.svg").read_bytes()
    assert len(picture) < 100_000
