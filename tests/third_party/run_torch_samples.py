"""PyTorch's own sample inputs of attention, and of the layers made of it, inside tilewright.replace_sdpa().

torch installs the samples that its tests of every operator and module are made of (torch.testing._internal, which needs
expecttest). For each of them, in four dtypes: outputs and gradients with our kernels against torch's own, and for
scaled_dot_product_attention in float64 also gradcheck with forward mode and batched gradients, and gradgradcheck. The
distance to torch's float64 result is compared with that of torch's own result.

    python tests/third_party/run_torch_samples.py

A line for each operator or module, and torch_samples.json. The exit status is 0 when everything agrees.
"""

from __future__ import annotations

import copy
import json
import math
import platform
import statistics
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.testing._internal.common_methods_invocations import op_db
from torch.testing._internal.common_modules import module_db

import tilewright
from tilewright.integrations.replace_sdpa import replace_sdpa

HERE = Path(__file__).parent
DTYPES = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
OPERATOR = "nn.functional.scaled_dot_product_attention"
MODULES = (
    "nn.MultiheadAttention",
    "nn.TransformerEncoderLayer",
    "nn.TransformerDecoderLayer",
    "nn.TransformerEncoder",
    "nn.Transformer",
)

#: The samples ask for the attention weights, which no attention kernel computes: the same calls without.
WITHOUT_WEIGHTS = {"nn.MultiheadAttention": {"need_weights": False}}

#: A sample's error is the mean over its tensors of their largest errors. The median sample's may be RATIO times that of
#: torch; the worst is chance, in layers that normalise a few numbers. In float64 torch's result is the yardstick, and
#: may be off as far, in roundings, as its float32 result is: twice that is allowed.
RATIO, RATIO_IN_DOUBLE = 1.1, 2.0


def tensors_of(value: Any) -> list[Tensor]:
    return [t for t in torch.utils._pytree.tree_leaves(value) if isinstance(t, Tensor)]


@dataclass
class Sample:
    """A call of an operator or a module."""

    function: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: dict[str, Any]

    def evaluate(self) -> list[Tensor | None]:
        """Outputs, and gradients of everything that may have one."""
        outputs = [t for t in tensors_of(self.function(*self.args, **self.kwargs)) if t.is_floating_point()]
        leaves = [t for t in tensors_of((self.args, self.kwargs)) if t.requires_grad]
        if isinstance(self.function, torch.nn.Module):
            leaves += self.function.parameters()
        wanted = [o for o in outputs if o.requires_grad]
        if not wanted:
            return list(outputs)
        weights = [torch.linspace(-1, 1, o.numel(), dtype=o.dtype).view(o.shape) for o in wanted]
        return [*outputs, *torch.autograd.grad(wanted, leaves, weights, allow_unused=True)]

    def in_double(self) -> Sample:
        def convert(value: Any) -> Any:
            if not isinstance(value, Tensor) or not value.is_floating_point():
                return value
            return value.detach().double().requires_grad_(value.requires_grad)

        function = self.function
        if isinstance(function, torch.nn.Module):
            function = copy.deepcopy(function).double()
        return Sample(function, *torch.utils._pytree.tree_map(convert, (self.args, self.kwargs)))


def has_dropout(sample: Any) -> bool:
    """Dropout's masks differ."""
    return sample.kwargs.get("dropout_p", 0.0) > 0.0


def operator_samples(name: str, dtype: torch.dtype) -> Iterator[Sample]:
    (info,) = (op for op in op_db if op.name == name)
    for s in info.sample_inputs("cpu", dtype, requires_grad=True):
        if not has_dropout(s):
            yield Sample(info.op, (s.input, *s.args), s.kwargs)


def module_samples(name: str, dtype: torch.dtype) -> Iterator[Sample]:
    (info,) = (module for module in module_db if module.name == name)
    for training in (True, False):
        for s in info.module_inputs_func(info, device="cpu", dtype=dtype, requires_grad=True, training=training):
            made, call = s.constructor_input, s.forward_input
            if call is None:
                continue
            module = info.module_cls(*made.args, **made.kwargs).to(dtype).train(training)
            for part in module.modules():
                if isinstance(part, torch.nn.Dropout):
                    part.p = 0.0
                if isinstance(part, torch.nn.MultiheadAttention):
                    part.dropout = 0.0
            yield Sample(module, call.args, {**call.kwargs, **WITHOUT_WEIGHTS.get(name, {})})


