"""What the rows of a result say."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest

from tilewright.bench import stats
from tilewright.bench.summary import Result, curves, read, result_text, standings, summarize, times_faster, write


def row(item: str, provider: str, seconds: float, noise: float = 0.0, **facts: Any) -> dict[str, Any]:
    draw = random.Random(f"{item} {provider}")
    values = [seconds * (1 + noise * draw.uniform(-1, 1)) for _ in range(21)]
    times = {"p50": seconds, "p20": seconds, "p80": seconds, "samples": 21, "values": values}
    shown = {"op": "softmax", "mode": "forward", "dtype": "float32", "unit": "GB/s", "error": 1e-7, "limit": 1e-5}
    made = {"item": item, "provider": provider, "status": "timed", "device": times, "wall": times}
    return {**made, "result": 1e-9 / seconds, **shown, **facts}


def refused(item: str, provider: str) -> dict[str, Any]:
    return {"item": item, "provider": provider, "status": "refused", "reason": "no", "unit": "GB/s", "op": "softmax"}


ROWS = [
    row("roofline copy", "torch", 1.0, op="roofline"),
    row("a", "tilewright cpu", 1e-3, 0.02),
    row("a", "tilewright cuda", 3e-3, 0.02),
    row("a", "eager", 2e-3, 0.02),
    row("a", "compile", 1.5e-3, 0.02),
    row("b", "tilewright cpu", 2e-3, 0.02),
    row("b", "eager", 1e-3, 0.02),
    refused("b", "compile"),
    row("c", "tilewright cpu", 1e-3, 0.2),
    row("c", "eager", 1e-3, 0.2),
    row("d", "tilewright cpu", 1e-3),
    refused("d", "eager"),
    refused("e", "tilewright cpu"),
    row("e", "eager", 1e-3),
]


def test_the_fastest_of_ours_against_the_fastest_other() -> None:
    found = {s.item: s for s in summarize(ROWS)}
    assert list(found) == list("abcde")  # the roofline is none of them
    assert [s.verdict for s in found.values()] == ["faster", "slower", "even", "alone", "none"]
    a = found["a"]
    assert a.ours is not None
    assert a.peer is not None
    assert a.lead is not None
    assert (a.ours["provider"], a.peer["provider"]) == ("tilewright cpu", "compile")
    assert a.lead.value == pytest.approx(1.5, rel=0.02)
    assert [r["provider"] for r in a.timed] == ["tilewright cpu", "compile", "eager", "tilewright cuda"]


def test_a_latency_that_is_wall_time_is_compared_by_it() -> None:
    facts = {"unit": "us", "op": "overhead", "by": "wall"}
    ours, peer = row("x", "tilewright cpu", 1e-6, **facts), row("x", "eager", 4e-6, **facts)
    ours["device"] = {**ours["device"], "values": [9.0]}
    (found,) = summarize([ours, peer])
    assert found.lead is not None
    assert found.lead.value == pytest.approx(4.0)


def test_standings_are_geometric_means_over_what_both_served() -> None:
    found = {s.provider: s for s in standings(summarize(ROWS))}
    assert list(found) == ["eager", "compile"]  # the strongest first
    assert found["eager"].ours_faster == pytest.approx(1.0, rel=0.05)  # 2, 1/2 and 1
    assert (found["eager"].items, found["eager"].refused) == (3, 1)
    assert found["eager"].wins in (1, 2)  # of c either may come out first
    assert found["compile"].ours_faster == pytest.approx(1.5, rel=0.02)
    assert (found["compile"].items, found["compile"].refused) == (1, 1)


def test_growth_is_fitted_where_the_time_is_the_kernels() -> None:
    rows = []
    for size in (64, 1024, 2048, 4096, 8192):
        seconds = 1e-12 * size**2 * 1000 if size > 64 else 1e-5
        rows.append(row(f"s{size}", "eager", seconds, curve="width", size=size, peak_bytes=size * 2**12))
    (curve,) = curves([*reversed(rows), *ROWS])
    assert curve.sizes == (64, 1024, 2048, 4096, 8192)
    assert curve.seconds is not None
    assert (curve.seconds.exponent, curve.seconds.points) == (pytest.approx(2.0), 4)
    assert curve.memory is not None
    assert curve.memory.exponent == pytest.approx(1.0)


def test_a_file_is_read_back_and_another_is_refused(tmp_path: Path) -> None:
    result = Result({"cpu": "x"}, "tilewright bench", {"device": "cpu"}, ROWS, complete=False)
    file = tmp_path / "results.json"
    file.write_text(json.dumps(result.to_json()))
    assert read(file) == result
    for content, told in (("{", "Expecting"), ("[]", "not a result file"), ('{"rows": []}', "no environment")):
        file.write_text(content)
        with pytest.raises(ValueError, match=told):
            read(file)
    file.write_text(json.dumps({**result.to_json(), "form": 99}))
    with pytest.raises(ValueError, match="form 99"):
        read(file)
    file.write_text(json.dumps({**result.to_json(), "rehearsal": True}))
    with pytest.raises(ValueError, match="measures nothing"):
        read(file)
    with pytest.raises(ValueError, match="No such file"):
        read(tmp_path / "none.json")


def test_a_result_in_words() -> None:
    assert result_text(row("a", "eager", 1e-3, result=1234.5)) == "1234 GB/s"
    assert result_text(row("a", "eager", 1e-3, result=0.12345, fault="!")) == "0.123 GB/s!"
    assert result_text(refused("a", "eager")) == "refused"


def test_intervals_hold_the_truth_as_often_as_they_say() -> None:
    draw, held = random.Random(1), 0
    for _ in range(200):
        drift = [draw.uniform(1.0, 3.0) for _ in range(31)]  # both of a pair are slowed down
        a = [d * 2.0 * draw.gauss(1.0, 0.1) for d in drift]
        b = [d * draw.gauss(1.0, 0.1) for d in drift]
        found = stats.paired_ratio(a, b)
        held += found.low <= 2.0 <= found.high
    assert held >= 180  # 95% of 200, less what chance allows


def test_ratios_of_what_cannot_be_compared() -> None:
    with pytest.raises(ValueError, match="pairs are needed, got 2 and 1"):
        stats.paired_ratio([1.0, 2.0], [1.0])
    with pytest.raises(ValueError, match="samples are needed"):
        stats.unpaired_ratio([], [1.0])
    assert stats.fit_growth([1.0, 2.0], [1.0, 2.0]) is None
    assert stats.fit_growth([1.0, 2.0, 3.0], [0.0, 2.0, 3.0]) is None
    assert stats.ratio_of_ratios(([2.0] * 3, [1.0] * 3), ([3.0] * 3, [1.0] * 3)).value == pytest.approx(1.5)


def test_a_written_file_has_a_line_for_each_row(tmp_path: Path) -> None:
    result = Result({"cpu": "x"}, "tilewright bench", {"device": "cpu"}, ROWS)
    file = tmp_path / "results.json"
    write(result, file)
    assert read(file) == result
    assert sum('"provider"' in line for line in file.read_text().splitlines()) == len(ROWS)


def test_what_has_fewer_samples_is_compared_over_the_turns_that_it_had() -> None:
    ours, peer = row("call", "tilewright cpu", 1.0), row("call", "math", 1.0)
    ours["device"]["values"] = [1.0] * 7 + [5.0] * 30
    peer["device"]["values"] = [4.0] * 7
    assert times_faster(ours, peer).value == pytest.approx(4.0)
