"""Argument checks shared by the ops. Each raises one exception that names the argument, what was given and what is
accepted."""

from __future__ import annotations

import math
import numbers
from typing import Any

import torch
from torch import Tensor

FLOATS = (torch.float32, torch.float16, torch.bfloat16, torch.float64)


def accumulator(dtype: torch.dtype) -> torch.dtype:
    """The dtype in which every backend accumulates: float32, or float64 for float64 tensors."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def shape(t: Tensor) -> str:
    return str(tuple(t.shape))


def check_float_tensor(name: str, t: Any) -> None:
    if not isinstance(t, Tensor):
        raise TypeError(f"{name} must be a torch.Tensor, got {type(t).__name__}")
    if t.dtype not in FLOATS:
        raise TypeError(f"{name} has dtype {t.dtype}; accepted are float32, float16, bfloat16 and float64")
    check_dense(name, t)


_STRIDED = torch.strided  # looked up once: every tensor of every call is asked


def check_dense(name: str, t: Tensor) -> None:
    """``t`` has strides: before anything asks for them."""
    if t.layout is not _STRIDED or t.is_nested:  # nested tensors of the older kind call themselves strided
        layout = "nested" if t.is_nested else t.layout
        raise TypeError(f"{name} has layout {layout}; only dense (torch.strided) tensors are accepted")


def check_like(name: str, t: Any, like_name: str, like: Tensor) -> None:
    """``t`` is a tensor on ``like``'s device, of ``like``'s dtype."""
    if not isinstance(t, Tensor):
        raise TypeError(f"{name} must be a torch.Tensor, got {type(t).__name__}")
    if t.dtype != like.dtype:
        raise TypeError(f"{name} has dtype {t.dtype} but {like_name} has {like.dtype}; they must be the same")
    check_dense(name, t)
    check_device(name, t, like_name, like)


def check_device(name: str, t: Tensor, like_name: str, like: Tensor) -> None:
    if t.device != like.device:
        raise ValueError(
            f"{name} is on {t.device} but {like_name} is on {like.device}; they must be on the same device"
        )


def check_number(name: str, value: Any) -> float:
    """A finite number: Python's, NumPy's, or a tensor of no dimensions, as torch takes them."""
    if type(value) is float and -math.inf < value < math.inf:  # the usual case
        return value
    if isinstance(value, Tensor):
        value = _number_in(name, value)
    if isinstance(value, bool) or not isinstance(value, (numbers.Real, torch.SymFloat, torch.SymInt)):
        raise TypeError(f"{name} must be a number, got {type(value).__name__}")
    try:
        number: float = value if isinstance(value, torch.SymFloat) else float(value)  # type: ignore[assignment]
    except OverflowError:  # an int of hundreds of digits
        number = math.inf
    if not -math.inf < number < math.inf:  # math.isfinite cannot be traced; NaN fails a comparison too
        raise ValueError(f"{name}={value} must be finite")
    return number


#: Of a factor's magnitude: float32's smallest normal number, and one that leaves room for what it multiplies.
_SMALLEST, _LARGEST = 2.0**-126, 2.0**100


def check_factor(name: str, value: Any) -> float:
    """A number by which scores are multiplied, or capped: in float32, which has to hold it."""
    number = check_number(name, value)
    if number != 0.0 and not _SMALLEST <= abs(number) <= _LARGEST:
        raise ValueError(
            f"{name}={value} is out of the range of float32, in which scores are computed; accepted are 0 and "
            f"magnitudes from 2**-126 ({_SMALLEST:.2g}) to 2**100 ({_LARGEST:.2g})"
        )
    return number


def check_int(name: str, value: Any) -> int:
    """A whole number: Python's, NumPy's, or an integer tensor of no dimensions."""
    if type(value) is int or isinstance(value, torch.SymInt):
        return value  # type: ignore[return-value]
    if isinstance(value, Tensor):
        value = _number_in(name, value)
    if isinstance(value, bool) or not isinstance(value, numbers.Integral):
        raise TypeError(f"{name} must be an int, got {type(value).__name__}")
    return int(value)


def _number_in(name: str, t: Tensor) -> Any:
    if t.dim() != 0 or t.is_complex():
        raise TypeError(f"{name} must be a number, got a tensor of shape {shape(t)} and dtype {t.dtype}")
    if t.requires_grad:
        raise ValueError(f"{name} requires a gradient, which it does not have; detach it")
    return t.item()


def check_probability(name: str, value: Any) -> float:
    p = check_number(name, value)
    if not 0.0 <= p <= 1.0:
        raise ValueError(f"{name}={value} must be a probability between 0 and 1")
    return p


def check_causal(causal: Any) -> None:
    if causal not in (None, "top_left", "bottom_right"):
        raise ValueError(
            f"causal={causal!r} must be None, 'top_left' (SDPA's alignment) or 'bottom_right' (FlashAttention's)"
        )


def check_mask(name: str, mask: Any, target: tuple[int, ...], like_name: str, like: Tensor) -> Tensor:
    """A bool or float mask that broadcasts to ``target``, padded with leading 1s to its rank."""
    if not isinstance(mask, Tensor):
        raise TypeError(f"{name} must be a torch.Tensor, got {type(mask).__name__}")
    check_dense(name, mask)
    mask = wide_under_autocast(mask)
    if mask.dtype != torch.bool and mask.dtype != torch.float32 and mask.dtype != like.dtype:
        raise TypeError(
            f"{name} has dtype {mask.dtype}; accepted are bool (True attends), float32, or {like_name}'s dtype "
            f"{like.dtype} (added)"
        )
    check_device(name, mask, like_name, like)
    if mask.dim() > len(target) or any(m != 1 and m != t for m, t in zip(mask.shape[::-1], target[::-1], strict=False)):
        raise ValueError(f"{name} of shape {shape(mask)} does not broadcast to {tuple(target)}")
    padded: Tensor = mask
    while padded.dim() < len(target):
        padded = padded.unsqueeze(0)
    return padded


def check_lengths(name: str, t: Any, size: int, what: str, like: Tensor) -> None:
    """An int32 vector of ``size`` entries on ``like``'s device."""
    if not isinstance(t, Tensor):
        raise TypeError(f"{name} must be an int32 torch.Tensor, got {type(t).__name__}")
    if t.dtype != torch.int32:
        raise TypeError(f"{name} has dtype {t.dtype}; it must be int32")
    check_dense(name, t)
    if t.dim() != 1 or t.shape[0] != size:
        raise ValueError(f"{name} of shape {shape(t)} must have shape ({size},): {what}")
    check_device(name, t, "q", like)


