"""Launches without a GPU and without the interpreter, on a stand-in for each chip; prints what went wrong as JSON.

``cases OP``: every verification case of the op, as far as Triton's front end. Of the kernels as launched, those with
the widest tiles and the most that is aligned are then compiled until their shared memory is known, where tiles are so
large that it matters; others take less.
``planes N``: calls with N sequences and heads. ``refusals``: what the stand-in says to launches that a chip cannot do.
``lengths``: what is compiled for calls of different lengths. ``tune``: whether what `tilewright tune` measures is
launched.
"""

from __future__ import annotations

import gc
import json
import math
import re
import sys
from collections.abc import Callable, Iterator
from typing import Any

import torch
import triton
import triton.language as tl

import tilewright as tw
from tilewright import stand_in
from tilewright.stand_in import front_end
from tilewright.triton_kernels.keys import functions
from tilewright.triton_kernels.launch import grid
from tilewright.tune.search import launching, pairs
from tilewright.tune.workloads import Maker
from tilewright.verify import planes
from tilewright.verify.case import Case
from tilewright.verify.cases import select_cases
from tilewright.verify.run import results

#: Of an instance: what only makes its tiles wider, and what only takes registers (or, with dropout or splits, at most
#: 1 KB). Where shared memory is asked for, the one with the most of these stands for the others.
WIDTHS = ("BLOCK_D", "BLOCK_DV", "BLOCK_S", "COLUMNS", "ROWS")
REGISTERS = (
    "HAS_LEFT", "HAS_RIGHT", "TOP_LEFT", "SIGNED", "HAS_SINKS", "HAS_STATS", "HAS_DLSE", "HAS_ALIBI", "HAS_SOFTCAP",
    "WANT_DQ", "WANT_DK", "WANT_DV", "CHECK_D", "CHECK_DV", "ALL_BATCHES", "ALL_HEADS", "LOG", "CAUSAL", "WIDE",
    "ACTIVATION", "EVEN_K", "EXACT", "HAS_DROPOUT", "ALL_QUERIES", "ALL_KEYS", "PACKED", "SPLIT",
)  # fmt: skip


def run_cases(op: str) -> dict[str, Any]:
    front_end.front_end_only()
    cases = [c for c in select_cases([op]) if c.dtype != torch.float64]
    wrong, count = [], 0
    for architecture, chip in stand_in.CHIPS.items():
        stand_in.activate(architecture)
        front_end.instances.clear()
        wrong += [f"{architecture} {text}" for case in cases for text in launched(case)]
        count += len(front_end.instances)
        for instance in widest(front_end.instances):
            most = _MOST_OF_TILES * tiles(instance)
            if most <= chip.shared_bytes:
                continue
            found = front_end.shared_bytes(instance)
            if found > min(chip.shared_bytes, most):
                wrong.append(f"{architecture} {described(instance)}: {found} bytes of shared memory")
    return {"cases": len(cases), "launches": len(stand_in.launches), "instances": count, "wrong": wrong}


def launched(case: Case) -> Iterator[str]:
    """What a case raises; nothing where it is launched, forward and backward."""
    try:
        results(case, "triton")
    except Exception as error:
        yield f"{case.id}: {type(error).__name__}: {' '.join(str(error).split())[:300]}"


def described(instance: front_end.Instance) -> str:
    named = " ".join(f"{n}={v}" for n, v in instance.constants_by_name.items() if n.isupper() and v is not None)
    return f"{instance.kernel.__name__} {named} warps={instance.options.num_warps} stages={instance.options.num_stages}"


#: Shared memory, by what tiles() says: at most 1.4 times that, of everything that is launched on sm_80 and sm_90.
_MOST_OF_TILES = 2


