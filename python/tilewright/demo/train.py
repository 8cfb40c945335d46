"""The demo's second step."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from . import FAILED, PASSED, Outcome

PROMPT = "import os\n\n\ndef "

#: What a preset may leave open. The steps are bounded by time.
DEFAULTS: dict[str, Any] = {"steps": 1_000_000, "batch_size": 16, "seq_len": 128, "lr": 1e-3, "warmup_steps": 20}


def train_step(folder: Path, seconds: float, seed: int) -> Outcome:
    import torch

    from ..cli.console import progress_bar
    from ..models import GPT, ByteTokenizer
    from ..train import PRESETS, StepInfo, make_corpus, pretrain, python_sources

    torch.manual_seed(seed)
    preset, tokenizer = PRESETS["demo"], ByteTokenizer()
    model = GPT(preset.model)
    corpus = make_corpus(python_sources(max_bytes=8_000_000), tokenizer)
    sizes = f"{model.num_parameters() / 1e6:.1f}M parameters, {len(corpus.train) / 1e6:.1f}M bytes of Python"
    print(f"{sizes}, {seconds:.0f} s of training")
    options = {**DEFAULTS, **preset.training, "seed": seed, "time_limit_s": seconds}
    with progress_bar("training", 1.0) as progress:

        def show(info: StepInfo) -> None:
            progress(info.progress, f"step {info.step}  loss {info.loss:.2f}  {info.tokens_per_second:,.0f} tokens/s")

        history = pretrain(model, corpus, **options, eval_every=options["steps"], eval_batches=8, on_step=show)
    model.save_pretrained(folder, tokenizer=tokenizer)
    first, last = history.losses[0], history.validation[-1][1]
    prompt = tokenizer.encode(PROMPT)
    tokens = model.generate([prompt], do_sample=True, temperature=0.7, top_k=50, seed=seed)  # to the last position
    text = tokenizer.decode(tokens[0].tolist())
    print("\n" + "\n".join("    " + line for line in text.splitlines()) + "\n")
    summary = (
        f"loss {first:.2f} -> {last:.2f} nats per byte on held-out files, {len(history.losses)} steps, "
        f"{history.tokens_per_second:,.0f} tokens/s; saved in {folder}"
    )
    report = {
        "parameters": model.num_parameters(),
        "steps": len(history.losses),
        "losses": history.losses,
        "validation_loss": last,
        "tokens_per_second": history.tokens_per_second,
        "sample": text,
    }
    # An untrained model's loss is log 257 = 5.5; one that learns nothing stays there.
    return Outcome(PASSED if last < first else FAILED, summary, report)
