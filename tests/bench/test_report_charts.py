"""The pictures of a result."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from report_results import EVERYTHING, NOT_REACHED, ODD, growth, result, timed, untimed

pytest.importorskip("matplotlib")

from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.image import imread

from tilewright.bench.report import charts, draw_charts, view
from tilewright.bench.report.charts import MOST_CALLS, PREFIX
from tilewright.bench.summary import curves


def share_of(color: str, path: Path) -> float:
    """Of the picture's pixels."""
    pixels = imread(path)[..., :3]
    return float((abs(pixels - to_rgb(color)).max(-1) < 0.02).mean())


def texts(figure: Figure) -> str:
    legends = [t for legend in figure.legends for t in legend.get_texts()]
    return "\n".join(t.get_text() for t in (*legends, *figure.texts, *(t for a in figure.axes for t in a.texts)))


@pytest.mark.parametrize("name", ODD)
def test_whatever_a_run_leaves_is_drawn(name: str, tmp_path: Path) -> None:
    drawn = draw_charts(result(ODD[name]), tmp_path)
    assert drawn == sorted(set(drawn), key=drawn.index)
    assert sorted(tmp_path.iterdir()) == sorted(drawn)
    ops = {r["op"] for r in ODD[name] if "op" in r and "curve" not in r} - {"roofline"}
    growths = {r["op"] for r in ODD[name] if "curve" in r}
    assert len(drawn) == len(ops) + len(growths)
    for path in drawn:
        assert imread(path).shape[1] >= 1200, "readable at a README's width"
        if any("device" in r and r["provider"].startswith("tilewright") for r in ODD[name]):
            assert share_of(view.OURS_COLOR[0], path) > 5e-4, path
        assert 0.4 < share_of("white", path) < 0.99


def test_a_peer_has_its_colour_in_every_picture(tmp_path: Path) -> None:
    eager = view.PEER_COLORS[0][0]
    for path in draw_charts(result(EVERYTHING), tmp_path):
        assert share_of(eager, path) > 5e-5, path


def test_many_calls_are_split_into_pictures_of_a_screen(tmp_path: Path) -> None:
    rows = [timed(f"{i}", p, 1e-3) for i in range(2 * MOST_CALLS + 1) for p in ("tilewright cpu", "eager")]
    drawn = draw_charts(result(rows), tmp_path)
    assert [p.name for p in drawn] == [f"{PREFIX}softmax-{i}.png" for i in (1, 2, 3)]
    heights = [imread(p).shape[0] for p in drawn]
    assert max(heights) < 1300
    assert max(heights) - min(heights) < 100


def test_pictures_of_an_earlier_result_go_and_other_files_stay(tmp_path: Path) -> None:
    (tmp_path / f"{PREFIX}attention-3.png").write_text("old")
    (tmp_path / "mine.png").write_text("kept")
    draw_charts(result(ODD["one call"]), tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["mine.png", f"{PREFIX}softmax.png"]


def test_failures_and_verdicts_are_told_in_words() -> None:
    rows = [*EVERYTHING, *NOT_REACHED, untimed("b", "flex $\\bad{$", "hung", "for 75 s")]
    found = view.calls(result(rows))
    part = [c for c in found if c.op == "softmax" and "curve" not in c.facts]
    figure = charts._field(Figure, part, view.styles(rows), "a title with $x")
    said = texts(figure)
    for text in (
        "a title with $x",
        "faster, 2.0",
        "slower, 0.5",
        "raised: compile",
        "refused: compile; hung: flex $\\bad{$",
        "no peer has a time",
        "tilewright has no time",
        "tilewright triton: wrong",
        "of limit: a fault",
        "limit: roofline",
    ):
        assert text in said, text
    figure.canvas.draw()  # nothing of it is taken for a formula


def test_growth_has_its_exponents_in_the_legend() -> None:
    rows = growth()
    (found,) = view.panels(curves(rows)).values()
    figure = charts._growth(Figure, found, view.styles(rows), "title")
    time, memory = ("\n".join(t.get_text() for t in a.get_legend().get_texts()) for a in figure.axes)
    assert time.splitlines() == ["tilewright triton: n^2.00 ± 0.00", "eager: n^3.00 ± 0.00"]
    assert memory.splitlines() == ["tilewright triton: n^1.00 ± 0.00", "eager: n^2.00 ± 0.00"]
    assert [t.get_text() for t in figure.axes[1].texts] == ["∝ n", "∝ n²"]


def test_names_of_ops_are_no_paths(tmp_path: Path) -> None:
    (path,) = draw_charts(result([timed("a", "tilewright cpu", 1e-3, op="../../x y")]), tmp_path)
    assert path == tmp_path / f"{PREFIX}x-y.png"
    assert path.is_file()


def test_without_matplotlib_it_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ImportError, match=r"pip install 'tilewright\[bench\]'"):
        draw_charts(result(EVERYTHING), tmp_path)
