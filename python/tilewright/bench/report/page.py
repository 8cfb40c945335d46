"""One page that explains itself: no network, works without JavaScript, light and dark, on paper and on a phone."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..items.rooflines import COPY, READ
from ..summary import LEAST_BYTES, LEAST_SECONDS, Result, curves, is_ours, is_roofline, result_text
from . import svg, view
from .markup import Child, Markup, join, tag
from .style import SCRIPT, css
from .tables import calls_table, growth_table, legend, peers_table
from .view import Call, Glance, Style, percent, times_text


def write_html(result: Result, path: Path) -> None:
    """One file."""
    path.write_text("<!DOCTYPE html>\n" + _page(result) + "\n", encoding="utf-8", errors="backslashreplace")


def _page(result: Result) -> Markup:
    calls = view.calls(result)
    groups, styles, seen = view.by_op(calls), view.styles(result.rows), view.glance(calls)
    growing = [c for c in calls if c.facts.get("curve")]
    sections = [_op(op, of_op, styles, result.environment) for op, of_op in groups.items()]
    last = join(_growth(result, growing, styles), _reasons(result), _environment(result), _how_to_read())
    places = [(_anchor(op), view.title_of(op)) for op in groups]
    places += [("growth", "Growth")] * bool(growing) + [("environment", "Environment")]
    links = [tag("a", text, href=f"#{anchor}") for anchor, text in places]
    body = [
        tag("header", _headline(result, seen), tag("nav", links, aria_label="sections")),
        *_banners(result),
        tag("main", _glance(result, seen), _overview(result, calls, groups, seen), _tools(calls), sections, last),
        tag("script", Markup(SCRIPT)),
    ]
    head = [
        tag("meta", charset="utf-8"),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("meta", name="color-scheme", content="light dark"),
        tag("title", f"tilewright bench: {view.machine(result.environment)}"),
        tag("style", Markup(css())),
    ]
    return tag("html", tag("head", head), tag("body", body), lang="en")


def _anchor(op: str) -> str:
    return "op-" + ("".join(c if c.isalnum() else "-" for c in op) or "none")


def _count(number: int, what: str) -> str:
    return f"{number} {what}" + ("s" if number != 1 else "")


def _headline(result: Result, seen: Glance) -> Markup:
    environment = result.environment
    if seen.mean is None:
        text = "tilewright beside its peers: no call has a time of both"
    else:
        text = f"tilewright has {times_text(seen.mean)} the speed of the fastest peer, in the mean of all calls"
    threads = environment.get("torch_threads")
    on_cpu = result.settings.get("device") == "cpu"
    where = view.machine({**environment, "gpus": ()} if on_cpu else environment)
    parts = [where, f"{threads} thread{'s' * (threads != 1)}" if on_cpu and threads else "", _date(environment)]
    commit = str(environment.get("commit") or "")
    parts.append(f"commit {commit[:10]}{' with changes' if commit.endswith('+changes') else ''}" if commit else "")
    return join(tag("h1", text), tag("p", " · ".join(p for p in parts if p), class_="soft"))


def _date(environment: dict[str, Any]) -> str:
    return str(environment.get("date") or "").replace("T", " ").replace("+00:00", " UTC")


def _banners(result: Result) -> list[Markup]:
    """What keeps the figures from being the whole truth."""
    found = []
    left = [r for r in result.rows if r["status"] == "not reached"]
    if left or not result.complete:
        calls = len({r["item"] for r in left})
        why = f": {_count(calls, 'call')} not reached when the time was over" if left else ": it was interrupted"
        found.append(_banner(f"This run is incomplete{why}. The means below are of what was measured.", []))
    faults = [r for r in result.rows if "fault" in r]
    if faults:
        text = f"{_count(len(faults), 'result')} marked ⚠: the measurement is at fault, and these figures do not hold."
        found.append(_banner(text, [f"{r['item']}, {r['provider']}: {r['fault']}" for r in faults]))
    broken = [r for r in result.rows if is_ours(r) and r["status"] not in ("timed", "refused", "not reached")]
    if broken:
        texts = [f"{r['item']}, {r['provider']}: {r['status']}: {r.get('reason', '')}" for r in broken]
        found.append(_banner(f"tilewright failed or was wrong: {_count(len(broken), 'result')}.", texts))
    whole = [r for r in result.rows if r["provider"] == "all" and r["status"] != "not reached"]
    if whole:
        texts = [f"{r['item']}: {r['status']}: {r.get('reason', '')}" for r in whole]
        found.append(_banner(f"{_count(len(whole), 'call')} could not be measured at all.", texts))
    return found


def _banner(text: str, items: Sequence[str]) -> Markup:
    listed = tag("ul", [tag("li", i) for i in items])
    more = tag("details", tag("summary", "which"), listed) if len(items) > 3 else listed if items else None
    return tag("div", tag("p", tag("strong", text)), more, class_="banner", role="note")


def _glance(result: Result, seen: Glance) -> Markup:
    v = seen.verdicts
    compared = v["faster"] + v["even"] + v["slower"]
    bar = [tag("i", class_=n, style=f"flex:{v[n]}") for n in ("faster", "even", "slower") if v[n]]
    counts = tag("p", tag("span", f"▲ {v['faster']} faster", class_="faster-text"), f" · = {v['even']} even · ",
                 tag("span", f"▼ {v['slower']} slower", class_="slower-text"))  # fmt: skip
    mean = times_text(seen.mean) if seen.mean is not None else "–"
    others = [f"{v[n]} without {what}" for n, what in (("alone", "a peer"), ("none", "ours")) if v[n]]
    drawn = tag("div", bar, class_="counts", aria_hidden="true")
    told = "; ".join([f"geometric mean of {_count(compared, 'call')}", *others])
    speed = _figure("Speed against the fastest peer", mean, drawn, counts, tag("p", told, class_="soft"))
    return tag("section", speed, _fastest(seen), _limits(result, seen), _errors(seen), class_="glance")


def _figure(title: str, big: str, *more: Child) -> Markup:
    return tag("div", tag("h2", title), tag("div", big, class_="big"), *more)


def _fastest(seen: Glance) -> Markup:
    total = sum(seen.fastest.values())
    ours = sum(n for p, n in seen.fastest.items() if is_ours({"provider": p}))
    listed = ", ".join(f"{p} {n}" for p, n in seen.fastest.items())
    big = f"{ours} of {total}" if total else "–"
    return _figure("Calls in which tilewright is fastest", big, tag("p", listed), tag("p", "by medians", class_="soft"))


def _limits(result: Result, seen: Glance) -> Markup:
    roofs = [
        f"{r['label'] if r['item'] in (COPY, READ) else 'product, ' + str(r.get('dtype', ''))}: {result_text(r)}"
        for r in result.rows
        if is_roofline(r["item"])
    ]
    told = tag("p", "the limit, of the same run: " + "; ".join(roofs), class_="soft") if roofs else None
    if not seen.shares:
        return _figure("Share of the limit", "–", tag("p", "no roofline was measured"), told)
    ordered = sorted(seen.shares)
    median = percent(ordered[len(ordered) // 2])
    spread = f"median of {_count(len(ordered), 'call')}; {percent(ordered[0])} to {percent(ordered[-1])}"
    return _figure("Share of the limit", median, tag("p", spread), told)


def _errors(seen: Glance) -> Markup:
    worst: dict[str, tuple[float, float]] = {}
    for dtype, error, limit in seen.errors:
        if dtype not in worst or error / limit > worst[dtype][0] / worst[dtype][1]:
            worst[dtype] = error, limit
    if not worst:
        return _figure("Error against float64", "–")
    big = percent(max(e / limit for e, limit in worst.values()))
    told = [tag("p", f"{d or 'all'}: {e:.1e} of {limit:.1e}") for d, (e, limit) in worst.items()]
    return _figure("Largest error, of what is allowed", big, told, tag("p", "against float64", class_="soft"))


def _overview(result: Result, calls: Sequence[Call], groups: dict[str, list[Call]], seen: Glance) -> Markup:
    growing = [c for c in calls if c.facts.get("curve")]
    picture = svg.overview({**groups, "Growth": growing})
    caption = "A mark for each call, on a logarithmic axis: ▲ faster, ○ even, ◆ slower than the fastest peer. "
    drawn = tag("figure", tag("div", picture, class_="scroll"), tag("figcaption", caption)) if picture else None
    table = peers_table(calls, seen.fastest, result.environment)
    peers = [tag("h2", "Each peer"), tag("div", table, class_="scroll")] if table else []
    return tag("section", drawn, peers)


def _tools(calls: Sequence[Call]) -> Markup:
    names = (("", "all calls"), ("slower", "slower"), ("even", "even"), ("faster", "faster"), ("alone", "no peer"))
    options = [tag("option", text, value=value) for value, text in (*names, ("none", "no time of tilewright"))]
    return tag(
        "div",
        tag("input", type="search", placeholder="Filter: words of a call", aria_label="words of a call"),
        tag("select", options, aria_label="which calls"),
        tag("button", "Open all", type="button"),
        tag("output", class_="soft"),
        class_="tools",
        hidden=True,
    )


def _op(op: str, calls: Sequence[Call], styles: dict[str, Style], environment: dict[str, Any]) -> Markup:
    title, seen = view.title_of(op), view.glance(calls)
    parts = [_count(len(calls), "call")]
    if seen.mean is not None:
        v = seen.verdicts
        counts = f"{v['faster']} faster, {v['even']} even, {v['slower']} slower"
        parts.append(f"{counts} than the fastest peer; geometric mean {times_text(seen.mean)}")
    names = [n for n in styles if any(m.row["provider"] == n for c in calls for m in c.marks)]
    told = tag("p", ": ".join(parts), class_="soft")
    table = calls_table(calls, styles, environment, title)
    keys = legend(names, styles) if names else None
    return tag("section", tag("h2", title), told, keys, table, id=_anchor(op), class_="op")


def _growth(result: Result, calls: Sequence[Call], styles: dict[str, Style]) -> Markup | None:
    if not calls:
        return None
    least = f"Times below {view.duration(LEAST_SECONDS)} and memory below {view.size(LEAST_BYTES)} are not fitted"
    told = f"Exponents are of least squares lines through the logarithms, ± their standard errors. {least}."
    parts: list[Markup] = []
    for (op, axis), found in view.panels(curves(result.rows)).items():
        pair = []
        for memory, name in ((False, "time"), (True, "memory beside the inputs")):
            picture = svg.growth(found, styles, memory)
            pair.append(
                tag(
                    "div",
                    tag("h4", name),
                    picture or tag("p", f"below {view.size(LEAST_BYTES)} at every size: not resolved", class_="soft"),
                )
            )
        pair.append(tag("div", growth_table(found, styles)))
        parts += [tag("h3", f"{view.title_of(op)} against {axis}"), tag("div", pair, class_="pair")]
    table = calls_table(calls, styles, result.environment, "Growth")
    listed = tag("section", tag("h3", "Their calls"), table, class_="op")
    head = tag("h2", "How time and memory grow")
    return tag("section", head, tag("p", told, class_="soft"), parts, listed, id="growth")


def _reasons(result: Result) -> Markup | None:
    found = view.reasons(result.rows)
    if not found:
        return None
    heads = [tag("th", h, scope="col") for h in ("provider", "", "calls", "because")]
    rows = []
    for (provider, status, reason), count in found.items():
        cells = (tag("span", status, class_="status"), str(count), reason)
        name = "the whole call" if provider == "all" else provider
        rows.append(tag("tr", tag("th", name, scope="row"), [tag("td", c) for c in cells]))
    table = tag("table", tag("thead", tag("tr", heads)), tag("tbody", rows), class_="plain")
    return tag("section", tag("h2", "What has no time, and why"), tag("div", table, class_="scroll"))


def _environment(result: Result) -> Markup:
    block = {**result.environment, "settings": result.settings}
    terms = [join(tag("dt", k.replace("_", " ")), tag("dd", _flat(k, v))) for k, v in block.items()]
    repeat = [tag("h3", "The command that repeats it"), tag("pre", tag("code", result.command))]
    return tag("section", tag("h2", "Environment"), tag("dl", terms), repeat, id="environment")


def _flat(key: str, value: Any) -> str:
    if value is None or value == [] or value == {}:
        return "none"
    if isinstance(value, dict):
        return "; ".join(f"{k}: {_flat(k, v)}" for k, v in value.items())
    if isinstance(value, (list, tuple)):
        return ", ".join(_flat(key, v) for v in value)
    return view.size(value) if key.endswith("bytes") and isinstance(value, int) else str(value)


def _how_to_read() -> Markup:
    texts = (
        "Every provider's result is held against float64 first; what is farther from it than allowed is not timed. The "
        "error is the norm of the difference, relative to the norm of the result.",
        "Times are medians of samples that all providers take in turns: of the device on a GPU, on the wall on a CPU. "
        "The ratio to the fastest peer is the median of "
        "the ratios of samples that were taken one after the other, with its 95% bootstrap interval; a call is even "
        "where that interval holds 1.",
        "The limit is what this machine did in the same run for a matrix product of the dtype (for results in TFLOP/s) "
        "or for a copy (GB/s). On a CPU they are timed in turns with the call itself, and for GB/s a read as well: the "
        "best that they did counts. Memory is the most that a call "
        "needs beside its inputs.",
        "In a call's picture the thin line is the fastest peer, and the bar reaches from it to tilewright, which is "
        "faster to the right of it. Further marks are the other providers, with lines from their 20th to their 80th "
        "percentile. The axis is logarithmic; what lies beyond it is at its edge.",
    )
    return tag("section", tag("h2", "How to read this"), [tag("p", t) for t in texts])
