"""The page of a result."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from report_results import EVERYTHING, NOT_REACHED, ODD, Row, result, timed, untimed

from tilewright.bench.report import write_html
from tilewright.bench.report.view import Call, calls, field_domain, glance, styles
from tilewright.bench.summary import curves

VOID = {"meta", "input"}


class Page(HTMLParser):
    """text: all of it. calls: the text of each call's rows, by its id. Every tag has to be closed in its turn."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.text, self.calls, self.attributes, self.tags = "", {}, [], []  # type: ignore[var-annotated]
        self._open: list[tuple[str, str | None]] = []
        self.feed(html)
        self.close()
        assert not self._open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.attributes += [(tag, name, value or "") for name, value in attrs]
        self.tags.append(tag)
        if tag not in VOID:
            self._open.append((tag, dict(attrs).get("id")))

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop()[0] == tag

    def handle_data(self, data: str) -> None:
        if self._open and self._open[-1][0] in ("script", "style"):
            return
        self.text += data
        for _, name in self._open:
            if name is not None and name.startswith("call-"):
                self.calls[name] = self.calls.get(name, "") + data + "\n"


def page(rows: list[Row], tmp_path: Path, complete: bool = True, **environment: Any) -> Page:
    path = tmp_path / "report.html"
    write_html(result(rows, complete, **environment), path)
    return Page(path.read_text(encoding="utf-8"))


def numbers(rows: list[Row]) -> dict[str, Call]:
    return {c.summary.item: c for c in calls(result(rows))}


@pytest.mark.parametrize("name", ODD)
def test_every_row_of_whatever_a_run_leaves_is_there(name: str, tmp_path: Path) -> None:
    rows = ODD[name]
    found = page(rows, tmp_path)
    place = {item: f"call-{c.number}" for item, c in numbers(rows).items()}
    assert set(found.calls) == set(place.values())
    for row in rows:
        if row["item"].startswith("roofline"):
            continue
        text = found.calls[place[row["item"]]]
        assert row["item"] in text
        assert ("the whole call" if row["provider"] == "all" else row["provider"]) in text
        if row["status"] != "timed":
            assert row["status"] in text
            assert row["reason"] in text
    ids = [value for _, key, value in found.attributes if key == "id"]
    assert len(ids) == len(set(ids))
    links = {value.removeprefix("#") for tag, key, value in found.attributes if tag == "a" and key == "href"}
    assert links <= set(ids)


def test_slower_calls_are_counted_and_told_like_faster_ones(tmp_path: Path) -> None:
    assert glance(calls(result(EVERYTHING))).verdicts == {"faster": 6, "even": 1, "slower": 1, "alone": 1, "none": 1}
    found = page(EVERYTHING, tmp_path)
    assert "▲ 6 faster" in found.text
    assert "▼ 1 slower" in found.text
    place = {item: found.calls[f"call-{c.number}"] for item, c in numbers(EVERYTHING).items()}
    assert re.search(r"▲ 2\.0\d×\s+faster", place["a"])
    assert re.search(r"▼ 0\.(50|49)×\s+slower", place["b"])
    assert re.search(r"= \d\.\d\d×\s+even", place["c"])
    assert "no peer has a time" in place["d"]
    assert "tilewright has no time" in place["e"]
    shown = [v for _, key, v in found.attributes if key == "data-verdict"]
    assert sorted(shown) == sorted(["faster"] * 6 + ["even", "slower", "alone", "none"])


def test_the_figures_at_its_top_are_those_of_the_rows(tmp_path: Path) -> None:
    rows = [
        timed("a", "tilewright cuda", 1e-3, 0, of_roofline=0.2, error=1e-6),
        timed("a", "eager", 4e-3, 0),
        timed("b", "tilewright cuda", 1e-3, 0, of_roofline=0.6, error=4e-6),
        timed("b", "eager", 1e-3 / 1.21, 0),
        timed("c", "tilewright cuda", 1e-3, 0, of_roofline=0.3, error=2e-6),
    ]
    found = page(rows, tmp_path)
    assert "tilewright has 1.82× the speed of the fastest peer" in found.text  # the square root of 4 / 1.21
    assert "2 of 3" in found.text  # fastest in
    assert "median of 3 calls; 20% to 60%" in found.text
    assert "float32: 4.0e-06 of 1.0e-05" in found.text
    assert "30%" in found.text
    assert "40%" in found.text


def test_faults_failures_and_interruptions_are_stated_first(tmp_path: Path) -> None:
    found = page([*EVERYTHING, *NOT_REACHED], tmp_path, complete=False).text
    top = found[: found.index("Speed against the fastest peer")]
    assert "This run is incomplete: 1 call not reached when the time was over" in top
    assert "1 result marked ⚠" in top
    assert "d, tilewright triton: 200% of the roofline" in top
    assert "tilewright failed or was wrong: 1 result" in top
    assert "it was interrupted" in page(EVERYTHING, tmp_path, complete=False).text
    sound = page(ODD["one call"], tmp_path).text
    assert not any(word in sound for word in ("incomplete", "⚠", "failed or was wrong"))