def tiles(one: front_end.Instance) -> float:
    """Bytes of the tiles that a program works on, of those that its loop reads one for each stage."""
    constants = one.constants_by_name
    rows, columns, depth = (constants.get(f"BLOCK_{name}") for name in "MNK")
    if rows is None or columns is None:
        return math.inf
    stages, size = max(one.options.num_stages, 1), 2 if any(t[-4:] in ("bf16", "fp16") for t in one.types) else 4
    width = constants.get("BLOCK_D", 0) + constants.get("BLOCK_DV", 0)
    read = (rows + stages * columns) * width + stages * (rows + columns) * (depth or 0)
    return int(size * read + 4 * rows * columns)


def widest(instances: list[front_end.Instance]) -> list[front_end.Instance]:
    """One of each kernel and configuration, and of each way to read: the one that takes most shared memory."""
    best: dict[str, front_end.Instance] = {}

    def size(one: front_end.Instance) -> tuple[int, bool, int, int]:
        constants = one.constants_by_name
        width = math.prod(constants.get(name, 1) for name in WIDTHS)
        floats = constants.get("MASK") == "float"  # where a mask of bools takes a quarter of it
        return width, floats, len(one.attributes), sum(constants.get(name, False) is True for name in REGISTERS)

    for one in instances:
        named = {n: v for n, v in one.constants_by_name.items() if n not in (*WIDTHS, *REGISTERS) and v is not None}
        named["MASK"] = bool(named.get("MASK"))
        elements = sorted({t.replace("fp16", "bf16").split("[")[0] for t in one.types if "fp" in t or "bf16" in t})
        key = f"{one.kernel.__name__} {named} {elements} {one.options.num_warps} {one.options.num_stages}"
        if key not in best or size(one) > size(best[key]):
            best[key] = one
    return list(best.values())


def run_planes(number: str) -> dict[str, Any]:
    """Forward and backward of every op, with as many planes."""
    stand_in.activate("sm_90")
    front_end.front_end_only()
    wrong = []
    for call in planes.calls(int(number)):
        try:
            call.run("triton")
        except Exception as error:
            wrong.append(f"{call.name} with {number} planes: {type(error).__name__}: {error}")
    return {"wrong": wrong, "launches": len(stand_in.launches)}


def run_lengths() -> dict[str, Any]:
    """How many kernels calls of different lengths, batches and heads compile, by op."""
    stand_in.activate("sm_80")
    front_end.front_end_only(lower=False)
    found: dict[str, list[str]] = {}
    for op in ("attention", "varlen_attention", "kvcache_attention"):
        front_end.instances.clear()
        for batch, heads, rows, keys in ((2, 2, 65, 65), (3, 4, 96, 128), (16, 16, 1000, 1001), (1, 2, 70, 4096)):
            q, k = (torch.empty(batch, heads, n, 64, dtype=torch.bfloat16, requires_grad=True) for n in (rows, keys))
            if op == "attention":
                tw.attention(q, k, k, causal="bottom_right", backend="triton").sum().backward()
            elif op == "varlen_attention":
                packed = [t.detach().transpose(1, 2).flatten(0, 1).contiguous().requires_grad_() for t in (q, k)]
                boundaries = [torch.arange(batch + 1, dtype=torch.int32) * n for n in (rows, keys)]
                out = tw.varlen_attention(packed[0], packed[1], packed[1], *boundaries, rows, keys, backend="triton")
                out.sum().backward()
            else:
                one, cache = q.detach()[:, :, :1], k.detach()
                lengths = torch.full((batch,), keys, dtype=torch.int32)
                tw.kvcache_attention(one, cache, cache, cache_seqlens=lengths, num_splits=1, backend="triton")
        found[op] = [i.kernel.__name__ for i in front_end.instances]
    return found


