"""Launch configurations of softmax.py: {architecture: {kernel: {key: (blocks, num_warps, num_stages)}}}.

The key of a kernel that keeps whole rows is the width that its tile rounds rows up to, a power of two; "across" comes
before it where neighbouring rows are neighbours in memory (softmax over a dimension that is not the last). The looped
kernels have one key for each of the two. Where a row comes from stands above it.
"""

from __future__ import annotations

Row = tuple[dict[str, int], int, int]

#: The widest rows that the kernels keep in registers, by (kernel, across). Beyond, the looped kernels.
WIDEST = {
    ("softmax_forward", False): 32768,
    ("softmax_forward", True): 512,
    ("softmax_backward", False): 16384,
    ("softmax_backward", True): 512,
}


def _rows(kernel: str, elements: int, per_thread: int, most_rows: int, least_across: int) -> dict[str, Row]:
    """Tiles of about ``elements`` elements and ``per_thread`` of them in a thread; a row of any width fits."""
    table: dict[str, Row] = {}
    for across, prefix, least in ((False, "", 1), (True, "across ", least_across)):
        columns = 1
        while columns <= WIDEST[kernel, across]:
            rows = max(least, min(elements // columns, most_rows))
            warps = max(4, min(rows * columns // (32 * per_thread), 32))
            table[f"{prefix}{columns}"] = ({"ROWS": rows, "COLUMNS": columns}, warps, 1)
            columns *= 2
    return table


def _gpu() -> dict[str, dict[str, Row]]:
    return {
        # The number of warps follows the width as in published row kernels: 4 up to 2K columns, 16 from 8K on, 32 from
        # 16K to 32K. Narrow rows share a program of 4096 elements, 32 for each thread. Across, a tile has at least 32
        # rows: 64 bytes of a line of memory, two of its sectors, in 16-bit types.
        "softmax_forward": _rows("softmax_forward", 4096, 32, 256, 32),
        # Two tensors are held instead of one, so half as many elements.
        "softmax_backward": _rows("softmax_backward", 2048, 16, 256, 32),
        # 8 elements of each tensor in a thread (16 bytes, one load, in 16-bit types), and registers for two programs on a
        # multiprocessor. Twice as many elements spill.
        "softmax_forward_looped": {
            "": ({"ROWS": 1, "COLUMNS": 4096}, 16, 1),
            "across": ({"ROWS": 32, "COLUMNS": 128}, 8, 1),
        },
        "softmax_backward_looped": {
            "": ({"ROWS": 1, "COLUMNS": 4096}, 16, 1),
            "across": ({"ROWS": 32, "COLUMNS": 128}, 8, 1),
        },
    }


TABLE: dict[str, dict[str, dict[str, Row]]] = {
    # The interpreter runs a program's operations one numpy call after another, so blocks are large there, and yet small
    # enough that tests see several of them.
    "interpreter": {
        "softmax_forward": _rows("softmax_forward", 512, 32, 64, 16),
        "softmax_backward": _rows("softmax_backward", 512, 32, 64, 16),
        "softmax_forward_looped": {
            "": ({"ROWS": 1, "COLUMNS": 8192}, 4, 1),
            "across": ({"ROWS": 16, "COLUMNS": 512}, 4, 1),
        },
        "softmax_backward_looped": {
            "": ({"ROWS": 1, "COLUMNS": 8192}, 4, 1),
            "across": ({"ROWS": 16, "COLUMNS": 512}, 4, 1),
        },
    },
    # Not measured: chosen from published configurations of kernels of the same kind, and checked for registers, spills
    # and shared memory in the machine code only.
    "sm_80": _gpu(),
    "sm_90": _gpu(),
    "sm_100": _gpu(),
}
