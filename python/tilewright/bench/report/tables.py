"""The page's tables: the calls of an op with all their providers, the peers, and what growth was fitted."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..stats import Growth
from ..summary import Curve, Row, Standing, clock, is_ours, result_text, standings
from .markup import Markup, join, tag
from .spreadsheet import version_of
from .svg import Scale, share_bar, strip, strip_axis, strip_scale, swatch
from .view import Call, Mark, Style, duration, percent, quantile, size, times_text

NONE = "–"
#: (heading, what it is sorted by)
COLUMNS = (
    ("call", "name"),
    ("tilewright against the fastest peer", "ratio"),
    ("fastest", "fastest"),
    ("tilewright", None),
    ("fastest peer", None),
    ("of limit", "limit"),
    ("error", "error"),
    ("memory", "memory"),
)
GLYPHS = {"faster": "▲", "slower": "▼", "even": "="}


def legend(names: Sequence[str], styles: dict[str, Style]) -> Markup:
    """Which marker is whose, and what the lines are."""
    items = [tag("li", swatch(styles[n]), n) for n in names]
    items.append(tag("li", tag("span", class_="mark one"), "the fastest peer"))
    items.append(tag("li", tag("span", class_="mark"), "the limit, where it fits"))
    return tag("ul", items, class_="legend")


def calls_table(calls: Sequence[Call], styles: dict[str, Style], environment: dict[str, Any], title: str) -> Markup:
    """A row for each call; below it, to be opened, one for each provider."""
    scale = strip_scale(calls)
    heads = [tag("th", text, scope="col", data_key=key) for text, key in COLUMNS]
    heads.insert(2, tag("th", strip_axis(scale), scope="col", aria_label="speed of all, relative to the fastest peer"))
    bodies = [_call(c, scale, styles, environment) for c in calls]
    label = f"{title}: tilewright beside its fastest peer"
    return tag("table", tag("thead", tag("tr", heads)), bodies, class_="calls", aria_label=label)


def _call(call: Call, scale: Scale, styles: dict[str, Style], environment: dict[str, Any]) -> Markup:
    s, ours = call.summary, call.summary.ours
    shown: Row = ours or next((r for r in s.rows if is_ours(r)), {})
    share, error, peak = (shown.get(n) for n in ("of_roofline", "error", "peak_bytes"))
    fastest = s.timed[0]["provider"] if s.timed else NONE
    several = sum(s.color is None for s in styles.values()) > 1
    cells = [
        tag("th", call.title, scope="row"),
        tag("td", _verdict(call), class_="verdict"),
        tag("td", strip(call, scale, styles), class_="field"),
        _cell("fastest", fastest),
        _cell("tilewright", _result(shown) if shown else NONE, shown.get("provider") if several else None),
        _cell("fastest peer", _result(s.peer) if s.peer else NONE, s.peer["provider"] if s.peer else None),
        _cell("of limit", join(percent(share), share_bar(share)) if share is not None else NONE),
        _cell("error", *_error(shown)),
        _cell("memory", size(peak) if peak is not None else NONE),
    ]
    known = {
        "ratio": s.lead.value if s.lead else None,
        "limit": share,
        "error": error / shown["limit"] if error is not None and shown.get("limit") else None,
        "memory": peak,
    }
    data = {f"data_{name}": None if value is None else f"{value:.6g}" for name, value in known.items()}
    opened = tag("details", tag("summary", _what_is_inside(call)), _providers(call, styles, environment))
    return tag(
        "tbody",
        tag("tr", cells, class_="first"),
        tag("tr", tag("td", opened, colspan=len(cells)), class_="more"),
        id=f"call-{call.number}",
        data_verdict=s.verdict,
        data_name=call.title,
        data_fastest=fastest,
        **data,
    )


def _cell(name: str, text: str, below: str | None = None) -> Markup:
    return tag("td", text, tag("span", below, class_="meta") if below else None, data_name=name)


def _verdict(call: Call) -> Markup:
    verdict, lead = call.summary.verdict, call.summary.lead
    if lead is None:
        words = {"alone": "no peer has a time", "none": "tilewright has no time"}[verdict]
        return tag("span", words, class_="slower-text" if verdict == "none" else "soft")
    interval = tag("span", f"95%: {lead.low:.2f} to {lead.high:.2f}", class_="meta")
    text = tag("span", f"{GLYPHS[verdict]} {times_text(lead.value)}", class_=f"{verdict}-text")
    return join(text, f" {verdict}", interval)


def _result(row: Row) -> Markup:
    """A result with a warning sign where it is a fault of the measurement; else the status."""
    text = result_text(row)
    if "fault" in row:
        return join(text.removesuffix("!"), " ", tag("span", "⚠", title=row["fault"], class_="slower-text"))
    return tag("span", text, class_=None if row["status"] == "timed" else "status")


def _error(row: Row) -> tuple[str, str | None]:
    if row.get("error") is None:
        return ("not finite" if row.get("status") == "wrong" else NONE), None
    limit = row.get("limit")
    return f"{row['error']:.1e}", f"{percent(row['error'] / limit)} of allowed" if limit else None


def _what_is_inside(call: Call) -> str:
    parts = [call.subtitle, f"{len(call.marks)} timed"]
    counts: dict[str, int] = {}
    for row in call.without:
        counts[row["status"]] = counts.get(row["status"], 0) + 1
    return " · ".join(p for p in (*parts, *(f"{n} {status}" for status, n in counts.items())) if p)


def _providers(call: Call, styles: dict[str, Style], environment: dict[str, Any]) -> Markup:
    rows = [m.row for m in call.marks]
    with_wall = any(clock(r) == "device" and r.get("wall", {}).get("p50") != r["device"]["p50"] for r in rows)
    heads = ["provider", "speed", "result", "time: median", "20% to 80%"]
    heads += ["on the wall"] * with_wall + ["of limit", "error", "memory"]
    lines = [_timed(m, styles, environment, with_wall) for m in call.marks]
    lines += [_untimed(r, styles, environment, len(heads)) for r in call.without]
    table = tag(
        "table",
        tag("thead", tag("tr", [tag("th", h, scope="col") for h in heads])),
        tag("tbody", lines),
        class_="inner",
    )
    return tag("div", tag("p", tag("code", call.summary.item), class_="small soft"), table, class_="scroll")


def _provider(row: Row, styles: dict[str, Style], environment: dict[str, Any]) -> Markup:
    name = str(row["provider"])
    style = styles.get(name)
    packages = environment.get("packages") or {}
    version = version_of(row, environment.get("peers") or {}, packages.get("tilewright"))
    text = tag("span", f" {version}", class_="soft") if version else None
    return tag("th", swatch(style) if style else None, "the whole call" if name == "all" else name, text, scope="row")


def _timed(mark: Mark, styles: dict[str, Style], environment: dict[str, Any], with_wall: bool) -> Markup:
    row = mark.row
    share, peak = row.get("of_roofline"), row.get("peak_bytes")
    p20, p50, p80 = (duration(quantile(row, q)) for q in ("p20", "p50", "p80"))
    wall = row.get("wall", {}).get("p50")
    error, of_allowed = _error(row)
    cells: list[str] = [times_text(mark.speed), _result(row), p50, f"{p20} to {p80}"]
    cells += [duration(wall) if wall is not None else NONE] * with_wall
    cells += [percent(share) if share is not None else NONE, f"{error}, {of_allowed}" if of_allowed else error]
    cells += [size(peak) if peak is not None else NONE]
    told = [tag("td", c) for c in cells]
    return tag("tr", _provider(row, styles, environment), told, class_="ourrow" if is_ours(row) else None)


def _untimed(row: Row, styles: dict[str, Style], environment: dict[str, Any], columns: int) -> Markup:
    status = tag("span", row["status"], class_="status")
    reason = [tag("span", f": {row['reason']}")] if row.get("reason") else []
    doing = [tag("span", f" (while {row['doing']})")] if row.get("doing") else []
    told = tag("td", status, reason, doing, colspan=columns - 1, class_="reason")
    return tag("tr", _provider(row, styles, environment), told, class_="ourrow" if is_ours(row) else None)


def peers_table(calls: Sequence[Call], fastest: dict[str, int], environment: dict[str, Any]) -> Markup | None:
    """Every peer against tilewright, the strongest first."""
    found = standings([c.summary for c in calls])
    if not found:
        return None
    versions = environment.get("peers") or {}
    names = ("peer", "tilewright's speed, relative to it", "calls compared", "peer is faster in", "fastest of all in")
    heads = [tag("th", n, scope="col") for n in (*names, "no time in")]
    rows = [_standing(s, versions.get(s.provider), fastest.get(s.provider, 0)) for s in found]
    return tag("table", tag("thead", tag("tr", heads)), tag("tbody", rows), class_="plain")


def _standing(s: Standing, version: str | None, fastest: int) -> Markup:
    text = NONE
    if s.ours_faster is not None:
        verdict = "even" if f"{s.ours_faster:.2f}" == "1.00" else "faster" if s.ours_faster > 1 else "slower"
        text = tag("span", f"{GLYPHS[verdict]} {times_text(s.ours_faster)}", class_=f"{verdict}-text")
    cells = [tag("td", c) for c in (text, str(s.items), str(s.wins), str(fastest), str(s.refused))]
    name = tag("th", s.provider, tag("span", f" {version}", class_="soft small") if version else None, scope="row")
    return tag("tr", name, cells)


def growth_table(curves: Sequence[Curve], styles: dict[str, Style]) -> Markup:
    """The fitted exponents."""
    heads = [tag("th", h, scope="col") for h in ("", "time grows as", "memory grows as")]
    rows = []
    for c in curves:
        name = tag("th", swatch(styles[c.provider]), f" {c.provider}", scope="row")
        cells = [tag("td", exponent(g)) for g in (c.seconds, c.memory)]
        rows.append(tag("tr", name, cells, class_="ourrow" if is_ours({"provider": c.provider}) else None))
    return tag("table", tag("thead", tag("tr", heads)), tag("tbody", rows), class_="inner")


def exponent(growth: Growth | None) -> str:
    return f"n^{growth.exponent:.2f} ± {growth.error:.2f}" if growth is not None else "not fitted"
