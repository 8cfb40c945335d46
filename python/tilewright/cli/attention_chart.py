"""Attention as a picture: a matrix of weights for each head, or arcs from tokens to what they attend to."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .explain_attention import Picture

_CELL = 0.2  # inches a token takes, so that its label does not touch the next
_LABEL = 0.15  # inches a label takes; where tokens have less, every second, third ... one is labelled
_FONT = 7.0
_HIDDEN = "#ececec"
_ONE_COLOR = "#2b6cb0"


def draw(picture: Picture, path: Path) -> None:
    """Write the picture in the format that the file's name says."""
    import matplotlib

    matplotlib.use("Agg")  # a file, not a window
    import matplotlib.pyplot as plt

    figure = _matrices(plt, picture) if picture.maps is not None else _arcs(plt, picture)
    figure.savefig(path, dpi=150)
    plt.close(figure)


def _labels(positions: list[int], tokens: list[str], inches: float) -> tuple[list[int], list[str]]:
    """Ticks and their texts on an axis of this length: every token, or evenly spaced ones with their positions."""
    step = math.ceil(len(positions) * _LABEL / inches)
    ticks = list(range(0, len(positions), step))
    return ticks, [_name(positions[i], tokens, numbered=step > 1) for i in ticks]


def _name(position: int, tokens: list[str], *, numbered: bool) -> str:
    return tokens[position][:14] + (f" {position}" if numbered else "")


def _matrices(plt: Any, picture: Picture) -> Any:
    from matplotlib.colors import PowerNorm

    maps = picture.maps or []
    columns = math.ceil(math.sqrt(len(maps)))
    lines = math.ceil(len(maps) / columns)
    most = 3.4 if len(maps) > 1 else 12.0
    keys = list(range(len(picture.tokens)))
    width, height = (min(max(_CELL * len(n), 1.6), max(most, _CELL * min(len(n), 24))) for n in (keys, picture.rows))
    figure, axes = plt.subplots(
        lines,
        columns,
        figsize=(columns * (width + 0.15) + 2.4, lines * (height + 0.35) + 1.9),
        squeeze=False,
        layout="constrained",
    )
    colors = plt.get_cmap("viridis").with_extremes(bad=_HIDDEN)
    largest = max((w for _, rows in maps for row in rows for w in row), default=1.0)
    # A token or two often take nearly everything; the square root keeps the rest visible.
    scale = PowerNorm(0.5, vmin=0.0, vmax=largest or 1.0)
    for index, axis in enumerate(axes.flat):
        if index >= len(maps):
            axis.set_visible(False)
            continue
        name, rows = maps[index]
        cells = [[w if w > 0 else math.nan for w in row] for row in rows]
        image = axis.imshow(cells, cmap=colors, norm=scale, aspect="auto", interpolation="nearest")
        if len(maps) > 1:
            axis.set_title(name, fontsize=9)
        last = index + columns >= len(maps)
        _label(axis, picture, keys, bottom=last, left=index % columns == 0, room=(width, height))
    figure.suptitle(picture.title, fontsize=11, parse_math=False)
    figure.supxlabel("attended token (key)", fontsize=9)
    figure.supylabel("attending token (query)", fontsize=9)
    bar = figure.colorbar(image, ax=axes, fraction=0.04, pad=0.01)
    bar.set_label("attention weight (grey: none)", fontsize=9)
    bar.ax.tick_params(labelsize=7)
    return figure


def _label(
    axis: Any, picture: Picture, keys: list[int], *, bottom: bool, left: bool, room: tuple[float, float]
) -> None:
    """Tokens on the outer axes only; panels share them. A token is shown as it is: a dollar sign starts no formula."""
    axis.tick_params(length=2)
    for wanted, positions, inches, put, turn in (
        (bottom, keys, room[0], axis.set_xticks, 90),
        (left, picture.rows, room[1], axis.set_yticks, 0),
    ):
        ticks, texts = _labels(positions, picture.tokens, inches)
        put(ticks, texts if wanted else [""] * len(ticks), fontsize=_FONT, rotation=turn, parse_math=False)


def _arcs(plt: Any, picture: Picture) -> Any:
    from matplotlib.collections import LineCollection
    from matplotlib.lines import Line2D

    count = len(picture.tokens)
    width = min(max(_CELL * count, 6.0), 24.0)
    figure, axis = plt.subplots(figsize=(width, 5.0), layout="constrained")
    few = len(picture.rows) <= 10
    palette = plt.get_cmap("tab10").colors
    largest = max((weight for keys in picture.attended for _, weight in keys), default=1.0)
    steps = [math.pi * i / 40 for i in range(41)]
    curves, colors, widths = [], [], []
    for index, (row, keys) in enumerate(zip(picture.rows, picture.attended, strict=True)):
        for key, weight in keys:
            strength = weight / largest
            middle, radius = (row + key) / 2, abs(row - key) / 2
            if radius == 0:  # to itself: a loop
                curve = [(row + 0.3 * math.sin(2 * t), 0.35 * (1 - math.cos(2 * t))) for t in steps]
            else:
                # Less than in proportion to the distance, or one far key would flatten all the others.
                curve = [(middle - radius * math.cos(t), (2 * radius) ** 0.7 * math.sin(t)) for t in steps]
            curves.append(curve)
            colors.append(
                (*(palette[index] if few else plt.matplotlib.colors.to_rgb(_ONE_COLOR)), 0.1 + 0.9 * strength)
            )
            widths.append(0.4 + 2.6 * strength)
    axis.add_collection(LineCollection(curves, colors=colors, linewidths=widths))
    axis.set_xlim(-1, count)
    axis.set_ylim(0, 1.08 * max((y for curve in curves for _, y in curve), default=1.0))
    axis.set_yticks([])
    axis.spines[["top", "left", "right"]].set_visible(False)
    ticks, texts = _labels(list(range(count)), picture.tokens, width)
    axis.set_xticks(ticks, texts, rotation=90, fontsize=_FONT, parse_math=False)
    if few:
        for tick, position in zip(axis.get_xticklabels(), ticks, strict=True):
            if position in picture.rows:
                tick.set_color(palette[picture.rows.index(position)])
                tick.set_fontweight("bold")
        handles = [Line2D([], [], color=palette[i]) for i in range(len(picture.rows))]
        names = [f"{picture.tokens[row][:14]} ({row})" for row in picture.rows]
        legend = axis.legend(handles, names, title="attending token", frameon=False, fontsize=8, loc="upper left")
        for entry in legend.get_texts():
            entry.set_parse_math(False)
    strongest = max((len(keys) for keys in picture.attended), default=0)
    axis.set_title(
        f"{picture.title}\n{strongest} strongest keys of each token; thick: weight {largest:.2f}, thin: near 0",
        fontsize=10,
        parse_math=False,
    )
    return figure
