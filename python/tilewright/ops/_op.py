"""What every op shares: running a canonical call eagerly, under autograd, and as a torch.library operator.

An op's public function validates its arguments into a flat NamedTuple, the *call*, and hands it to its :class:`Op`.
Plain eager calls go straight to the kernel, inside an ``autograd.Function`` when a gradient is wanted. Everything that
has to see an operator (torch.compile, fake tensors, dispatch modes, functorch, tensor subclasses) gets
``torch.ops.tilewright.<name>``, whose implementation and gradient formula are the very same functions.
"""

from __future__ import annotations

import inspect
import operator
import typing
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd import forward_ad

from ..config import requested_backend
from ..dispatch import select
from ._checks import batching_gradients, transforming
from ._library import register
from ._memory import contiguous_like, must_see_operator, without_dead_wrappers


class Cost(NamedTuple):
    """Least work of one call, for rooflines.

    flops: floating-point operations of the matrix products (masked-out pairs are not counted).
    bytes: each input read once plus each output written once.
    """

    flops: int
    bytes: int


def nothing(call: Any) -> tuple[Tensor, ...]:
    return ()


def contiguous_gradient(call: Any, name: str) -> Tensor:
    field_: Tensor = getattr(call, name)
    return contiguous_like(field_)


@dataclass(frozen=True)
class Op:
    """The contract of one op, in the form that dispatch, autograd and torch.library need.

    call            NamedTuple type of the canonical arguments; the first one is a tensor that fixes the device
    outputs         names of what a forward returns
    allocate        uninitialised outputs in their documented shape, dtype and memory layout; also the fake kernel
    differentiable  fields with a gradient computed by the backends' backward
    saved           fields that a backward reads besides the outputs; of the others, an optional one arrives as None and
                    a required one as the first output, which has its shape and dtype
    intermediates   outputs that exist for the backward only; they come last
    passes_through  fields whose gradient is the output's gradient itself
    rows            fields whose last dimension is contiguous, as their checks made it; an operator, which torch hands
                    tensors of its own making to, makes it so again
    gradient_like   an uninitialised gradient of a named field: memory of its own, laid out as the kernels write it
    mutates         fields that may be written in place
    written         of a call, the tensors that it writes
    check_values    checks of tensor contents, run right before a kernel when the tensors are in host memory
    without_grad    the call to make when no gradient is wanted (drop intermediates)
    """

    name: str
    call: type
    outputs: tuple[str, ...]
    allocate: Callable[[Any], tuple[Tensor, ...]]
    cost: Callable[[Any], Cost]
    prepare: Callable[..., Any]
    differentiable: tuple[str, ...] = ()
    saved: tuple[str, ...] = ()
    intermediates: tuple[str, ...] = ()
    passes_through: tuple[str, ...] = ()
    rows: tuple[str, ...] = ()
    gradient_like: Callable[[Any, str], Tensor] = contiguous_gradient
    mutates: tuple[str, ...] = ()
    written: Callable[[Any], tuple[Tensor, ...]] = nothing
    check_values: Callable[[Any], None] | None = None
    without_grad: Callable[[Any], Any] = field(default=lambda call: call)

    def __post_init__(self) -> None:
        set_ = object.__setattr__  # frozen: derived attributes are set once, here
        fields: tuple[str, ...] = self.call._fields  # type: ignore[attr-defined]
        hints = typing.get_type_hints(self.call)
        tensors = [f for f in fields if hints[f] in (Tensor, Tensor | None)]
        set_(self, "_gradient_count", len(self.differentiable))
        set_(self, "_any_gradient", tuple(fields.index(f) for f in self.differentiable + self.passes_through))
        set_(self, "_tensor_indices", tuple(fields.index(f) for f in tensors))
        set_(self, "_saved_indices", tuple(fields.index(f) for f in self.saved))
        set_(self, "_row_indices", frozenset(fields.index(f) for f in self.rows))
        set_(self, "_option_indices", tuple(i for i, f in enumerate(fields) if f not in tensors))
        replaced = [f for f in tensors if f not in self.saved and hints[f] is Tensor]
        set_(self, "_replaced_indices", tuple(fields.index(f) for f in replaced))
        set_(self, "_public_count", len(self.outputs) - len(self.intermediates))
        set_(self, "_get_any_gradient", _getter(self._any_gradient))
        set_(self, "_get_saved", _getter(self._saved_indices))
        set_(self, "_get_options", _getter(self._option_indices))
        eager, transformable = register(self)
        set_(self, "_function", eager)
        set_(self, "_transformable", transformable)

    # Set in __post_init__: positions among the call's fields, and functions that pick them out of a call.
    _gradient_count: int = field(init=False, repr=False)
    _any_gradient: tuple[int, ...] = field(init=False, repr=False)
    _tensor_indices: tuple[int, ...] = field(init=False, repr=False)
    _saved_indices: tuple[int, ...] = field(init=False, repr=False)
    _row_indices: frozenset[int] = field(init=False, repr=False)
    _option_indices: tuple[int, ...] = field(init=False, repr=False)
    _replaced_indices: tuple[int, ...] = field(init=False, repr=False)
    _public_count: int = field(init=False, repr=False)
    _get_any_gradient: Callable[[Any], tuple[Any, ...]] = field(init=False, repr=False)
    _get_saved: Callable[[Any], tuple[Any, ...]] = field(init=False, repr=False)
    _get_options: Callable[[Any], tuple[Any, ...]] = field(init=False, repr=False)
    _function: Any = field(init=False, repr=False)
    _transformable: Any = field(init=False, repr=False)

    def __call__(self, call: Any, backend: str | None) -> tuple[Tensor, ...]:
        """Run a canonical call on the backend asked for (None: the context's choice, or automatic).

        Answers the outputs without the intermediates.
        """
        if forward_ad._current_level >= 0:  # one look at a number; torch has no public question as cheap
            return self._public(self._run_forward_mode(call))
        compiling = torch.compiler.is_compiling()
        if not compiling and transforming():
            return self._public(self._transformable.apply(*call, backend or ""))
        if compiling or must_see_operator(call, self._tensor_indices):
            if not compiling:
                call = without_dead_wrappers(self.name, call)
            # The context is read when the operator runs, so that compiled code obeys use_backend as well.
            # What is traced once may want gradients later.
            if not self._wants_gradient(call) and torch._C._get_tracing_state() is None:
                call = self.without_grad(call)
            return self._public(self.operator(*call, backend or ""))
        requested = requested_backend(backend)
        if self._wants_gradient(call):
            # Only what may need a gradient is passed through autograd, which looks at every argument.
            return self._as_tuple(self._function.apply(call, requested, *self._get_any_gradient(call)))
        return self._public(self.run_forward(self.without_grad(call), requested))

    def _run_forward_mode(self, call: Any) -> tuple[Tensor, ...]:
        """Forward-mode differentiation, functorch's jvp included: the reference math itself, whose every operation
        torch can differentiate in any mode and order."""
        if not self.differentiable:
            for t in (call[i] for i in self._tensor_indices):
                if t is not None and forward_ad.unpack_dual(t).tangent is not None:
                    raise ValueError(f"{self.name} has no derivatives, and an argument carries a tangent; detach it")
            return self.run_forward(call, requested_backend(None))
        if self.check_values is not None:
            self.check_values(call)
        call = self.without_grad(call)
        forward = inspect.unwrap(select(self.name, call, "reference").forward)  # from under its no_grad
        outputs: tuple[Tensor, ...] = forward(call)
        return outputs

    @property
    def operator(self) -> Any:
        return getattr(torch.ops.tilewright, self.name).default

    @property
    def backward_operator(self) -> Any:
        return getattr(torch.ops.tilewright, f"{self.name}_backward").default

    def _as_tuple(self, outputs: Any) -> tuple[Tensor, ...]:
        return outputs if isinstance(outputs, tuple) else (outputs,)

    def _public(self, outputs: Any) -> tuple[Tensor, ...]:
        return self._as_tuple(outputs)[: self._public_count]

    def _wants_gradient(self, call: Any) -> bool:
        if not torch.is_grad_enabled():
            return False
        for i in self._any_gradient:
            t = call[i]
            if t is not None and t.requires_grad:
                return True
        return False

    def run_forward(self, call: Any, requested: str) -> tuple[Tensor, ...]:
        if self.check_values is not None:
            self.check_values(call)
        outputs = select(self.name, call, requested).forward(call)
        if self.mutates and (written := self.written(call)):
            # What a backward has saved of a tensor is not what is there now: autograd compares versions. As
            # torch.autograd.graph.increment_version, without its checks.
            torch._C._increment_version([t for t in written if not t.is_inference()])
        return outputs

    def run_backward(
        self,
        call: Any,
        outputs: tuple[Tensor, ...],
        grads: tuple[Tensor | None, ...],
        wanted: Sequence[bool],
        requested: str,
    ) -> tuple[Tensor | None, ...]:
        backward = select(self.name, call, requested).backward
        assert backward is not None, f"{self.name} is registered as differentiable but its backend has no backward"
        return backward(call, outputs, grads, wanted)

    def save(self, ctx: Any, call: tuple[Any, ...], requested: str, outputs: tuple[Tensor, ...]) -> None:
        """What autograd keeps between forward and backward: tensors by save_for_backward, the rest as it is."""
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*self._get_saved(call), *outputs)
        ctx.options, ctx.requested = self._get_options(call), requested

    def gradients(self, ctx: Any, grads: tuple[Tensor | None, ...], wanted: Sequence[bool]) -> list[Tensor | None]:
        """The gradients of the differentiable fields, then of those that pass the output's gradient through."""
        count = self._gradient_count
        passed = [grads[0] if want else None for want in wanted[count:]]
        if True not in wanted[:count] or all(g is None for g in grads):
            return [None] * count + passed
        saved = ctx.saved_tensors
        outputs = saved[len(self._saved_indices) :]
        fields: list[Any] = [None] * len(self.call._fields)  # type: ignore[attr-defined]
        for i, option in zip(self._option_indices, ctx.options, strict=True):
            fields[i] = option
        for i, t in zip(self._saved_indices, saved, strict=False):
            fields[i] = t
        for i in self._replaced_indices:
            fields[i] = outputs[0]
        found = self._run_backward_anywhere(self.call(*fields), outputs, grads, wanted[:count], ctx.requested)
        return [*found, *passed]

    def _run_backward_anywhere(
        self,
        call: Any,
        outputs: tuple[Tensor, ...],
        grads: tuple[Tensor | None, ...],
        wanted: Sequence[bool],
        requested: str,
    ) -> tuple[Tensor | None, ...]:
        if torch.is_grad_enabled() or transforming() or batching_gradients():
            # create_graph: the reference's gradient can itself be differentiated, a kernel's cannot. Nor can a kernel
            # take many upstream gradients at once.
            return self.run_backward(call, outputs, grads, wanted, "reference")
        tensors = (*grads, *outputs, *(call[i] for i in self._saved_indices))
        if torch.compiler.is_compiling() or must_see_operator(tensors, range(len(tensors))):
            grads = (*grads, *[None] * (len(outputs) - len(grads)))
            found = self.backward_operator(*grads, *outputs, *call, list(wanted), requested)
            return tuple(g if want else None for g, want in zip(found, wanted, strict=True))
        return self.run_backward(call, outputs, grads, wanted, requested)


def _getter(indices: tuple[int, ...]) -> Callable[[Any], tuple[Any, ...]]:
    """operator.itemgetter that answers a tuple also for one index or none."""
    if len(indices) > 1:
        return operator.itemgetter(*indices)
    return lambda call: tuple(call[i] for i in indices)
