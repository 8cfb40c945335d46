"""Calls of one's own, from text: ``attention:batch=2,heads=12,seqlen=1000,head_dim=64,causal``."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, get_args, get_type_hints

from ..measure import MODES, Item
from ..shapes import Attention, Decode, Ffn, Shape, Softmax, Varlen
from . import attention, decode, ffn, softmax, varlen

#: By op: what describes its calls, how an item of a mode is made of it, and what is filled in where nothing is given.
KINDS: dict[str, tuple[type[Shape], Callable[[str, Any], Item], dict[str, Any]]] = {
    "attention": (Attention, attention.item, {"batch": 1}),
    "varlen_attention": (Varlen, varlen.item, {}),
    "kvcache_attention": (Decode, lambda mode, shape: decode.item(shape), {"batch": 1}),
    "softmax": (Softmax, softmax.item, {}),
    "ffn": (Ffn, ffn.item, {"activation": "gelu_tanh"}),
}
_ACTIVATIONS = ("gelu_tanh", "swiglu")
_DTYPES = ("float32", "bfloat16", "float16")


def parse(text: str) -> list[Item]:
    """One item for each mode: "forward" if none is named. ValueError says what is wrong and what is accepted."""
    op, _, rest = text.partition(":")
    if op not in KINDS:
        raise ValueError(f"{text!r}: it begins with an op and a colon, one of {', '.join(KINDS)}; {usage('attention')}")
    kind, make, values = KINDS[op]
    known = _fields(kind)
    values, modes = {"scene": "own", "dtype": "float32", **values}, []
    for part in filter(None, rest.split(",")):
        name, equals, value = part.partition("=")
        if name in MODES and not equals:
            modes.append(name)
        elif name not in known:
            raise ValueError(f"{text!r}: {name!r} is not known for {op}; {usage(op)}")
        else:
            values[name] = _value(text, name, value if equals else None, known[name])
    if "heads_kv" in known:
        values.setdefault("heads_kv", values.get("heads"))
    if missing := [n for n in _required(kind) if values.get(n) is None]:
        raise ValueError(f"{text!r}: {', '.join(missing)} must be given; {usage(op)}")
    if op == "kvcache_attention" and set(modes) - {"forward"}:
        raise ValueError(f"{text!r}: kvcache_attention has no backward; leave out {', '.join(modes)}")
    shape = kind(**values)
    _check(text, shape)
    # The text tells calls apart, and repeats them.
    described = f"{op}:" + ",".join(p for p in rest.split(",") if p and p not in MODES)
    return [dataclasses.replace(make(mode, shape), name=f"{described} {mode}") for mode in modes or ["forward"]]


def _fields(kind: type[Shape]) -> dict[str, Any]:
    hints = get_type_hints(kind)
    return {f.name: hints[f.name] for f in dataclasses.fields(kind) if f.name not in ("scene", "latency")}


def _required(kind: type[Shape]) -> list[str]:
    return [f.name for f in dataclasses.fields(kind) if f.default is dataclasses.MISSING and f.name in _fields(kind)]


def usage(op: str) -> str:
    """What may stand in the text, in words."""
    kind, _, defaults = KINDS[op]
    must = [n for n in _required(kind) if n not in (*defaults, "dtype", "heads_kv")]
    may = [n for n in _fields(kind) if n not in must]
    lengths = "; lengths are joined by +" if "lengths" in (*must, *may) else ""
    modes = "" if op == "kvcache_attention" else f", {', '.join(MODES)}"
    return f"{op} takes {', '.join(must)} and if wanted {', '.join(may)}{modes}{lengths}"


def _value(text: str, name: str, value: str | None, kind: Any) -> Any:
    if kind is bool:
        if value not in (None, "true", "false"):
            raise ValueError(f"{text!r}: {name}={value}; give {name}, or leave it out")
        return value != "false"
    if name in ("dtype", "activation"):
        choices = _DTYPES if name == "dtype" else _ACTIVATIONS
        if value not in choices:
            raise ValueError(f"{text!r}: {name}={value}; choose one of {', '.join(choices)}")
        return value
    several = tuple in (getattr(k, "__origin__", k) for k in (kind, *get_args(kind)))
    try:
        numbers = [int(v) for v in (value or "").split("+" if several else ",")]
    except ValueError:
        wanted = "whole numbers joined by +" if several else "a whole number"
        raise ValueError(f"{text!r}: {name}={value}; give {wanted}") from None
    if min(numbers) < (0 if name == "window" else 1):
        raise ValueError(f"{text!r}: {name}={value}; it must be {'0' if name == 'window' else '1'} or more")
    return tuple(numbers) if several else numbers[0]


def _check(text: str, shape: Any) -> None:
    heads_kv, lengths = getattr(shape, "heads_kv", None), getattr(shape, "lengths", None)
    if heads_kv is not None and shape.heads % heads_kv:
        raise ValueError(f"{text!r}: heads={shape.heads} is not a multiple of heads_kv={heads_kv}")
    if getattr(shape, "head_dim", 1) > 256:
        raise ValueError(f"{text!r}: head_dim={shape.head_dim}; the kernels go up to 256")
    if isinstance(shape, Attention) and lengths and (len(lengths) != shape.batch or max(lengths) > shape.seqlen):
        wanted = f"{shape.batch} of them (batch), each at most seqlen={shape.seqlen}"
        raise ValueError(f"{text!r}: lengths={'+'.join(map(str, lengths))}; give {wanted}")
