"""Text generation: greedy or sampled continuation of a batch of prompts, with or without a key/value cache."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from .sampling import Sampler

if TYPE_CHECKING:
    from .gpt import GPT

#: Called after each new token with how many there are now and the (N,) tokens themselves.
OnToken = Callable[[int, Tensor], None]


@torch.no_grad()
def generate(
    model: GPT,
    input_ids: Tensor | Sequence[Sequence[int]],
    *,
    max_new_tokens: int | None = None,
    max_length: int | None = None,
    attention_mask: Tensor | None = None,
    num_return_sequences: int = 1,
    do_sample: bool = False,
    temperature: float | None = None,
    top_k: int | None = None,
    top_p: float | None = None,
    repetition_penalty: float | None = None,
    stop_token: int | Sequence[int] | Literal["eos"] | None = "eos",
    seed: int | None = None,
    use_cache: bool = True,
    on_token: OnToken | None = None,
) -> Tensor:
    """Continue each prompt; returns (B * num_return_sequences, T) int64.

    A row is its prompt, left-padded to the longest prompt of the batch, then its new tokens: ``out[:, width:]`` was
    generated, where ``width`` is the longest prompt's length. A finished sequence is filled with the stop token that
    ended it, and generation ends early when all are finished. Row b * num_return_sequences + i is the i-th continuation
    of prompt b.

    input_ids: (B, S) integer tensor, with ``attention_mask`` (B, S) where some of it is padding; or a list of token
        lists of any lengths, each at least 1.
    max_new_tokens or max_length (one of them): how many tokens to add at most, or the longest row, prompt included.
        Rows never grow past n_positions, which is also what neither given means.
    do_sample: draw tokens instead of taking the likeliest. temperature, top_k and top_p shape the distribution, in that
        order (see :class:`tilewright.models.sampling.Sampler`); they need do_sample=True.
    repetition_penalty: also applies to greedy generation; counts the prompt, not its padding.
    stop_token: a token or several; "eos": the configuration's; None: run to the length limit.
    seed: of a generator used for this call only; the global random state is never touched. None takes a fresh seed.
    use_cache: keep keys and values between steps. Greedy tokens are the same either way; without it every step
        recomputes all.
    on_token: see :data:`OnToken`; for progress bars and streaming.

    The model runs in evaluation mode and is left in the mode it came in.
    """
    config = model.config
    prompts, real = _left_padded(input_ids, attention_mask, config.vocab_size, model.device)
    new_tokens = _length_limit(prompts.shape[1], max_new_tokens, max_length, config.n_positions)
    _check_int("num_return_sequences", num_return_sequences, 1)
    if num_return_sequences > 1 and not do_sample:
        raise ValueError(
            f"num_return_sequences={num_return_sequences} needs do_sample=True: greedy continuations are all the same"
        )
    sampler = Sampler(do_sample, temperature, top_k, top_p, repetition_penalty, seed, model.device)
    stops = _stop_tokens(stop_token, config.eos_token_ids, config.vocab_size, model.device)

    prompts, real = (t.repeat_interleave(num_return_sequences, 0) for t in (prompts, real))
    was_training = model.training
    model.eval()
    try:
        return _decode(model, prompts, real, new_tokens, sampler, stops, use_cache, on_token)
    finally:
        model.train(was_training)


def _decode(
    model: GPT,
    prompts: Tensor,
    real: Tensor,
    new_tokens: int,
    sampler: Sampler,
    stops: Tensor,
    use_cache: bool,
    on_token: OnToken | None,
) -> Tensor:
    rows, width = prompts.shape
    tokens = torch.zeros(rows, width + new_tokens, dtype=torch.int64, device=prompts.device)
    tokens[:, :width] = prompts
    real = torch.cat([real, real.new_ones(rows, new_tokens)], 1)
    finished = torch.zeros(rows, dtype=torch.bool, device=prompts.device)
    cache = model.make_cache(rows, width + new_tokens) if use_cache and new_tokens else None
    sampler.start(prompts, real[:, :width], model.config.vocab_size)
    step: dict[str, Any]
    for count in range(new_tokens):
        end = width + count
        if cache is None or count == 0:
            step = {"input_ids": tokens[:, :end], "attention_mask": real[:, :end]}
        else:
            step = {"input_ids": tokens[:, end - 1 : end]}
        logits = model(**step, cache=cache, last_token_only=True).logits[:, 0]
        chosen = sampler.choose(logits)
        # A finished sequence repeats its last token, which is its stop token.
        chosen = torch.where(finished, tokens[:, end - 1], chosen)
        tokens[:, end] = chosen
        finished |= torch.isin(chosen, stops)
        if on_token is not None:
            on_token(count + 1, chosen)
        if len(stops) and finished.all():
            return tokens[:, : end + 1]
    return tokens


def _left_padded(
    input_ids: Tensor | Sequence[Sequence[int]], attention_mask: Tensor | None, vocab_size: int, device: torch.device
) -> tuple[Tensor, Tensor]:
    """Prompts (B, W) int64 padded on the left to the longest, and where they are real (B, W) bool."""
    if isinstance(input_ids, Tensor):
        if input_ids.dim() != 2 or input_ids.dtype not in (torch.int32, torch.int64):
            raise ValueError(
                f"input_ids must be a (batch, length) int32 or int64 tensor, or a list of token lists; "
                f"got shape {tuple(input_ids.shape)}, dtype {input_ids.dtype}"
            )
        if attention_mask is not None and tuple(attention_mask.shape) != tuple(input_ids.shape):
            raise ValueError(
                f"attention_mask of shape {tuple(attention_mask.shape)} must have input_ids' shape, "
                f"{tuple(input_ids.shape)}"
            )
        mask = (
            torch.ones_like(input_ids, dtype=torch.bool)
            if attention_mask is None
            else attention_mask.to(input_ids.device) != 0
        )
        rows = [row[kept].tolist() for row, kept in zip(input_ids, mask, strict=True)]
    else:
        if attention_mask is not None:
            raise ValueError("attention_mask is for a padded tensor; a list of token lists has no padding")
        rows = _token_lists(input_ids)
    if not rows:
        raise ValueError("input_ids holds no prompt")
    for index, row in enumerate(rows):
        if not row:
            raise ValueError(
                f"prompt {index} is empty; it needs at least one token (start from the end-of-text token for free text)"
            )
        wrong = next((token for token in row if not 0 <= token < vocab_size), None)
        if wrong is not None:
            raise ValueError(f"prompt {index} holds token {wrong}; tokens must be in [0, vocab_size={vocab_size})")
    width = max(map(len, rows))
    prompts = torch.tensor([[0] * (width - len(row)) + row for row in rows], dtype=torch.int64, device=device)
    starts = torch.tensor([width - len(row) for row in rows], dtype=torch.int64, device=device)
    return prompts, torch.arange(width, device=device) >= starts.unsqueeze(1)


def _token_lists(prompts: Any) -> list[list[int]]:
    rows = []
    for index, row in enumerate(prompts):
        if isinstance(row, (str, int)) or not isinstance(row, Iterable):
            raise TypeError(f"input_ids must be a list of token lists; entry {index} is {row!r}")
        row = list(row)
        if any(isinstance(token, bool) or not isinstance(token, int) for token in row):
            raise TypeError(f"prompt {index} must hold ints only: {row!r}")
        rows.append(row)
    return rows


def _length_limit(width: int, max_new_tokens: int | None, max_length: int | None, n_positions: int) -> int:
    """How many tokens to add."""
    if width > n_positions:
        raise ValueError(
            f"the longest prompt has {width} tokens; the model's positions end at n_positions={n_positions}"
        )
    if max_new_tokens is not None and max_length is not None:
        raise ValueError("give max_new_tokens or max_length, not both")
    if max_new_tokens is not None:
        _check_int("max_new_tokens", max_new_tokens, 0)
        if width + max_new_tokens > n_positions:
            raise ValueError(
                f"the longest prompt has {width} tokens and max_new_tokens={max_new_tokens}: together more than "
                f"n_positions={n_positions}"
            )
        return max_new_tokens
    if max_length is None:
        return n_positions - width
    _check_int("max_length", max_length, 1)
    if max_length > n_positions:
        raise ValueError(f"max_length={max_length} is more than the model's n_positions={n_positions}")
    if max_length < width:
        raise ValueError(
            f"max_length={max_length} counts the prompt too, and the longest prompt already has {width} tokens"
        )
    return max_length - width


def _stop_tokens(
    stop_token: int | Sequence[int] | str | None, eos: tuple[int, ...], vocab_size: int, device: torch.device
) -> Tensor:
    if stop_token is None:
        given: list[int] = []
    elif isinstance(stop_token, str):
        if stop_token != "eos":
            raise ValueError(f"stop_token={stop_token!r} must be a token, a list of tokens, 'eos' or None")
        given = [token for token in eos if token < vocab_size]  # configs may name a token the model cannot produce
    else:
        given = [stop_token] if isinstance(stop_token, int) else list(stop_token)
        for token in given:
            _check_int("stop_token", token, 0)
            if token >= vocab_size:
                raise ValueError(f"stop_token={token} is not a token; the vocabulary has {vocab_size}")
    return torch.tensor(given, dtype=torch.int64, device=device)


def _check_int(name: str, value: Any, least: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name}={value!r} must be an int")
    if value < least:
        raise ValueError(f"{name}={value} must be at least {least}")
