"""GPT-2: token and position embeddings, pre-norm blocks of causal self-attention and feed-forward, a tied output layer.

Source: Radford et al., "Language Models are Unsupervised Multitask Learners", 2019.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..ops._checks import autocasting
from . import checkpoint, tied
from .cache import KVCache, LayerCache
from .config import GPTConfig
from .generate import generate
from .layers import Conv1D, FeedForward, SelfAttention

if TYPE_CHECKING:
    from .tokenizer import Tokenizer

IGNORE_INDEX = -100


@dataclass
class GPTOutput:
    """logits (B, S, V), (B, 1, V) for ``last_token_only``; loss: scalar, None without targets; cache: the one given."""

    logits: Tensor
    loss: Tensor | None = None
    cache: KVCache | None = None


class Block(nn.Module):
    """x + attn(ln_1(x)), then x + mlp(ln_2(x))."""

    def __init__(self, config: GPTConfig, layer: int) -> None:
        super().__init__()
        self.ln_1 = nn.LayerNorm(config.n_embd, eps=config.layer_norm_epsilon)
        # Bottom-right: queries that continue a cache are the last positions, and without one the two alignments agree.
        self.attn = SelfAttention(
            config.n_embd,
            config.n_head,
            causal="bottom_right",
            scale=config.attention_scale(layer),
            attn_pdrop=config.attn_pdrop,
            resid_pdrop=config.resid_pdrop,
        )
        self.ln_2 = nn.LayerNorm(config.n_embd, eps=config.layer_norm_epsilon)
        self.mlp = FeedForward(
            config.n_embd, config.inner_width, activation=config.activation, resid_pdrop=config.resid_pdrop
        )

    def forward(self, x: Tensor, cache: LayerCache | None = None) -> Tensor:
        x = x + self.attn(self.ln_1(x), cache)
        out: Tensor = self.mlp(self.ln_2(x), residual=x)
        return out


class GPT(nn.Module):
    """A GPT-2 language model on tilewright's kernels. Attribute names are the checkpoint's.

    >>> model = GPT.from_pretrained("gpt2")             # a local folder, or a name in the Hugging Face hub
    >>> logits = model(input_ids).logits                # (B, S) -> (B, S, vocab_size)
    >>> loss = model(input_ids, targets=next_ids).loss
    >>> with tilewright.use_backend("reference"):       # any backend, or the automatic choice
    ...     tokens = model.generate(input_ids, max_new_tokens=20)
    """

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.config = config
        self.wte = nn.Embedding(config.vocab_size, config.n_embd)
        self.wpe = nn.Embedding(config.n_positions, config.n_embd)
        self.drop = nn.Dropout(config.embd_pdrop)
        self.h = nn.ModuleList(Block(config, layer) for layer in range(config.n_layer))
        self.ln_f = nn.LayerNorm(config.n_embd, eps=config.layer_norm_epsilon)
        self.lm_head = nn.Linear(config.n_embd, config.vocab_size, bias=False)
        self.tie_weights()
        self.register_load_state_dict_post_hook(_tie_again)  # type: ignore[no-untyped-call]
        self.apply(self._initialise)

    def tie_weights(self) -> None:
        """Share the token embedding with the output layer, where the configuration says so."""
        if self.config.tie_word_embeddings:
            self.lm_head.weight = self.wte.weight

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
        """As in torch; a weight that is tied may be under either of its names, or under both if it is the same."""
        if strict and self.config.tie_word_embeddings and isinstance(state_dict, Mapping):
            # A copy with the metadata, which torch keeps as an attribute. Without strict either name reaches the one
            # weight, and safetensors' load_model wants to hear that the other is missing.
            metadata = getattr(state_dict, "_metadata", None)
            state_dict = OrderedDict(state_dict)
            tied.complete(state_dict)
            if metadata is not None:
                state_dict._metadata = metadata  # type: ignore[attr-defined]
        return super().load_state_dict(state_dict, strict, assign)

    def _load_from_state_dict(self, state_dict: Any, prefix: str, metadata: Any, *rest: Any) -> None:
        if self.config.tie_word_embeddings:
            differ = tied.why_not_one(state_dict, prefix)
            if differ is not None:
                raise ValueError(differ)  # before anything is loaded, unlike what torch collects
            if metadata.get("assign_to_params_buffers", False):
                tied.complete(state_dict, prefix)
        super()._load_from_state_dict(state_dict, prefix, metadata, *rest)

    @torch.no_grad()
    def _initialise(self, module: nn.Module) -> None:
        std = self.config.initializer_range
        if isinstance(module, (nn.Embedding, nn.Linear, Conv1D)):
            module.weight.normal_(0.0, std)
        if isinstance(module, Conv1D):
            module.bias.zero_()
        if isinstance(module, (SelfAttention, FeedForward)):
            # Every block adds two terms to the residual stream; this keeps its variance independent of depth
            # (section 2.3 of the paper).
            module.c_proj.weight.normal_(0.0, std / math.sqrt(2 * self.config.n_layer))

    @classmethod
    def from_pretrained(
        cls, name_or_folder: str | Path, *, dtype: torch.dtype | None = None, device: torch.device | str | None = None
    ) -> GPT:
        """Load a GPT-2 checkpoint in Hugging Face's format (``config.json`` and safetensors), in evaluation mode.

        name_or_folder: a local folder, else a repository of the hub ("gpt2", "distilgpt2", "owner/name"), read from
        its local cache and, where it is not there, over the network (needs ``huggingface_hub``).
        dtype: None keeps what the file holds. device: None is the CPU.
        Raises ``FileNotFoundError`` with the ways in when nothing is found, ``ValueError`` listing every key that is
        missing, unexpected or of the wrong shape.
        """
        return checkpoint.load(cls, name_or_folder, dtype=dtype, device=device)

    def save_pretrained(self, folder: str | Path, *, tokenizer: Tokenizer | None = None) -> None:
        """Write ``config.json`` and ``model.safetensors`` as transformers does; either library loads the folder.

        tokenizer: written beside them when given.
        """
        checkpoint.save(self, folder, tokenizer=tokenizer)

    def num_parameters(self) -> int:
        """Trainable numbers; tied weights count once."""
        return sum(p.numel() for p in self.parameters())

    @property
    def device(self) -> torch.device:
        return self.wte.weight.device

    @property
    def dtype(self) -> torch.dtype:
        return self.wte.weight.dtype

    def make_cache(self, batch: int, capacity: int | None = None) -> KVCache:
        """An empty cache for ``batch`` sequences of up to ``capacity`` tokens (None: n_positions).

        Its dtype is the model's, or the autocast dtype where autocast is on, as the keys and values will be.
        """
        limit = self.config.n_positions
        capacity = limit if capacity is None else capacity
        if capacity > limit:
            raise ValueError(f"capacity={capacity}: positions are learned up to n_positions={limit}")
        sizes = (self.config.n_layer, batch, self.config.n_head, capacity, self.config.head_dim)
        dtype = torch.get_autocast_dtype(self.device.type) if autocasting(self.wte.weight) else self.dtype
        return KVCache(*sizes, dtype=dtype, device=self.device)

    def generate(self, input_ids: Any, **options: Any) -> Tensor:
        """Continue prompts; see :func:`tilewright.models.generate.generate`."""
        return generate(self, input_ids, **options)

    def forward(
        self,
        input_ids: Tensor,
        *,
        targets: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        cache: KVCache | None = None,
        last_token_only: bool = False,
    ) -> GPTOutput:
        """Next-token logits.

        input_ids: (B, S) int32 or int64, S at least 1.
        targets: (B, S), the token that should FOLLOW each position (already shifted); -100 is left out of the loss, the
            mean cross entropy in nats. With no target at all the loss is 0.
        attention_mask: (B, S) bool or int, nonzero at real tokens, zero at padding (left, right or between). Padding
            takes no part in anything; logits at its positions mean nothing.
        position_ids: (S,), (1, S) or (B, S). By default real tokens count from 0, or from what the cache holds.
        cache: from :meth:`make_cache`; input_ids then continues its sequences and is appended to it. Inference only.
        last_token_only: compute logits of each sequence's last real token only.
        """
        self._check(input_ids, targets, attention_mask, position_ids, cache)
        batch, length = input_ids.shape
        order = lengths = None
        if attention_mask is not None:
            # Move padding to the right of each row, keeping the order of real tokens. Causality then hides it from
            # every real token, cached or not, so that no kernel needs a mask.
            real = attention_mask != 0
            order = torch.argsort(real.logical_not().to(torch.uint8), dim=1, stable=True)
            lengths = real.sum(1)
            input_ids = input_ids.gather(1, order)
            if position_ids is not None:
                position_ids = position_ids.expand(batch, length).gather(1, order)
        x = self.drop(self.wte(input_ids) + self._position_embedding(length, position_ids, cache))
        for index, block in enumerate(self.h):
            x = block(x, None if cache is None else cache.layer(index))
        if cache is not None:
            cache.advance(length if lengths is None else lengths)
        if last_token_only:
            if lengths is None:
                x = x[:, -1:]
            else:
                x = x[torch.arange(batch, device=x.device), (lengths - 1).clamp(min=0)].unsqueeze(1)
        elif order is not None:
            x = x.gather(1, order.argsort(1).unsqueeze(-1).expand_as(x))
        logits = self.lm_head(self.ln_f(x))
        return GPTOutput(logits, None if targets is None else self._loss(logits, targets), cache)

    def _position_embedding(self, length: int, position_ids: Tensor | None, cache: KVCache | None) -> Tensor:
        """(S, C), (1, S, C) or (B, S, C)."""
        if position_ids is None:
            position_ids = torch.arange(length, device=self.device)
            if cache is not None:
                position_ids = cache.seqlens.unsqueeze(1) + position_ids
        out: Tensor = self.wpe(position_ids)
        return out

    @staticmethod
    def _loss(logits: Tensor, targets: Tensor) -> Tensor:
        # Half-precision logits lose the loss's digits in the sum over the vocabulary.
        if logits.dtype in (torch.float16, torch.bfloat16):
            logits = logits.float()
        total = F.cross_entropy(
            logits.flatten(0, 1), targets.flatten().long(), ignore_index=IGNORE_INDEX, reduction="sum"
        )
        return total / (targets != IGNORE_INDEX).sum().clamp(min=1)

    def _check(
        self,
        input_ids: Tensor,
        targets: Tensor | None,
        attention_mask: Tensor | None,
        position_ids: Tensor | None,
        cache: KVCache | None,
    ) -> None:
        _check_ids("input_ids", input_ids, self.config.vocab_size)
        if input_ids.dim() != 2 or input_ids.shape[1] == 0:
            raise ValueError(
                f"input_ids of shape {tuple(input_ids.shape)} must have shape (batch, length), length at least 1"
            )
        shape = tuple(input_ids.shape)
        if cache is None and shape[1] > self.config.n_positions:
            raise ValueError(
                f"input_ids is {shape[1]} tokens long; positions end at n_positions={self.config.n_positions}"
            )
        if targets is not None:
            _check_ids("targets", targets, self.config.vocab_size, ignored=IGNORE_INDEX)
            if tuple(targets.shape) != shape:
                raise ValueError(f"targets of shape {tuple(targets.shape)} must have input_ids' shape {shape}")
        if attention_mask is not None:
            if not isinstance(attention_mask, Tensor) or attention_mask.is_floating_point():
                kind = attention_mask.dtype if isinstance(attention_mask, Tensor) else type(attention_mask).__name__
                raise TypeError(f"attention_mask must be a bool or integer tensor (nonzero at real tokens), got {kind}")
            if tuple(attention_mask.shape) != shape:
                raise ValueError(
                    f"attention_mask of shape {tuple(attention_mask.shape)} must have input_ids' shape {shape}"
                )
        if position_ids is not None:
            _check_ids("position_ids", position_ids, self.config.n_positions)
            if tuple(position_ids.shape) not in (shape[1:], (1, shape[1]), shape):
                raise ValueError(
                    f"position_ids of shape {tuple(position_ids.shape)} must have shape ({shape[1]},), "
                    f"(1, {shape[1]}) or {shape}"
                )
        if cache is not None:
            if self.training or torch.is_grad_enabled():
                raise ValueError(
                    "a cache serves inference: call model.eval() and run under torch.no_grad() or inference_mode()"
                )
            cache.check_room(*shape)


def _tie_again(model: GPT, incompatible: Any) -> None:
    """After loading by assignment, which puts a parameter of its own under each name."""
    model.tie_weights()


def _check_ids(name: str, ids: Tensor, limit: int, ignored: int | None = None) -> None:
    """An integer tensor with entries in [0, limit), or ``ignored``."""
    if not isinstance(ids, Tensor):
        raise TypeError(f"{name} must be a torch.Tensor, got {type(ids).__name__}")
    if ids.dtype not in (torch.int32, torch.int64):
        raise TypeError(f"{name} has dtype {ids.dtype}; accepted are int32 and int64")
    # On a GPU the comparison would make every step wait for the device.
    if ids.device.type != "cpu" or torch.compiler.is_compiling() or ids.numel() == 0:
        return
    wrong = (ids < 0) | (ids >= limit)
    if ignored is not None:
        wrong &= ids != ignored
    if wrong.any():
        extra = "" if ignored is None else f" (or {ignored}, which is left out)"
        raise ValueError(f"{name} holds {int(ids[wrong][0])}; entries must be in [0, {limit}){extra}")
