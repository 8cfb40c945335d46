"""Whole models of transformers: eager attention, sdpa, tilewright's attention, and that with tilewright's MLPs.

    python benchmarks/end_to_end_transformers.py [--quick] [--dtype float32|bfloat16] [--output FILE]

GPT-2 (124M) and a Llama-like model of about 100M parameters, random weights: prefill, a training step, and greedy
generation with a cache. Ways are taken in turns (A B C D A B C D ...), and medians and the ratios to sdpa of the same
run are written as JSON, with the largest error of the logits by the float64 model. OMP_NUM_THREADS sets the threads.
"""

from __future__ import annotations

import argparse
import copy
import dataclasses
import datetime
import json
import math
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers
from gpu.run import slug
from torch import Tensor

from tilewright.bench.environment import cpu_name, environment
from tilewright.integrations.transformers import apply_to_gpt2, apply_to_llama, register

RESULTS = Path(__file__).resolve().parent / "results"
WAYS = ("eager", "sdpa", "tilewright attention", "tilewright attention + mlp")
VOCABULARY = 32000


def gpt2() -> Any:
    return transformers.GPT2LMHeadModel(transformers.GPT2Config(resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0))


def llama() -> Any:
    config = transformers.LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=768,
        intermediate_size=2048,
        num_hidden_layers=12,
        num_attention_heads=12,
        num_key_value_heads=4,
        max_position_embeddings=2048,
        tie_word_embeddings=True,
    )
    return transformers.LlamaForCausalLM(config)


MODELS = {"gpt2-124m": (gpt2, apply_to_gpt2), "llama-100m": (llama, apply_to_llama)}


@dataclasses.dataclass(frozen=True)
class Case:
    """kind: "prefill", "train" or "generate"; of ``batch`` sequences of ``length`` tokens, then ``new`` tokens."""

    kind: str
    batch: int
    length: int
    new: int = 0

    def __str__(self) -> str:
        return f"{self.kind} {self.batch}x{self.length}" + (f"+{self.new}" if self.new else "")


#: bfloat16 matrix products of torch take minutes on CPUs without instructions for them, hence its short sequences.
CASES = {
    "float32": (
        Case("prefill", 1, 1024),
        Case("prefill", 4, 512),
        Case("train", 1, 512),
        Case("generate", 1, 128, 64),
    ),
    "bfloat16": (Case("prefill", 1, 32), Case("train", 1, 8), Case("generate", 1, 8, 8)),
}
QUICK = {"float32": (Case("prefill", 1, 64), Case("train", 1, 32), Case("generate", 1, 16, 4))}


def ways(model: Any, apply: Callable[..., Any]) -> dict[str, Any]:
    """A copy of the model for each way: gate's and up's weights are moved together where the MLPs are fused."""
    models = {way: copy.deepcopy(model) for way in WAYS}
    models["eager"].set_attn_implementation("eager")
    models["sdpa"].set_attn_implementation("sdpa")
    apply(models["tilewright attention"], mlp=False)
    apply(models["tilewright attention + mlp"], **({"pack": True} if apply is apply_to_llama else {}))
    return models


def step(case: Case, model: Any, ids: Tensor) -> Callable[[], object]:
    if case.kind == "prefill":

        def prefill() -> object:
            with torch.no_grad():
                return model.base_model(ids, use_cache=False)

        return prefill
    if case.kind == "train":

        def train() -> object:
            model.zero_grad(set_to_none=True)
            loss: Tensor = model(ids, labels=ids, use_cache=False).loss
            return loss.backward()  # type: ignore[no-untyped-call]

        return train
    options = {"max_new_tokens": case.new, "min_new_tokens": case.new, "do_sample": False, "pad_token_id": 0}
    return lambda: model.generate(ids, attention_mask=torch.ones_like(ids), **options)


def measure(functions: dict[str, Callable[[], object]], samples: int) -> dict[str, list[float]]:
    """Seconds. One call of each first, which is not counted; calls take seconds, so each is a sample."""
    for function in functions.values():
        function()
    seconds: dict[str, list[float]] = {way: [] for way in functions}
    for _ in range(samples):
        for way, function in functions.items():
            start = time.perf_counter()
            function()
            seconds[way].append(time.perf_counter() - start)
    return seconds


def errors(models: dict[str, Any], exact: Any) -> dict[str, float]:
    """Largest difference of a logit to the same weights' float64 model, over the largest logit."""
    ids = torch.randint(3, VOCABULARY, (1, 48))
    with torch.no_grad():
        reference = exact(ids, use_cache=False).logits
        scale = reference.abs().max()
        return {
            way: float((model(ids, use_cache=False).logits.double() - reference).abs().max() / scale)
            for way, model in models.items()
        }


def run(name: str, dtype: str, cases: tuple[Case, ...], samples: int) -> list[dict[str, Any]]:
    build, apply = MODELS[name]
    torch.manual_seed(0)
    model = build().to(getattr(torch, dtype)).eval()
    exact = copy.deepcopy(model).double()
    exact.set_attn_implementation("eager")
    models = ways(model, apply)
    error = errors(models, exact)
    del exact
    rows = []
    for case in cases:
        ids = torch.randint(3, VOCABULARY, (case.batch, case.length))
        seconds = measure({way: step(case, m, ids) for way, m in models.items()}, samples)
        medians = {way: statistics.median(values) for way, values in seconds.items()}
        speedups = {way: medians["sdpa"] / medians[way] for way in WAYS}
        row = {"model": name, "dtype": dtype, "case": str(case), "samples": samples, "seconds": medians}
        row |= {"all_seconds": seconds, "speedup_over_sdpa": speedups, "relative_error_of_logits": error}
        print(f"{name} {dtype} {case}: " + ", ".join(f"{w} {medians[w]:.2f} s ({speedups[w]:.2f}x)" for w in WAYS))
        sys.stdout.flush()
        rows.append(row)
    return rows


def write(output: Path, block: dict[str, Any], rows: list[dict[str, Any]]) -> None:
    means = {way: math.exp(statistics.fmean(math.log(row["speedup_over_sdpa"][way]) for row in rows)) for way in WAYS}
    report = {"environment": block, "geometric_mean_speedup_over_sdpa": means, "rows": rows}
    output.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")


def result_file() -> Path:
    """Today's file for this machine."""
    RESULTS.mkdir(exist_ok=True)
    return RESULTS / f"{datetime.date.today().isoformat()}-transformers-{slug(cpu_name())}.json"


def main() -> int:
    parser = argparse.ArgumentParser(description="End-to-end speed of transformers models on tilewright.")
    parser.add_argument("--quick", action="store_true", help="short sequences: a minute, to see that it runs")
    parser.add_argument("--dtype", choices=CASES, help="one of them; both by default")
    parser.add_argument("--samples", type=int, default=3, help="counted calls of each way")
    parser.add_argument("--output", type=Path, help="JSON file; benchmarks/results/ by default")
    arguments = parser.parse_args()
    register()
    transformers.logging.set_verbosity_error()
    block, rows = environment(), []
    output = arguments.output or result_file()
    for dtype, cases in (QUICK if arguments.quick else CASES).items():
        if arguments.dtype not in (None, dtype):
            continue
        for name in MODELS:
            rows += run(name, dtype, cases, arguments.samples)
            write(output, block, rows)  # as it goes: a long run that ends early has its first results
    print(f"written to {output}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
