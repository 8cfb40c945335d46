"""The steps from logits to a token mean what transformers' logits processors mean."""

from __future__ import annotations

import math

import pytest
import torch

from tilewright.models.sampling import Sampler, apply_repetition_penalty, keep_top_k, keep_top_p

process = pytest.importorskip("transformers.generation.logits_process")


def logits(rows: int = 6, vocab: int = 97) -> torch.Tensor:
    return torch.randn(rows, vocab) * 4


@pytest.mark.parametrize("k", [1, 5, 97, 500])
def test_top_k(k: int) -> None:
    x = logits()
    x[:, :4] = x[:, :1]  # ties
    assert torch.equal(keep_top_k(x, k), process.TopKLogitsWarper(k)(None, x))


@pytest.mark.parametrize("p", [1e-6, 0.3, 0.9, 0.999, 1.0])
def test_top_p(p: float) -> None:
    x = logits()
    assert torch.equal(keep_top_p(x, p), process.TopPLogitsWarper(p)(None, x))
    x[:, 10:] = -math.inf  # what top-k leaves behind
    assert torch.equal(keep_top_p(x, p), process.TopPLogitsWarper(p)(None, x))


@pytest.mark.parametrize("penalty", [0.5, 1.0, 1.7])
def test_repetition_penalty(penalty: float) -> None:
    x, ids = logits(), torch.randint(97, (6, 20))
    seen = torch.zeros(6, 97, dtype=torch.bool).scatter_(1, ids, True)
    expected = process.RepetitionPenaltyLogitsProcessor(penalty)(ids, x)
    assert torch.equal(apply_repetition_penalty(x, seen, penalty), expected)


def test_draws_follow_the_processed_distribution() -> None:
    """Order and content of all steps at once: frequencies of 20000 draws against transformers' probabilities."""
    x = logits(1, 12) / 2
    prompt, rows = torch.tensor([[3, 7, 0]]), 20000
    real = torch.tensor([[True, True, False]])
    sampler = Sampler(True, 0.8, 8, 0.9, 1.3, seed=5, device=torch.device("cpu"))
    sampler.start(prompt.expand(rows, 3), real.expand(rows, 3), 12)
    counts = torch.bincount(sampler.choose(x.expand(rows, 12)), minlength=12) / rows
    processors = process.LogitsProcessorList(
        [
            process.RepetitionPenaltyLogitsProcessor(1.3),
            process.TemperatureLogitsWarper(0.8),
            process.TopKLogitsWarper(8),
            process.TopPLogitsWarper(0.9),
        ]
    )
    expected = processors(prompt[:, :2], x).softmax(-1)[0]
    assert not counts[expected == 0].any()
    # Five standard deviations of a frequency.
    assert ((counts - expected).abs() <= 5 * (expected * (1 - expected) / rows).sqrt() + 1e-9).all()


def test_penalty_counts_tokens_as_they_are_chosen_but_not_padding() -> None:
    sampler = Sampler(False, None, None, None, 2.0, seed=None, device=torch.device("cpu"))
    sampler.start(torch.tensor([[0, 1]]), torch.tensor([[False, True]]), 4)
    x = torch.tensor([[3.0, 5.0, 2.9, 1.0]])
    # 1 was in the prompt (5 / 2 < 3); 0 only as padding; then 0 halves to 1.5 and 2 is next, then 1 again.
    assert [int(sampler.choose(x)) for _ in range(3)] == [0, 2, 1]
