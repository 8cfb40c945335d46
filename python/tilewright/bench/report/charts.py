"""Pictures for a README: how all providers of a call compare, and how their time and memory grow."""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..summary import LEAST_BYTES, Curve, Result, Row, curves, is_ours, result_text
from . import view
from .tables import exponent
from .view import Call, Style, times_text

#: What the files' names begin with.
PREFIX = "tilewright-bench-"
#: In one picture, which is then less than a screen high.
MOST_CALLS = 16

_WIDTH, _LEFT, _RIGHT, _LINE, _DPI = 10.0, 3.05, 2.35, 0.45, 150
_TEXT, _SOFT, _GRID = "#1c1e21", "#5c636b", "#dfe2e6"
_OURS, _SLOWER = view.OURS_COLOR[0], view.SLOWER_COLOR[0]


def draw_charts(result: Result, folder: Path) -> list[Path]:
    """PNGs for each op and each growth curve, in a folder that exists; those of an earlier result go.

    ImportError says what to install where matplotlib is missing.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError(f"charts need matplotlib ({error}): pip install 'tilewright[bench]'") from error
    for old in folder.glob(f"{PREFIX}*.png"):
        old.unlink()
    styles, drawn = view.styles(result.rows), []
    on_cpu = result.settings.get("device") == "cpu"
    where = view.machine({**result.environment, "gpus": ()} if on_cpu else result.environment)

    def save(figure: Any, name: str) -> None:
        path = folder / f"{PREFIX}{re.sub('[^a-z0-9]+', '-', name.lower()).strip('-')}.png"
        figure.savefig(path, dpi=_DPI, facecolor="white")
        drawn.append(path)

    for op, calls in view.by_op(view.calls(result)).items():
        parts = _split(calls) if op else []
        for number, part in enumerate(parts, 1):
            counted = f" ({number} of {len(parts)})" if len(parts) > 1 else ""
            figure = _field(Figure, part, styles, f"{view.title_of(op)}{counted}: {where}")
            save(figure, op if len(parts) == 1 else f"{op} {number}")
    for (op, axis), found in view.panels(curves(result.rows)).items():
        save(_growth(Figure, found, styles, f"{view.title_of(op)} against {axis}: {where}"), f"growth {op} {axis}")
    return drawn


def _split(calls: Sequence[Call]) -> list[Sequence[Call]]:
    """Into parts of about the same length."""
    parts = math.ceil(len(calls) / MOST_CALLS)
    ends = [round(i * len(calls) / parts) for i in range(parts + 1)]
    return [calls[a:b] for a, b in itertools.pairwise(ends)]


def _text(axis: Any, x: float, y: float, text: str, soft: bool = False, **options: Any) -> Any:
    """x in the axis's breadth, y in its data. Names may hold dollar signs, which start no formula here."""
    given = {"fontsize": 8.0 if soft else 9.5, "color": _SOFT if soft else _TEXT, "va": "center", **options}
    return axis.text(x, y, text, transform=axis.get_yaxis_transform(), parse_math=False, **given)


def _field(figure_of: Any, calls: Sequence[Call], styles: dict[str, Style], title: str) -> Any:
    """A line for each call: the bar is tilewright from the fastest peer, markers are all providers."""
    names = [n for n in styles if any(m.row["provider"] == n for c in calls for m in c.marks)]
    legend_lines = math.ceil((len(names) + 1) / 7)
    top, bottom = 0.42 + 0.24 * legend_lines, 0.62
    height = top + bottom + _LINE * len(calls)
    figure = figure_of(figsize=(_WIDTH, height))
    left, right = _LEFT / _WIDTH, _RIGHT / _WIDTH
    axis = figure.add_axes((left, bottom / height, 1 - left - right, _LINE * len(calls) / height))
    low, high = view.field_domain(calls)
    axis.set_xscale("log")
    axis.set_xlim(low, high)
    axis.set_ylim(len(calls) - 0.5, -0.5)
    for line, call in enumerate(calls):
        if line % 2 == 0:
            axis.axhspan(line - 0.5, line + 0.5, color="#f5f6f8", linewidth=0, zorder=0)
        _line(axis, line, call, styles, (low, high))
    axis.axvline(1.0, color=_TEXT, linewidth=1.0, zorder=1)
    ticks = [t for t in (0.125, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0) if low <= t <= high]
    axis.set_xticks(ticks, [f"{t:g}×" for t in ticks], fontsize=8.5, color=_SOFT)
    axis.minorticks_off()
    axis.set_yticks([])
    axis.tick_params(length=0)
    axis.spines[:].set_visible(False)
    label = "speed relative to the fastest peer of each call (logarithmic; further right is faster)"
    axis.set_xlabel(label, fontsize=8.5, color=_SOFT)
    figure.text(0.012, 1 - 0.14 / height, title, fontsize=12, weight="bold", va="top", color=_TEXT, parse_math=False)
    _legend(figure, names, styles, 1 - 0.36 / height)
    return figure


