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
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.jit._trace import TracerWarning

from ..config import requested_backend
from ..dispatch import select
from ._checks import batching_gradients, transforming, unit_last_stride

_LIBRARY = torch.library.Library("tilewright", "DEF")

# torch.jit.trace warns of every comparison of sizes, since what it decided is not recorded. Those that the checks make
# decide nothing but whether to raise, and an operator takes any sizes.
warnings.filterwarnings("ignore", category=TracerWarning, module=r"tilewright\.(ops|integrations|nn)\.")

_PLAIN_TENSORS = (Tensor, torch.nn.Parameter)

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
    return field_.new_empty(field_.shape)


@dataclass(frozen=True)
class Op:
    """The contract of one op, in the form that dispatch, autograd and torch.library need.

    call            NamedTuple type of the canonical arguments; the first one is a tensor that fixes the device
    outputs         names of what a forward returns
    allocate        uninitialised outputs in their documented shape, dtype and memory layout; also the fake kernel
    differentiable  fields with a gradient computed by the backends' backward
    saved           fields that a backward reads besides the outputs; of the others, an optional one arrives as None
    and a
                    required one as the first output, which has its shape and dtype
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
        eager, transformable = _register(self)
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
        if compiling or _must_see_operator(call, self._tensor_indices):
            if not compiling:
                call = self._outside_transforms(call)
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

    def _outside_transforms(self, call: Any) -> Any:
        """The call without wrappers of functorch transforms that have ended, of which a batch cannot be used."""
        wrapped = {f: t for f, t in zip(call._fields, call, strict=True) if isinstance(t, Tensor) and _is_wrapped(t)}
        alive = {f: torch._C._functorch.unwrap_if_dead(t) for f, t in wrapped.items()}
        for name, t in alive.items():
            if torch._C._functorch.is_batchedtensor(t):
                raise ValueError(
                    f"{self.name}: {name} is of torch.vmap's, and has left the function that it is inside of"
                )
        return call._replace(**alive)

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
        if self.mutates:
            # What a backward has saved of a tensor is not what is there now: autograd compares versions.
            torch.autograd.graph.increment_version([t for t in self.written(call) if not t.is_inference()])
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
        if torch.compiler.is_compiling() or _must_see_operator(tensors, range(len(tensors))):
            grads = (*grads, *[None] * (len(outputs) - len(grads)))
            found = self.backward_operator(*grads, *outputs, *call, list(wanted), requested)
            return tuple(g if want else None for g, want in zip(found, wanted, strict=True))
        return self.run_backward(call, outputs, grads, wanted, requested)


def _getter(indices: tuple[int, ...]) -> Callable[[Any], tuple[Any, ...]]:
    """operator.itemgetter that answers a tuple also for one index or none."""
    if len(indices) > 1:
        return operator.itemgetter(*indices)
    return lambda call: tuple(call[i] for i in indices)


def _must_see_operator(values: Any, indices: Any) -> bool:
    """True when something other than plain eager execution is watching, modes, transforms, torch.jit.trace or
    subclasses, and when a tensor is more than what its data pointer says. Of such, torch's dispatcher makes plain ones
    for an operator."""
    if torch._C._len_torch_dispatch_stack() > 0 or transforming() or torch._C._get_tracing_state() is not None:
        return True
    for i in indices:
        t = values[i]
        if t is not None and (type(t) not in _PLAIN_TENSORS or t.is_neg() or not _address(t)):
            return True
    return False


def _is_wrapped(t: Tensor) -> bool:
    found: bool = torch._C._functorch.is_functorch_wrapped_tensor(t)
    return found


def _address(t: Tensor) -> int:
    """Where a tensor's elements are: 0 where there are none, as of zero tensors, functional ones, the meta device and
    storages that were resized away."""
    try:
        return t.data_ptr()
    except RuntimeError:  # a wrapper that a transform left behind
        return 0


def _in_rows(op: Op, fields: Sequence[Any]) -> list[Any]:
    """Zero tensors, for one, come out of the dispatcher as one number, expanded."""
    return [unit_last_stride(t) if i in op._row_indices and t is not None else t for i, t in enumerate(fields)]


def _check_memory(op: Op, tensors: Sequence[tuple[str, Tensor | None]]) -> None:
    """Of what the dispatcher made of the tensors: kernels are handed addresses."""
    for name, t in tensors:
        if t is not None and t.numel() > 0 and t.device.type != "meta" and not _address(t):
            raise ValueError(
                f"{op.name}: {name} of shape {tuple(t.shape)} has no memory; its storage has "
                f"{t.untyped_storage().nbytes()} bytes (resized, or never allocated)"
            )


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


def _register(op: Op) -> tuple[type[torch.autograd.Function], type[torch.autograd.Function]]:
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
        _check_memory(op, [(op.call._fields[i], args[i]) for i in op._tensor_indices])  # type: ignore[attr-defined]
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
        _check_memory(op, named + [(op.call._fields[i], call[i]) for i in op._saved_indices])  # type: ignore[attr-defined]
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
