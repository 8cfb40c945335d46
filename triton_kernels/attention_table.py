"""Launch configurations of attention*.py: {architecture: {kernel: {key: (blocks, num_warps, num_stages)}}}.

Keys are table_key()'s. Key "" is every key that is not listed.
"""

from __future__ import annotations

Entry = tuple[dict[str, int], int, int]

#: What a call's options ask for: nothing, or one small thing; several; nearly all there are. Each takes registers.
LOADS = ("", ",some", ",many")
#: Padded head dims.
WIDTHS = (16, 32, 64, 128, 256)


def load_of(*, mask: bool, dropout: bool, alibi: bool, softcap: bool, window: bool, packed: bool) -> int:
    """A call's options, counted by what they cost."""
    return 2 * mask + 2 * dropout + alibi + softcap + window + packed


def table_key(element_size: int, width: int, load: int) -> str:
    """Bytes per element, padded head dim (the larger of D's and Dv's) and one of LOADS, by load_of's count.

    Head dim 256 leaves registers for no option.
    """
    alone = 0 if width == 256 else 1
    return f"{element_size},{width}{LOADS[0 if load <= alone else 1 if load <= 4 else 2]}"


Tile = tuple[int, int, int, int]  # BLOCK_M, BLOCK_N, num_warps, num_stages
#: {padded head dims: a tile for each of LOADS, the last for all that follow}
Tiles = dict[tuple[int, ...], tuple[Tile, ...]]


def _rows(size: int, tiles: Tiles) -> dict[str, Entry]:
    return {
        f"{size},{width}{load}": ({"BLOCK_M": m, "BLOCK_N": n}, warps, stages)
        for widths, found in tiles.items()
        for width in widths
        for load, (m, n, warps, stages) in zip(LOADS, (*found, found[-1], found[-1]), strict=False)
    }


# Not measured, none of what follows: chosen from published configurations of kernels of the same kind, and by
# registers, spills and shared memory in the machine code: the largest tile that spills nothing, in the backward little.

_DECODE: Tiles = {(16,): ((16, 32, 4, 2),), (32, 64, 128, 256): ((16, 32, 4, 3),)}

# Its products are three of TF32 each, with both operands split in registers: small tiles on every chip.
_FLOAT: dict[str, Tiles] = {
    "attention_forward": {
        (16,): ((64, 32, 4, 2),), (32,): ((32, 32, 4, 2),), (64,): ((32, 16, 8, 2),), (128,): ((16, 16, 4, 1),),
        (256,): ((16, 16, 8, 2),),
    },
    "attention_decode": {(16, 32, 64, 128): ((16, 32, 4, 1),), (256,): ((16, 16, 8, 2),)},
    "attention_backward_rows": {
        (16, 32, 64): ((32, 32, 4, 1),), (128,): ((16, 32, 8, 1),), (256,): ((16, 16, 8, 1),),
    },
    "attention_backward_keys": {(16, 32, 64): ((16, 32, 8, 1),), (128, 256): ((16, 16, 8, 1),)},
    "attention_backward_mask": {(16, 32, 64, 128, 256): ((16, 32, 8, 1),)},
}  # fmt: skip


def _kernels(
    forward: Tiles, rows: Tiles, keys: Tiles, mask: Tiles, float_decode: Tiles | None = None
) -> dict[str, dict[str, Entry]]:
    """float_decode: where decoding in float32 differs from _FLOAT."""
    half = {
        "attention_forward": forward,
        "attention_decode": _DECODE,
        "attention_backward_rows": rows,
        "attention_backward_keys": keys,
        "attention_backward_mask": mask,
    }
    found = {kernel: {**_rows(2, tiles), **_rows(4, _FLOAT[kernel])} for kernel, tiles in half.items()}
    found["attention_decode"].update(_rows(4, float_decode or {}))
    return found


_HOPPER_BACKWARD: dict[str, Tiles] = {
    "rows": {
        (16, 32): ((128, 64, 8, 2), (64, 64, 8, 2), (64, 32, 8, 2)),
        (64,): ((128, 64, 8, 2),),
        (128,): ((128, 64, 8, 2), (64, 64, 8, 2), (64, 32, 8, 2)),
        (256,): ((64, 32, 8, 2), (64, 16, 8, 2), (32, 32, 8, 2)),
    },
    "keys": {
        (16, 32, 64): ((64, 128, 8, 2), (32, 64, 8, 2), (16, 64, 8, 2)),
        (128,): ((32, 128, 8, 2), (16, 64, 8, 1), (32, 32, 8, 2)),
        (256,): ((32, 32, 8, 2), (16, 32, 8, 2)),
    },
    "mask": {(16, 32, 64): ((64, 64, 8, 2),), (128, 256): ((64, 32, 8, 2),)},
}

TABLE: dict[str, dict[str, dict[str, Entry]]] = {
    # The interpreter runs a program's operations one numpy call after another, so blocks are large there, and yet small
    # enough that tests see several of them.
    "interpreter": {kernel: {"": ({"BLOCK_M": 64, "BLOCK_N": 64}, 1, 1)} for kernel in _FLOAT},
    # Its shared memory is that of the smallest chips that take this table, 99 KiB.
    "sm_80": _kernels(
        forward={
            (16, 32, 64): ((128, 64, 8, 2), (64, 64, 4, 2), (64, 32, 4, 2)),
            (128,): ((128, 32, 8, 2), (64, 32, 8, 2)),
            (256,): ((64, 32, 8, 2), (32, 32, 4, 2), (32, 32, 8, 2)),
        },
        rows={
            (16, 32, 64): ((128, 32, 8, 2), (64, 32, 8, 2)),
            (128,): ((64, 64, 8, 2), (64, 32, 8, 2), (32, 32, 8, 2)),
            (256,): ((32, 32, 8, 1),),
        },
        keys={
            (16, 32, 64): ((32, 128, 8, 2), (32, 32, 8, 2), (16, 32, 8, 2)),
            (128,): ((32, 64, 8, 2), (16, 32, 8, 2)),
            (256,): ((16, 32, 8, 2), (16, 16, 8, 2)),
        },
        mask={(16, 32, 64, 128): ((64, 32, 8, 2),), (256,): ((32, 16, 8, 2),)},
    ),
    "sm_90": _kernels(
        forward={
            (16, 32): ((128, 128, 8, 2), (128, 64, 8, 2), (64, 32, 8, 2)),
            (64,): ((128, 128, 8, 2), (128, 64, 8, 2), (64, 64, 4, 2)),
            (128,): ((128, 128, 8, 2), (128, 64, 8, 2), (64, 32, 8, 2)),
            (256,): ((128, 64, 8, 2), (64, 64, 8, 2), (64, 32, 8, 2)),
        },
        **_HOPPER_BACKWARD,
    ),
    # Sums are kept in tensor memory, but for the rest there are as many registers as on Hopper.
    "sm_100": _kernels(
        forward={
            (16, 32, 64): ((128, 64, 8, 3), (128, 64, 8, 2), (64, 32, 8, 2)),
            (128,): ((128, 64, 8, 3), (128, 64, 8, 2), (64, 32, 8, 2)),
            (256,): ((128, 32, 8, 2), (64, 32, 8, 2)),
        },
        **_HOPPER_BACKWARD,
        float_decode={(64,): ((16, 16, 4, 1),)},
    ),
}
