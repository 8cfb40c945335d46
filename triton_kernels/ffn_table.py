"""Launch configurations of ffn.py: {architecture: {kernel: {key: (blocks, num_warps, num_stages)}}}.

Keys: "half" (float16, bfloat16) and "fp32"; "half_tma" where TMA reads the operands; "small_half" and "small_fp32" for
few rows; "" is every key that is not listed. Where a row comes from stands above it.
"""

from __future__ import annotations

_Row = tuple[dict[str, int], int, int]


def _product(
    m: int, n: int, k: int, warps: int, stages: int, group: int = 8, *, programs: int = 0, pieces: int = 1
) -> _Row:
    """programs: so many for each multiprocessor compute tile after tile, and read for the next one during an epilogue;
    0: there is a program for each tile. pieces: into how many an epilogue cuts its tile."""
    blocks = {"BLOCK_M": m, "BLOCK_N": n, "BLOCK_K": k, "GROUP_M": group}
    return {**blocks, "PROGRAMS": programs, "PIECES": pieces}, warps, stages


def _small(row: _Row) -> dict[str, _Row]:
    return {"small_half": row, "small_fp32": row}


def _elements(m: int, n: int, warps: int) -> _Row:
    return {"BLOCK_M": m, "BLOCK_N": n}, warps, 1


# A few rows: the tile is as narrow as the matrix units allow, so that there are many programs, and its steps along the
# depth are long, so that each has much to read.
_SMALL: dict[str, _Row] = {
    "small_half": _product(16, 16, 256, 4, 4),
    "small_fp32": _product(16, 16, 64, 4, 4),
}


# The same of the hidden gradient, whose depth is not shared among programs: its tiles are twice as wide, since its
# epilogue has more to do for each.
def _gradient(half: _Row, fp32: _Row) -> dict[str, _Row]:
    small = {"small_half": _product(16, 32, 128, 4, 4), "small_fp32": _product(16, 32, 64, 4, 3)}
    return {"half": half, "fp32": fp32, **small}


_ELEMENTWISE: dict[str, dict[str, _Row]] = {
    "ffn_in_parts": {"": _elements(4, 64, 4)},
    "ffn_out_parts": {"": _elements(4, 128, 4)},
    "ffn_drop": {"": _elements(16, 128, 4)},
}

# With TMA, on chips that have it. Not measured: chosen by the machine code (no spills), and by arithmetic for Hopper.
# The first product has a short depth and a heavy epilogue, so two programs fit on a multiprocessor (at most 128
# registers and 113 KiB each), and one multiplies during the other's epilogue. The second has a long depth and a light
# epilogue: its tiles are as large as accumulators may be, so that they read the least for each multiplication, and the
# next tile's first blocks arrive during an epilogue. The gradient's epilogue keeps more values than the first one's.
_TMA: dict[str, _Row] = {
    "ffn_in": _product(128, 128, 64, 8, 3, pieces=2),
    "ffn_in_gated": _product(128, 64, 64, 8, 3, pieces=2),
    "ffn_out": _product(128, 256, 64, 8, 4, programs=1, pieces=4),
    "ffn_hidden_gradient": _product(128, 128, 64, 8, 3, pieces=4),
    "ffn_hidden_gradient_gated": _product(128, 64, 64, 8, 4, pieces=2),
    "ffn_product": _product(128, 256, 64, 8, 4, programs=1, pieces=4),
}


def _with_tma(kernels: dict[str, dict[str, _Row]]) -> dict[str, dict[str, _Row]]:
    return {name: {**rows, "half_tma": _TMA[name]} if name in _TMA else rows for name, rows in kernels.items()}


