"""The stand-in for the CUDA runtime: what it refuses to launch, the order of its errors, and the launcher over it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

INVALID_VALUE, INVALID_CONFIGURATION, OUT_OF_RESOURCES, ILLEGAL_ADDRESS = 1, 9, 701, 700
TOO_MANY_BLOCKS = -2


@pytest.fixture(autouse=True)
def _as_at_start(emulator: Any) -> Iterator[None]:
    yield
    emulator.forget_compiled()
    emulator.set_sticky_error(0)
    assert emulator.ask_for_shared_memory(0) == 0


#: A launch at a limit, one past it, and the report.
LIMITS: dict[str, tuple[dict[str, Any], dict[str, Any], str]] = {
    "x": ({}, {"grid": (2**31, 1, 1)}, "launch-grid.* 2147483648 x 1 x 1 blocks; its x is 1 to 2147483647"),
    "y": ({"grid": (1, 65535, 1)}, {"grid": (1, 65536, 1)}, "launch-grid.* 1 x 65536 x 1 blocks; its y is 1 to 65535"),
    "z": ({"grid": (1, 1, 65535)}, {"grid": (1, 1, 65536)}, "launch-grid.* 1 x 1 x 65536 blocks; its z is 1 to 65535"),
    "no block": ({}, {"grid": (1, 0, 1)}, "launch-grid.*of 1 x 0 x 1 blocks; its y is 1"),
    "threads": ({"block": (1024, 1, 1)}, {"block": (1025, 1, 1)}, "launch-threads.* 1025 x 1 x 1 .* 1 to 1024"),
    "no thread": ({}, {"block": (0, 1, 1)}, "launch-threads.*of 0 x 1 x 1 threads"),
    "shared": ({"shared_bytes": 49152}, {"shared_bytes": 49153}, "launch-shared.*49153 bytes of .*at most 49152 where"),
    "parameters": ({}, {"large": True}, "launch-parameters in large: 4097 bytes of parameters; at most 4096"),
}  # fmt: skip


@pytest.mark.parametrize("name", LIMITS)
def test_a_launch_past_a_limit_is_reported(emulator: Any, name: str) -> None:
    allowed, refused, report = LIMITS[name]
    assert emulator.launch_kernel(**allowed) == 0
    with pytest.raises(emulator.KernelFault, match=f"^{report}"):
        emulator.launch_kernel(**refused)
    assert emulator.peek_at_last_error() == 0
    assert emulator.launch_kernel(**allowed) == 0


def test_more_shared_memory_has_to_be_asked_for_and_ends_at_99_kb(emulator: Any) -> None:
    assert emulator.ask_for_shared_memory(99 * 1024) == 0
    assert emulator.launch_kernel(shared_bytes=99 * 1024) == 0
    with pytest.raises(emulator.KernelFault, match=r"101377 bytes of .*at most 101376, which was asked for"):
        emulator.launch_kernel(shared_bytes=99 * 1024 + 1)
    assert emulator.ask_for_shared_memory(99 * 1024 + 1) == INVALID_VALUE
    assert emulator.get_last_error() == INVALID_VALUE


#: What a kernel was compiled to (registers, threads, static shared memory), a launch of it, and the report.
COMPILED: dict[str, tuple[tuple[int, int, int], dict[str, Any], str | None]] = {
    "few registers": ((64, 1024, 0), {"block": (1024, 1, 1)}, None),
    "by eights": ((65, 1024, 0), {"block": (1024, 1, 1)}, "launch-registers.* as 72 to each of 32 warps, 73728;"),
    "all registers": ((255, 1024, 0), {"block": (256, 1, 1)}, None),
    "by four warps": ((255, 1024, 0), {"block": (257, 1, 1)}, "launch-registers.* 257 threads.* to each of 12 warps"),
    "bound": ((32, 64, 0), {"block": (65, 1, 1)}, "launch-threads.*of 65 threads; it was compiled for at most 64"),
    "static shared memory": ((32, 64, 1024), {"shared_bytes": 48129}, "launch-shared.* 48129 .* at most 48128 where"),
}  # fmt: skip


@pytest.mark.parametrize("name", COMPILED)
def test_what_a_kernel_was_compiled_to_limits_its_launches(emulator: Any, name: str) -> None:
    row, launched, report = COMPILED[name]
    emulator.set_compiled("idle", *row)
    if report is None:
        assert emulator.launch_kernel(**launched) == 0
        return
    with pytest.raises(emulator.KernelFault, match=report):
        emulator.launch_kernel(**launched)


def test_a_kernel_that_no_table_has_is_reported(emulator: Any) -> None:
    emulator.set_compiled("other", 32, 64, 0)
    with pytest.raises(emulator.KernelFault, match=r"launch-unlisted in idle: .*machine_code\.py"):
        emulator.launch_kernel()


def test_an_error_stays_until_somebody_asks_for_it(emulator: Any) -> None:
    assert emulator.ask_for_shared_memory(-1) == INVALID_VALUE
    assert emulator.ask_for_shared_memory(0) == 0, "a call that succeeds answers its own success"
    assert [emulator.peek_at_last_error() for _ in range(2)] == [INVALID_VALUE] * 2
    assert [emulator.get_last_error() for _ in range(2)] == [INVALID_VALUE, 0]


def test_a_sticky_error_is_what_every_call_answers(emulator: Any) -> None:
    emulator.set_sticky_error(ILLEGAL_ADDRESS)
    assert [emulator.get_last_error() for _ in range(2)] == [ILLEGAL_ADDRESS] * 2
    assert emulator.ask_for_shared_memory(0) == ILLEGAL_ADDRESS
    assert emulator.launch_kernel() == ILLEGAL_ADDRESS
    assert emulator.launch((1, 1, 1)) == ILLEGAL_ADDRESS


def test_an_error_that_a_call_leaves_behind_is_reported(emulator: Any) -> None:
    with pytest.raises(emulator.KernelFault, match=r"^error-left in idle: .* after it is cudaErrorInvalidConf"):
        emulator.launch_kernel((1, 65536, 1), clear=False)
    assert emulator.get_last_error() == INVALID_CONFIGURATION


# --- launch() ---


def test_a_failed_launch_is_not_reported_again_by_the_next(emulator: Any) -> None:
    for wrong in ({"shared_bytes": 100 * 1024}, {"threads": 1025}):  # refused when it is asked for, and at the launch
        with pytest.raises(emulator.KernelFault, match=r"launch-(shared|threads) in idle"):
            emulator.launch((1, 1, 1), **wrong)
        assert emulator.peek_at_last_error() == 0
        assert emulator.launch((1, 1, 1)) == 0


def test_a_launch_neither_answers_nor_takes_what_others_left(emulator: Any) -> None:
    assert emulator.ask_for_shared_memory(-1) == INVALID_VALUE
    assert emulator.launch((1, 1, 1)) == 0
    assert emulator.launch((1, 1, 1), shared_bytes=64 * 1024) == 0
    assert emulator.get_last_error() == INVALID_VALUE


@pytest.mark.parametrize("checking", [False, True])
def test_more_blocks_than_a_grid_may_have_are_refused_by_the_launcher(emulator: Any, checking: bool) -> None:
    for grid in ((2**31, 1, 1), (2**32 + 1, 1, 1), (1, 65536, 1), (1, 1, 65536)):
        assert emulator.launch(grid, checking=checking) == TOO_MANY_BLOCKS
    assert emulator.launch((3, 0, 1), checking=checking) == 0, "a grid without blocks is no launch"


def test_a_launch_that_is_only_checked_is_not_made(emulator: Any) -> None:
    assert emulator.launch((1, 1, 1), threads=1025, checking=True) == 0
