"""GPT-2 of transformers, with SDPA and compiled, and as one writes it in plain torch.

All take their weights from one dict, in the names and orientations of GPT-2's checkpoints (Conv1D: (in, out)), and have
no dropout.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..shapes import Gpt2
from . import Peer, Refused

Weights = Mapping[str, Tensor]


class LanguageModel(Protocol):
    @property
    def module(self) -> nn.Module:
        """Holds the parameters, by the checkpoint's names, "transformer." before them or not."""
        ...

    def loss(self, ids: Tensor, targets: Tensor) -> Tensor:
        """ids (B, S), targets (B, S), the tokens that follow -> mean cross entropy in nats."""
        ...

    def prefill(self, ids: Tensor) -> Tensor:
        """ids (B, P) -> logits (B, V) after the last of them; keys and values are kept for what follows."""
        ...

    def generate(self, ids: Tensor, new: int) -> Tensor:
        """ids (B, P) -> (B, new) tokens, each the likeliest after those before it. No token ends a sequence."""
        ...


def cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """Of logits (B, S, V) in float32, or float64."""
    logits = logits if logits.dtype == torch.float64 else logits.float()
    return F.cross_entropy(logits.flatten(0, 1), targets.flatten())


def filled(make: Callable[[], nn.Module], weights: Weights) -> Any:
    """A module with copies of these weights, and no others made first."""
    with torch.device("meta"):
        module = make()
    module.load_state_dict({name: t.clone() for name, t in weights.items()}, assign=True)
    return module


class _Conv1D(nn.Module):
    def __init__(self, features: int, out: int) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.empty(features, out)), nn.Parameter(torch.empty(out))

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight.t(), self.bias)


#: Keys and values of a layer, (B, H, capacity, D) each.
Past = tuple[Tensor, Tensor]


