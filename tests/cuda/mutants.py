"""Breaks the CUDA kernels on purpose, one place at a time, and shows what notices: ``python tests/cuda/mutants.py``.

Each mutant is compiled into an emulated module of its own and runs a few of the built-in cases. What caught it is a
fault that the emulator reports, or the gate on the result. The outcome is written to mutants.json, and to the table in
docs/emulator.md; a test checks that the list and the sources still fit, and that nothing escaped.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
RESULTS = Path(__file__).with_suffix(".json")
PAGE = ROOT / "docs" / "emulator.md"
MARKS = ("<!-- mutants -->", "<!-- end of mutants -->")


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
        "  sync_warp();\n",
        "",
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
        "parts.load(i * part_floats(p) + 2 + c) * rescale(i)",
        "parts.load(i * part_floats(p) + 2 + c)",
        DECODE,
    ),
    Mutant(
        "caches: the place within a page is forgotten",
        "attention_call.h",
        "page_stride + i % page_size * stride",
        "page_stride",
        DECODE,
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
        "dlogit * (1.0f - capped * capped)",
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

RUN = """
import importlib.util, sys
spec = importlib.util.spec_from_file_location("tilewright._cuda_emulated", sys.argv[1])
module = importlib.util.module_from_spec(spec)
sys.modules[spec.name] = module
spec.loader.exec_module(module)
import fnmatch, torch
torch.set_num_threads(1)
from tilewright.catalog import OPS
from tilewright.verify.cases import select_cases
from tilewright.verify.run import run_case
found = 0
for case in select_cases(list(OPS)):
    if case.dtype == torch.float64 or not any(fnmatch.fnmatch(case.id, p) for p in sys.argv[2:]):
        continue
    found += 1
    for record in run_case(case, ["cuda"]):
        if record.status != "passed":
            print(case.id, "|", " ".join(map(str, record.problems)).replace("\\n", " "))
            sys.exit(1)
assert found, "no such case"
"""


def mutate(mutant: Mutant, folder: Path) -> str:
    """Writes the mutant into a copy of csrc/; returns what was there."""
    path = folder / "cuda" / mutant.file
    text = path.read_text()
    count = text.count(mutant.before)
    if count != 1:
        raise SystemExit(f"{mutant.what}: in {mutant.file} there are {count} places to change, not one")
    path.write_text(text.replace(mutant.before, mutant.after))
    return text


def judge(module: Path, mutant: Mutant) -> tuple[str, str] | None:
    """What caught it, a fault of the emulator or "gate", and where; None if nothing did."""
    environment = {**os.environ, "TILEWRIGHT_CUDA_EMULATE": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", RUN, str(module), *mutant.cases],
        capture_output=True,
        text=True,
        env=environment,
        check=False,
        timeout=600,
    )
    if done.returncode == 0:
        return None
    line = done.stdout.strip().splitlines()[-1] if done.stdout.strip() else done.stderr.strip()[-300:]
    case, _, problem = line.partition(" | ")
    fault = re.search(r"\b((?:global|shared|copy)-[a-z-]+|divergence|deadlock) in ", problem)
    if fault is None and not re.search(r"error .* > |not finite|NaN|differ", problem):
        raise SystemExit(f"{mutant.what}: failed in a way that is no catch: {line}")
    return (fault[1] if fault else "gate"), case


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", default="", help="mutants whose description contains this; nothing is written")
    only = parser.parse_args().only
    chosen = [m for m in MUTANTS if only in m.what]
    rows = []
    with tempfile.TemporaryDirectory() as temporary:
        source, build = Path(temporary, "csrc"), Path(temporary, "build")
        shutil.copytree(ROOT / "csrc", source)
        tools = {**os.environ, "PATH": os.pathsep.join([sysconfig.get_path("scripts"), os.environ.get("PATH", "")])}

        def make() -> Path:
            command = ["cmake", "--build", str(build), "--target", "_cuda_emulated"]
            subprocess.run(command, check=True, env=tools, stdout=subprocess.DEVNULL)
            return build / f"_cuda_emulated{sysconfig.get_config_var('EXT_SUFFIX')}"

        configure = [
            "cmake",
            "-S",
            str(source),
            "-B",
            str(build),
            "-G",
            "Ninja",
            f"-DPython_EXECUTABLE={sys.executable}",
        ]
        subprocess.run(configure, check=True, env=tools, stdout=subprocess.DEVNULL)
        module = make()
        for mutant in chosen:
            caught = judge(module, Mutant("as it is", "", "", "", mutant.cases))
            if caught is not None:
                raise SystemExit(f"{mutant.what}: its cases fail without it: {caught}")
        for number, mutant in enumerate(chosen, 1):
            text = mutate(mutant, source)
            caught = judge(make(), mutant)
            (source / "cuda" / mutant.file).write_text(text)
            print(
                f"{number}/{len(chosen)} {mutant.what}: {'NOT CAUGHT' if caught is None else ' in '.join(caught)}",
                flush=True,
            )
            by, case = caught or ("nothing", "")
            rows.append({"what": mutant.what, "file": mutant.file, "by": by, "case": case})
    if not only:
        RESULTS.write_text(json.dumps(rows, indent=1) + "\n")
        before, _, rest = PAGE.read_text().partition(MARKS[0])
        PAGE.write_text(before + table(rows) + rest.partition(MARKS[1])[2])
    return int(any(row["by"] == "nothing" for row in rows))


def table(rows: list[dict[str, str]]) -> str:
    """For the page, with its marks."""
    lines = [f"| {row['what']} | `{row['file']}` | {row['by']} |" for row in rows]
    head = "| what is broken | where | caught by |\n| --- | --- | --- |\n"
    return f"{MARKS[0]}\n{head}" + "\n".join(lines) + f"\n{MARKS[1]}"


if __name__ == "__main__":
    sys.exit(main())
