"""Comparing two results: what is called a change, what is not, and how seldom noise is."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import pytest

from tilewright.bench import compare as module
from tilewright.bench.compare import NO_CHANGE, Change, compare
from tilewright.bench.summary import Result, Row

OURS, PEERS = "tilewright cpu", ("eager", "sdpa flash")
ENVIRONMENT = {
    "cpu": "a processor",
    "gpus": [],
    "cpus_usable": 8,
    "torch_threads": 8,
    "packages": {"torch": "2.11.0", "tilewright": "0.1.0"},
    "peers": {"eager": "2.11.0"},
    "commit": "a" * 40,
}


def row(item: str, provider: str, values: list[float], **more: Any) -> Row:
    facts = {"unit": "TFLOP/s", "op": "attention", "label": f"sizes of {item}", "limit": 1e-5, "error": 1e-7}
    return {"item": item, "provider": provider, "status": "timed", "device": {"values": values}, **facts, **more}


def result(rows: list[Row], device: str = "cpu", complete: bool = True, **environment: Any) -> Result:
    return Result({**ENVIRONMENT, **environment}, "tilewright bench", {"device": device}, rows, complete)


def measured(
    draw: random.Random,
    factor: Callable[[str, str], float] = lambda item, provider: 1.0,
    items: int = 4,
    noise: float = 0.05,
    samples: int = 40,
    peers: tuple[str, ...] = PEERS,
) -> Result:
    """Every item of 1 ms for each provider, times ``factor``; the noise is each sample's own."""
    rows = []
    for name in (f"call {i}" for i in range(items)):
        for provider in (OURS, *peers):
            values = [1e-3 * factor(name, provider) * draw.lognormvariate(0, noise) for _ in range(samples)]
            rows.append(row(name, provider, values))
    return result(rows)


def slower_by(percent: float, only: str = "call 2") -> Callable[[str, str], float]:
    return lambda item, provider: 1 + percent / 100 if (item, provider) == (only, OURS) else 1.0


def change(before: Row | None, after: Row | None) -> Change:
    """Of these rows, beside a call that stays as it was."""
    same = row("another", OURS, [1e-3] * 7)
    found = compare(*(result([same, *([r] if r else [])]) for r in (before, after)), 0.05)
    (one,) = (c for c in found.changes if c.item != "another")
    return one


def test_a_call_that_takes_20_percent_longer_is_the_one_regression() -> None:
    draw = random.Random(1)
    found = compare(measured(draw), measured(draw, slower_by(20)), 0.05)
    assert [(c.item, c.provider, c.verdict) for c in found.regressions] == [("call 2", OURS, "slower")]
    assert found.changes[0] is found.regressions[0], "regressions come first"
    judged = found.changes[0].judged
    assert judged is not None and judged.low < 1.2 < judged.high
    assert [c.verdict for c in found.changes[1:]] == [NO_CHANGE] * 3


def test_the_threshold_is_what_a_regression_must_exceed() -> None:
    draw = random.Random(2)
    before, after = measured(draw), measured(draw, slower_by(20))
    assert not compare(before, after, 0.25).regressions


def test_a_call_that_got_faster_is_no_regression() -> None:
    draw = random.Random(3)
    found = compare(measured(draw, slower_by(25)), measured(draw), 0.05)
    assert [c.verdict for c in found.changes] == ["faster", *[NO_CHANGE] * 3]
    assert not found.regressions


def test_noise_alone_is_no_change() -> None:
    draw = random.Random(4)
    found = compare(measured(draw), measured(draw), 0.05)
    assert {c.verdict for c in found.changes} == {NO_CHANGE}


def test_a_slower_machine_is_taken_out_by_the_peers() -> None:
    """Everything takes 30% longer, and one call of ours as long as before: it is the one that became faster."""
    draw = random.Random(5)

    def kept(item: str, provider: str) -> float:
        return 1.0 if (item, provider) == ("call 1", OURS) else 1.3

    found = compare(measured(draw), measured(draw, kept), 0.05)
    assert [c.verdict for c in found.changes] == ["faster", *[NO_CHANGE] * 3]
    assert found.drift == pytest.approx(1.3, rel=0.03)
    for c in found.changes[1:]:
        assert c.plain is not None and c.against_peers is not None
        assert c.plain.value == pytest.approx(1.3, rel=0.05) and c.against_peers.value == pytest.approx(1, rel=0.05)


