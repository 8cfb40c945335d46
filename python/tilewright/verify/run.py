"""Running a case: a backend against float64 reference math and PyTorch's own same-dtype implementation.

A backend is called twice on the same memory. The first call sees other numbers; what it returned must survive the
second, and the second must not repeat it. (Of further draws, for accuracy, it is called once.) All memory that torch
hands out meanwhile is filled with NaN, so that an element which the kernel did not write shows. Inputs lie between
guard bytes and must come out bit for bit as they went in.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .. import registry
from ..catalog import OPS, canonical_call
from ..errors import BackendError
from .baseline import run_baseline
from .case import Case, Maker
from .record import Record
from .tolerance import FLOAT64_SCALE, HOPELESS, Comparison, Errors, Scale, compare, larger, magnitude, measure, scaled
from .traps import one_thread, overwrite, poisoned, same_bits, same_numbers

# The gate compares two random quantities, and a case of a few elements is a small sample of both. Where the first draw
# misses the gate, errors pooled over more draws decide, under the same limits. They go on until there are this many
# elements (many, since the errors within a row go together), in steps to at most so many draws, each while a tensor
# takes more than that share of the gate: few draws of few elements, with a sampling error of a tenth, settle what is
# well within it, and no miss.
POOLED_ELEMENTS = 32768
POOLED_DRAWS = ((16, 1.0), (64, 0.8), (512, 1.0))
FEW_ELEMENTS = 64


@dataclass
class _Result:
    """Outputs by name, gradients by ``d`` + the argument's name, and how the outputs should lie in memory."""

    tensors: dict[str, Tensor]
    problems: list[str] = field(default_factory=list)


@dataclass
class _Draw:
    """One set of inputs with the reference's and torch's results on it."""

    maker: Maker
    arguments: dict[str, Any]
    upstream: dict[str, Tensor]
    seed: int
    reference: dict[str, Tensor]
    torch_errors: dict[str, Errors]
    scales: dict[str, Scale]


def run_case(case: Case, backends: Sequence[str], seed: int = 0) -> list[Record]:
    """One record per backend, in that order. Torch's global random state is left as it was.

    Everything about a backend happens where its kernels run (:func:`tilewright.registry.home`), PyTorch's own
    implementation and the reference included.
    """
    homes = [torch.device(registry.home(backend)) for backend in backends]
    with torch.random.fork_rng(devices=range(torch.cuda.device_count() if torch.device("cuda") in homes else 0)):
        draws = {home: [_draw(case, seed, home)] for home in dict.fromkeys(homes)}
        return [_run_backend(case, backend, seed, draws[home]) for backend, home in zip(backends, homes, strict=True)]


def results(case: Case, backend: str, seed: int = 0) -> dict[str, Tensor]:
    """Outputs and gradients (``d`` + the argument's name) of a backend on the inputs that the case is verified with."""
    _, arguments, upstream = _inputs(case, backend, seed)
    found = _evaluate(case, arguments, upstream, seed, backend)
    if found.problems:
        raise ValueError(f"{case.id}: {'; '.join(found.problems)}")
    return found.tensors


class Prepared(NamedTuple):
    """A call of a case, on inputs that are there already. blocks: the memory that they lie in."""

    call: Callable[[], dict[str, Tensor]]
    blocks: list[Tensor]


def prepare(case: Case, backend: str, seed: int = 0) -> Prepared:
    """Nothing but the op's call and its gradients, for streams and CUDA graphs. Its results are those of
    :func:`results`, unless the case draws random numbers."""
    maker, arguments, upstream = _inputs(case, backend, seed)
    names = tuple(_expected_layouts(case, arguments))
    leaves = _leaves(case, arguments)

    def call() -> dict[str, Tensor]:
        returned = OPS[case.op][1](**leaves, backend=backend)
        outputs = dict(zip(names, returned if isinstance(returned, tuple) else (returned,), strict=True))
        gradients = _gradients(case, leaves, outputs, upstream, zeros=False)
        return {n: t.detach() for n, t in {**outputs, **gradients}.items()}

    return Prepared(call, maker.blocks)


def _inputs(case: Case, backend: str, seed: int) -> tuple[Maker, dict[str, Any], dict[str, Tensor]]:
    maker = Maker(seed, case.dtype, torch.device(registry.home(backend)))
    arguments = case.make(maker)
    return maker, arguments, _make_upstream(case, maker, arguments)


