"""An op as torch.library has it: the operators, their fake kernels, their gradient, and what functorch maps."""

from __future__ import annotations

import typing
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.jit._trace import TracerWarning

from ..config import requested_backend
from ._checks import unit_last_stride
from ._memory import check_memory

if TYPE_CHECKING:
    from ._op import Op

_LIBRARY = torch.library.Library("tilewright", "DEF")

# torch.jit.trace warns of every comparison of sizes, since what it decided is not recorded. Those that the checks make
# decide nothing but whether to raise, and an operator takes any sizes.
warnings.filterwarnings("ignore", category=TracerWarning, module=r"tilewright\.(ops|integrations|nn)\.")

_TAGS = (
    torch.Tag.pt2_compliant_tag,
    # A compiled graph hands over tensors that lie as they were checked: kernels want a unit last stride.
    torch.Tag.needs_exact_strides,
)

_SCHEMA_TYPES = {
    Tensor: "Tensor",
    Tensor | None: "Tensor?",
    int: "SymInt",
    float: "float",
    bool: "bool",
    str: "str",
    str | None: "str?",
}


def _in_rows(op: Op, fields: Sequence[Any]) -> list[Any]:
    """Zero tensors, for one, come out of the dispatcher as one number, expanded."""
    return [unit_last_stride(t) if i in op._row_indices and t is not None else t for i, t in enumerate(fields)]


def _for_each_entry(function: Callable[..., Any], info: Any, in_dims: Sequence[int | None], *args: Any) -> Any:
    """The vmap rule: one call for each entry, so that every backend serves it, stacked along a new first dimension."""
    pairs = list(zip(args, in_dims, strict=True))
    entries: list[list[Any]] = [[a if d is None else a.select(d, i) for a, d in pairs] for i in range(info.batch_size)]
    if not entries:  # one call tells the shapes
        shapes = [None if d is None else [n for i, n in enumerate(a.shape) if i != d] for a, d in pairs]
        entries = [[a if s is None else a.new_zeros(s) for a, s in zip(args, shapes, strict=True)]]
    results = [function(*entry) for entry in entries]
    if isinstance(results[0], Tensor):
        return torch.stack(results)[: info.batch_size], 0
    stacked = [torch.stack(column)[: info.batch_size] for column in zip(*results, strict=True)]
    return type(results[0])(stacked), type(results[0])([0] * len(stacked))


@contextmanager
def _untraced() -> Iterator[None]:
    """torch.jit.trace records the operator. Inside, where sizes have to be numbers, it sees nothing."""
    state: Any = torch._C._get_tracing_state()
    if state is None:
        yield
        return
    torch._C._set_tracing_state(None)  # type: ignore[attr-defined]
    try:
        yield
    finally:
        torch._C._set_tracing_state(state)  # type: ignore[attr-defined]


def _laid_out_as(promised: Tensor, gradient: Tensor) -> Tensor:
    """A gradient with the strides that compiled code was promised. Backends differ in them."""
    return gradient if gradient.stride() == promised.stride() else promised.copy_(gradient)


def _schema_fields(op: Op) -> str:
    hints = typing.get_type_hints(op.call)
    parts = []
    for i, name in enumerate(op.call._fields):  # type: ignore[attr-defined]
        type_ = _SCHEMA_TYPES[hints[name]]
        if name in op.mutates:
            type_ = f"Tensor({chr(ord('a') + i)}!)"
        parts.append(f"{type_} {name}")
    return ", ".join(parts)


