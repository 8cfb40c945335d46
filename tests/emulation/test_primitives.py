"""Each emulated primitive against a plain statement of what the PTX documentation says of it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

LANES = range(32)


def bits(matrix: torch.Tensor) -> np.ndarray:
    return matrix.view(torch.int16).numpy().view(np.uint16)


# Section "Matrix Fragments for mma.m16n8k16" of the PTX ISA: of element i of a thread's fragment, row and column.
def a_place(lane: int, i: int) -> tuple[int, int]:
    group, thread = lane >> 2, lane % 4
    row = group if 0 <= i < 2 or 4 <= i < 6 else group + 8
    return row, thread * 2 + (i & 1) + (8 if i >= 4 else 0)


def b_place(lane: int, i: int) -> tuple[int, int]:
    group, thread = lane >> 2, lane % 4
    return thread * 2 + (i & 1) + (8 if i >= 2 else 0), group


def c_place(lane: int, i: int) -> tuple[int, int]:
    group, thread = lane >> 2, lane % 4
    return group + (8 if i >= 2 else 0), thread * 2 + (i & 1)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_multiply_16x8x16(emulator: Any, dtype: torch.dtype) -> None:
    a, b, c = torch.randn(16, 16).to(dtype), torch.randn(16, 8).to(dtype), torch.randn(16, 8)

    def register(matrix: np.ndarray, place: Any, lane: int, r: int) -> int:
        return int(matrix[place(lane, 2 * r)]) | int(matrix[place(lane, 2 * r + 1)]) << 16

    multiply = emulator.multiply_half if dtype == torch.float16 else emulator.multiply_bfloat16
    d = multiply(
        [[register(bits(a), a_place, lane, r) for r in range(4)] for lane in LANES],
        [[register(bits(b), b_place, lane, r) for r in range(2)] for lane in LANES],
        [[float(c[c_place(lane, i)]) for i in range(4)] for lane in LANES],
    )
    expected = c + a.float() @ b.float()
    for lane in LANES:
        for i in range(4):
            assert d[lane][i] == pytest.approx(float(expected[c_place(lane, i)]), abs=1e-5)


# Section "Matrix Fragments for mma.m16n8k8", .tf32.
def tf32_a_place(lane: int, i: int) -> tuple[int, int]:
    group, thread = lane >> 2, lane % 4
    return group + (8 if i in (1, 3) else 0), thread + (4 if i >= 2 else 0)


def tf32_b_place(lane: int, i: int) -> tuple[int, int]:
    group, thread = lane >> 2, lane % 4
    return thread + (4 if i == 1 else 0), group


def test_multiply_16x8x8_of_tf32_ignores_the_low_bits(emulator: Any) -> None:
    a, b, c = torch.randn(16, 8), torch.randn(8, 8), torch.randn(16, 8)

    def register(matrix: torch.Tensor, place: tuple[int, int]) -> int:
        return int(matrix[place].view(torch.int32)) & 0xFFFFFFFF

    d = emulator.multiply_tf32(
        [[register(a, tf32_a_place(lane, i)) for i in range(4)] for lane in LANES],
        [[register(b, tf32_b_place(lane, i)) for i in range(2)] for lane in LANES],
        [[float(c[c_place(lane, i)]) for i in range(4)] for lane in LANES],
    )
    cut = [(x.view(torch.int32) & ~0x1FFF).view(torch.float32) for x in (a, b)]
    expected = c + cut[0] @ cut[1]
    assert not torch.allclose(expected, c + a @ b, atol=1e-5, rtol=0)
    for lane in LANES:
        for i in range(4):
            assert d[lane][i] == pytest.approx(float(expected[c_place(lane, i)]), abs=1e-5)


@pytest.mark.parametrize("transposed", [False, True])
def test_load_matrices(emulator: Any, transposed: bool) -> None:
    """ldmatrix.x4: threads 8 n to 8 n + 7 give the rows of matrix n; each thread receives 32 bits of a row, with .trans
    of a column."""
    memory = torch.randperm(256).reshape(32, 8)
    rows = torch.randperm(32).tolist()  # any row may stand anywhere
    out = emulator.load_matrices(memory.flatten().tolist(), rows, transposed)
    for n in range(4):
        matrix = memory[rows[8 * n : 8 * n + 8]]
        matrix = matrix.T if transposed else matrix
        for lane in LANES:
            row, pair = lane // 4, lane % 4
            low, high = matrix[row, 2 * pair].item(), matrix[row, 2 * pair + 1].item()
            assert out[lane][n] == low | high << 16


def test_shuffles(emulator: Any) -> None:
    values = torch.randn(32).tolist()
    full = 0xFFFFFFFF
    assert emulator.shuffle("xor", values, 5, full) == [values[lane ^ 5] for lane in LANES]
    assert emulator.shuffle("index", values, 7, full) == [values[7]] * 32
    assert emulator.shuffle("down", values, 3, full) == [values[lane + 3 if lane + 3 < 32 else lane] for lane in LANES]


def test_shuffles_of_some_lanes(emulator: Any) -> None:
    values = torch.randn(32).tolist()
    mask = 0x000000FF
    out = emulator.shuffle("xor", values, 4, mask)
    assert out[:8] == [values[lane ^ 4] for lane in range(8)]
    assert out[8:] == [0.0] * 24
    with pytest.raises(emulator.KernelFault, match=r"divergence.*reads lane 16, which is not in its mask"):
        emulator.shuffle("index", values, 16, mask)
