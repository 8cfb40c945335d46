"""``replace_sdpa``: every ``F.scaled_dot_product_attention`` in a block goes to our kernels, whoever calls it.

A torch function mode sees the call itself, so it also reaches names imported before the block, code inside libraries,
and code that torch.compile traces; replacing the attribute of ``torch.nn.functional`` would reach none of them.
"""

from __future__ import annotations

import inspect
import threading
import types
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._contextlib import context_decorator
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from ..config import check_backend, requested_backend
from ..dispatch import Explanation, explain_call, select, why_no_kernel, why_no_kernels_on
from ..errors import BackendError
from . import sdpa
from .subclasses import overrides

NAME = "scaled_dot_product_attention"

_Function = TypeVar("_Function", bound=Callable[..., Any])

#: What checks and dispatch raise, before any kernel runs, for a call that tilewright does not serve.
_REFUSALS = (TypeError, ValueError, BackendError)

_aten = torch.ops.aten.scaled_dot_product_attention  # what exported programs call
_SDPA = (F.scaled_dot_product_attention, _aten, _aten.default)

#: torch's own fused layers. nn.MultiheadAttention and nn.TransformerEncoderLayer do not choose them inside a mode.
_FUSED = (torch._native_multi_head_attention, torch._transformer_encoder_layer_fwd)


def _while_tracing(function: _Function) -> _Function:
    """torch.compile calls ``function`` when it traces a call of it, and takes the result for a constant.

    What torch.compiler.assume_constant_result does, without importing the compiler, which takes two seconds.
    """
    function._dynamo_marked_constant = True  # type: ignore[attr-defined]
    return function


class _Inside(threading.local):
    """The block that is running the body of nn.MultiheadAttention, in this thread."""

    mode: replace_sdpa | None = None


_inside = _Inside()


def _attend_inside(*args: Any, **kwargs: Any) -> Any:
    assert _inside.mode is not None
    return _inside.mode._attend(F.scaled_dot_product_attention, (), args, kwargs)


def _body(function: Any, **replaced: Any) -> types.FunctionType:
    """``function`` of torch, less its question whether a mode wants to see the call: what the mode itself runs."""

    def nobody(*_: Any) -> bool:
        return False

    # No __name__ among its globals: torch.compile would look them up in the module of that name.
    scope = {name: value for name, value in function.__globals__.items() if name != "__name__"}
    scope |= {"has_torch_function": nobody, "has_torch_function_unary": nobody, **replaced}
    body = types.FunctionType(function.__code__, scope, function.__name__, function.__defaults__)
    body.__kwdefaults__ = function.__kwdefaults__
    return body


# torch switches a mode off while it handles a call. Where other calls of SDPA hide inside, it has to stay on.
_multi_head_attention_body = _body(F.multi_head_attention_forward, scaled_dot_product_attention=_attend_inside)
#: These run whatever hangs on the graph: hooks, checkpoints that recompute a forward pass.
_BACKWARD = {f: _body(f) for f in (Tensor.backward, torch.autograd.backward, torch.autograd.grad)}


def _check_types(types: tuple[type, ...], arguments: tuple[Any, ...]) -> None:
    for kind in types:
        if overrides(kind) and not sdpa.is_causal_bias(kind):
            raise TypeError(f"a {kind.__name__} has an attention of its own")
    for t in arguments:
        if is_traceable_wrapper_subclass(t):
            raise TypeError(f"a {type(t).__name__} has an attention of its own")


def _check_kernel(call: Any, requested: str) -> None:
    if requested:
        if not torch.compiler.is_compiling():  # compiled code asks when it runs
            select("attention", call, requested)
        return
    reason = (
        _why_no_kernel_on(call.q.device.type) if torch.compiler.is_compiling() else why_no_kernel("attention", call)
    )
    if reason is not None:
        raise BackendError(f"no kernel can serve this call: {reason}")


@_while_tracing
def _why_no_kernel_on(device: str) -> str | None:
    """The part of :func:`why_no_kernel` that can be told while tracing, when there are no tensors."""
    return why_no_kernels_on(device)


def _why_not_many_heads(types: tuple[type, ...], kwargs: dict[str, Any]) -> str | None:
    for kind in types:
        if overrides(kind):
            return f"nn.MultiheadAttention of a {kind.__name__}, which has an attention of its own"
    if kwargs["need_weights"]:
        return (
            "nn.MultiheadAttention with need_weights=True computes the weights itself, without "
            "scaled_dot_product_attention; pass need_weights=False"
        )
    return None


class Counts:
    """Calls served by tilewright, and those handed to torch, by reason."""

    def __init__(self) -> None:
        self.served = 0
        self.refused: Counter[str] = Counter()
        self._lock = threading.Lock()  # one block may be entered by several threads

    def add(self, refusal: str | None) -> None:
        with self._lock:
            if refusal is None:
                self.served += 1
            else:
                self.refused[refusal] += 1

    def __str__(self) -> str:
        lines = [f"{NAME}: {self.served} calls served by tilewright, {self.refused.total()} by torch"]
        return "\n".join(lines + [f"  {count} x {reason}" for reason, count in self.refused.most_common()])


#: Everything that blocks in this process have counted.
_process = Counts()


