"""One item of a benchmark, on the CPU with tiny shapes: what is checked, timed, refused and flagged."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import pytest
import torch

from tilewright.bench import exact, items, measure, session, timing
from tilewright.bench.items.rooflines import COPY, GEMM, READ
from tilewright.registry import unavailable

BACKEND = "cpu" if unavailable("cpu") is None else "reference"
ALL = items.all_items("tiny")


def quiet(message: dict[str, Any]) -> None:
    pass


@pytest.mark.skipif(unavailable("triton") is not None or torch.cuda.is_available(), reason="the interpreter is off")
@pytest.mark.parametrize("name", ["softmax backward 100 float32", "decode B2 KV64"])
def test_triton_kernels_take_the_same_way(name: str) -> None:
    only = measure.Bench("cpu", ("triton",), "tiny", 0.0, True, ("tilewright triton",))
    (row,) = measure.run_item(next(i for i in ALL if i.name == name), only, {}, quiet)
    assert row["status"] == "timed", row


@pytest.mark.parametrize("shapes", items.SETS)
def test_names_are_unique(shapes: str) -> None:
    names = [i.name for i in items.all_items(shapes)]
    assert len(names) == len(set(names)), sorted(n for n in set(names) if names.count(n) > 1)


def test_the_shapes_that_targets_are_set_for_come_first() -> None:
    names = [i.name for i in items.all_items("gpu")]
    for name in (
        "attention forward d128 causal S16384",
        "softmax forward 262144",
        "decode latency B1 KV1024",
        "ffn forward 768/3072 gelu_tanh rows 32768",
    ):
        assert name in names[:40]
    for name in (
        "attention backward d256 full S1024",
        "attention forward d128 full S4096 gqa 32/8",
        "ffn forward 4096/14336 swiglu rows 1",
    ):
        assert name in names
    assert names[:3] == [GEMM, COPY, READ]


def fake(**providers: Callable[[], Any]) -> measure.Item:
    """An item whose providers return these; the right answer is 1, 2, 3."""
    expected = torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64)

    def build(_: measure.Bench) -> measure.Built:
        made = {name: (lambda f=function: f) for name, function in providers.items()}
        return measure.Built(made, lambda result: exact.distance([result], [expected]))

    return measure.Item("fake", "GB/s", build, 1e8)


def right() -> torch.Tensor:
    return torch.tensor([1.0, 2.0, 3.0])


def rows_of(item: measure.Item, **options: Any) -> dict[str, dict[str, Any]]:
    settings = measure.Bench("cpu", (BACKEND,), "tiny", 0.0, **options)
    return {r["provider"]: r for r in measure.run_item(item, settings, {}, quiet)}


@pytest.mark.parametrize("wrong", [[1.0, 2.0, float("nan")], [0.0, 0.0, 0.0], [1.0, 2.0, 3.2]])
def test_a_wrong_result_is_not_timed(wrong: list[float]) -> None:
    calls = []

    def bad() -> torch.Tensor:
        calls.append(1)
        return torch.tensor(wrong)

    rows = rows_of(fake(bad=bad, right=right))
    assert rows["bad"]["status"] == "wrong" and "not timed" in rows["bad"]["reason"]
    assert "device" not in rows["bad"] and "result" not in rows["bad"]
    assert len(calls) == 1, "a kernel that failed its check was called again"
    assert rows["right"]["status"] == "timed"


@pytest.mark.parametrize(
    ("problem", "status"),
    [
        (ModuleNotFoundError("No module named 'quack'"), "missing"),
        (torch.OutOfMemoryError("CUDA out of memory"), "out of memory"),
        (RuntimeError("No available kernel"), "raised"),
    ],
)
def test_what_keeps_a_peer_from_running_is_its_row(problem: Exception, status: str) -> None:
    def bad() -> torch.Tensor:
        raise problem

    rows = rows_of(fake(right=right, bad=bad))
    assert rows["bad"]["status"] == status
    assert str(problem) in rows["bad"]["reason"]
    assert rows["right"]["status"] == "timed"


def test_a_provider_of_another_shape_is_not_compared_by_broadcasting() -> None:
    rows = rows_of(fake(bad=lambda: torch.ones(1, 3)))
    assert rows["bad"]["status"] == "raised" and "shape" in rows["bad"]["reason"]


def test_a_provider_that_fails_while_it_is_timed() -> None:
    calls = []

    def late() -> torch.Tensor:
        calls.append(1)
        if len(calls) > 2:
            raise RuntimeError("the third time")
        return right()

    rows = rows_of(fake(late=late, right=right))
    assert "the third time" in rows["late"]["reason"] and rows["late"]["status"] == "raised"
    assert rows["right"]["status"] == "timed", "one provider's failure kept another from being timed"


def test_compiling_only_calls_and_does_not_time() -> None:
    rows = rows_of(fake(right=right), timed=False)
    assert rows["right"]["status"] == "checked" and "device" not in rows["right"]


def test_more_than_the_roofline_is_a_fault() -> None:
    def row(item: str, unit: str, result: float) -> dict[str, Any]:
        return {"item": item, "provider": "tilewright cpu", "status": "timed", "unit": unit, "result": result}

    rooflines = [row(GEMM, "TFLOP/s", 700.0), row(COPY, "GB/s", 4000.0)]
    rows = session.add_rooflines(
        [*rooflines, row("a", "TFLOP/s", 350.0), row("b", "GB/s", 4100.0), row("c", "us", 9.0)]
    )
    by_item = {r["item"]: r for r in rows}
    assert by_item["a"]["of_roofline"] == 0.5 and "fault" not in by_item["a"]
    assert "102% of the roofline" in by_item["b"]["fault"]
    assert "of_roofline" not in by_item["c"]
    # A call that reads most of what it moves is held against a read, where that is the faster.
    (*_, reads) = session.add_rooflines([*rooflines, row(READ, "GB/s", 4200.0), row("b", "GB/s", 4100.0)])
    assert "fault" not in reads and reads["of_roofline"] == pytest.approx(4100 / 4200)


def test_a_cpu_is_held_against_a_roofline_of_the_same_turns() -> None:
    item = fake(ours=right)
    row = rows_of(item)["ours"]
    # The fake item moves 1e8 bytes in next to no time: a copy cannot.
    assert row["of_roofline"] > 1.0
    assert row["roofline"] == pytest.approx(row["result"] / row["of_roofline"])
    (flagged,) = session.add_rooflines([row])
    assert "the measurement is wrong" in flagged["fault"]
    assert set(rows_of(item)) == {"ours"}, "the roofline is no provider"


def test_the_time_is_for_the_providers_that_are_near() -> None:
    clock = {"tilewright cpu": 5.0, "a": 1.0, "b": 2.9, "c": 3.1, "tilewright reference": 9.0, "roofline: copy": 99.0}

    class Timer:
        def plan(self, function: Callable[[], object]) -> int:
            return 1

        def sample(self, function: Callable[[], object], calls: int) -> float:
            time.sleep(1e-4)
            return float(function())  # type: ignore[arg-type]

    functions = {name: (lambda s=seconds: s) for name, seconds in clock.items()}
    found = timing.interleave(functions, 0.05, 5, Timer(), near=measure._near)
    counts = {name: t.samples for name, t in found.items()}
    assert {n for n, count in counts.items() if count == 5} == {"c", "tilewright reference"}
    assert len(set(counts.values())) == 2, f"those that are near were not timed in turns: {counts}"


def test_the_fastest_of_both_sides_are_timed_to_the_end_however_far_apart() -> None:
    assert measure._near({"tilewright cpu": 1.0, "eager": 50.0, "math": 60.0}) == ["tilewright cpu", "eager"]
    assert measure._near({"tilewright cpu": 1.0}) == ["tilewright cpu"]
    assert measure._near({"roofline: copy": 1.0}) == ["roofline: copy"]
