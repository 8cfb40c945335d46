"""The CUDA kernels broken on purpose, one place at a time: what `make mutants` compiles, and the cases it runs then."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Mutant:
    """In csrc/cuda/<file>, the only occurrence of ``before`` becomes ``after``. cases: patterns of case ids."""

    what: str
    file: str
    before: str
    after: str
    cases: tuple[str, ...]


FORWARD = ("attention/causal_top_left_70x130/bfloat16", "attention/causal_bottom_right_130x70/bfloat16")
DECODE = ("kvcache_attention/contiguous_long/bfloat16", "kvcache_attention/paged/float16")
BACKWARD = ("attention/gqa/float16", *FORWARD)
SOFTMAX = ("softmax/*/float16",)

MUTANTS = (
    Mutant(
        "attention: no barrier after waiting for copies",
        "attention_forward.cu",
        "wait_for_copies<1>();\n    sync_block();",
        "wait_for_copies<1>();",
        FORWARD,
    ),
    Mutant(
        "attention: waits for one group of copies too few",
        "attention_forward.cu",
        "wait_for_copies<1>();",
        "wait_for_copies<2>();",
        FORWARD,
    ),
    Mutant(
        "attention: no barrier before the next copies",
        "attention_forward.cu",
        "sync_block();  // the next iteration's copies go where this one has read",
        "",
        ("attention/length_130x257/bfloat16",),
    ),
    Mutant(
        "attention: values of the other stage",
        "attention_forward.cu",
        "multiply_scores(out, x, v_tile(stage));",
        "multiply_scores(out, x, v_tile(stage ^ 1));",
        FORWARD,
    ),
    Mutant(
        "attention: results read by other lanes without a barrier of the warp",
        "attention_forward.cu",
        "  sync_warp();\n  out_tile",
        "  out_tile",
        FORWARD,
    ),
    Mutant(
        "attention: the weighted sum is not rescaled to the new maximum",
        "attention_softmax.h",
        "out[c][2 * h] *= rescale, out[c][2 * h + 1] *= rescale;",
        ";",
        FORWARD,
    ),
    Mutant(
        "attention: the causal bound is a key too low",
        "attention_call.h",
        "r.hi = clamp(last + int64_t{s.shift} + right + 1, 0, s.seqlen_k);",
        "r.hi = clamp(last + int64_t{s.shift} + right, 0, s.seqlen_k);",
        FORWARD,
    ),
    Mutant(
        "attention: a tile that the bound cuts is taken for a whole one",
        "attention_forward.cu",
        "start + kKeys > range.hi_all",
        "start + kKeys > range.hi",
        FORWARD,
    ),
    Mutant(
        "products: two matrices of the right operand swapped",
        "operand.h",
        "at = row + lane % 8 + lane / 16 * 8;",
        "at = row + lane % 8 + lane / 8 % 2 * 8;",
        FORWARD,
    ),
    Mutant(
        "products: a lane's row of the left operand",
        "operand.h",
        "const auto chunk = tile.chunk(row + lane % 16, depth / kChunk<T> + lane / 16);",
        "const auto chunk = tile.chunk(row + lane % 8, depth / kChunk<T> + lane / 16);",
        FORWARD,
    ),
    Mutant(
        "tiles: chunks are swizzled one way when copied and another when read",
        "tile.h",
        "copy_async<16>(chunk(row, c), from, count);",
        "copy_async<16>(at + row * kWidth + (c ^ row % 4) * kChunk<T>, from, count);",
        FORWARD,
    ),
    Mutant(
        "tiles: what is past the last row is read",
        "tile.h",
        "const bool there = first + row < limit && inside > 0;\n      const int count",
        "const bool there = inside > 0;\n      const int count",
        FORWARD,
    ),
    Mutant(
        "tiles: 16-byte copies of rows that do not begin at multiples of 16",
        "attention_launch.h",
        "all = all && v.stride[d] * int64_t{sizeof(T)} % 16 == 0;",
        "(void)d;",
        ("attention/head_dim_50_3/bfloat16", "attention/memory_misaligned/bfloat16"),
    ),
    Mutant(
        "rows: a sum over the wrong lanes",
        "operand.h",
        "return x + shuffle_xor(x, 2);",
        "return x + shuffle_xor(x, 4);",
        FORWARD,
    ),
    Mutant(
        "dropout: the neighbour's draw is not passed on",
        "attention_call.h",
        "const uint32_t other = shuffle_xor(mine, 1);",
        "const uint32_t other = mine;",
        ("attention/dropout_everything/float16",),
    ),
    Mutant(
        "decode: a warp reads its tile without a barrier of its own",
        "attention_decode.cu",
        "wait_for_copies<kStages - 1>();\n    sync_warp();",
        "wait_for_copies<kStages - 1>();",
        DECODE,
    ),
    Mutant(
        "decode: splits overlap by a key",
        "attention_decode.cu",
        "range.hi = range.lo + part < range.hi ? range.lo + part : range.hi;",
        "range.hi = range.lo + part + 1 < range.hi ? range.lo + part + 1 : range.hi;",
        DECODE,
    ),
    Mutant(
        "decode: merged parts are not rescaled",
        "attention_decode.cu",
        "share(rescale(i), parts.load(i * part_floats(p) + 2 + c))",
        "parts.load(i * part_floats(p) + 2 + c)",
        DECODE,
    ),
    Mutant(
        "caches: the place within a page is forgotten",
        "attention_call.h",
        "page_stride + (place - page * page_size) * stride",
        "page_stride",
        DECODE,
    ),
    Mutant(
        "launch: more shared memory than there is without asking for it",
        "primitives/launch.h",
        "if (shared_bytes > 48 * 1024) {",
        "if (shared_bytes > 96 * 1024) {",
        ("attention/head_dim_128_128/bfloat16",),
    ),
    Mutant(
        "products: float32's second row of a pair is not swizzled",
        "operand.h",
        "bits_of((at + kWidth + (h ^ 1) * 4).load())",
        "bits_of((at + kWidth + h * 4).load())",
        ("attention/length_130x257/float32",),
    ),
    Mutant(
        "mask: tiles are counted row by row, and their rows plane by plane",
        "attention_mask_gradient.cu",
        "const int row_tile = row % mask.row_tiles(), plane = row / mask.row_tiles();",
        "const int row_tile = row / (mask.batch * mask.heads), plane = row / mask.row_tiles();",
        ("attention/mask_long/float16",),
    ),
    Mutant(
        "backward: delta of the wrong sign of dlse",
        "attention_backward_rows.cu",
        "  return -global<float>",
        "  return global<float>",
        ("attention/lse_gradient/float16",),
    ),
    Mutant(
        "backward: statistics of the other stage",
        "attention_backward_keys.cu",
        "const Shared<float> at = terms(stage)",
        "const Shared<float> at = terms(stage ^ 1)",
        BACKWARD,
    ),
    Mutant(
        "backward: only the first head of a group",
        "attention_backward_keys.cu",
        "count = tiles * group;",
        "count = tiles;",
        BACKWARD,
    ),
    Mutant(
        "backward: softcap's slope is left out",
        "attention_gradient.h",
        "dlogit * dcap[n][e]",
        "dlogit",
        ("attention/softcap/float16",),
    ),
    Mutant(
        "softmax: no barrier before a block's second reduction",
        "softmax_rows.h",
        "sync_block();  // what an earlier reduction left has been read",
        "",
        SOFTMAX,
    ),
    Mutant(
        "softmax: a column past the row's end",
        "softmax_forward.cu",
        "    if (row < l.rows && column < p.n) {\n      load_scores",
        "    if (row < l.rows && column <= p.n) {\n      load_scores",
        SOFTMAX,
    ),
    Mutant(
        "softmax: a shuffle that names half of the lanes that make it",
        "softmax_rows.h",
        "value = operation(value, shuffle_xor(value, step));",
        "value = operation(value, shuffle_xor(value, step, 0xFFFFu));",
        SOFTMAX,
    ),
    Mutant(
        "softmax: vectors at addresses that are no multiples of 16",
        "softmax_rows.h",
        "bool aligned = stride == 1 && reinterpret_cast<uintptr_t>(base) % 16 == 0 && p.n % v == 0;",
        "bool aligned = stride == 1 && p.n % v == 0;",
        ("softmax/memory_misaligned*/bfloat16",),
    ),
    Mutant(
        "ffn: no barrier after waiting for copies",
        "ffn_tile.h",
        "sync_block();  // this step's tiles are there, and the last step's have been read",
        "",
        ("ffn/*/float16",),
    ),
    Mutant(
        "ffn: waits for one group of copies too few",
        "ffn_tile.h",
        "wait_for_copies<kStages - 2>();",
        "wait_for_copies<kStages - 1>();",
        ("ffn/*/float16",),
    ),
)
