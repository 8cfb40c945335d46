"""Launch configurations of softmax.py: {architecture: {kernel: {key: (blocks, num_warps, num_stages)}}}.

The key of a kernel that keeps whole rows is the width that its tile rounds rows up to, a power of two; "across" comes
before it where neighbouring rows are neighbours in memory (softmax over a dimension that is not the last). The looped
kernels have one key for each of the two. Where a row comes from stands above it.
"""

from __future__ import annotations

Row = tuple[dict[str, int], int, int]

#: The widest rows that each kernel keeps in registers, and the widest across. Beyond, the looped kernels.
_WIDEST = {"softmax_forward": (32768, 512), "softmax_backward": (16384, 512)}
WIDEST = {
    "interpreter": _WIDEST,
    # With a bool mask 32768 columns spill there.
    "sm_80": {**_WIDEST, "softmax_forward": (16384, 512)},
    "sm_90": _WIDEST,
    "sm_100": _WIDEST,
}


def _rows(widest: int, prefix: str, elements: int, per_thread: int, least_rows: int, most_rows: int) -> dict[str, Row]:
    """Tiles of about ``elements`` elements and ``per_thread`` of them in a thread; a row of any width fits."""
    table: dict[str, Row] = {}
    columns = 1
    while columns <= widest:
        rows = max(least_rows, min(elements // columns, most_rows))
        warps = max(4, min(rows * columns // (32 * per_thread), 32))
        table[f"{prefix}{columns}"] = ({"ROWS": rows, "COLUMNS": columns}, warps, 1)
        columns *= 2
    return table


def _gpu(architecture: str) -> dict[str, dict[str, Row]]:
    forward, forward_across = WIDEST[architecture]["softmax_forward"]
    backward, backward_across = WIDEST[architecture]["softmax_backward"]
    looped: dict[str, Row] = {
        # 8 elements of each tensor in a thread (16 bytes, one load, in 16-bit types), and registers for two programs on
        # a multiprocessor. Twice as many elements spill.
        "": ({"ROWS": 1, "COLUMNS": 4096}, 16, 1),
        "across": ({"ROWS": 32, "COLUMNS": 128}, 8, 1),
    }
    return {
        # As in published row kernels the number of warps follows the width: 4 up to 4K columns, then more, until 32 at
        # 32K; narrow rows share a program. Across, a tile has at least 32 rows (64 bytes of a line of memory, two of
        # its sectors, in 16-bit types), and half as many elements in a thread, since it needs more for addresses.
        "softmax_forward": {
            **_rows(forward, "", 4096, 32, 1, 256),
            **_rows(forward_across, "across ", 2048, 16, 32, 256),
        },
        # Two tensors are held instead of one, so half as many elements.
        "softmax_backward": {
            **_rows(backward, "", 2048, 16, 1, 256),
            **_rows(backward_across, "across ", 2048, 16, 32, 256),
        },
        "softmax_forward_looped": looped,
        "softmax_backward_looped": looped,
    }


def _interpreter() -> dict[str, dict[str, Row]]:
    looped: dict[str, Row] = {
        "": ({"ROWS": 1, "COLUMNS": 8192}, 4, 1),
        "across": ({"ROWS": 16, "COLUMNS": 512}, 4, 1),
    }
    table = {
        kernel: {**_rows(widest, "", 512, 32, 1, 64), **_rows(across, "across ", 512, 32, 16, 64)}
        for kernel, (widest, across) in WIDEST["interpreter"].items()
    }
    return {**table, "softmax_forward_looped": looped, "softmax_backward_looped": looped}


TABLE: dict[str, dict[str, dict[str, Row]]] = {
    # The interpreter runs a program's operations one numpy call after another, so blocks are large there, and yet small
    # enough that tests see several of them.
    "interpreter": _interpreter(),
    # Not measured: chosen from published configurations of kernels of the same kind, and checked for registers, spills
    # and shared memory in the machine code only.
    "sm_80": _gpu("sm_80"),
    "sm_90": _gpu("sm_90"),
    "sm_100": _gpu("sm_100"),
}
