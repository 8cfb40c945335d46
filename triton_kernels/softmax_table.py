"""Launch configurations of softmax.py: {architecture: {kernel: {key: (blocks, num_warps, num_stages)}}}.

The key of a kernel that keeps whole rows is the width that its tile rounds rows up to, a power of two; "across" comes
before it where neighbouring rows are neighbours in memory (softmax over a dimension that is not the last). The looped
kernels have one key for each of the two. Where a row comes from stands above it.
"""

from __future__ import annotations

Row = tuple[dict[str, int], int, int]

#: The widest rows that each kernel keeps in registers, and the widest across. Beyond, the looped kernels.
WIDEST = {"softmax_forward": (32768, 512), "softmax_backward": (16384, 512)}

#: A row fits into its tile: the key is the tile's width.
FIXED = dict.fromkeys(WIDEST, ("COLUMNS",))


def _rows(kernel: str, elements: int, most_rows: int, least_across: int) -> dict[str, Row]:
    """Tiles of about ``elements`` elements, 16 of them in a thread where 32 warps allow it; a row of any width fits."""
    table: dict[str, Row] = {}
    for prefix, widest, least_rows in zip(("", "across "), WIDEST[kernel], (1, least_across), strict=True):
        for columns in (1 << power for power in range(widest.bit_length())):
            rows = max(least_rows, min(elements // columns, most_rows))
            warps = max(4, min(rows * columns // (32 * 16), 32))
            table[f"{prefix}{columns}"] = ({"ROWS": rows, "COLUMNS": columns}, warps, 1)
    return table


def _kernels(elements: int, most_rows: int, least_across: int, looped: dict[str, Row]) -> dict[str, dict[str, Row]]:
    rows = {kernel: _rows(kernel, elements, most_rows, least_across) for kernel in WIDEST}
    return {**rows, "softmax_forward_looped": looped, "softmax_backward_looped": looped}


# Not measured: chosen from published configurations of kernels of the same kind, and checked for registers, spills and
# shared memory in the machine code only.
#
# As in published row kernels the number of warps follows the width: 4 up to 2K columns, 8, 16 and 32 beyond; narrow
# rows share a program. Across, a tile has at least 32 rows: 64 bytes of a line of memory, two of its sectors, in 16-bit
# types. Twice as many elements in a thread took up to 224 registers where rows are not aligned. Looped, 16 elements of
# each tensor in a thread (two loads, in 16-bit types), and registers for two programs on a multiprocessor: more of them
# would hold more rows than the cache does until they are read again.
_GPU = _kernels(
    2048, 256, 32, {"": ({"ROWS": 1, "COLUMNS": 8192}, 16, 1), "across": ({"ROWS": 32, "COLUMNS": 128}, 8, 1)}
)

TABLE: dict[str, dict[str, dict[str, Row]]] = {
    # The interpreter runs a program's operations one numpy call after another, so blocks are large there, and yet small
    # enough that tests see several of them.
    "interpreter": _kernels(
        512, 64, 16, {"": ({"ROWS": 1, "COLUMNS": 8192}, 4, 1), "across": ({"ROWS": 16, "COLUMNS": 512}, 4, 1)}
    ),
    "sm_80": _GPU,
    "sm_90": _GPU,
    "sm_100": _GPU,
}
