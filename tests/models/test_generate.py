"""Generation: transformers' tokens, the same with and without a cache, and what is refused."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from tilewright.models import GPT


@pytest.fixture
def pair(make_checkpoint: Callable[..., Any]) -> tuple[GPT, Any]:
    folder, theirs = make_checkpoint()
    return GPT.from_pretrained(folder), theirs


@pytest.fixture
def model(pair: tuple[GPT, Any]) -> GPT:
    return pair[0]


def their_tokens(theirs: Any, ids: torch.Tensor, new: int, mask: torch.Tensor | None = None, **options: Any) -> Any:
    mask = torch.ones_like(ids) if mask is None else mask
    return theirs.generate(ids, attention_mask=mask, max_new_tokens=new, do_sample=False, pad_token_id=2, **options)


@pytest.mark.parametrize("use_cache", [True, False])
@pytest.mark.parametrize("penalty", [None, 1.4])
def test_greedy_equals_transformers(pair: tuple[GPT, Any], use_cache: bool, penalty: float | None) -> None:
    ours, theirs = pair
    ids = torch.randint(3, 61, (4, 7))
    options = {} if penalty is None else {"repetition_penalty": penalty}
    expected = their_tokens(theirs, ids, 33, eos_token_id=None, **options)
    got = ours.generate(ids, max_new_tokens=33, stop_token=None, use_cache=use_cache, **options)
    assert got.dtype == torch.int64
    assert torch.equal(got, expected)
    assert len(set(got[:, 7:].flatten().tolist())) > 4  # not one token over and over, which would prove little


@pytest.mark.parametrize("use_cache", [True, False])
def test_prompts_of_different_lengths(pair: tuple[GPT, Any], use_cache: bool) -> None:
    ours, theirs = pair
    prompts = [torch.randint(3, 61, (n,)).tolist() for n in (2, 11, 7, 1)]
    alone = [
        ours.generate([p], max_new_tokens=20, stop_token=None, use_cache=not use_cache)[0, len(p) :] for p in prompts
    ]
    together = ours.generate(prompts, max_new_tokens=20, stop_token=None, use_cache=use_cache)
    assert together.shape == (4, 31)
    assert torch.equal(together[:, 11:], torch.stack(alone))
    mask = torch.tensor([[0] * (11 - len(p)) + [1] * len(p) for p in prompts])
    expected = their_tokens(theirs, together[:, :11], 20, mask, eos_token_id=None)
    assert torch.equal(together[:, 11:], expected[:, 11:])
    for row, prompt in zip(together.tolist(), prompts, strict=True):
        assert row[11 - len(prompt) : 11] == prompt
    # The same prompts padded on the right, as a tensor.
    right = torch.tensor([p + [0] * (11 - len(p)) for p in prompts])
    again = ours.generate(right, attention_mask=mask.flip(1), max_new_tokens=20, stop_token=None, use_cache=use_cache)
    assert torch.equal(again, together)


def test_a_finished_sequence_is_filled_with_its_stop_token(model: GPT) -> None:
    prompts = torch.randint(3, 61, (4, 5))
    free = model.generate(prompts, max_new_tokens=30, stop_token=None)[:, 5:].tolist()
    stops = [free[0][3], free[1][9]]
    got = model.generate(prompts, max_new_tokens=30, stop_token=stops)[:, 5:].tolist()
    ends = [next((i for i, token in enumerate(row) if token in stops), None) for row in free]
    length = 30 if None in ends else max(end for end in ends if end is not None) + 1
    assert ends[0] is not None
    for row, expected, end in zip(got, free, ends, strict=True):
        assert len(row) == length
        kept = expected if end is None else expected[: end + 1]
        assert row == kept[:length] + [kept[-1]] * (length - len(kept))
    one = model.generate(prompts[:1], max_new_tokens=30, stop_token=stops)
    assert one.shape[1] == 5 + ends[0] + 1  # ended early


def test_eos_of_the_configuration_is_the_default_stop(make_checkpoint: Callable[..., Any]) -> None:
    folder, _ = make_checkpoint()
    model = GPT.from_pretrained(folder)
    prompt = torch.randint(3, 61, (1, 5))
    third = int(model.generate(prompt, max_new_tokens=3, stop_token=None)[0, -1])
    (folder / "config.json").write_text(
        (folder / "config.json").read_text().replace('"eos_token_id": 2', f'"eos_token_id": {third}')
    )
    assert GPT.from_pretrained(folder).generate(prompt, max_new_tokens=20).shape[1] <= 8


def test_seeds(model: GPT) -> None:
    prompt = torch.randint(61, (2, 5))
    state = torch.get_rng_state()
    sample = {"max_new_tokens": 15, "do_sample": True, "num_return_sequences": 3, "stop_token": None}
    first = model.generate(prompt, seed=1, **sample)
    assert first.shape == (6, 20)
    assert torch.equal(first[:, :5], prompt.repeat_interleave(3, 0))
    assert torch.equal(model.generate(prompt, seed=1, **sample), first)
    assert not torch.equal(model.generate(prompt, seed=2, **sample), first)
    assert not torch.equal(model.generate(prompt, **sample), model.generate(prompt, **sample))
    assert len({tuple(row) for row in first.tolist()}) == 6
    assert torch.equal(torch.get_rng_state(), state)


def test_length_limits(model: GPT) -> None:
    prompt = torch.randint(61, (1, 5))
    assert model.generate(prompt, max_length=9, stop_token=None).shape == (1, 9)
    assert model.generate(prompt, stop_token=None).shape == (1, 40)
    assert torch.equal(model.generate(prompt, max_new_tokens=0), prompt)
    assert torch.equal(model.generate(prompt, max_length=5), prompt)


def test_callback_and_mode(model: GPT) -> None:
    calls: list[tuple[int, list[int]]] = []
    prompt = torch.randint(61, (2, 5))
    model.train()
    out = model.generate(prompt, max_new_tokens=4, stop_token=None, on_token=lambda n, t: calls.append((n, t.tolist())))
    assert model.training
    assert [n for n, _ in calls] == [1, 2, 3, 4]
    assert [t for _, t in calls] == out[:, 5:].t().tolist()

    def stop(count: int, tokens: torch.Tensor) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        model.generate(prompt, max_new_tokens=4, on_token=stop)
    assert model.training


PROMPT = torch.zeros(2, 5, dtype=torch.int64)


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        ({"input_ids": PROMPT[0]}, ValueError, r"\(batch, length\).*got shape \(5,\)"),
        ({"input_ids": PROMPT.float()}, ValueError, "int32 or int64"),
        ({"input_ids": []}, ValueError, "no prompt"),
        ({"input_ids": [1, 2]}, TypeError, "list of token lists; entry 0 is 1"),
        ({"input_ids": ["text"]}, TypeError, "entry 0 is 'text'"),
        ({"input_ids": [[1, 2.5]]}, TypeError, "prompt 0 must hold ints only"),
        ({"input_ids": [[1], []]}, ValueError, "prompt 1 is empty"),
        ({"input_ids": [[1], [61]]}, ValueError, r"prompt 1 holds token 61.*vocab_size=61"),
        ({"input_ids": PROMPT, "attention_mask": torch.tensor([[1] * 5, [0] * 5])}, ValueError, "prompt 1 is empty"),
        ({"input_ids": PROMPT, "attention_mask": PROMPT[:, :2]}, ValueError, "attention_mask of shape"),
        ({"input_ids": [[1]], "attention_mask": PROMPT}, ValueError, "no padding"),
        ({"input_ids": PROMPT.repeat(1, 9)}, ValueError, "45 tokens; the model's positions end at n_positions=40"),
        ({"max_new_tokens": 3, "max_length": 9}, ValueError, "not both"),
        ({"max_new_tokens": 36}, ValueError, "max_new_tokens=36: together more than n_positions=40"),
        ({"max_new_tokens": -1}, ValueError, "max_new_tokens=-1 must be at least 0"),
        ({"max_new_tokens": 2.0}, TypeError, "max_new_tokens=2.0 must be an int"),
        ({"max_length": 41}, ValueError, "max_length=41 is more than the model's n_positions=40"),
        ({"max_length": 4}, ValueError, "max_length=4 counts the prompt too"),
        ({"num_return_sequences": 0}, ValueError, "num_return_sequences=0"),
        ({"num_return_sequences": 2}, ValueError, "needs do_sample=True"),
        ({"temperature": 0.7}, ValueError, "temperature=0.7 shapes a random draw and needs do_sample=True"),
        ({"do_sample": True, "temperature": 0.0}, ValueError, "temperature=0.0 must be positive"),
        ({"do_sample": True, "temperature": "hot"}, TypeError, "temperature='hot' must be a number"),
        ({"do_sample": True, "top_k": 0}, ValueError, "top_k=0 must be at least 1"),
        ({"do_sample": True, "top_k": 1.5}, TypeError, "top_k=1.5 must be an int"),
        ({"do_sample": True, "top_p": 1.1}, ValueError, "top_p=1.1.*at most 1"),
        ({"repetition_penalty": 0.0}, ValueError, "repetition_penalty=0.0 must be positive"),
        ({"stop_token": 61}, ValueError, "stop_token=61 is not a token"),
        ({"stop_token": "end"}, ValueError, "stop_token='end'"),
    ],
)
def test_bad_arguments(model: GPT, arguments: dict[str, Any], error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        model.generate(**{"input_ids": PROMPT, **arguments})
