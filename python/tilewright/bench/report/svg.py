"""Pictures inside the page: a call on one line, all leads, and growth curves. Colours are the page's classes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from ..summary import Curve, is_ours
from .markup import Markup, join, tag
from .view import (
    Call,
    Style,
    cost_ticks,
    domain,
    drawn_lines,
    duration,
    field_domain,
    guides,
    percent,
    short_size,
    size,
    times_text,
    title_of,
)

Point = tuple[float, float]

STRIP_WIDTH, STRIP_HEIGHT = 170.0, 26.0


@dataclass(frozen=True)
class Scale:
    """A logarithmic axis: low lies at start, high at end; what is beyond them at the nearer end."""

    low: float
    high: float
    start: float
    end: float

    def __call__(self, value: float) -> float:
        if value <= self.low or self.high <= self.low:
            return self.start
        part = math.log(value / self.low) / math.log(self.high / self.low)
        return self.start + (self.end - self.start) * min(part, 1.0)

    def holds(self, value: float) -> bool:
        return self.low <= value <= self.high

    def ticks(self) -> list[float]:
        """Powers of 2 around 1."""
        return [t for t in (0.125, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0) if self.holds(t)]


def class_of(style: Style) -> str:
    return ("ours second" if style.second else "ours") if style.color is None else f"p{style.color}"


def marker(shape: str, x: float, y: float, r: float, class_: str, title: str = "") -> Markup:
    """One of view.MARKERS."""
    told = tag("title", title) if title else None
    if shape == "o":
        return tag("circle", told, class_=class_, cx=x, cy=y, r=r)
    corners = {"s": ((-1, -1), (1, -1), (1, 1), (-1, 1)), "^": ((0, -1.2), (1.1, 0.9), (-1.1, 0.9))}
    found = corners.get(shape, ((0, -1.3), (1.3, 0), (0, 1.3), (-1.3, 0)))
    points = " ".join(f"{x + r * a:.1f},{y + r * b:.1f}" for a, b in found)
    return tag("polygon", told, class_=class_, points=points)


def svg(width: float, height: float, label: str, *children: Markup | None, class_: str | None = None) -> Markup:
    view = f"0 0 {width:.0f} {height:.0f}"
    return tag("svg", *children, viewBox=view, width=width, height=height, class_=class_, role="img", aria_label=label)


def swatch(style: Style) -> Markup:
    return tag("svg", marker(style.marker, 7, 7, 4, class_of(style)), width=14, height=14, aria_hidden="true")


def strip_scale(calls: Sequence[Call]) -> Scale:
    return Scale(*field_domain(calls), 8.0, STRIP_WIDTH - 8.0)


def strip_axis(scale: Scale) -> Markup:
    first, last = scale.ticks()[0], scale.ticks()[-1]
    ticks = []
    for t in sorted({first, 1.0, last}):
        x = min(max(scale(t), 20.0), STRIP_WIDTH - 12.0)  # or its text is cut off
        ticks.append(tag("text", f"{t:g}×", x=x, y=11.0, text_anchor="middle", class_="tick"))
    return svg(STRIP_WIDTH, 14.0, "axis: times as fast as the fastest peer, logarithmic", join(ticks), class_="strip")


def strip(call: Call, scale: Scale, styles: dict[str, Style]) -> Markup:
    """Every provider's speed relative to the fastest peer, which is the line; tilewright is the bar."""
    y = STRIP_HEIGHT / 2
    one = scale(1.0)
    parts = [tag("line", class_="one", x1=one, x2=one, y1=2.0, y2=STRIP_HEIGHT - 2.0)]
    if call.limit is not None and scale.holds(call.limit):
        x = scale(call.limit)
        parts.append(
            tag(
                "line",
                tag("title", f"limit: {times_text(call.limit)}"),
                class_="limit",
                x1=x,
                x2=x,
                y1=4.0,
                y2=STRIP_HEIGHT - 4.0,
            )
        )
    for mark in sorted(call.marks, key=lambda m: is_ours(m.row)):
        style, x = styles[mark.row["provider"]], scale(mark.speed)
        told = f"{mark.row['provider']}: {times_text(mark.speed)}"
        if mark.row is call.summary.ours:
            parts.append(tag("line", class_="ours bar", x1=one, x2=x, y1=y, y2=y))
        parts.append(tag("line", class_=f"{class_of(style)} span", x1=scale(mark.low), x2=scale(mark.high), y1=y, y2=y))
        parts.append(marker(style.marker, x, y, 4.5 if style.color is None else 3.2, class_of(style), told))
        if not scale.holds(mark.speed):
            arrow = "‹" if x < one else "›"
            parts.append(tag("text", arrow, x=x + (-7 if x < one else 4), y=y + 4, class_="tick"))
    label = "; ".join(f"{m.row['provider']} {times_text(m.speed)}" for m in call.marks)
    return svg(STRIP_WIDTH, STRIP_HEIGHT, label or "no times", join(parts), class_="strip")