def run_keys(*ops: str) -> dict[str, str]:
    """After a call of each op in this order: what Triton's cache tells kernels and their functions apart by."""
    stand_in.activate("sm_90")
    front_end.front_end_only(lower=False)
    x = torch.ones(1, 1, 4, 16, dtype=torch.bfloat16, requires_grad=True)
    calls = {
        "attention": lambda: tw.attention(x, x, x, sinks=x[0, 0, 0, :1], backend="triton"),
        "softmax": lambda: tw.softmax(x, backend="triton"),
        "ffn": lambda: tw.ffn(x, x[0, 0], x[0, 0].T, backend="triton"),
    }
    for op in ops:
        calls[op]().sum().backward()
    return {f"{f.__module__}.{f.__name__}": f.cache_key for f in functions()}


class Uninitialised(Maker):
    """Numbers do not matter, and sizes (positions; elements) are as small as they can be for TMA and for loops."""

    def size(self, full: int, tiny: int) -> int:
        return min(full, 512 if full <= 16384 else 2**22)

    def normal(self, *shape: int, dtype: torch.dtype, scale: float = 1.0) -> torch.Tensor:
        widened = (*shape[:-1], shape[-1] + (not self.aligned))
        return torch.empty(widened, dtype=dtype)[..., : shape[-1]]


def run_tune() -> dict[str, Any]:
    """Of attention two head dims: what a key says of options is the same for all."""
    stand_in.activate("sm_90")
    front_end.front_end_only(lower=False)
    torch.rand, torch.randn_like = torch.empty, torch.empty_like  # as Uninitialised: numbers take most of the time
    of = [(k, key) for k, key in pairs("sm_90", [], [], []) if not re.match(r"\d,(16|32|128)\b", key)]
    maker = Uninitialised(torch.device("cpu"))
    found = {f"{kernel} {key}": launching(kernel, key, maker) for kernel, key in of}
    return {"pairs": len(of), "wrong": [f"{n}: {reason}" for n, reason in found.items() if isinstance(reason, str)]}


@triton.jit
def hungry(x, SIZE: tl.constexpr):
    """As much in shared memory as SIZE says."""
    i = tl.arange(0, SIZE)
    a = tl.load(x + i[:, None] * SIZE + i[None, :])
    tl.store(x + i[:, None] * SIZE + i[None, :], tl.dot(a, tl.trans(a)).to(tl.float16))


def run_refusals() -> dict[str, Any]:
    def said(call: Callable[[], Any]) -> str:
        try:
            call()
        except Exception as error:
            return str(error)
        return "nothing"

    stand_in.activate("sm_90")
    fill = triton.runtime.driver.active.utils.fill_tma_descriptor
    x = torch.zeros(1024 * 1024, dtype=torch.float16)
    at = x.data_ptr() // 16 * 16 + 16
    found = {
        "grid": said(lambda: hungry[(1, 65536)](x, SIZE=16)),
        "grid of all": said(lambda: grid(2**16, 2**15)),
        "address": said(lambda: fill(at + 8, 3, 2, 6, [64, 64], [64, 64], [64, 1], 0)),
        "stride": said(lambda: fill(at, 3, 2, 6, [64, 64], [64, 64], [65, 1], 0)),
        "box": said(lambda: fill(at, 3, 2, 6, [512, 64], [512, 64], [64, 1], 0)),
        "rank": said(lambda: fill(at, 3, 2, 6, [], [], [], 0)),
        "swizzle": said(lambda: fill(at, 3, 2, 6, [64, 128], [64, 128], [128, 1], 0)),
    }
    stand_in.activate("sm_80")
    found["shared memory"] = said(lambda: hungry[(1,)](x, SIZE=256, num_warps=8))
    found["chip without TMA"] = said(lambda: fill(at, 3, 2, 6, [64, 64], [64, 64], [64, 1], 0))
    return found


if __name__ == "__main__":
    gc.set_threshold(200_000)  # of the front end's many small objects few are in cycles: a tenth of the time
    what = {
        "cases": run_cases,
        "planes": run_planes,
        "lengths": run_lengths,
        "keys": run_keys,
        "refusals": run_refusals,
        "tune": run_tune,
    }[sys.argv[1]]
    print(json.dumps(what(*sys.argv[2:])))
