"""The gate's arithmetic."""

from __future__ import annotations

import math

import pytest
import torch

from tilewright.verify.tolerance import Errors, Scale, compare, magnitude, measure

EPS = torch.finfo(torch.float32).eps


def _errors(largest: float, mean: float, count: int = 100) -> Errors:
    return Errors(largest, mean * count, count, 0)


def _verdict(max_error: float, mean_error: float, torch_max: float = 1.0, torch_mean: float = 0.1) -> bool:
    scale = Scale(1.0, 50.0, 100)
    return compare(
        "out", torch.float32, [_errors(max_error, mean_error)], [_errors(torch_max, torch_mean)], [scale]
    ).passed


def test_limits_are_ratios_of_torchs_errors() -> None:
    assert _verdict(1.5, 0.11)
    assert not _verdict(1.51, 0.1)
    assert not _verdict(1.0, 0.1101)


def test_floors_are_one_rounding_of_the_result() -> None:
    assert _verdict(EPS, 0.5 * 0.25 * EPS, 0.0, 0.0)
    assert not _verdict(1.01 * EPS, 0.0, 0.0, 0.0)
    assert not _verdict(0.0, 0.5 * 0.26 * EPS, 0.0, 0.0)


def test_draws_are_pooled() -> None:
    scales = [Scale(0.0, 0.0, 100)] * 2
    pooled = compare(
        "out", torch.float32, [_errors(2.0, 0.2), _errors(1.0, 0.0)], [_errors(1.0, 0.1), _errors(2.0, 0.1)], scales
    )
    assert pooled.passed
    assert pooled.max_error == 1.5
    assert pooled.mean_error == pytest.approx(0.1)


def test_one_draw_far_off_fails_whatever_the_average() -> None:
    scales = [Scale(0.0, 0.0, 100)] * 64
    ours = [_errors(16.0, 0.1), *[_errors(1.0, 0.1)] * 63]
    assert "in one draw" in str(compare("out", torch.float32, ours, [_errors(1.0, 0.1)] * 64, scales).problem)


def test_float64_allows_for_the_references_own_error() -> None:
    torch_errors, scale = [_errors(1.0, 0.1)], [Scale(0.0, 0.0, 100)]
    assert compare("out", torch.float64, [_errors(4.5, 0.41)], torch_errors, scale).passed
    assert not compare("out", torch.float64, [_errors(4.6, 0.1)], torch_errors, scale).passed
    assert not compare("out", torch.float64, [_errors(1.0, 0.42)], torch_errors, scale).passed


def test_measure_counts_what_is_not_finite() -> None:
    reference = torch.tensor([1.0, -math.inf, 2.0], dtype=torch.float64)
    assert measure(torch.tensor([1.5, -math.inf, 2.0]), reference) == Errors(0.5, 0.5, 2, 0)
    for wrong in ([1.0, math.inf, 2.0], [1.0, 0.0, 2.0], [math.nan, -math.inf, 2.0], [1.0, math.nan, 2.0]):
        assert measure(torch.tensor(wrong), reference).misplaced == 1


def test_what_is_too_large_for_the_dtype_should_be_an_infinity() -> None:
    reference = torch.tensor([1e39, -1e39], dtype=torch.float64)
    assert measure(torch.tensor([math.inf, -math.inf]), reference).misplaced == 0
    assert measure(torch.tensor([math.inf, math.inf]), reference).misplaced == 1


def test_a_misplaced_element_fails_however_small_the_errors() -> None:
    wrong = Errors(0.0, 0.0, 100, 1, "nan at [0]")
    assert not compare("out", torch.float32, [wrong], [_errors(1.0, 1.0)], [Scale(1.0, 1.0, 100)]).passed


def test_a_reference_with_nan_is_an_error_of_the_case() -> None:
    with pytest.raises(ValueError, match="the case itself is wrong"):
        measure(torch.zeros(1), torch.tensor([math.nan], dtype=torch.float64))


def test_empty_tensors_pass() -> None:
    empty = torch.empty(0, dtype=torch.float64)
    errors, scale = measure(empty, empty), magnitude(empty)
    assert compare("out", torch.float32, [errors], [errors], [scale]).passed


def test_half_precision_has_its_own_floor() -> None:
    eps = torch.finfo(torch.bfloat16).eps
    scale = Scale(2.0, 100.0, 100)
    assert compare("out", torch.bfloat16, [_errors(2 * eps, 0.0)], [_errors(0.0, 0.0)], [scale]).passed
    assert not compare("out", torch.float32, [_errors(2 * eps, 0.0)], [_errors(0.0, 0.0)], [scale]).passed
