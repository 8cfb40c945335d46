"""Small random GPT-2 checkpoints as transformers writes them, and nothing from the network."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

os.environ["HF_HUB_OFFLINE"] = "1"  # read when huggingface_hub is imported, so before any test does


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """Models this small gain nothing from threads, and lose much waiting for one another on a busy machine."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def make_checkpoint(tmp_path: Path) -> Callable[..., tuple[Path, Any]]:
    """make_checkpoint(**settings) -> (folder, transformers' GPT2LMHeadModel in evaluation mode)."""
    transformers = pytest.importorskip("transformers")

    def make(*, save: dict[str, Any] | None = None, **settings: Any) -> tuple[Path, Any]:
        sizes = {"vocab_size": 61, "n_positions": 40, "n_embd": 24, "n_layer": 3, "n_head": 4}
        # Weights larger than a fresh model's: logits then differ enough for greedy choices to be stable and varied.
        config = transformers.GPT2Config(
            **{**sizes, "initializer_range": 0.3, "bos_token_id": 1, "eos_token_id": 2, **settings}
        )
        model = transformers.GPT2LMHeadModel(config).eval()
        for name, parameter in model.named_parameters():
            if name.endswith("bias") or ".ln_" in name:  # fresh ones are 0 and 1, which would hide a mix-up
                parameter.data.add_(parameter.data.new_empty(parameter.shape).normal_(0, 0.3))
        folder = tmp_path / f"checkpoint-{len(list(tmp_path.iterdir()))}"
        model.save_pretrained(folder, **(save or {}))
        return folder, model

    return make