class replace_sdpa(TorchFunctionMode):
    """Inside this block, ``torch.nn.functional.scaled_dot_product_attention`` is tilewright's. Also a decorator.

    ::

        with tilewright.replace_sdpa() as sdpa:
            model(x)
        print(sdpa)  # how many calls were served, and why the others were not

    Reached are names that were imported early, library code, code under torch.compile (compiled inside the block, or
    before it: it is traced again), exported programs, and nn.MultiheadAttention and the layers made of it, whose fused
    fast paths torch does not take inside a mode. Not reached is what runs without Python (TorchScript, ahead-of-time
    compiled programs), and the one fast path that torch.compile does take: those layers in eval mode and without
    gradients, unless ``torch.backends.mha.set_fastpath_enabled(False)`` turns it off.

    What tilewright refuses (see :func:`tilewright.scaled_dot_product_attention`), tensors of subclasses that bring an
    attention of their own (DTensor, nested tensors), and calls that only the reference math could serve go to torch
    and are counted with the reason; a call that torch refuses too raises torch's exception, caused by ours. When a
    backend was asked for, by ``backend``, :func:`tilewright.use_backend` or TILEWRIGHT_BACKEND, nothing goes to torch:
    a refused call raises.

    The block holds for the thread that entered it, and for the backward passes that this thread starts. Blocks nest:
    the innermost decides first, and what it hands on is decided, and counted, by the next. An object may be entered
    again, in several threads too, and keeps counting. A decorated generator function is inside while it runs and
    outside while it waits; coroutines cannot be decorated, as they share a thread with whatever runs meanwhile.

    Under torch.compile the decision is made, and counted, while torch traces (which it may start over), not when the
    code runs. It then rests on the device's kernels being there, not on what each of them says about the call; a
    requested backend still checks that whenever the code runs.

    Args:
        backend: "cuda", "triton", "cpu" or "reference", for every call inside; None: use_backend's choice, or
            automatic.

    Attributes:
        served: number of calls that tilewright served.
        refused: Counter of the reasons for which calls went to torch.

    Raises:
        ValueError: backend is no backend.
        TypeError, ValueError, BackendError: from a call inside that a requested backend cannot serve.
    """

    def __init__(self, backend: str | None = None) -> None:
        super().__init__()
        self.backend = None if backend is None else check_backend(backend)
        self._counts = Counts()

    @property
    def served(self) -> int:
        return self._counts.served

    @property
    def refused(self) -> Counter[str]:
        return self._counts.refused

    def __str__(self) -> str:
        return str(self._counts)

    def __call__(self, function: _Function) -> _Function:
        if inspect.iscoroutinefunction(function) or inspect.isasyncgenfunction(function):
            raise TypeError(
                f"replace_sdpa cannot decorate the coroutine function {function.__qualname__}: other coroutines of the "
                "thread would be inside too; enter it in a with block around calls that await nothing"
            )
        decorated: _Function = context_decorator(lambda: self, function)
        return decorated

    def __torch_function__(
        self, func: Any, types: tuple[type, ...], args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func in _SDPA:
            return self._attend(func, types, args, kwargs)
        if func is F.multi_head_attention_forward:
            refusal = _why_not_many_heads(types, kwargs)
            if refusal is not None:
                return self._hand_over(func, args, kwargs, TypeError(refusal))
            outer, _inside.mode = _inside.mode, self
            try:
                return _multi_head_attention_body(*args, **kwargs)
            finally:
                _inside.mode = outer
        if func in _BACKWARD and not any(map(overrides, types)):
            with self:
                return _BACKWARD[func](*args, **kwargs)
        if func in _FUSED:
            return self._hand_over(func, args, kwargs, TypeError(f"torch.{func.__name__} has its attention fused in"))
        return func(*args, **kwargs)

    def _attend(self, func: Any, types: tuple[type, ...], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        try:
            _check_types(types, (*args, *kwargs.values()))
            call, out_shape = sdpa.prepare(*args, **kwargs)
            _check_kernel(call, requested_backend(self.backend))
        except _REFUSALS as refusal:
            return self._hand_over(func, args, kwargs, refusal)
        self._count(None)  # now: a checkpoint that recomputes stops in the middle of the run
        return sdpa.run(call, out_shape, self.backend)

    def _hand_over(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], refusal: Exception) -> Any:
        if requested_backend(self.backend):
            raise refusal
        if torch.compiler.is_compiling():
            out = func(*args, **kwargs)
        else:
            try:
                out = func(*args, **kwargs)
            except Exception as error:
                raise error from refusal
        self._count(str(refusal))
        return out

    @_while_tracing
    def _count(self, refusal: str | None) -> None:
        self._counts.add(refusal)
        _process.add(refusal)


def explain(*args: Any, backend: str | None = None, **kwargs: Any) -> Explanation:
    """What :class:`replace_sdpa` would do with this call of SDPA, and what it has done in this process so far."""
    requested = requested_backend(backend)
    tensors = tuple(t for t in (*args, *kwargs.values()) if isinstance(t, Tensor))
    try:
        _check_types(tuple(map(type, tensors)), tensors)
        call, _ = sdpa.prepare(*args, **kwargs)
        decision = explain_call("attention", call, backend)
        refusal = None if requested else why_no_kernel("attention", call)
    except (TypeError, ValueError) as error:
        if requested:
            raise
        decision, refusal = Explanation(NAME, None, "", {}), f"{type(error).__name__}: {error}"
    if refusal is not None:
        decision = replace(decision, chosen="torch", how=f"tilewright refuses it: {refusal}")
    return replace(decision, op=NAME, notes=f"so far in this process, {_process}")
