"""The configuration of a GPT, in the fields of Hugging Face's ``config.json`` for GPT-2."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

#: ``activation_function`` in a checkpoint's config -> ``activation`` of :func:`tilewright.ffn`.
ACTIVATIONS = {
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_python_tanh": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "gelu_accurate": "gelu_tanh",
    "gelu": "gelu",
    "gelu_python": "gelu",
    "relu": "relu",
    "relu2": "relu2",
    "silu": "silu",
    "swish": "silu",
}

MAX_HEAD_DIM = 256  # what the attention kernels take

_SIZES = ("vocab_size", "n_positions", "n_embd", "n_layer", "n_head")
_PROBABILITIES = ("resid_pdrop", "embd_pdrop", "attn_pdrop")

# Other names that transformers reads the same numbers under.
_ALIASES = {
    "hidden_size": "n_embd",
    "max_position_embeddings": "n_positions",
    "num_attention_heads": "n_head",
    "num_hidden_layers": "n_layer",
}

# Settings of a config.json that change what a model computes and that this one does not do. Each is refused unless it
# is absent or falsy. reorder_and_upcast_attn is not among them: it asks for a softmax in float32, as always
# here.
_REFUSED = {
    "add_cross_attention": "cross-attention layers are not part of this decoder",
    "is_encoder_decoder": "an encoder-decoder is not a GPT",
    "quantization_config": "quantised weights are not supported; save the model dequantised",
    "pruned_heads": "pruned attention heads are not supported; save the model with all heads",
}


@dataclass(frozen=True)
class GPTConfig:
    """Sizes and settings of :class:`tilewright.models.GPT`. The defaults are those of GPT-2 small (124M parameters).

    vocab_size, n_positions, n_embd, n_layer, n_head: tokens, longest sequence, width, blocks, attention heads.
    n_inner: width of the feed-forward layer; None means ``4 * n_embd``.
    activation_function: a name from :data:`ACTIVATIONS` (Hugging Face's names).
    resid_pdrop, embd_pdrop, attn_pdrop: dropout probabilities, used in training only.
    scale_attn_weights: divide scores by sqrt(head_dim).
    scale_attn_by_inverse_layer_idx: also divide them by the block's number, from 1.
    bos_token_id, eos_token_id: recorded for tokenizers and generation; None where there is none.

    Source: Radford et al., "Language Models are Unsupervised Multitask Learners", 2019.
    """

    vocab_size: int = 50257
    n_positions: int = 1024
    n_embd: int = 768
    n_layer: int = 12
    n_head: int = 12
    n_inner: int | None = None
    activation_function: str = "gelu_new"
    resid_pdrop: float = 0.1
    embd_pdrop: float = 0.1
    attn_pdrop: float = 0.1
    layer_norm_epsilon: float = 1e-5
    initializer_range: float = 0.02
    tie_word_embeddings: bool = True
    scale_attn_weights: bool = True
    scale_attn_by_inverse_layer_idx: bool = False
    bos_token_id: int | None = 50256
    eos_token_id: int | list[int] | None = 50256

    def __post_init__(self) -> None:
        for name in (*_SIZES, *(() if self.n_inner is None else ("n_inner",))):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int):
                raise TypeError(f"{name}={value!r} must be an int")
            if value < 1:
                raise ValueError(f"{name}={value} must be at least 1")
        for name in _PROBABILITIES:
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, (int, float)):
                raise TypeError(f"{name}={value!r} must be a number")
            if not 0.0 <= value < 1.0:
                raise ValueError(f"{name}={value} must be in [0, 1)")
        if self.n_embd % self.n_head:
            raise ValueError(f"n_embd={self.n_embd} must be a multiple of n_head={self.n_head}")
        if self.head_dim > MAX_HEAD_DIM:
            raise ValueError(
                f"n_embd / n_head = {self.head_dim}; the attention kernels take head dims up to {MAX_HEAD_DIM}"
            )
        if self.activation_function not in ACTIVATIONS:
            known = ", ".join(ACTIVATIONS)
            raise ValueError(
                f"activation_function={self.activation_function!r} is not supported; choose one of {known}"
            )
        if not self.layer_norm_epsilon > 0.0:
            raise ValueError(f"layer_norm_epsilon={self.layer_norm_epsilon} must be positive")

    @property
    def head_dim(self) -> int:
        return self.n_embd // self.n_head

    @property
    def inner_width(self) -> int:
        return 4 * self.n_embd if self.n_inner is None else self.n_inner

    @property
    def activation(self) -> str:
        """The activation as :func:`tilewright.ffn` names it."""
        return ACTIVATIONS[self.activation_function]

    @property
    def eos_token_ids(self) -> tuple[int, ...]:
        """Every end-of-text token, as a tuple; empty where there is none."""
        if self.eos_token_id is None:
            return ()
        return tuple(self.eos_token_id) if isinstance(self.eos_token_id, list) else (self.eos_token_id,)

    def attention_scale(self, layer: int) -> float:
        """What scores of block ``layer`` (from 0) are multiplied by."""
        scale = self.head_dim**-0.5 if self.scale_attn_weights else 1.0
        return scale / (layer + 1) if self.scale_attn_by_inverse_layer_idx else scale

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> GPTConfig:
        """From the contents of a GPT-2 ``config.json``.

        Missing entries take GPT-2's defaults, as in transformers. Entries without a meaning here (task settings,
        summary heads) are ignored; entries that would change what the model computes raise ``ValueError`` with the
        reason.
        """
        model_type = values.get("model_type", "gpt2")
        if model_type != "gpt2":
            raise ValueError(
                f"model_type={model_type!r}: only GPT-2 checkpoints (model_type 'gpt2') can be loaded as a GPT"
            )
        for name, reason in _REFUSED.items():
            if values.get(name):
                raise ValueError(f"{name}={values[name]!r}: {reason}")
        known = {f.name for f in fields(cls)}
        renamed = {_ALIASES.get(name, name): value for name, value in values.items()}
        return cls(**{name: value for name, value in renamed.items() if name in known})

    @classmethod
    def from_json(cls, path: str | Path) -> GPTConfig:
        """From a ``config.json`` file or the folder that holds one."""
        path = Path(path)
        if path.is_dir():
            path = path / "config.json"
        try:
            values = json.loads(path.read_text(encoding="utf-8"))
        except json.JSONDecodeError as error:
            raise ValueError(f"{path} is not valid JSON: {error}") from error
        if not isinstance(values, dict):
            raise ValueError(f"{path} holds a {type(values).__name__}; a model configuration is a JSON object")
        try:
            return cls.from_dict(values)
        except (TypeError, ValueError) as error:
            raise type(error)(f"{path}: {error}") from error

    def to_dict(self) -> dict[str, Any]:
        """What transformers' ``GPT2Config`` reads, JSON types only."""
        return {"model_type": "gpt2", "architectures": ["GPT2LMHeadModel"], **asdict(self)}

    def to_json(self, path: str | Path, **extra: Any) -> None:
        """Write a ``config.json`` that :meth:`from_json` and transformers read; ``extra`` entries are added."""
        Path(path).write_text(
            json.dumps({**self.to_dict(), **extra}, indent=2, sort_keys=True) + "\n", encoding="utf-8"
        )
