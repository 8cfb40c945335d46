"""Launch configurations of attention*.py: {architecture: {kernel: {key: (blocks, num_warps, num_stages)}}}.

Keys are "bytes per element, padded head dim": the larger of D's and Dv's. Key "" is every key that is not listed.
"""

from __future__ import annotations

Entry = tuple[dict[str, int], int, int]


def _rows(rows: dict[tuple[int, ...], tuple[int, int, int, int]], size: int) -> dict[str, Entry]:
    """{head dims: (BLOCK_M, BLOCK_N, num_warps, num_stages)} spelt out."""
    return {
        f"{size},{d}": ({"BLOCK_M": m, "BLOCK_N": n}, warps, stages)
        for dims, (m, n, warps, stages) in rows.items()
        for d in dims
    }


_HOPPER_FORWARD = {
    **_rows({(16, 32, 64): (128, 128, 8, 2), (128,): (128, 128, 8, 2), (256,): (128, 64, 8, 2)}, 2),
    **_rows({(16, 32): (64, 32, 4, 2), (64,): (64, 32, 4, 2), (128, 256): (32, 16, 4, 1)}, 4),
}
_ROWS = {
    **_rows({(16, 32, 64): (128, 64, 8, 2), (128,): (128, 64, 8, 2), (256,): (32, 32, 8, 1)}, 2),
    **_rows({(16, 32, 64): (32, 32, 4, 1), (128,): (16, 32, 8, 1), (256,): (16, 16, 8, 1)}, 4),
}
_BACKWARD = {
    "attention_backward_rows": _ROWS,
    "attention_backward_keys": {
        **_rows({(16, 32, 64): (64, 128, 8, 1), (128,): (64, 64, 8, 1), (256,): (32, 32, 8, 1)}, 2),
        **_rows({(16, 32, 64): (16, 64, 4, 1), (128,): (16, 32, 8, 1), (256,): (16, 16, 8, 1)}, 4),
    },
    "attention_backward_mask": _ROWS,
}

TABLE: dict[str, dict[str, dict[str, Entry]]] = {
    # The interpreter runs a program's operations one numpy call after another, so blocks are large there, and yet small
    # enough that tests see several of them.
    "interpreter": {
        "attention_forward": {"": ({"BLOCK_M": 64, "BLOCK_N": 64}, 1, 1)},
        "attention_decode": {"": ({"BLOCK_M": 64, "BLOCK_N": 64}, 1, 1)},
        "attention_backward_rows": {"": ({"BLOCK_M": 64, "BLOCK_N": 64}, 1, 1)},
        "attention_backward_keys": {"": ({"BLOCK_M": 64, "BLOCK_N": 64}, 1, 1)},
        "attention_backward_mask": {"": ({"BLOCK_M": 64, "BLOCK_N": 64}, 1, 1)},
    },
    # Not measured: chosen from published configurations of kernels of the same kind, and by registers, spills and
    # shared memory in the machine code.
    "sm_80": {
        "attention_forward": {
            **_rows({(16, 32, 64): (128, 64, 4, 3), (128,): (128, 64, 8, 2), (256,): (64, 32, 4, 2)}, 2),
            **_rows({(16, 32): (64, 32, 4, 2), (64,): (64, 32, 4, 2), (128, 256): (32, 16, 4, 1)}, 4),
        },
        "attention_decode": {"": ({"BLOCK_M": 16, "BLOCK_N": 64}, 4, 2)},
        **_BACKWARD,
    },
    "sm_90": {
        "attention_forward": _HOPPER_FORWARD,
        "attention_decode": {"": ({"BLOCK_M": 16, "BLOCK_N": 64}, 4, 3)},
        **_BACKWARD,
    },
    "sm_100": {
        "attention_forward": _HOPPER_FORWARD,
        "attention_decode": {"": ({"BLOCK_M": 16, "BLOCK_N": 64}, 4, 3)},
        **_BACKWARD,
    },
}
