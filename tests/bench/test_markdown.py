"""What documents show of a result: which calls, and how they are counted."""

from __future__ import annotations

from typing import Any

from tilewright.bench.markdown import choose, table, totals
from tilewright.bench.summary import summarize


def call(item: str, ours: float, other: float | None, **facts: Any) -> list[dict[str, Any]]:
    def row(provider: str, p50: float) -> dict[str, Any]:
        times = {"p50": p50, "p20": p50, "p80": p50, "samples": 3, "values": [p50] * 3}
        made = {
            "item": item,
            "provider": provider,
            "status": "timed",
            "device": times,
            "wall": times,
            "unit": "GB/s",
            "result": 1.0,
        }
        return {**made, "op": "softmax", "mode": "forward", "dtype": "float32", "label": item, **facts}

    return [row("tilewright cpu", ours), *([row("eager", other)] if other is not None else [])]


def names(*rows: list[dict[str, Any]]) -> list[str]:
    return [s.item for s in choose(summarize(r for of in rows for r in of))]


def test_the_scenes_take_turns_in_their_calls() -> None:
    calls = [call(f"{scene}{i}", 1.0, 1.0, scene=scene) for scene in "abc" for i in range(2)]
    assert names(*calls) == ["a0", "b1", "c0"]


def test_what_is_shown_does_not_depend_on_who_is_faster() -> None:
    faster = [call(f"{scene}{i}", 1.0, 9.0, scene=scene) for scene in "ab" for i in range(3)]
    slower = [call(f"{scene}{i}", 9.0, 1.0, scene=scene) for scene in "ab" for i in range(3)]
    assert names(*faster) == names(*slower) == ["a0", "b1"]


def test_what_nobody_else_serves_is_left_out_and_counted() -> None:
    alone, beside = call("a0", 1.0, None, scene="a"), call("a1", 1.0, 2.0, scene="a")
    assert names(alone, beside) == ["a1"]
    text = totals(summarize([*alone, *beside]))
    assert "All 1 calls" in text and "1 more is served by no other" in text


def test_curves_overheads_and_own_calls_are_not_shown() -> None:
    rows = [call("g", 1.0, 1.0, scene="growth", curve="width"), call("o", 1.0, 1.0, scene="own")]
    assert names(*rows, call("a", 1.0, 1.0, scene="a"), call("t", 1.0, 1.0, op="overhead", unit="x")) == ["a"]


def test_all_calls_are_counted() -> None:
    rows = [*call("a", 1.0, 4.0), *call("b", 1.0, 1.0), *call("c", 4.0, 1.0), *call("d", 1.0, 8.0)]
    text = totals(summarize(rows))
    assert "All 4 calls" in text and "1.68 times" in text  # 8 ** (1 / 4)
    assert "faster in 2, even in 1 (the interval holds 1), slower in 1." in text


def test_a_failed_call_has_its_status() -> None:
    rows = call("a", 1.0, 2.0)
    rows[0] = {**rows[0], "status": "wrong", "reason": "zeros"}
    (line,) = table(summarize(rows))[2:]
    assert "| wrong | eager 2,000 ms |" in line
    assert "No call was measured" in totals(summarize(rows))