def overview(groups: dict[str, list[Call]], width: float = 1180.0) -> Markup | None:
    """A dot for each call: how many times faster tilewright is than the fastest peer; a line of dots for each op."""
    leads = {op: [(c, c.summary.lead.value) for c in g if c.summary.lead is not None] for op, g in groups.items()}
    leads = {op: found for op, found in leads.items() if found}
    if not leads:
        return None
    scale = Scale(*domain(v for found in leads.values() for _, v in found), 214.0, width - 24.0)
    y, parts = 24.0, []
    for op, found in leads.items():
        dots, depth = _stacked([(scale(v), c) for c, v in found])
        middle = y + 7.0 + 5.0 * depth
        parts.append(tag("text", title_of(op), x=202.0, y=middle + 4.0, text_anchor="end"))
        parts.append(tag("line", class_="grid", x1=214.0, x2=width - 24.0, y1=middle, y2=middle))
        for x, offset, call in dots:
            lead = call.summary.lead
            told = f"{call.title}, {call.subtitle}: {lead}, {call.summary.verdict}"
            shape = {"faster": "^", "slower": "D"}.get(call.summary.verdict, "o")
            dot = marker(shape, x, middle + offset, 4.6, call.summary.verdict, told)
            parts.append(tag("a", dot, href=f"#call-{call.number}"))
        y = middle + 7.0 + 5.0 * depth
    one = scale(1.0)
    ticks = [tag("line", class_="one", x1=one, x2=one, y1=18.0, y2=y + 2.0)]
    for t in scale.ticks():
        ticks.append(tag("text", f"{t:g}×", x=scale(t), y=y + 16.0, text_anchor="middle", class_="tick"))
    ticks.append(tag("text", "← a peer is faster", x=one - 8.0, y=11.0, text_anchor="end", class_="tick slower-text"))
    ticks.append(tag("text", "tilewright is faster →", x=one + 8.0, y=11.0, class_="tick faster-text"))
    told = "for each op and call: how many times faster tilewright is than the fastest peer, on a logarithmic axis"
    return svg(width, y + 22.0, told, join(ticks), join(parts), class_="wide")


def _stacked(dots: list[tuple[float, Call]]) -> tuple[list[tuple[float, float, Call]], int]:
    """Dots that would lie on one another are moved up and down. Also: how many steps of 5 the farthest was moved."""
    placed: list[tuple[float, float, Call]] = []
    depth = 0
    for x, call in sorted(dots, key=lambda d: d[0]):
        step = 0
        while any(abs(x - px) < 9.0 and abs(_offset(step) - py) < 9.0 for px, py, _ in placed):
            step += 1
        placed.append((x, _offset(step), call))
        depth = max(depth, (step + 1) // 2 * 2)
    return placed, depth


def _offset(step: int) -> float:
    return 10.0 * ((step + 1) // 2) * (1 if step % 2 else -1)


def growth(curves: Sequence[Curve], styles: dict[str, Style], memory: bool) -> Markup | None:
    """Time or memory against size, both logarithmic; thin lines are the slopes of an op that wastes nothing."""
    lines = drawn_lines(curves, memory)
    if not lines:
        return None
    (left, right), (low, high) = ([f([p[i] for _, ps in lines for p in ps]) for f in (min, max)] for i in (0, 1))
    width, height = 430.0, 214.0
    x, y = Scale(left, right, 66.0, width - 20.0), Scale(low if memory else low / 1.3, high * 1.3, height - 40.0, 12.0)
    op, axis = curves[0].op, curves[0].axis
    parts = _axes(x, y, sorted({s for c, _ in lines for s in c.sizes}), memory, axis)
    for exponent, factor in guides(op, [p for _, p in lines], memory):
        start = max(left, (y.low / factor) ** (1 / exponent))
        ends = [(x(s), y(factor * s**exponent)) for s in (start, right)]
        parts.append(tag("polyline", class_="guide", points=_points(ends)))
        (x0, y0), power = ends[0], {1: "", 2: "²"}[exponent]
        under = start == left and y0 < y.start - 14.0  # else it is to keep clear of the axis
        place = (x0 + (4.0 if start == left else -4.0), y0 + (12.0 if under else -5.0))
        anchor = "start" if start == left else "end"
        parts.append(tag("text", f"∝ n{power}", x=place[0], y=place[1], text_anchor=anchor, class_="tick"))
    for curve, points in lines:
        style = styles[curve.provider]
        at = [(x(s), y(c)) for s, c in points]
        parts.append(tag("polyline", class_=f"{class_of(style)} curve", points=_points(at)))
        told = [f"{curve.provider}, {s:g}: {size(c) if memory else duration(c)}" for s, c in points]
        parts += [marker(style.marker, *p, 3.4, class_of(style), t) for p, t in zip(at, told, strict=True)]
    name = "memory beside the inputs" if memory else "time"
    return svg(width, height, f"{title_of(op)}: {name} against {axis}", join(parts), class_="growth")


def _axes(x: Scale, y: Scale, sizes: list[int], memory: bool, axis: str) -> list[Markup]:
    parts = [tag("line", class_="axis", x1=x.start, x2=x.end, y1=y.start, y2=y.start)]
    for value, label in cost_ticks(y.low, y.high, memory):
        parts.append(tag("line", class_="grid", x1=x.start, x2=x.end, y1=y(value), y2=y(value)))
        parts.append(tag("text", label, x=x.start - 8.0, y=y(value) + 4.0, text_anchor="end", class_="tick"))
    last = -math.inf
    for value in sizes:
        if x(value) - last >= 44.0:
            last = x(value)
            text = short_size(value)
            parts.append(tag("text", text, x=last, y=y.start + 15.0, text_anchor="middle", class_="tick"))
    middle = (x.start + x.end) / 2
    parts.append(tag("text", axis, x=middle, y=y.start + 32.0, text_anchor="middle", class_="tick"))
    return parts


def _points(points: Sequence[Point]) -> str:
    return " ".join(f"{x:.1f},{y:.1f}" for x, y in points)


def share_bar(share: float) -> Markup:
    """A share of the limit as a bar of one em's height."""
    width = 52.0 * min(share, 1.0)
    parts = [tag("rect", class_="track", width=52, height=5, y=0), tag("rect", class_="fill", width=width, height=5)]
    return svg(52.0, 5.0, f"{percent(share)} of the limit", join(parts))
