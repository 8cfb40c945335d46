"""The demo's third step."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

from . import FAILED, NOT_RUN, PASSED, Outcome

NEW_TOKENS = 48
PROMPTS = ("def main():\n", "class Parser:\n    def __init__(self", "import sys\n", "# Copyright")


def compare_step(folder: Path) -> Outcome:
    """One GPT-2 checkpoint in two libraries: the same greedy tokens."""
    if importlib.util.find_spec("transformers") is None:
        return Outcome(
            NOT_RUN, "transformers is not installed: pip install 'tilewright[transformers]', then run this again"
        )
    import torch
    import transformers as library

    from ..models import GPT, load_tokenizer

    transformers: Any = library  # parts of it have no type hints
    transformers.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    tokenizer = load_tokenizer(folder)
    ours = GPT.from_pretrained(folder)
    theirs = transformers.GPT2LMHeadModel.from_pretrained(folder).eval()
    texts, same, largest = [], 0, 0.0
    for prompt in PROMPTS:
        ids = torch.tensor([tokenizer.encode(prompt)])
        a = ours.generate(ids, max_new_tokens=NEW_TOKENS, stop_token=None)
        with torch.no_grad():
            b = theirs.generate(
                ids, max_new_tokens=NEW_TOKENS, min_new_tokens=NEW_TOKENS, do_sample=False, pad_token_id=0
            )
            largest = max(largest, float((ours(a).logits - theirs(a).logits).abs().max()))
        same += int(torch.equal(a, b))
        texts.append({"prompt": prompt, "tilewright": tokenizer.decode(a[0].tolist()), "equal": torch.equal(a, b)})
        if not torch.equal(a, b):
            print(f"  tilewright:   {tokenizer.decode(a[0].tolist())!r}")
            print(f"  transformers: {tokenizer.decode(b[0].tolist())!r}")
    summary = (
        f"{same} of {len(PROMPTS)} continuations of {NEW_TOKENS} tokens are equal; "
        f"largest difference of a logit {largest:.1e} (transformers {transformers.__version__})"
    )
    report = {"continuations": texts, "largest_logit_difference": largest}
    return Outcome(PASSED if same == len(PROMPTS) else FAILED, summary, report)
