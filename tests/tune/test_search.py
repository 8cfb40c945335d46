"""The search for faster configurations, with times that the test makes up and kernels in the interpreter."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from tilewright.triton_kernels import launch, user_table
from tilewright.triton_kernels.candidates import neighbours
from tilewright.triton_kernels.launch import Config
from tilewright.tune import search as module
from tilewright.tune import table, workloads
from tilewright.tune.search import DeviceLost, Search, pairs, tune
from tilewright.tune.workloads import Maker

Cost = Callable[[Config], float]


class FakeTimer:
    """A sample takes as long as the test says for the configuration that it runs with."""

    def __init__(self, cost: Cost, monkeypatch: pytest.MonkeyPatch) -> None:
        self.cost, self.last = cost, Config({})
        real = launch.trial

        def trial(kernel: str, key: str, candidate: Config) -> Any:
            self.last = candidate
            return real(kernel, key, candidate)

        monkeypatch.setattr(launch, "trial", trial)

    def plan(self, function: Callable[[], object]) -> int:
        return 1

    def sample(self, function: Callable[[], object], calls: int) -> float:
        function()
        return self.cost(self.last)


def warps(*numbers: int) -> Callable[[str, Config], Iterator[Config]]:
    """Candidates that differ in their warps alone, which mean nothing to the interpreter."""
    return lambda kernel, config: iter([config._replace(num_warps=n) for n in numbers])


@pytest.fixture
def searching(device: torch.device, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Search]:
    def make(cost: Cost, **options: Any) -> Search:
        return Search(Maker(device, tiny=True), FakeTimer(cost, monkeypatch), seconds=0.0, **options)

    return make


@pytest.fixture
def quick(device: torch.device, monkeypatch: pytest.MonkeyPatch) -> None:
    """A kernel that asks for its configuration and does nothing."""

    def run() -> tuple[torch.Tensor, ...]:
        launch.config("softmax_forward", "128", device)
        return (torch.ones(3),)

    monkeypatch.setitem(workloads.WORKLOADS, "softmax_forward", lambda *_: workloads.Workload(run, run))


@pytest.mark.usefixtures("quick")
def test_the_fastest_wins(searching: Callable[..., Search]) -> None:
    costs = {1: 0.9, 2: 0.5, 8: 0.7}
    search = searching(lambda c: costs.get(c.num_warps, 1.0), neighbours=warps(1, 2, 8))
    result = tune("softmax_forward", "128", search)
    assert result.status == "tuned" and result.after.num_warps == 2
    assert (result.before_seconds, result.after_seconds) == (1.0, 0.5)
    assert [t.outcome for t in result.trials] == ["faster"] * 3
    assert launch._trial is None


@pytest.mark.usefixtures("quick")
def test_it_goes_on_from_the_fastest(searching: Callable[..., Search]) -> None:
    result = tune("softmax_forward", "128", searching(lambda c: 1.0 / c.num_warps, rounds=3))
    assert result.after.num_warps == 8 * result.before.num_warps, "three rounds of doubling"
    assert result.after.blocks == result.before.blocks


@pytest.mark.usefixtures("quick")
def test_a_gain_within_the_spread_is_none(searching: Callable[..., Search]) -> None:
    samples = iter(range(10**6))

    def cost(config: Config) -> float:
        return (1.0 if config.num_warps != 2 else 0.9) + (0.5 if next(samples) % 4 < 2 else 0.0)

    result = tune("softmax_forward", "128", searching(cost, neighbours=warps(2)))
    assert result.status == "kept" and result.after == result.before and result.trials[0].outcome == "not faster"
    result = tune("softmax_forward", "128", searching(lambda c: 0.99 if c.num_warps == 2 else 1.0, neighbours=warps(2)))
    assert result.status == "kept", "1% is not worth an entry"


def blocks(**changes: int) -> Callable[[str, Config], Iterator[Config]]:
    return lambda kernel, config: iter([config._replace(blocks={**config.blocks, **changes})])


def test_a_candidate_with_another_result_is_not_kept(searching: Callable[..., Search]) -> None:
    """Half of each row: fast, and wrong. It also shows that the candidate is what really runs."""
    for kernel in ("softmax_forward", "softmax_backward"):
        search = searching(lambda c: c.blocks["COLUMNS"], neighbours=blocks(COLUMNS=64))
        result = tune(kernel, "128", search)
        assert result.trials[0].outcome == "different" and result.status == "kept", result.trials


def test_a_candidate_that_does_not_compile_is_refused_with_its_reason(searching: Callable[..., Search]) -> None:
    result = tune("softmax_forward_looped", "", searching(lambda c: 1.0, neighbours=blocks(COLUMNS=100)))
    assert result.trials[0].outcome == "refused"
    assert "power of" in result.trials[0].reason or torch.cuda.is_available()  # the compiler begins with the source


@pytest.mark.usefixtures("quick")
def test_options_have_to_work_as_well(searching: Callable[..., Search], monkeypatch: pytest.MonkeyPatch) -> None:
    real = workloads.WORKLOADS["softmax_forward"]

    def picky(*arguments: Any) -> Any:
        found = real(*arguments)

        def checked() -> tuple[torch.Tensor, ...]:
            if launch._trial is not None and launch._trial.candidate.num_warps == 2:
                raise RuntimeError("out of resource: shared memory")
            return found.checked()

        return replace(found, checked=checked)

    monkeypatch.setitem(workloads.WORKLOADS, "softmax_forward", picky)
    result = tune("softmax_forward", "128", searching(lambda c: 1.0 / c.num_warps, neighbours=warps(2)))
    assert result.trials[0].outcome == "refused" and "shared memory" in result.trials[0].reason


@pytest.mark.usefixtures("quick")
def test_a_device_that_is_lost_ends_the_search(
    searching: Callable[..., Search], monkeypatch: pytest.MonkeyPatch
) -> None:
    real, broken = module._with, []

    def run(kernel: str, key: str, candidate: Config, call: Any) -> Any:
        if candidate.num_warps == 2 or broken:
            broken.append(1)
            raise RuntimeError("an illegal memory access was encountered")
        return real(kernel, key, candidate, call)

    monkeypatch.setattr(module, "_with", run)
    with pytest.raises(DeviceLost, match=r"softmax_forward with key '128'.*w2.*illegal memory access"):
        tune("softmax_forward", "128", searching(lambda c: 1.0, neighbours=warps(2)))


@pytest.mark.usefixtures("quick")
def test_the_budget(searching: Callable[..., Search], monkeypatch: pytest.MonkeyPatch) -> None:
    over = searching(lambda c: 1.0, deadline=time.monotonic())
    assert tune("softmax_forward", "128", over).status == "not reached"

    timed: list[Config] = []

    def cost(config: Config) -> float:
        timed.append(config)
        return 0.5 if config.num_warps == 2 else 1.0

    search = searching(cost, neighbours=warps(2, 8, 16))
    monkeypatch.setattr(Search, "over", lambda self: bool(timed))  # after the first candidate
    result = tune("softmax_forward", "128", search)
    assert result.status == "tuned" and result.after.num_warps == 2
    assert len(result.trials) == 1 and "budget" in result.reason


def test_a_kernel_that_its_call_does_not_launch(
    searching: Callable[..., Search], monkeypatch: pytest.MonkeyPatch
) -> None:
    real = workloads.WORKLOADS["softmax_forward"]
    monkeypatch.setitem(workloads.WORKLOADS, "ffn_drop", lambda *_: real("softmax_forward", "8", _[-1]))
    assert tune("ffn_drop", "", searching(lambda c: 1.0)).status == "not launched"
    monkeypatch.delitem(workloads.WORKLOADS, "ffn_drop")
    assert "no call that launches it" in tune("ffn_drop", "", searching(lambda c: 1.0)).reason


KERNELS = [(op, kernel) for op, tables in launch.TABLES.items() for kernel in tables["interpreter"]]


def test_every_kernel_of_the_tables_has_a_workload() -> None:
    for tables in launch.TABLES.values():
        for chip, rows in tables.items():
            missing = set(rows) - set(workloads.WORKLOADS)
            assert not missing, f"{chip}: add a call that launches {missing} to python/tilewright/tune/workloads.py"


@pytest.mark.skipif(torch.cuda.is_available(), reason="tiny calls launch other kernels on a GPU")
@pytest.mark.parametrize("kernel", [k for _, k in KERNELS])
def test_the_call_of_a_kernel_launches_it(kernel: str, device: torch.device) -> None:
    key = "small_half" if kernel.endswith("_parts") or kernel == "ffn_product" else ""
    key = "4" if kernel in ("softmax_forward", "softmax_backward") else key
    found = module.launching(kernel, key, Maker(device, tiny=True))
    assert not isinstance(found, str), f"python/tilewright/tune/workloads.py, {kernel} {key!r}: {found}"
    assert all(t.isfinite().all() for t in found.checked())


def test_neighbours_differ_in_one_thing_and_keep_what_the_key_determines() -> None:
    config = Config({"ROWS": 4, "COLUMNS": 128}, 4, 1)
    found = list(neighbours("softmax_forward", config))
    assert {c.blocks["COLUMNS"] for c in found} == {128}
    assert {(c.blocks["ROWS"], c.num_warps) for c in found} == {(2, 4), (8, 4), (4, 2), (4, 8)}
    found = list(neighbours("attention_forward", Config({"BLOCK_M": 128, "BLOCK_N": 16}, 8, 2)))
    assert {c.blocks["BLOCK_N"] for c in found} == {16, 32}, "a matrix instruction takes at least 16"
    assert {c.num_stages for c in found} == {1, 2, 3}


def test_pairs_are_selected_and_have_no_entry_for_every_other_key() -> None:
    every = pairs("sm_90", [], [], [])
    assert len(every) == len(set(every))
    assert ("attention_decode", "") not in every and ("attention_decode", "2,128") in every
    assert ("softmax_forward_looped", "") in every and ("ffn_drop", "") in every
    assert ("ffn_in_parts", "half") not in every and ("ffn_in_parts", "small_half") in every
    assert {k for k, _ in pairs("sm_90", ["ffn"], [], [])} == set(launch.TABLES["ffn"]["sm_90"])
    assert pairs("sm_90", [], ["ffn_in"], ["half"]) == [("ffn_in", "half")]


def test_what_is_written_is_in_force_and_says_where_it_comes_from(
    searching: Callable[..., Search], install: Callable[..., Path], device: torch.device
) -> None:
    search = searching(lambda c: 1e-3 if c.num_warps == 2 else 2e-3, neighbours=warps(2))
    result = tune("softmax_forward", "128", search)
    section = table.section([result], device)
    path = install(content={"format": 1, "devices": []})
    user_table.write(path, section)
    launch.forget_configurations()
    assert launch.config("softmax_forward", "128", device) == result.after
    assert {"gpu", "triton", "torch", "driver", "tilewright", "date"} <= set(section)
    (entry,) = section["entries"]
    assert (entry["milliseconds"], entry["before"]["milliseconds"]) == (1.0, 2.0)
    assert table.to_json(result)["trials"][0]["outcome"] == "faster"