def _run_backend(case: Case, backend: str, seed: int, draws: list[_Draw]) -> Record:
    """``draws`` grows when more are needed, and is shared by the backends of one device."""
    start = time.perf_counter()
    reason = registry.why_not(case.op, backend, canonical_call(case.op, **draws[0].arguments)[0])
    if reason is not None:
        return Record(case, backend, "refused", problems=(reason,))
    errors: dict[str, list[Errors]] = {}
    problems = _one_draw(case, backend, draws[0], errors)
    comparisons, used = _compare(case, draws, errors), 1
    for most, share in POOLED_DRAWS:
        if problems or not _undecided(draws[:used], comparisons, share):
            break
        wanted = _draws_wanted(draws[0], comparisons, most, share)
        while used < wanted and not problems:
            if len(draws) == used:
                draws.append(_draw(case, seed + 1000 * used, draws[0].maker.device))
            problems = _one_draw(case, backend, draws[used], errors)
            used += 1
        comparisons = _compare(case, draws, errors)
    problems = problems + [f"{c.tensor}: {c.problem}" for c in comparisons if c.problem is not None]
    status = "failed" if problems else "passed"
    return Record(case, backend, status, tuple(comparisons), tuple(problems), used, time.perf_counter() - start)


def _takes(comparison: Comparison, share: float) -> bool:
    """Whether a tensor takes more than this share of the gate."""
    return not comparison.passed or comparison.used > share


def _undecided(draws: Sequence[_Draw], comparisons: Sequence[Comparison], share: float) -> bool:
    """Some tensor takes more than the share, and none misses by so much that chance is out of the question.

    Of a few elements' errors torch's may all be 0 by chance; that says nothing. Nor do those of many that are the same.
    """

    def few(tensor: str) -> bool:
        distinct: int = sum(d.reference[tensor].unique().numel() for d in draws)
        return distinct < FEW_ELEMENTS

    return any(_takes(c, share) for c in comparisons) and all(c.used < HOPELESS or few(c.tensor) for c in comparisons)


