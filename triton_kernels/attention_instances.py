"""The attention kernels as they are launched, for ahead-of-time compilation."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from .attention import attention_forward
from .attention_backward import attention_backward_keys, attention_backward_rows
from .attention_decode import append, merge
from .attention_mask_gradient import attention_backward_mask
from .attention_table import WIDTHS, load_of, table_key
from .compile import Instance
from .launch import Config, table_config

_ELEMENT = {"2": "bf16", "4": "fp32"}
_CALL = ("Q", "K", "V", "OUT", "DOUT", "DQ", "DK", "DV", "SINKS", "K_NEW", "V_NEW")
_FLOATS = ("LSE", "STATS", "TERMS", "DLSE", "DMASK", "PARTS", "SLOPES")
_INTS = ("CU_Q", "CU_K", "LENGTHS_K", "LENGTHS", "TABLE")
_NUMBERS = ("scale", "sign", "softcap", "dropout_scale")

#: A call without options; what each option adds.
_PLAIN: dict[str, Any] = {
    "MASK": "", "HAS_ALIBI": False, "HAS_SINKS": False, "HAS_SOFTCAP": False, "HAS_DROPOUT": False, "HAS_LEFT": False,
    "HAS_RIGHT": False, "TOP_LEFT": False, "VARLEN": False, "CACHE": False, "PAGED": False, "PACKED": False,
    "SPLIT": False, "TMA": False, "HAS_STATS": True, "SIGNED": False, "HAS_DLSE": False, "WANT_DQ": True,
    "WANT_DK": True, "WANT_DV": True, "ALL_BATCHES": False, "ALL_HEADS": False, "ALL_QUERIES": False, "ALL_KEYS": False,
}  # fmt: skip
_CAUSAL = {"HAS_RIGHT": True}
_WINDOW = {"HAS_RIGHT": True, "HAS_LEFT": True}
_OPTIONS: dict[str, dict[str, Any]] = {
    "": {},
    "causal": _CAUSAL,
    "window": _WINDOW,
    "varlen": {**_CAUSAL, "VARLEN": True},
    "bool mask": {"MASK": "bool"},
    "float mask": {"MASK": "float"},
    "alibi": {**_CAUSAL, "HAS_ALIBI": True},
    "softcap": {**_CAUSAL, "HAS_SOFTCAP": True},
    "dropout": {**_CAUSAL, "HAS_DROPOUT": True},
    "window softcap": {**_WINDOW, "HAS_SOFTCAP": True},
    "float mask dropout": {"MASK": "float", "HAS_DROPOUT": True},
    "alibi softcap dropout": {**_CAUSAL, "HAS_ALIBI": True, "HAS_SOFTCAP": True, "HAS_DROPOUT": True},
    "everything": {
        **_WINDOW, "MASK": "float", "HAS_ALIBI": True, "HAS_SOFTCAP": True, "HAS_DROPOUT": True, "HAS_SINKS": True,
        "SIGNED": True, "HAS_DLSE": True,
    },
}  # fmt: skip
_DECODE: dict[str, dict[str, Any]] = {
    "": {"CACHE": True},
    "packed split": {"CACHE": True, "PACKED": True, "SPLIT": True},
    "paged packed split": {"CACHE": True, "PACKED": True, "SPLIT": True, "PAGED": True},
    "paged window sinks": {"CACHE": True, "PACKED": True, "PAGED": True, **_WINDOW, "HAS_SINKS": True},
}


def instance(kernel: Any, name: str, key: str, config: Config, options: dict[str, Any], width: int) -> Instance:
    """As a launch on contiguous tensors with that head dim and these options would have it."""
    constants = {**_PLAIN, "CHECK_D": False, "CHECK_DV": False, "BLOCK_D": width, "BLOCK_DV": width, **options}
    absent = {
        "SLOPES": not constants["HAS_ALIBI"], "SINKS": not constants["HAS_SINKS"],
        "RNG": not constants["HAS_DROPOUT"], "MASK_PTR": not constants["MASK"], "CU_Q": not constants["VARLEN"],
        "CU_K": not constants["VARLEN"], "LENGTHS_K": not constants["CACHE"], "TABLE": not constants["PAGED"],
        "PARTS": not constants["SPLIT"], "STATS": not constants["HAS_STATS"], "DLSE": not constants["HAS_DLSE"],
    }  # fmt: skip
    if kernel is attention_backward_mask:
        absent["MASK_PTR"] = False
    if kernel is merge:
        absent["PARTS"] = False
    names = kernel.arg_names
    constants = {n: v for n, v in constants.items() if n in names}
    constants.update({n: None for n, gone in absent.items() if gone and n in names})
    element = _ELEMENT[key.split(",")[0]]
    types: dict[str, str] = {}
    for n in names:
        if n.endswith("_BOX"):
            if constants["TMA"]:
                rows = config.blocks["BLOCK_N" if n in ("K_BOX", "V_BOX") else "BLOCK_M"]
                types[n] = f"tensordesc<{element}[1, 1, {rows}, {width}]>"
            else:
                constants[n] = None
        elif n in _CALL:
            types[n] = f"*{element}:16"
        elif n in _FLOATS:
            types[n] = "*fp32:16"
        elif n in _INTS:
            types[n] = "*i32:16"
        elif n == "RNG":
            types[n] = "*i64:16"
        elif n == "MASK_PTR":
            types[n] = "*u8:16" if options.get("MASK") == "bool" else f"*{element}:16"
        elif n in _NUMBERS:
            types[n] = "fp32"
        elif n in ("left", "right", "threshold", "seqlen_q", "seqlen_k"):
            types[n] = "i32"
        else:
            types[n] = "i32:16"
    for n in ("stride_mask_k", "stride_ls", "stride_slopes_h"):
        if n in names:
            constants[n] = 1
    types = {n: t for n, t in types.items() if n not in constants and n not in config.blocks}
    return Instance(name, kernel, types, constants, config)


def _load(options: dict[str, Any]) -> int:
    names = ("MASK", "HAS_DROPOUT", "HAS_ALIBI", "HAS_SOFTCAP", "HAS_LEFT", "VARLEN")
    mask, dropout, alibi, softcap, window, packed = (bool(options.get(n)) for n in names)
    return load_of(mask=mask, dropout=dropout, alibi=alibi, softcap=softcap, window=window, packed=packed)


def instances(architecture: str) -> Iterator[Instance]:
    """Every kernel in every configuration of the table, with the options that change its code, and by TMA where a call
    of this architecture would load so."""
    for size, width in ((s, w) for s in (2, 4) for w in WIDTHS):
        # Small head dims, and float32, have the same code but for loads and products.
        few = width < 64 or size == 4
        for kernel in (attention_forward, attention_backward_rows, attention_backward_keys, attention_backward_mask):
            for option, constants in _OPTIONS.items():
                if kernel is attention_backward_mask and constants.get("MASK") != "float":
                    continue
                if few and option not in ("", "everything"):
                    continue
                tma = size == 2 and architecture != "sm_80" and "MASK" not in constants
                key = table_key(size, width, _load(constants))
                config = table_config(architecture, kernel.__name__, key)
                for by_tma in (False, True) if tma and not option else (tma,):
                    name = " ".join(
                        filter(None, (f"{kernel.__name__} {size},{width}", option, "TMA" if by_tma else ""))
                    )
                    given = {**constants, "TMA": by_tma}
                    yield instance(kernel, name, key, config, given, width)
        for option, constants in _DECODE.items():
            config = table_config(architecture, "attention_decode", table_key(size, width, _load(constants)))
            name = f"attention_decode {size},{width} {option}".rstrip()
            yield instance(attention_forward, name, f"{size},{width}", config, constants, width)
        yield instance(merge, f"merge {size},{width}", f"{size}", Config({"BLOCK_SPLITS": 64}), {}, width)
        yield instance(append, f"append {size},{width}", f"{size}", Config({"BLOCK_S": 1}), {}, width)
