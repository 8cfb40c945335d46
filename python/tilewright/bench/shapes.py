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