def _line(axis: Any, y: int, call: Call, styles: dict[str, Style], ends: tuple[float, float]) -> None:
    left, right = -(_LEFT - 0.12) / (_WIDTH - _LEFT - _RIGHT), 1.03
    s = call.summary
    _text(axis, left, y - 0.15, _short(call.title, 40))
    _text(axis, left, y + 0.22, _short(call.subtitle, 46), soft=True)
    if call.limit is not None and call.limit <= ends[1]:
        axis.plot([call.limit] * 2, [y - 0.3, y + 0.3], color="#8a9199", linewidth=3, solid_capstyle="butt", zorder=2)
    for mark in sorted(call.marks, key=lambda m: is_ours(m.row)):
        style, ours = styles[mark.row["provider"]], is_ours(mark.row)
        color = _color(style)
        x = min(max(mark.speed, ends[0]), ends[1])
        if mark.row is s.ours:
            axis.plot([1.0, x], [y, y], color=color, linewidth=5, solid_capstyle="butt", zorder=3)
        span = [min(max(v, ends[0]), ends[1]) for v in (mark.low, mark.high)]
        axis.plot(span, [y, y], color=color, linewidth=1.2, alpha=0.8, zorder=4)
        face = "white" if style.second else color
        shape = style.marker if x == mark.speed else "<" if mark.speed < x or x <= ends[0] else ">"
        axis.plot(
            [x], [y], shape, color=color, markersize=8 if ours else 5, markerfacecolor=face, zorder=6 if ours else 5,
            clip_on=False,
        )  # fmt: skip
    color = {"faster": _OURS, "slower": _SLOWER, "none": _SLOWER}.get(s.verdict, _TEXT)
    _text(axis, right, y - 0.15, _verdict(call), color=color, weight="bold")
    _text(axis, right, y + 0.22, _against(call), soft=True)
    if failed := _failures(call.without):
        _text(axis, 0.004, y + 0.36, failed, soft=True, fontsize=7.0)


def _verdict(call: Call) -> str:
    s = call.summary
    if s.lead is None:
        return "no peer has a time" if s.verdict == "alone" else "tilewright has no time"
    return f"{s.verdict}, {times_text(s.lead.value)}"


def _against(call: Call) -> str:
    """Ours, with its share of the limit."""
    s = call.summary
    if s.ours is None:
        return next((f"{r['provider']}: {r['status']}" for r in s.rows if is_ours(r)), "")
    share = f", {view.percent(s.ours['of_roofline'])} of limit" if "of_roofline" in s.ours else ""
    return result_text(s.ours).removesuffix("!") + share + (": a fault" if "fault" in s.ours else "")


def _failures(rows: Sequence[Row]) -> str:
    """Statuses with who has them; the packages that are not installed are no failure of theirs."""
    found: dict[str, list[str]] = {}
    for row in rows:
        if row["status"] != "missing":
            found.setdefault(row["status"], []).append(row["provider"])
    texts = [f"{status}: {', '.join(names)}" for status, names in found.items()]
    return _short("; ".join(texts), 92)


def _short(text: str, most: int) -> str:
    return text if len(text) <= most else text[: most - 1] + "…"


def _color(style: Style) -> str:
    return _OURS if style.color is None else view.PEER_COLORS[style.color][0]


def _legend(figure: Any, names: Sequence[str], styles: dict[str, Style], y: float) -> None:
    from matplotlib.lines import Line2D

    handles = [_handle(styles[n]) for n in names]
    handles.append(Line2D([], [], color="#8a9199", marker="|", linestyle="", markersize=9, markeredgewidth=3))
    texts = [*names, "limit: roofline"]
    legend = figure.legend(
        handles, texts, loc="upper left", bbox_to_anchor=(0.005, y), ncols=7, frameon=False, fontsize=8.5,
        handletextpad=0.3, columnspacing=1.3, labelcolor=_TEXT, borderaxespad=0.0,
    )  # fmt: skip
    for text in legend.get_texts():
        text.set_parse_math(False)


