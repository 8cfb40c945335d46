"""The accuracy gate: a kernel's distance from float64, held against the distance of PyTorch's own implementation.

    max error  <= 1.5 * torch's max error  + floor        mean error <= 1.1 * torch's mean error + floor

The gate is the same on every machine, for every output and every gradient.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

import torch
from torch import Tensor

MAX_RATIO = 1.5
MEAN_RATIO = 1.1

# The floors are what storing the result costs, so that a kernel is not failed because torch's own errors happened to
# cancel to zero. eps is the gap between 1.0 and the next number of the tensor's dtype.
#   max:  eps * max|reference| is one to two units in the last place of the largest element: one rounding of the result
#         (half a unit) and one of the value that was rounded.
#   mean: rounding once to nearest errs by a quarter of a unit on average, and a unit is at most eps * |element|.
MAX_FLOOR = 1.0
MEAN_FLOOR = 0.25

# For float64 tensors the reference has only their own precision, so that neither its error nor torch's can be measured.
# Torch's is taken to be that of its float32 computation on the same numbers, rounded, in float64's units, or its
# distance from the reference where that is more: what float32 rounds to 1 has no error there. To the reference,
# whose error is part of the distance, three times as much is allowed: against 80-bit numbers a float64 product over 512
# terms (MKL) was off by up to 2.6 times as many units as the float32 one.
REFERENCE_PART = 3.0
FLOAT64_SCALE = torch.finfo(torch.float64).eps / torch.finfo(torch.float32).eps

# Where several draws decide, the largest error of one may not be this many times the limit: that is not chance.
HOPELESS = 10.0


@dataclass(frozen=True)
class Errors:
    """Distances of one tensor from the reference, over the elements where the reference is finite.

    largest, total: of the absolute errors; count: elements; misplaced: elements that are not finite where the reference
    is, or are not the same infinity where it is not.
    """

    largest: float
    total: float
    count: int
    misplaced: int
    first_misplaced: str = ""

    @property
    def mean(self) -> float:
        return self.total / self.count if self.count else 0.0


@dataclass(frozen=True)
class Scale:
    """Magnitude of a reference tensor: what the floors are proportional to."""

    largest: float
    total: float
    count: int

    @property
    def mean(self) -> float:
        return self.total / self.count if self.count else 0.0


@dataclass(frozen=True)
class Comparison:
    """One output, or gradient (``d`` + its argument's name), of a case: errors, torch's errors, limits, the verdict."""

    tensor: str
    max_error: float
    mean_error: float
    torch_max_error: float
    torch_mean_error: float
    max_limit: float
    mean_limit: float
    problem: str | None

    @property
    def passed(self) -> bool:
        return self.problem is None

    @property
    def used(self) -> float:
        """The larger of error / limit, for max and mean; above 1 is a failure."""
        return max(_ratio(self.max_error, self.max_limit), _ratio(self.mean_error, self.mean_limit))


def _ratio(error: float, limit: float) -> float:
    if math.isnan(error):
        return math.inf
    return 0.0 if error == 0.0 else (error / limit if limit > 0.0 else math.inf)


def measure(actual: Tensor, reference: Tensor) -> Errors:
    """``actual``, of any dtype, against ``reference``, float64, of the same shape."""
    if reference.isnan().any():
        raise ValueError("the float64 reference holds NaN: the case itself is wrong")
    wide = actual.detach().to(torch.float64)
    # What is too large for the dtype should be an infinity.
    stored = reference.to(actual.dtype).to(torch.float64)
    reference = torch.where(stored.isinf(), stored, reference)
    finite = reference.isfinite()
    # Infinities count as misplaced unless the reference has the same one in the same place; NaN equals nothing.
    misplaced = torch.where(finite, ~wide.isfinite(), wide != reference)
    difference = (wide - reference).abs().masked_fill(~finite | misplaced, 0.0)
    count = int(misplaced.sum())
    first = ""
    if count:
        position = misplaced.nonzero()[0].tolist()
        index = tuple(position)
        first = f"{float(wide[index])} at {position} where the reference is {float(reference[index]):.6g}"
    largest = float(difference.max()) if difference.numel() else 0.0
    return Errors(largest, float(difference.sum()), int(finite.sum()), count, first)


def magnitude(reference: Tensor) -> Scale:
    finite = reference.masked_fill(~reference.isfinite(), 0.0).abs()
    return Scale(float(finite.max()) if finite.numel() else 0.0, float(finite.sum()), int(reference.isfinite().sum()))


def compare(
    tensor: str, dtype: torch.dtype, ours: Sequence[Errors], torch_errors: Sequence[Errors], scales: Sequence[Scale]
) -> Comparison:
    """The verdict on one tensor over all draws of its case: mean errors of all elements, largest errors on average."""
    joint = _limits(dtype, ours, torch_errors, scales)
    problem = joint.problem
    for own, of_torch, scale in zip(ours, torch_errors, scales, strict=True):
        # A draw of larger numbers has a larger limit of its own.
        limit = max(joint.max_limit, _limits(dtype, [own], [of_torch], [scale]).max_limit)
        if problem is None and own.largest > HOPELESS * limit:
            problem = f"max error {own.largest:.3g} in one draw, more than {HOPELESS:g} times the limit of {limit:.3g}"
    return dataclasses.replace(joint, tensor=tensor, problem=problem)


def _limits(
    dtype: torch.dtype, ours: Sequence[Errors], torch_errors: Sequence[Errors], scales: Sequence[Scale]
) -> Comparison:
    eps = torch.finfo(dtype).eps
    own = REFERENCE_PART if dtype == torch.float64 else 0.0
    max_error, torch_max = fmean([e.largest for e in ours]), fmean([e.largest for e in torch_errors])
    mean_error, torch_mean = _mean(ours), _mean(torch_errors)
    max_limit = (MAX_RATIO + own) * torch_max + MAX_FLOOR * eps * fmean([s.largest for s in scales])
    mean_limit = (MEAN_RATIO + own) * torch_mean + MEAN_FLOOR * eps * _mean(scales)
    problem = None
    wrong = next((e for e in ours if e.misplaced), None)
    if wrong is not None:
        problem = f"{wrong.misplaced} elements not finite, or the wrong infinity; the first is {wrong.first_misplaced}"
        max_error = mean_error = math.nan
    elif max_error > max_limit:
        ratio = MAX_RATIO + own
        problem = f"max error {max_error:.3g} > {max_limit:.3g} = {ratio} * torch's {torch_max:.3g} + floor"
    elif mean_error > mean_limit:
        ratio = MEAN_RATIO + own
        problem = f"mean error {mean_error:.3g} > {mean_limit:.3g} = {ratio} * torch's {torch_mean:.3g} + floor"
    return Comparison("", max_error, mean_error, torch_max, torch_mean, max_limit, mean_limit, problem)


def _mean(parts: Sequence[Errors] | Sequence[Scale]) -> float:
    count = sum(p.count for p in parts)
    return sum(p.total for p in parts) / count if count else 0.0


def scaled(errors: Errors, factor: float) -> Errors:
    return dataclasses.replace(errors, largest=errors.largest * factor, total=errors.total * factor)


def larger(a: Errors, b: Errors) -> Errors:
    """By their largest and their sum. What is misplaced is a's."""
    return dataclasses.replace(a, largest=max(a.largest, b.largest), total=max(a.total, b.total))