def unit_last_stride(t: Tensor) -> Tensor:
    """``t`` itself, or a copy when its last dimension is strided, which no kernel reads."""
    return t if t.stride(-1) == 1 or t.shape[-1] == 1 else t.contiguous()


def transforming() -> bool:
    """Whether a functorch transform (torch.vmap, torch.func.grad) is being applied. Its tensors have no memory."""
    return torch._C._functorch.peek_interpreter_stack() is not None


_VMAP_MODE = torch._C._parse_dispatch_key("VmapMode")


def batching_gradients() -> bool:
    """Whether a backward is given many gradients at once, by autograd.grad's is_grads_batched or what is made of it."""
    return torch._C._dispatch_tls_is_dispatch_key_included(_VMAP_MODE)  # type: ignore[arg-type]


def autocasting(t: Tensor) -> bool:
    """Whether torch.autocast is on for tensors where ``t`` is. Asking about the meta device raises."""
    if not torch._C._is_any_autocast_enabled():  # a fifth of the time that it takes to ask about a device
        return False
    device = t.device.type
    return device != "meta" and torch.is_autocast_enabled(device)


def wide_under_autocast(t: Tensor) -> Tensor:
    """What is added to scores may have another of the half dtypes under torch.autocast; float32 holds it exactly."""
    return t.float() if t.dtype in (torch.float16, torch.bfloat16) and autocasting(t) else t


def autocast(*tensors: Tensor | None) -> tuple[Tensor | None, ...]:
    """Under torch.autocast, float32 and half inputs of matrix products take the autocast dtype, as torch's own do."""
    first = tensors[0]
    if not isinstance(first, Tensor) or not autocasting(first):
        return tensors
    dtype = torch.get_autocast_dtype(first.device.type)
    return tuple(
        t.to(dtype) if isinstance(t, Tensor) and t.is_floating_point() and t.dtype != torch.float64 else t
        for t in tensors
    )