def test_a_peer_that_is_far_behind_counts_only_where_no_other_is_near() -> None:
    def side(machine: float, far: float, with_near: bool = True) -> Result:
        rows = [row("call", OURS, [machine * 1e-3] * 40), row("call", "math", [far * 1e-2] * 7)]
        return result([*rows, *([row("call", "eager", [machine * 1e-3] * 40)] if with_near else [])])

    # The machine is slower by half, and the peer with few samples was hit harder yet.
    (found,) = compare(side(1.0, 1.0), side(1.5, 3.0), 0.05).changes
    assert found.against_peers is not None and found.against_peers.value == pytest.approx(1.0)
    (alone,) = compare(side(1.0, 1.0, False), side(1.5, 1.5, False), 0.05).changes
    assert alone.against_peers is not None and alone.against_peers.value == pytest.approx(1.0)


def test_without_peers_the_plain_ratio_is_judged_and_that_is_said() -> None:
    draw = random.Random(6)
    found = compare(measured(draw, peers=()), measured(draw, lambda *_: 1.3, peers=()), 0.05)
    assert [c.verdict for c in found.changes] == ["slower"] * 4
    assert "4 of 4 calls have no peer" in found.warnings[-1]


def test_paired_rounds_need_no_peers() -> None:
    """The machine's speed goes up and down twofold, for both sides of a round alike."""
    draw = random.Random(7)
    speeds = [draw.uniform(1, 2) for _ in range(12)]
    sides = [
        result([row("a", OURS, [s * f * draw.lognormvariate(0, 0.01) for s in speeds])], commit=c * 40)
        for f, c in ((1.0, "a"), (1.2, "b"))
    ]
    assert [c.verdict for c in compare(*sides, 0.05, paired=True).changes] == ["slower"]
    assert [c.verdict for c in compare(*sides, 0.05).changes] == [NO_CHANGE]
    assert not compare(*sides, 0.05, paired=True).warnings


def test_what_the_same_code_moves_from_run_to_run_widens_every_interval() -> None:
    """Each file moves each provider of each call by 10%, which its own samples do not show."""

    def moved() -> Result:
        moves: dict[tuple[str, str], float] = {}

        def factor(item: str, provider: str) -> float:
            return moves.setdefault((item, provider), draw.lognormvariate(0, 0.1))

        return measured(draw, factor, items=16, noise=0.01, samples=7)

    draw = random.Random(8)
    found = [compare(moved(), moved(), 0.05) for _ in range(10)]
    assert sum(bool(f.regressions) for f in found) <= 1
    for f in found:
        assert f.run_to_run == pytest.approx(0.1 * 2**0.5, rel=0.4)