def _handle(style: Style, line: bool = False) -> Any:
    from matplotlib.lines import Line2D

    face = "white" if style.second else _color(style)
    stroke: Any = ("--" if style.second else "-") if line else ""
    markersize = 7 if style.color is None else 5
    return Line2D(
        [], [], color=_color(style), marker=style.marker, markersize=markersize, markerfacecolor=face, linestyle=stroke
    )


def _growth(figure_of: Any, found: Sequence[Curve], styles: dict[str, Style], title: str) -> Any:
    """Time on the left, memory on the right."""
    under = 0.62 + 0.2 * len(found)
    height = 3.5 + under
    figure = figure_of(figsize=(_WIDTH, height))
    figure.text(0.012, 1 - 0.14 / height, title, fontsize=12, weight="bold", va="top", color=_TEXT, parse_math=False)
    for place, memory in enumerate((False, True)):
        axis = figure.add_axes((0.075 + 0.5 * place, under / height, 0.41, 2.75 / height))
        name = "memory beside the inputs" if memory else "time"
        axis.set_title(name, fontsize=10, loc="left", color=_TEXT)
        _panel(axis, found, styles, memory)
        axis.set_xlabel(found[0].axis, fontsize=9, color=_SOFT, parse_math=False)
    return figure


def _panel(axis: Any, found: Sequence[Curve], styles: dict[str, Style], memory: bool) -> None:
    lines = view.drawn_lines(found, memory)
    axis.spines[["top", "right", "left"]].set_visible(False)
    axis.spines["bottom"].set_color(_SOFT)
    handles, texts = [], []
    for curve in found:
        growth = curve.memory if memory else curve.seconds
        handles.append(_handle(styles[curve.provider], line=True))
        texts.append(f"{curve.provider}: {exponent(growth)}")
    for curve, points in lines:
        style = styles[curve.provider]
        ours = style.color is None
        axis.plot(
            *zip(*points, strict=True), marker=style.marker, color=_color(style), linewidth=2.6 if ours else 1.3,
            markersize=6 if ours else 4, linestyle="--" if style.second else "-",
            markerfacecolor="white" if style.second else None, zorder=4 if ours else 3, clip_on=False,
        )  # fmt: skip
    if lines:
        axis.set_xscale("log", base=2)
        axis.set_yscale("log")
        low, high = axis.get_ylim()
        low = LEAST_BYTES if memory else low
        sizes = sorted({s for c, _ in lines for s in c.sizes})
        for power, factor in view.guides(found[0].op, (p for _, p in lines), memory):
            start = max(sizes[0], (low / factor) ** (1 / power))
            ends = [start, sizes[-1]]
            axis.plot(ends, [factor * s**power for s in ends], color=_SOFT, linewidth=0.8, linestyle=":", zorder=2)
            text = "∝ n²" if power == 2 else "∝ n"
            at = (start, factor * start**power)
            side = "left" if start == sizes[0] else "right"
            under = side == "left" and at[1] > 1.3 * low  # else it is to keep clear of the axis
            place = (3 if side == "left" else -3, -11 if under else 3)
            axis.annotate(text, at, place, textcoords="offset points", ha=side, fontsize=8, color=_SOFT)
        axis.set_ylim(low, high)
        step = math.ceil(len(sizes) / 7)
        labels = [view.short_size(s) for s in sizes[::step]]
        axis.set_xticks(sizes[::step], labels)
        axis.set_yticks(*zip(*view.cost_ticks(low, high, memory), strict=True))
        axis.grid(axis="y", color=_GRID, linewidth=0.7)
        axis.minorticks_off()
        axis.tick_params(length=0, labelsize=8.5, labelcolor=_SOFT)
    else:
        axis.set_xticks([])
        axis.set_yticks([])
        axis.text(
            0.5,
            0.5,
            f"below {view.size(LEAST_BYTES)} at every size: not resolved",
            ha="center",
            color=_SOFT,
            transform=axis.transAxes,
        )
    legend = axis.legend(
        handles, texts, loc="upper left", bbox_to_anchor=(-0.02, -0.17), frameon=False, fontsize=8.5, labelcolor=_TEXT
    )
    for text in legend.get_texts():
        text.set_parse_math(False)
