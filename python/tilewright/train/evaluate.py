"""How well a language model predicts text it was not trained on."""

from __future__ import annotations

import torch
from torch import Tensor

from ..models import GPT
from .data import windows


@torch.no_grad()
def evaluate_loss(
    model: GPT, tokens: Tensor, *, seq_len: int, batch_size: int = 16, max_batches: int | None = None
) -> float:
    """Mean cross entropy, nats per token, over windows spread evenly over ``tokens``. Its exp is the perplexity.

    tokens: (N,) integers, N > seq_len. The windows do not overlap when they cover everything (max_batches None: up to
    the last full window). Deterministic: nothing random, dropout off; the model is left in the mode it came in.
    """
    if tokens.dim() != 1 or len(tokens) <= seq_len:
        raise ValueError(f"tokens of shape {tuple(tokens.shape)} must be 1-D and more than seq_len={seq_len}")
    if seq_len < 1 or batch_size < 1 or (max_batches is not None and max_batches < 1):
        raise ValueError(f"seq_len={seq_len}, batch_size={batch_size} and max_batches={max_batches} must be at least 1")
    count = (len(tokens) - 1) // seq_len
    if max_batches is not None:
        count = min(count, max_batches * batch_size)
    stride = (len(tokens) - 1) // count
    starts = torch.arange(count, device="cpu").unsqueeze(1) * stride
    was_training = model.training
    model.eval()
    total = 0.0
    try:
        for first in range(0, count, batch_size):
            part = starts[first : first + batch_size]
            input_ids, targets = (t.to(model.device) for t in windows(tokens, part, seq_len))
            loss = model(input_ids, targets=targets).loss
            total += float(loss) * len(part)
    finally:
        model.train(was_training)
    return total / count