@pytest.mark.parametrize(("samples", "peers"), [(7, ()), (12, PEERS[:1])])
def test_one_comparison_in_twenty_has_a_false_alarm_at_most(
    samples: int, peers: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a threshold of 0, so that nothing but the intervals keeps noise from being a change."""
    monkeypatch.setattr("tilewright.bench.stats.RESAMPLES", 200)
    draw = random.Random(9)
    alarms = changes = 0
    for _ in range(200):
        before, after = (measured(draw, items=6, samples=samples, peers=peers) for _ in range(2))
        found = compare(before, after, 0.0)
        alarms += bool(found.regressions)
        changes += any(c.verdict == "faster" for c in found.changes)
    # Of 200, 5 on average are expected on each side, and more than 13 once in a thousand times.
    assert alarms <= 13 and changes <= 13


def test_students_quantile_is_near_the_tables() -> None:
    for probability, degrees, tabled in (
        (0.975, 4, 2.776),
        (0.9995, 6, 5.959),
        (0.975, 10, 2.228),
        (0.9995, 30, 3.646),
    ):
        assert module._quantile(probability, degrees) == pytest.approx(tabled, rel=0.02)


TIMED = row("a call", OURS, [1e-3] * 7)


def failed(status: str, **more: Any) -> Row:
    return {"item": "a call", "provider": OURS, "status": status, "reason": "because", **more}


@pytest.mark.parametrize("status", ["wrong", "raised", "crashed", "hung", "out of memory", "refused", "missing"])
def test_a_call_that_no_longer_works_is_a_regression(status: str) -> None:
    found = change(TIMED, failed(status))
    assert found.verdict == "broken" and found.is_regression
    assert found.notes == (f"{status}: because",)
    assert change(failed(status), TIMED).verdict == "fixed"


def test_an_item_that_failed_as_a_whole_is_broken_for_each_of_its_providers() -> None:
    assert change(TIMED, failed("crashed", provider="all")).verdict == "broken"


@pytest.mark.parametrize(
    ("before", "after", "verdict"),
    [
        (TIMED, None, "only before"),
        (None, TIMED, "only after"),
        (TIMED, failed("not reached", provider="all"), "not measured"),
        (TIMED, row("a call", OURS, [1e-3] * 4), "not measured"),
        (failed("refused"), failed("refused"), "not measured"),
        (TIMED, row("a call", OURS, [2e-3] * 7, label="other sizes"), "another call"),
    ],
)
def test_what_cannot_be_compared_is_told_apart(before: Row | None, after: Row | None, verdict: str) -> None:
    found = change(before, after)
    assert found.verdict == verdict and not found.is_regression


def test_more_memory_is_a_regression() -> None:
    def found(device: str, *peaks: int | None) -> Change:
        sides = (result([row("a call", OURS, [1e-3] * 7, peak_bytes=p)], device) for p in peaks)
        return compare(*sides, 0.05).changes[0]

    more = found("cuda", 20 * 2**20, 30 * 2**20)
    assert more.verdict == "more memory" and more.is_regression
    assert more.notes == ("peak memory 21.0 -> 31.5 MB",)
    assert found("cuda", 2**30, 2**30 + 2**24).verdict == NO_CHANGE, "less than the threshold"
    assert found("cuda", 30 * 2**20, 20 * 2**20).verdict == NO_CHANGE
    assert found("cuda", 0, 2**19).verdict == NO_CHANGE, "less than is resolved"
    assert found("cuda", None, 2**30).verdict == NO_CHANGE
    assert found("cpu", 0, 32 * 2**20).verdict == NO_CHANGE, "less than runs of the same code differ by"
    assert found("cpu", 2**20, 2**30).verdict == "more memory"


def test_an_error_that_grew_within_its_limit_is_mentioned() -> None:
    found = change(TIMED, {**TIMED, "error": 5e-6})
    assert found.verdict == NO_CHANGE and "error 1.0e-07 -> 5.0e-06" in found.notes[0]


def test_what_differs_beside_the_code_is_a_warning() -> None:
    other = {
        "cpu": "another processor",
        "torch_threads": 4,
        "packages": {"torch": "2.12.0", "tilewright": "0.2.0"},
        "peers": {"eager": "2.11.0", "onnxruntime": "1.20"},
        "commit": "b" * 40 + "+changes",
    }
    found = compare(result([TIMED]), result([TIMED], complete=False, **other), 0.05).warnings
    for text in (
        "processor: before a processor, after another processor",
        "torch's threads: before 8, after 4",
        "torch: before 2.11.0, after 2.12.0",
        "onnxruntime: before none, after 1.20",
        "after is of bbbbbbbbb with changes",
        "after is incomplete",
    ):
        assert any(w.startswith(text) for w in found), (text, found)
    assert not any("tilewright:" in w for w in found), "its version is what is compared"


def test_results_that_have_nothing_to_do_with_one_another_are_refused() -> None:
    with pytest.raises(ValueError, match="device cpu and after of cuda"):
        compare(result([TIMED]), result([TIMED], device="cuda"), 0.05)
    with pytest.raises(ValueError, match="no call in common"):
        compare(result([TIMED]), result([row("b", OURS, [1e-3] * 7)]), 0.05)
    with pytest.raises(ValueError, match="has a call of tilewright"):
        compare(*[result([row("a", "eager", [1e-3] * 7)])] * 2, 0.05)