def error(found: Tensor, truth: Tensor) -> float:
    """The largest distance, in roundings of the largest number of the tensor."""
    if truth.numel() == 0:
        return 0.0
    if not torch.equal(found.isnan(), truth.isnan()):
        return math.inf
    rounding = torch.finfo(found.dtype).eps * max(1.0, truth.nan_to_num(0.0).abs().max().item())
    return float((found.double() - truth).nan_to_num(0.0).abs().max() / rounding)


def compare(samples: Iterator[Sample], block: replace_sdpa) -> dict[str, Any]:
    """How many samples were compared, or raised both ways, and the worst errors."""
    compared = raised = 0
    errors: dict[str, list[float]] = {"tilewright": [], "torch": []}
    for sample in samples:
        try:
            torchs = sample.evaluate()
        except (RuntimeError, AssertionError, ValueError) as refusal:
            with block:
                try:
                    sample.evaluate()
                except type(refusal):
                    raised += 1
                    continue
            raise AssertionError(f"torch refuses what tilewright serves: {sample}") from refusal
        truth = sample.in_double().evaluate()
        with block:
            ours = sample.evaluate()
        of_sample: dict[str, list[float]] = {"tilewright": [], "torch": []}
        for mine, theirs, true in zip(ours, torchs, truth, strict=True):
            assert (mine is None) == (theirs is None), f"a gradient is missing: {sample}"
            if mine is not None and theirs is not None and true is not None:
                of_sample["tilewright"].append(error(mine, true))
                of_sample["torch"].append(error(theirs, true))
        for who, found in of_sample.items():
            errors[who].append(sum(found) / len(found))
        compared += 1
    return {
        "compared": compared,
        "raise_both_ways": raised,
        "median_error_in_roundings": {who: statistics.median(found) for who, found in errors.items()},
        "worst_error_in_roundings": {who: max(found) for who, found in errors.items()},
    }


def differentiate(block: replace_sdpa) -> int:
    """Numerical derivatives of SDPA in float64; how many samples."""
    checked = 0
    (info,) = (op for op in op_db if op.name == OPERATOR)
    for s in info.sample_inputs("cpu", torch.float64, requires_grad=True):
        if has_dropout(s):
            continue
        inputs = [s.input, *s.args]

        def function(*tensors: Tensor, s: Any = s) -> Any:
            return info.op(*tensors, **s.kwargs)

        with block:
            torch.autograd.gradcheck(function, inputs, fast_mode=True, check_forward_ad=True, check_batched_grad=True)
            torch.autograd.gradgradcheck(function, inputs, fast_mode=True)
        checked += 1
    return checked


def main() -> int:
    results: dict[str, Any] = {}
    bad = []
    for name in (OPERATOR, *MODULES):
        samples = operator_samples if name == OPERATOR else module_samples
        for dtype in DTYPES:
            block = replace_sdpa()
            torch.manual_seed(0)
            found = compare(samples(name, dtype), block)
            key = f"{name} {str(dtype).removeprefix('torch.')}"
            results[key] = {**found, "served": block.served, "refused": dict(block.refused)}
            print(f"{key}: {results[key]}", flush=True)
            medians = found["median_error_in_roundings"]
            if dtype == torch.float64:
                in_double = medians["tilewright"]
            elif medians["tilewright"] > RATIO * medians["torch"]:
                bad.append(key)
            if dtype == torch.float32 and in_double > RATIO_IN_DOUBLE * medians["torch"]:
                bad.append(f"{name} float64")
    block = replace_sdpa("cpu")
    results[f"derivatives of {OPERATOR}"] = {"checked": differentiate(block), "served": block.served}
    environment = {
        "tilewright": tilewright.__version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "machine": platform.machine(),
    }
    record = {"environment": environment, "results": results}
    (HERE / "torch_samples.json").write_text(json.dumps(record, indent=2) + "\n")
    print("all agree" if not bad else f"disagree: {bad}")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