def test_names_and_reasons_are_text_and_never_markup(tmp_path: Path) -> None:
    bad = "<script>alert('1')</script>\"><img src=x onerror=y>&amp;\0\x1b\ud800"
    rows = [timed(bad, bad, 1e-3, label=bad, scene=bad, op=bad), untimed(bad, "tilewright cpu", bad, bad, op=bad)]
    rows += [timed(f"{bad}{n}", bad, 1e-3, op=bad, curve=bad, size=n) for n in (1, 2)]
    usual = page([timed("a", "eager", 1e-3), untimed("a", "tilewright cpu", "refused", "no")], tmp_path)
    found = page(rows, tmp_path, cpu=bad, gpus=[bad], peers={bad: bad})
    assert found.tags.count("script") == usual.tags.count("script") == 1
    assert "img" not in found.tags
    assert not any(key.startswith("on") for _, key, _ in found.attributes)
    assert "<script>alert('1')</script>" in found.text
    assert "\0" not in found.text


def test_it_needs_no_network_and_no_script(tmp_path: Path) -> None:
    found = page(EVERYTHING, tmp_path)
    assert not [a for a in found.attributes if a[1] in ("src", "srcset", "action", "data")]
    assert all(value.startswith("#") for _, key, value in found.attributes if key in ("href", "xlink:href"))
    html = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert not re.search(r"https?://|@import|url\(|fetch\(|XMLHttp", html)
    hidden = [tag for tag, key, _ in found.attributes if key == "hidden"]
    assert hidden == ["div"]  # the tools, which a script shows that makes them work


def test_it_can_be_read_aloud(tmp_path: Path) -> None:
    found = page(EVERYTHING, tmp_path)
    html = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert '<html lang="en">' in html
    for picture in re.findall(r"<svg[^>]*>", html):
        assert 'aria-label="' in picture or 'aria-hidden="true"' in picture
    assert found.tags.count("th") > found.tags.count("table")
    assert all(re.search(r'scope="(col|row)"', head) for head in re.findall(r"<th[ >][^>]*>?", html))


def test_growth_is_drawn_with_its_exponents(tmp_path: Path) -> None:
    found = page(EVERYTHING, tmp_path)
    assert {c.provider: round(c.seconds.exponent) for c in curves(EVERYTHING) if c.seconds} == {
        "tilewright triton": 2,
        "eager": 3,
    }
    for text in ("Attention against sequence length", "n^2.00 ± 0.00", "n^3.00 ± 0.00", "memory beside the inputs"):
        assert text in found.text
    assert "not resolved" in page(ODD["little memory"], tmp_path).text


def test_environment_and_command_are_there(tmp_path: Path) -> None:
    text = page(EVERYTHING, tmp_path).text
    for part in ("Some GPU", "Some CPU", "570.1", "tilewright: 1.2.3", "eager: 2.11", "16 GiB", "0123456789abcdef"):
        assert part in text
    assert "tilewright bench --device cuda --op softmax" in text


def test_wall_time_is_shown_where_it_is_another(tmp_path: Path) -> None:
    assert "on the wall" in page(ODD["one call"], tmp_path).text
    same = [{**r, "wall": r["device"]} for r in ODD["one call"]]
    assert "on the wall" not in page(same, tmp_path).text.split("How to read this")[0]


def test_a_provider_looks_the_same_everywhere_and_no_two_are_alike() -> None:
    names = ["tilewright triton", "tilewright cuda", *(f"peer {i}" for i in range(20))]
    found = styles([timed(f"item {i % 3}", name, 1e-3) for i, name in enumerate(names)])
    assert len(set(found.values())) == len(names)
    assert [n for n, s in found.items() if s.color is None] == names[:2]


def test_speeds_are_relative_to_the_fastest_peer() -> None:
    rows = [
        timed("a", "tilewright cpu", 1e-3, 0, of_roofline=0.5),
        timed("a", "eager", 2e-3, 0, of_roofline=0.25),
        timed("a", "compile", 8e-3, 0),
    ]
    (call,) = calls(result(rows))
    assert {m.row["provider"]: m.speed for m in call.marks} == pytest.approx(
        {"tilewright cpu": 2.0, "eager": 1.0, "compile": 0.25}
    )
    assert [(m.low, m.high) for m in call.marks][1] == pytest.approx((1 / 1.1, 1 / 0.9))  # p80 and p20
    assert call.limit == pytest.approx(4.0)
    assert field_domain([call])[1] > call.limit
    # What is far slower is at the edge if it is a peer's; ours is always where it is, up to 8 times.
    slow = [timed("b", "tilewright cpu", 7e-3, 0), timed("b", "eager", 1e-3, 0), timed("b", "compile", 1.0, 0)]
    assert 1 / 8 < field_domain(calls(result(slow)))[0] < 1 / 7
    (host,) = calls(
        result([timed("h", p, s, 0, op="overhead", by="wall") for p, s in (("tilewright cpu", 1e-6), ("eager", 3e-6))])
    )
    assert host.marks[0].low == pytest.approx(3.0 * 2 / 1.1)  # of the wall's times, whose median is twice as long