def _draws_wanted(draw: _Draw, comparisons: Sequence[Comparison], most: int, share: float) -> int:
    smallest = min(max(draw.scales[c.tensor].count, 1) for c in comparisons if _takes(c, share))
    return min(max(-(-POOLED_ELEMENTS // smallest), POOLED_DRAWS[0][0]), most)


def _compare(case: Case, draws: Sequence[_Draw], errors: Mapping[str, list[Errors]]) -> list[Comparison]:
    """One comparison per tensor, over the draws that the backend has been run on."""
    comparisons = []
    for name, found in errors.items():
        seen = draws[: len(found)]
        torch_errors, scales = [d.torch_errors[name] for d in seen], [d.scales[name] for d in seen]
        comparisons.append(compare(name, _dtype_of(case, seen[0], name), found, torch_errors, scales))
    return comparisons


def _dtype_of(case: Case, draw: _Draw, tensor: str) -> torch.dtype:
    """By the contract: an argument's dtype for its gradient, float32 or better for lse, the case's for the rest."""
    if tensor.startswith("d") and tensor[1:] in case.gradients:
        dtype: torch.dtype = draw.arguments[tensor[1:]].dtype
        return dtype
    return torch.promote_types(case.dtype, torch.float32) if tensor == "lse" else case.dtype


def _draw(case: Case, seed: int, device: torch.device) -> _Draw:
    # On one thread: the tensors are small, and on a busy machine threads cost far more by waiting than they save.
    with one_thread():
        return _judge(case, seed, device)


def _judge(case: Case, seed: int, device: torch.device) -> _Draw:
    """Inputs, the float64 reference on them and torch's errors."""
    maker = Maker(seed, case.dtype, device)
    arguments = case.make(maker)
    upstream = _make_upstream(case, maker, arguments)
    wide = {n: _copy(v, torch.float64) for n, v in arguments.items()}
    wide_upstream = {n: g.to(torch.float64) for n, g in upstream.items()}
    expected = _evaluate(case, wide, wide_upstream, seed, "reference")
    if expected.problems:
        raise ValueError(f"{case.id}: the reference itself: {'; '.join(expected.problems)}")
    torch_errors = _torch_errors(case, arguments, upstream, expected.tensors, seed)
    if case.dtype == torch.float64:
        narrow = _judge(dataclasses.replace(case, dtype=torch.float32), seed, device)
        torch_errors = {n: larger(e, scaled(narrow.torch_errors[n], FLOAT64_SCALE)) for n, e in torch_errors.items()}
    scales = {n: magnitude(t) for n, t in expected.tensors.items()}
    mutated = OPS[case.op][0].mutates
    reference = {**expected.tensors, **{n: wide[n] for n in mutated}}
    return _Draw(maker, arguments, upstream, seed, reference, torch_errors, scales)


def _seed(seed: int) -> None:
    """Of every generator that an op may draw from."""
    torch.default_generator.manual_seed(seed)
    if torch.cuda.is_initialized():
        torch.cuda.manual_seed_all(seed)


def _torch_errors(
    case: Case, arguments: dict[str, Any], upstream: dict[str, Tensor], expected: dict[str, Tensor], seed: int
) -> dict[str, Errors]:
    _seed(seed)
    same = {n: _copy(v, None) for n, v in arguments.items()}
    leaves = _leaves(case, same)
    outputs = run_baseline(case.op, leaves, case.output_gradients)
    found = {**outputs, **_gradients(case, leaves, outputs, upstream, zeros=True)}
    # Where torch gives NaN and the contract does not (overflow in half precision), its error is that of the others.
    return {n: measure(found[n], expected[n]) for n in expected}


def _make_upstream(case: Case, maker: Maker, arguments: dict[str, Any]) -> dict[str, Tensor]:
    """A gradient for each output that gets one, in the output's dtype."""
    if not case.gradients:
        return {}
    layouts = _expected_layouts(case, arguments)
    upstream = {}
    for name in case.output_gradients or (next(iter(layouts)),):
        shape, dtype, _ = layouts[name]
        if case.upstream == "expanded":
            upstream[name] = maker.place(maker.draw_normal(1).to(dtype)).expand(shape)
        elif case.upstream == "rows":
            upstream[name] = maker.place(maker.draw_normal(shape[-1]).to(dtype)).expand(shape)
        elif case.upstream == "transposed" and len(shape) > 1:
            order = (*range(len(shape) - 2), len(shape) - 1, len(shape) - 2)
            upstream[name] = maker.place(maker.draw_normal(*shape).to(dtype), order=order)
        else:
            upstream[name] = maker.place(maker.draw_normal(*shape).to(dtype))
    return upstream


def _expected_layouts(
    case: Case, arguments: dict[str, Any]
) -> dict[str, tuple[tuple[int, ...], torch.dtype, tuple[int, ...]]]:
    """Shape, dtype and strides that the contract promises for each public output."""
    op = OPS[case.op][0]
    call, _ = canonical_call(case.op, **arguments)
    layouts = {}
    for name, t in zip(op.outputs, op.allocate(call), strict=True):
        if name in op.intermediates or (name == "lse" and not arguments.get("return_lse")):
            continue
        if name == "out" and arguments.get("layout") == "bshd":
            t = t.transpose(1, 2)
        if case.op == "ffn":
            t = t.view(*arguments["x"].shape[:-1], t.shape[-1])
        layouts[name] = (tuple(t.shape), t.dtype, t.stride())
    return layouts


def _copy(value: Any, dtype: torch.dtype | None) -> Any:
    """A copy in the same memory order; floats change to ``dtype``."""
    if not isinstance(value, Tensor):
        return value
    if dtype is None or not value.is_floating_point():
        return value.clone()
    return value.to(dtype, copy=True)


def _leaves(case: Case, arguments: dict[str, Any]) -> dict[str, Any]:
    """The arguments with those that need a gradient as autograd leaves on the same memory."""
    return {n: v.detach().requires_grad_() if n in case.gradients else v for n, v in arguments.items()}


def _gradients(
    case: Case, leaves: dict[str, Any], outputs: dict[str, Tensor], upstream: dict[str, Tensor], *, zeros: bool
) -> dict[str, Tensor]:
    if not case.gradients:
        return {}
    found = torch.autograd.grad(
        [outputs[n] for n in upstream],
        [leaves[n] for n in case.gradients],
        list(upstream.values()),
        allow_unused=True,
        materialize_grads=zeros,
    )
    return {f"d{n}": g for n, g in zip(case.gradients, found, strict=True) if g is not None}


def _evaluate(case: Case, arguments: dict[str, Any], upstream: dict[str, Tensor], seed: int, backend: str) -> _Result:
    """The public op and its gradients on ``arguments``; problems are what it gets wrong about the contract."""
    leaves = _leaves(case, arguments)
    _seed(seed)
    returned = OPS[case.op][1](**leaves, backend=backend)
    returned = returned if isinstance(returned, tuple) else (returned,)
    layouts = _expected_layouts(case, arguments)
    problems = []
    if len(returned) != len(layouts):
        problems.append(f"{len(returned)} outputs instead of {len(layouts)}")
    outputs = dict(zip(layouts, returned, strict=False))
    for name, t in outputs.items():
        problems += _check_layout(name, t, *layouts[name])
    if problems:
        return _Result(outputs, problems)
    gradients = _gradients(case, leaves, outputs, upstream, zeros=False)
    for name in case.gradients:
        g = gradients.get(f"d{name}")
        if g is None:
            problems.append(f"d{name}: no gradient")
        else:
            problems += _check_layout(f"d{name}", g, tuple(arguments[name].shape), arguments[name].dtype, None)
    return _Result({n: t.detach() for n, t in {**outputs, **gradients}.items()}, problems)


def _check_layout(
    name: str, t: Tensor, shape: tuple[int, ...], dtype: torch.dtype, strides: tuple[int, ...] | None
) -> list[str]:
    if tuple(t.shape) != shape:
        return [f"{name}: shape {tuple(t.shape)} instead of {shape}"]
    if t.dtype != dtype:
        return [f"{name}: dtype {t.dtype} instead of {dtype}"]
    if (
        strides is not None
        and t.numel()
        and any(n > 1 and a != b for n, a, b in zip(shape, t.stride(), strides, strict=True))
    ):
        return [f"{name}: strides {t.stride()} instead of {strides}"]
    return []


def _one_draw(case: Case, backend: str, draw: _Draw, errors: dict[str, list[Errors]]) -> list[str]:
    """Run the backend on one draw, add its errors, and return the problems that are not about accuracy.

    What one draw shows is asked of the first alone: later ones, of which there may be hundreds, are there for accuracy.
    """
    first, blocks, before = not errors, draw.maker.blocks, [b.clone() for b in draw.maker.blocks]
    try:
        with poisoned(), one_thread() if backend == "reference" else nullcontext():
            earlier = _earlier_call(case, backend, draw, before) if first else {}
            found = _evaluate(case, draw.arguments, draw.upstream, draw.seed, backend)
        problems = _check_inputs(case, draw, before)
        changed = [n for n, (t, kept) in earlier.items() if not same_bits(t, kept)]
        problems += [f"{n}: the first call's result changed during the second" for n in changed]
        if case.bitwise and first and not problems:
            overwrite(blocks, before)
            again = _evaluate(case, draw.arguments, draw.upstream, draw.seed, backend)
            problems += [
                f"{n}: differs between two runs" for n, t in again.tensors.items() if not same_bits(t, found.tensors[n])
            ]
    except BackendError as error:
        return [f"raised although it had not refused: {error}"]
    except Exception as error:  # whatever a kernel raises is its failure on this case, and the other cases go on
        return [f"raised {type(error).__name__}: {error}"]
    finally:
        overwrite(blocks, before)
    problems += found.problems
    if not problems:
        for name, t in found.tensors.items():
            errors.setdefault(name, []).append(measure(t, draw.reference[name]))
    return problems


def _earlier_call(case: Case, backend: str, draw: _Draw, before: list[Tensor]) -> dict[str, tuple[Tensor, Tensor]]:
    """What a call on the same memory with other numbers returned, each with a copy. The memory is then as it was."""
    blocks = draw.maker.blocks
    other = Maker(draw.seed + 1, case.dtype, draw.maker.device)
    _make_upstream(case, other, case.make(other))
    overwrite(blocks, other.blocks)
    found = _evaluate(case, draw.arguments, draw.upstream, draw.seed + 1, backend)
    kept = {n: (t, t.clone()) for n, t in found.tensors.items()}
    overwrite(blocks, before)
    # A gradient may be passed through: then it is one of the inputs, which have just been overwritten.
    own = {b.untyped_storage().data_ptr() for b in blocks}
    return {n: (t, copy) for n, (t, copy) in kept.items() if t.untyped_storage().data_ptr() not in own}


def _check_inputs(case: Case, draw: _Draw, before: Sequence[Tensor]) -> list[str]:
    """Inputs and their surroundings are unchanged; arguments that the op updates hold what the reference put there."""
    problems = []
    for name in OPS[case.op][0].mutates:
        argument = draw.arguments[name]
        if not same_numbers(argument, draw.reference[name].to(argument.dtype)):
            problems.append(f"{name}: not what it should hold after the call")
        index = next(
            i
            for i, b in enumerate(draw.maker.blocks)
            if b.untyped_storage().data_ptr() == argument.untyped_storage().data_ptr()
        )
        # The tensor itself has been judged; what is left of its block is its surroundings.
        argument.copy_(before[index].as_strided(argument.shape, argument.stride(), argument.storage_offset()))
    for block, kept in zip(draw.maker.blocks, before, strict=True):
        if not same_bits(block, kept):
            name = _owner(draw, block)
            problems.append(f"{name}: an input, or the memory around it, was changed")
    return problems


def _owner(draw: _Draw, block: Tensor) -> str:
    where = block.untyped_storage().data_ptr()
    named = {**draw.arguments, **{f"gradient of {n}": g for n, g in draw.upstream.items()}}
    found = [n for n, t in named.items() if isinstance(t, Tensor) and t.untyped_storage().data_ptr() == where]
    return ", ".join(found) or "a tensor"