def register(op: Op) -> tuple[type[torch.autograd.Function], type[torch.autograd.Function]]:
    """Define torch.ops.tilewright.<name> and <name>_backward; return the autograd.Functions of plain eager calls and of
    functorch's, which wants its context set up apart from the forward, and that costs eager calls 10 us."""
    n_outputs, n_fields = len(op.outputs), len(op.call._fields)  # type: ignore[attr-defined]
    returns = ", ".join(f"Tensor {o}" for o in op.outputs)
    _LIBRARY.define(f"{op.name}({_schema_fields(op)}, str backend) -> ({returns})", tags=_TAGS)

    def unwrap(outputs: tuple[Tensor, ...]) -> Any:
        return outputs if n_outputs > 1 else outputs[0]

    def forward(*args: Any) -> Any:
        with _untraced():
            return implementation(*args)

    def implementation(*args: Any) -> Any:
        check_memory(op.name, [(op.call._fields[i], args[i]) for i in op._tensor_indices])  # type: ignore[attr-defined]
        return unwrap(op.run_forward(op.call(*_in_rows(op, args[:-1])), requested_backend(args[-1] or None)))

    def fake(*args: Any) -> Any:
        return unwrap(op.allocate(op.call(*args[:-1])))

    _LIBRARY.impl(op.name, forward, "CompositeExplicitAutograd")
    torch.library.register_fake(f"tilewright::{op.name}", fake, lib=_LIBRARY)

    class Eager(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, call: Any, requested: str, *_: Tensor | None) -> Any:
            outputs = op.run_forward(call, requested)
            op.save(ctx, call, requested, outputs)
            return outputs[: op._public_count] if op._public_count > 1 else outputs[0]

        @staticmethod
        def backward(ctx: Any, *grads: Tensor | None) -> Any:
            return (None, None, *op.gradients(ctx, grads, ctx.needs_input_grad[2:]))

    def save_fields(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        outputs = op._as_tuple(output)
        ctx.mark_non_differentiable(*outputs[op._public_count :])
        op.save(ctx, inputs[:-1], inputs[-1], outputs)

    def backward_by_field(ctx: Any, *grads: Tensor | None) -> Any:
        results: list[Tensor | None] = [None] * (n_fields + 1)
        for i, g in zip(
            op._any_gradient, op.gradients(ctx, grads, [ctx.needs_input_grad[i] for i in op._any_gradient]), strict=True
        ):
            results[i] = g
        return tuple(results)

    class Transformable(torch.autograd.Function):
        @staticmethod
        def forward(*args: Any) -> Any:
            return op.operator(*args)

        setup_context = staticmethod(save_fields)
        backward = staticmethod(backward_by_field)

        vmap = staticmethod(lambda *args: _for_each_entry(Transformable.apply, *args))

    torch.library.register_vmap(
        f"tilewright::{op.name}", lambda *args: _for_each_entry(op.operator, *args), lib=_LIBRARY
    )

    Eager.__name__ = Eager.__qualname__ = Transformable.__name__ = Transformable.__qualname__ = op.name
    if not op.differentiable:
        return Eager, Transformable

    grads_in = ", ".join(f"Tensor? d{o}" for o in op.outputs)
    outputs_in = ", ".join(f"Tensor {o}" for o in op.outputs)
    _LIBRARY.define(
        f"{op.name}_backward({grads_in}, {outputs_in}, {_schema_fields(op)}, bool[] wanted, str backend) -> Tensor[]",
        tags=_TAGS,
    )

    def split(args: tuple[Any, ...]) -> tuple[Any, tuple[Tensor, ...], tuple[Tensor | None, ...], list[bool], str]:
        grads, outputs = args[:n_outputs], args[n_outputs : 2 * n_outputs]
        call = op.call(*_in_rows(op, args[2 * n_outputs : 2 * n_outputs + n_fields]))
        return call, outputs, grads, args[-2], args[-1]

    def backward_operator(*args: Any) -> list[Tensor]:
        call, outputs, grads, wanted, backend = split(args)
        named = [(f"the gradient of {n}", g) for n, g in zip(op.outputs, grads, strict=True)]
        check_memory(op.name, named + [(op.call._fields[i], call[i]) for i in op._saved_indices])  # type: ignore[attr-defined]
        found = op.run_backward(call, outputs, grads, wanted, requested_backend(backend or None))
        return [
            outputs[0].new_empty(0) if g is None else _laid_out_as(op.gradient_like(call, name), g)
            for name, g in zip(op.differentiable, found, strict=True)
        ]

    def fake_backward(*args: Any) -> list[Tensor]:
        call, outputs, _, wanted, _ = split(args)
        return [
            op.gradient_like(call, name) if want else outputs[0].new_empty(0)
            for name, want in zip(op.differentiable, wanted, strict=True)
        ]

    torch.library.register_vmap(
        f"tilewright::{op.name}_backward", lambda *args: _for_each_entry(op.backward_operator, *args), lib=_LIBRARY
    )
    _LIBRARY.impl(f"{op.name}_backward", backward_operator, "CompositeExplicitAutograd")
    torch.library.register_fake(f"tilewright::{op.name}_backward", fake_backward, lib=_LIBRARY)

    torch.library.register_autograd(
        f"tilewright::{op.name}", backward_by_field, setup_context=save_fields, lib=_LIBRARY
    )
    return Eager, Transformable