class _Attention(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.c_attn, self.c_proj = _Conv1D(width, 3 * width), _Conv1D(width, width)

    def forward(self, x: Tensor, keep: Tensor, past: Past | None) -> Tensor:
        """keep (S, Sk): which keys each query sees. past: the last S of its first Sk places are filled here."""
        batch, length, width = x.shape
        q, k, v = (t.view(batch, length, self.heads, -1).transpose(1, 2) for t in self.c_attn(x).split(width, 2))
        if past is not None:
            end = keep.shape[1]
            for held, fresh in zip(past, (k, v), strict=True):
                held[:, :, end - length : end] = fresh
            k, v = (held[:, :, :end] for held in past)
        scores = q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5
        if length > 1:
            scores = scores.masked_fill(~keep, -torch.inf)
        out = torch.softmax(scores, -1) @ v
        projected: Tensor = self.c_proj(out.transpose(1, 2).reshape(batch, length, width))
        return projected


class _Mlp(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.c_fc, self.c_proj = _Conv1D(width, 4 * width), _Conv1D(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.c_proj(F.gelu(self.c_fc(x), approximate="tanh"))
        return out


class _Block(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.ln_1, self.attn = nn.LayerNorm(width), _Attention(width, heads)
        self.ln_2, self.mlp = nn.LayerNorm(width), _Mlp(width)

    def forward(self, x: Tensor, keep: Tensor, past: Past | None) -> Tensor:
        x = x + self.attn(self.ln_1(x), keep, past)
        out: Tensor = x + self.mlp(self.ln_2(x))
        return out


class Plain(nn.Module):
    def __init__(self, shape: Gpt2) -> None:
        super().__init__()
        self.wte = nn.Embedding(shape.vocab_size, shape.width)
        self.wpe = nn.Embedding(shape.positions, shape.width)
        self.h = nn.ModuleList(_Block(shape.width, shape.heads) for _ in range(shape.layers))
        self.ln_f = nn.LayerNorm(shape.width)

    def forward(self, ids: Tensor, start: int = 0, past: list[Past] | None = None, last: int | None = None) -> Tensor:
        """Logits (B, S, V), or of the last so many positions. start: the number of tokens before ids, in past."""
        length = ids.shape[1]
        keep = torch.ones(length, start + length, dtype=torch.bool, device=ids.device).tril(start)
        x: Tensor = self.wte(ids) + self.wpe.weight[start : start + length]
        for layer, block in enumerate(self.h):
            x = block(x, keep, None if past is None else past[layer])
        if last is not None:
            x = x[:, -last:]
        return F.linear(self.ln_f(x), self.wte.weight)


class Eager:
    """What one writes in plain torch, after nanoGPT: softmax of masked scores, and a cache that is allocated once."""

    def __init__(self, shape: Gpt2, weights: Weights) -> None:
        self.module: Plain = filled(lambda: Plain(shape), weights)
        self._shape = shape

    def loss(self, ids: Tensor, targets: Tensor) -> Tensor:
        return cross_entropy(self.module(ids), targets)

    @torch.no_grad()
    def prefill(self, ids: Tensor) -> Tensor:
        out: Tensor = self.module(ids, 0, self._cache(ids.shape[0], ids.shape[1] + 1), 1)[:, 0]
        return out

    @torch.no_grad()
    def generate(self, ids: Tensor, new: int) -> Tensor:
        prompt = ids.shape[1]
        past, tokens = self._cache(ids.shape[0], prompt + new), []
        for start in (0, *range(prompt, prompt + new - 1)):
            ids = self.module(ids, start, past, 1).argmax(-1)
            tokens.append(ids)
        return torch.cat(tokens, 1)

    @torch.no_grad()
    def last_logits(self, ids: Tensor, last: int) -> Tensor:
        """(B, last, V), of the last so many positions."""
        out: Tensor = self.module(ids, last=last)
        return out

    def _cache(self, batch: int, capacity: int) -> list[Past]:
        s, like = self._shape, next(self.module.parameters())
        size = (batch, s.heads, capacity, s.width // s.heads)
        return [(like.new_zeros(size), like.new_zeros(size)) for _ in range(s.layers)]


def config_of(shape: Gpt2) -> dict[str, Any]:
    """By the names of GPT-2's configurations; no dropout."""
    sizes = {"n_positions": shape.positions, "n_embd": shape.width, "n_layer": shape.layers, "n_head": shape.heads}
    return {"vocab_size": shape.vocab_size, **sizes, "resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}


class Transformers:
    """GPT2LMHeadModel with SDPA; compiled: torch.compile of the loss, and its own compiled decoding."""

    def __init__(self, shape: Gpt2, compiled: bool, weights: Weights) -> None:
        import transformers

        # A sequence has no end but its length.
        config = transformers.GPT2Config(**config_of(shape), bos_token_id=None, eos_token_id=None)
        named = {f"transformer.{name}": t for name, t in weights.items()} | {"lm_head.weight": weights["wte.weight"]}
        self.module: Any = filled(lambda: transformers.GPT2LMHeadModel(config), named)
        self.module.tie_weights()
        self.module.set_attn_implementation("sdpa")
        self._compiled = compiled
        self._loss: Callable[[Tensor, Tensor], Tensor] = self._plain_loss
        if compiled:
            self._loss = torch.compile(self._plain_loss, dynamic=False)

    def _plain_loss(self, ids: Tensor, targets: Tensor) -> Tensor:
        return cross_entropy(self.module(ids, use_cache=False).logits, targets)

    def loss(self, ids: Tensor, targets: Tensor) -> Tensor:
        return self._loss(ids, targets)

    @torch.no_grad()
    def prefill(self, ids: Tensor) -> Tensor:
        if self._compiled:
            raise Refused("transformers' compiled generation reads the prompt with the model as it is")
        out: Tensor = self.module(ids, use_cache=True, logits_to_keep=1).logits[:, 0]
        return out

    def generate(self, ids: Tensor, new: int) -> Tensor:
        options: dict[str, Any] = {"max_new_tokens": new, "do_sample": False, "pad_token_id": 0}
        if self._compiled:
            if ids.device.type == "cpu":
                raise Refused("transformers compiles generation on accelerators only")
            options["cache_implementation"] = "static"
        tokens: Tensor = self.module.generate(ids, attention_mask=torch.ones_like(ids), **options)
        return tokens[:, ids.shape[1] :]


def _eager(shape: Gpt2, device: str) -> Callable[[Weights], LanguageModel]:
    return functools.partial(Eager, shape)


def _transformers(compiled: bool, shape: Gpt2, device: str) -> Callable[[Weights], LanguageModel]:
    return functools.partial(Transformers, shape, compiled)


PEERS = (
    Peer("hf sdpa", ("transformers",), functools.partial(_transformers, False)),
    Peer("hf compile", ("transformers",), functools.partial(_transformers, True)),
    Peer("eager", ("torch",), _eager),
)