TABLE: dict[str, dict[str, dict[str, _Row]]] = {
    # The interpreter runs a program's operations one numpy call after another, so blocks are large there, and yet small
    # enough that tests see several of them.
    "interpreter": {
        "ffn_in": {
            "": _product(32, 64, 32, 4, 2, 2),
            "half_tma": _product(32, 32, 32, 4, 2, 2, programs=1, pieces=2),
            **_small(_product(16, 32, 16, 4, 2)),
        },
        "ffn_in_gated": {
            "": _product(32, 32, 64, 4, 2, 2),
            "half_tma": _product(32, 16, 32, 4, 2, 2),
            **_small(_product(16, 16, 32, 4, 2)),
        },
        "ffn_out": {
            "": _product(32, 32, 64, 4, 2, 2),
            "half_tma": _product(32, 64, 32, 4, 2, 2, programs=1, pieces=4),
            **_small(_product(16, 32, 32, 4, 2)),
        },
        "ffn_hidden_gradient": {
            "": _product(32, 64, 32, 4, 2, 2),
            "half_tma": _product(32, 64, 32, 4, 2, 2, pieces=4),
            **_small(_product(16, 32, 32, 4, 2)),
        },
        "ffn_hidden_gradient_gated": {
            "": _product(32, 64, 64, 4, 2, 2),
            "half_tma": _product(32, 32, 64, 4, 2, 2, pieces=2),
            **_small(_product(16, 32, 32, 4, 2)),
        },
        "ffn_product": {
            "": _product(64, 64, 64, 4, 2, 2),
            "half_tma": _product(32, 32, 64, 4, 2, 2, programs=1),
            **_small(_product(16, 32, 32, 4, 2)),
        },
        "ffn_in_parts": {"": _elements(8, 64, 4)},
        "ffn_out_parts": {"": _elements(8, 64, 4)},
        "ffn_drop": {"": _elements(32, 64, 4)},
    },
    # Not measured: chosen from published configurations of kernels of the same kind, and checked for registers, spills
    # and shared memory in the machine code only.
    "sm_80": {
        "ffn_in": {"half": _product(128, 128, 32, 8, 4), "fp32": _product(64, 64, 16, 4, 3), **_SMALL},
        "ffn_in_gated": {"half": _product(128, 64, 32, 8, 4), "fp32": _product(64, 32, 16, 4, 3), **_SMALL},
        "ffn_out": {"half": _product(128, 128, 32, 8, 4), "fp32": _product(64, 64, 16, 4, 3), **_SMALL},
        "ffn_hidden_gradient": _gradient(_product(128, 64, 32, 8, 4), _product(64, 64, 16, 4, 3)),
        "ffn_hidden_gradient_gated": _gradient(_product(128, 64, 32, 8, 4), _product(64, 64, 16, 4, 3)),
        "ffn_product": {
            "half": _product(128, 128, 32, 8, 4),
            "fp32": _product(64, 64, 16, 4, 3),
            **_SMALL,
            "small_half": _product(16, 16, 128, 4, 6),
        },
        **_ELEMENTWISE,
    },
    # By pointers, two warpgroups of 64 rows each: whole epilogues of 128 x 256 tiles would not fit into the registers.
    "sm_90": _with_tma(
        {
            "ffn_in": {"half": _product(128, 128, 64, 8, 4), "fp32": _product(128, 64, 32, 8, 3), **_SMALL},
            "ffn_in_gated": {"half": _product(128, 64, 64, 8, 4), "fp32": _product(64, 32, 32, 4, 3), **_SMALL},
            "ffn_out": {"half": _product(128, 128, 64, 8, 4), "fp32": _product(128, 64, 32, 8, 3), **_SMALL},
            "ffn_hidden_gradient": _gradient(_product(128, 128, 32, 8, 6, pieces=2), _product(128, 64, 32, 8, 3)),
            "ffn_hidden_gradient_gated": _gradient(_product(128, 64, 64, 8, 4), _product(64, 64, 32, 4, 3)),
            "ffn_product": {"half": _product(128, 256, 64, 8, 3), "fp32": _product(128, 64, 32, 8, 3), **_SMALL},
            **_ELEMENTWISE,
        }
    ),
    "sm_100": _with_tma(
        {
            "ffn_in": {"half": _product(128, 128, 64, 8, 4), "fp32": _product(64, 64, 16, 4, 3), **_SMALL},
            "ffn_in_gated": {"half": _product(128, 64, 64, 8, 4), "fp32": _product(64, 32, 16, 4, 3), **_SMALL},
            "ffn_out": {"half": _product(128, 128, 64, 8, 4), "fp32": _product(64, 64, 16, 4, 3), **_SMALL},
            "ffn_hidden_gradient": _gradient(_product(128, 64, 64, 8, 4), _product(64, 64, 16, 4, 3)),
            "ffn_hidden_gradient_gated": _gradient(_product(128, 64, 64, 8, 4), _product(64, 64, 16, 4, 3)),
            "ffn_product": {"half": _product(128, 256, 64, 8, 3), "fp32": _product(64, 64, 16, 4, 3), **_SMALL},
            **_ELEMENTWISE,
        }
    ),
}
