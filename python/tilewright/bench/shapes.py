"""The calls that are measured: whose models they come from, and their sizes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

#: The scene of attention's sizes that FlashAttention's own benchmark made common: B S = 16k tokens, H D = 2048.
SWEEP = "16k tokens"


@dataclass(frozen=True)
class Shape:
    """scene: what the sizes are from, for people. dtype: by name."""

    scene: str
    dtype: str

    def facts(self) -> dict[str, Any]:
        """For the row in the result file."""
        return {k: v for k, v in vars(self).items() if v is not None and v is not False}

    @property
    def suffix(self) -> str:
        """bfloat16 is the rule, and left out of names."""
        return "" if self.dtype == "bfloat16" else f" {self.dtype}"


@dataclass(frozen=True)
class Attention(Shape):
    """q (batch, heads, seqlen, head_dim), k and v (batch, heads_kv, seqlen, head_dim).

    window: how many keys to the left a query sees beside its own. lengths: of the sequences, which are padded to seqlen
    at the end, as in a batch for BERT.
    """

    batch: int
    heads: int
    heads_kv: int
    seqlen: int
    head_dim: int
    causal: bool = False
    window: int | None = None
    lengths: tuple[int, ...] | None = None

    @property
    def name(self) -> str:
        parts = [] if self.scene == SWEEP else [self.scene, f"B{self.batch}"]
        parts += [f"d{self.head_dim}", "causal" if self.causal else "full", f"S{self.seqlen}"]
        parts += [f"W{self.window}"] * (self.window is not None) + ["padded"] * (self.lengths is not None)
        parts += [f"gqa {self.heads}/{self.heads_kv}"] * (self.heads != self.heads_kv)
        return " ".join(parts) + self.suffix

    @property
    def label(self) -> str:
        heads = str(self.heads) if self.heads == self.heads_kv else f"{self.heads}/{self.heads_kv}"
        sizes = f"{self.batch} × {heads} × {self.seqlen} × {self.head_dim}"
        options = ["causal"] * self.causal
        options += [f"window {self.window}"] * (self.window is not None) + ["padded"] * (self.lengths is not None)
        return ", ".join([sizes, *options])

    @property
    def pairs(self) -> int:
        """Of a query and a key that count, per head, over the batch."""
        if self.lengths is not None:
            return sum(self.seqlen * n for n in self.lengths)
        per = self.seqlen * self.seqlen
        if self.causal:
            left = self.seqlen if self.window is None else self.window
            per = sum(min(i, left) + 1 for i in range(self.seqlen))
        return self.batch * per

    @property
    def flops(self) -> float:
        return 4.0 * self.heads * self.head_dim * self.pairs


@dataclass(frozen=True)
class Varlen(Shape):
    """Sequences of these lengths, packed: q (total, heads, head_dim)."""

    lengths: tuple[int, ...]
    heads: int
    heads_kv: int
    head_dim: int
    causal: bool = False

    @property
    def name(self) -> str:
        kind = "causal" if self.causal else "full"
        return f"d{self.head_dim} {kind} {len(self.lengths)} of {sum(self.lengths)}{self.suffix}"

    @property
    def label(self) -> str:
        heads = str(self.heads) if self.heads == self.heads_kv else f"{self.heads}/{self.heads_kv}"
        text = f"{len(self.lengths)} sequences, {sum(self.lengths)} tokens, {heads} × {self.head_dim}"
        return text + (", causal" if self.causal else "")

    @property
    def flops(self) -> float:
        pairs = sum(n * (n + 1) // 2 if self.causal else n * n for n in self.lengths)
        return 4.0 * self.heads * self.head_dim * pairs


@dataclass(frozen=True)
class Decode(Shape):
    """One new query for each sequence over a cache of seqlen_k keys; page_size: of a paged cache."""

    batch: int
    heads: int
    heads_kv: int
    seqlen_k: int
    head_dim: int
    page_size: int | None = None
    latency: bool = False

    @property
    def name(self) -> str:
        kind = "latency " if self.latency else ""
        pages = f" pages of {self.page_size}" if self.page_size else ""
        return f"{kind}B{self.batch} KV{self.seqlen_k}{pages}{self.suffix}"

    @property
    def label(self) -> str:
        heads = f"{self.heads}/{self.heads_kv}"
        text = f"batch {self.batch}, {self.seqlen_k} keys, {heads} × {self.head_dim}"
        return text + (f", pages of {self.page_size}" if self.page_size else "")

    @property
    def elements(self) -> float:
        """That are read and written at least."""
        return 2.0 * self.batch * self.head_dim * (self.heads_kv * self.seqlen_k + self.heads)


@dataclass(frozen=True)
class Softmax(Shape):
    rows: int
    width: int

    @property
    def name(self) -> str:
        return f"{self.width}{self.suffix}"

    @property
    def label(self) -> str:
        return f"{self.rows} × {self.width}"


@dataclass(frozen=True)
class Ffn(Shape):
    """x (rows, features), w_in (hidden or, gated, 2 hidden, features), w_out (features, hidden)."""

    rows: int
    features: int
    hidden: int
    activation: str
    bias: bool = False

    @property
    def gated(self) -> bool:
        return self.activation == "swiglu"

    @property
    def name(self) -> str:
        bias = " bias" if self.bias else ""
        return f"{self.features}/{self.hidden} {self.activation}{bias} rows {self.rows}{self.suffix}"

    @property
    def label(self) -> str:
        bias = ", bias" if self.bias else ""
        return f"{self.rows} rows, {self.features} → {self.hidden}, {self.activation}{bias}"

    @property
    def weights(self) -> int:
        return self.features * self.hidden * (3 if self.gated else 2)


@dataclass(frozen=True)
class Gpt2(Shape):
    """A GPT-2 of so many layers and heads, and batch sequences of seqlen tokens: trained on, or a prompt that new ones
    are generated for. The defaults are GPT-2 small, 124M parameters."""

    batch: int
    seqlen: int
    new: int | None = None
    layers: int = 12
    heads: int = 12
    width: int = 768
    vocab_size: int = 50257
    positions: int = 1024

    @property
    def name(self) -> str:
        return f"B{self.batch} S{self.seqlen}" + (f"+{self.new}" if self.new else "") + self.suffix

    @property
    def label(self) -> str:
        return f"{self.batch} × {self.seqlen} tokens" + (f", {self.new} new" if self.new else "")

    @property
    def parameters(self) -> int:
        """The output layer's are the token embedding's."""
        a_layer = 12 * self.width * self.width + 13 * self.width
        return (self.vocab_size + self.positions + 2) * self.width + self.layers * a_layer

    @property
    def flops_per_token(self) -> int:
        """Of a training step, 6 N + 12 L H Q T: Chowdhery et al., "PaLM", 2022, appendix B.

        N: the parameters that products are made with, which is all but the position embedding; H Q: the width; T: the
        sequence length. It counts attention in full; a causal one needs half of the second term.
        """
        products = self.parameters - self.positions * self.width
        return 6 * products + 12 * self.layers * self.width * self.seqlen
