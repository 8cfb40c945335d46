"""From logits to the next token: repetition penalty, temperature, top-k, top-p, then a draw or the maximum.

Each step means what the logits processor of the same name in transformers means, and they run in its order.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

import tilewright as tw


def apply_repetition_penalty(logits: Tensor, seen: Tensor, penalty: float) -> Tensor:
    """Make seen tokens less likely (penalty > 1): positive logits are divided by it, negative ones multiplied.

    logits (N, V), seen (N, V) bool. Source: Keskar et al., "CTRL: A Conditional Transformer Language Model", 2019.
    """
    return torch.where(seen, torch.where(logits < 0, logits * penalty, logits / penalty), logits)


def keep_top_k(logits: Tensor, k: int) -> Tensor:
    """All but the k largest of each row of (N, V) become -inf; ties with the k-th stay.

    Source: Fan et al., "Hierarchical Neural Story Generation", 2018.
    """
    least = logits.topk(min(k, logits.shape[-1]), dim=-1).values[:, -1:]
    return logits.masked_fill(logits < least, -math.inf)


def keep_top_p(logits: Tensor, p: float) -> Tensor:
    """All but the smallest set of likeliest tokens with probability at least p become -inf (N, V); one always stays.

    Source: Holtzman et al., "The Curious Case of Neural Text Degeneration", 2020 (nucleus sampling).
    """
    ascending, order = logits.sort(dim=-1)
    removed = tw.softmax(ascending).cumsum(-1) <= 1 - p
    removed[:, -1] = False
    return logits.masked_fill(torch.empty_like(removed).scatter_(1, order, removed), -math.inf)


class Sampler:
    """Chooses next tokens for a batch. Its random numbers come from its own generator."""

    def __init__(
        self,
        do_sample: bool,
        temperature: float | None,
        top_k: int | None,
        top_p: float | None,
        repetition_penalty: float | None,
        seed: int | None,
        device: torch.device,
    ) -> None:
        """temperature > 0 divides the logits; top_k >= 1; 0 < top_p <= 1; repetition_penalty > 0. None: not applied."""
        for name, value in (("temperature", temperature), ("top_k", top_k), ("top_p", top_p)):
            if value is not None and not do_sample:
                raise ValueError(f"{name}={value} shapes a random draw and needs do_sample=True")
        for name, value in (("temperature", temperature), ("repetition_penalty", repetition_penalty), ("top_p", top_p)):
            if value is None:
                continue
            if isinstance(value, bool) or not isinstance(value, (int, float)):
                raise TypeError(f"{name}={value!r} must be a number")
            if not 0.0 < value < math.inf:
                raise ValueError(f"{name}={value} must be positive and finite")
        if top_p is not None and top_p > 1.0:
            raise ValueError(f"top_p={top_p} is a probability and must be at most 1")
        if top_k is not None and (isinstance(top_k, bool) or not isinstance(top_k, int)):
            raise TypeError(f"top_k={top_k!r} must be an int")
        if top_k is not None and top_k < 1:
            raise ValueError(f"top_k={top_k} must be at least 1 (None keeps every token)")
        self.do_sample, self.temperature, self.top_k, self.top_p = do_sample, temperature, top_k, top_p
        self.repetition_penalty = repetition_penalty
        self.generator = torch.Generator(device)
        if seed is None:
            self.generator.seed()
        else:
            self.generator.manual_seed(seed)
        self._seen: Tensor | None = None

    def start(self, prompts: Tensor, real: Tensor, vocab_size: int) -> None:
        """Begin a batch: prompts (N, W), real (N, W) False at padding."""
        if self.repetition_penalty is not None:
            seen = torch.zeros(len(prompts), vocab_size + 1, dtype=torch.bool, device=prompts.device)
            # Padding goes to a column of its own, which is cut off.
            seen.scatter_(1, prompts.masked_fill(~real, vocab_size), True)
            self._seen = seen[:, :vocab_size].contiguous()

    def choose(self, logits: Tensor) -> Tensor:
        """(N, V) -> (N,) int64."""
        scores = logits.to(torch.float64 if logits.dtype == torch.float64 else torch.float32)
        if self.repetition_penalty is not None and self._seen is not None:
            scores = apply_repetition_penalty(scores, self._seen, self.repetition_penalty)
        if self.do_sample:
            if self.temperature is not None:
                scores = scores / self.temperature
            if self.top_k is not None:
                scores = keep_top_k(scores, self.top_k)
            if self.top_p is not None and self.top_p < 1.0:
                scores = keep_top_p(scores, self.top_p)
            chosen = torch.multinomial(tw.softmax(scores), 1, generator=self.generator).squeeze(1)
        else:
            chosen = scores.argmax(-1)
        if self._seen is not None:
            self._seen.scatter_(1, chosen.unsqueeze(1), True)
        return chosen
