"""torch.set_default_device and set_default_dtype are for what the user makes: nothing computed here depends on them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from tiny_transformers import build, inputs, logits
from torch import Tensor

import tilewright as tw
from tilewright.integrations import bert_padding, rotary
from tilewright.integrations.flash_attn import flash_attn_func, flash_attn_varlen_func, flash_attn_with_kvcache
from tilewright.integrations.transformers import apply_to_bert, apply_to_gpt2, apply_to_llama
from tilewright.models import GPT, GPTConfig

Run = Callable[[], Any]


def tensors(result: Any) -> list[Tensor]:
    if isinstance(result, Tensor):
        return [result]
    return [t for part in result if part is not None for t in tensors(part)] if isinstance(result, tuple) else []


def with_gradients(function: Callable[..., Any], *given: Tensor) -> tuple[Any, ...]:
    leaves = [t.detach().clone().requires_grad_() for t in given]
    out = function(*leaves)
    first = out[0] if isinstance(out, tuple) else out
    return out, torch.autograd.grad(first.square().sum(), leaves)


def of_sdpa() -> dict[str, Run]:
    q, k, mask = torch.randn(2, 4, 5, 8), torch.randn(2, 2, 7, 8), torch.rand(5, 7) > 0.3
    bias = torch.randn(2, 1, 5, 7)

    def replaced() -> Any:
        with tw.replace_sdpa() as counts:
            out = F.scaled_dot_product_attention(q, k, k, attn_mask=bias, enable_gqa=True)
        assert counts.served == 1, str(counts)
        return out

    ours = tw.scaled_dot_product_attention
    return {
        "sdpa": lambda: with_gradients(lambda q, k: ours(q, k, k, attn_mask=mask, enable_gqa=True), q, k),
        "sdpa, dropout": lambda: with_gradients(lambda q, k: ours(q, k, k, dropout_p=0.3, enable_gqa=True), q, k),
        "sdpa, empty": lambda: ours(q[:, :, :0], k[:, :, :0], k[:, :, :0], enable_gqa=True),
        "replace_sdpa": replaced,
    }


def of_flash_attn() -> dict[str, Run]:
    q, k = torch.randn(2, 5, 4, 8), torch.randn(2, 7, 2, 8)
    bounds = (torch.tensor([0, 5, 10], dtype=torch.int32), torch.tensor([0, 7, 14], dtype=torch.int32))
    packed, pages = (q.flatten(0, 1), *[k.flatten(0, 1)] * 2), torch.randn(4, 4, 2, 8)
    table, lengths = torch.tensor([[0, 1], [2, 3]], dtype=torch.int32), torch.tensor([3, 5], dtype=torch.int32)
    caches, tables, slopes = torch.randn(2, 2, 16, 2, 8), torch.randn(2, 16, 4), torch.rand(4)
    padding, x, indices = torch.ones(2, 5, dtype=torch.int64), torch.randn(2, 5, 3), torch.arange(10)
    embedding, qkv = rotary.RotaryEmbedding(8, scale_base=16.0), torch.randn(2, 5, 3, 4, 8)

    def cached(**options: Any) -> Any:
        own = caches.clone()
        return flash_attn_with_kvcache(q, *own, cache_seqlens=lengths, **options), own

    dropped = {"dropout_p": 0.2, "return_attn_probs": True}
    paged = {"block_table": table}
    return {
        "flash_attn": lambda: flash_attn_func(q, k, k, causal=True, alibi_slopes=slopes, **dropped),
        "varlen": lambda: flash_attn_varlen_func(*packed, *bounds, 5, 7, **dropped),
        "paged": lambda: flash_attn_varlen_func(packed[0], pages, pages, *bounds, 5, 7, **paged),
        "paged, dropout": lambda: flash_attn_varlen_func(
            packed[0], pages, pages, *bounds, 5, 7, dropout_p=0.2, **paged
        ),
        "cache": lambda: cached(k=k[:, :2], v=k[:, :2], rotary_cos=tables[0], rotary_sin=tables[1], causal=True),
        "cache, padding": lambda: cached(cache_leftpad=lengths - 1),
        "cache, entries": lambda: cached(cache_batch_idx=lengths - 3 - lengths // 5),
        "cache, int": lambda: flash_attn_with_kvcache(q, *caches, cache_seqlens=9),
        "rotary": lambda: rotary.apply_rotary_emb(q, *tables, seqlen_offsets=lengths),
        "rotary, packed": lambda: rotary.apply_rotary_emb(packed[0], *tables, cu_seqlens=bounds[0]),
        "rotary, module": lambda: embedding(qkv.clone()),
        "unpad": lambda: bert_padding.unpad_input(x, padding),
        "unpad, packed": lambda: bert_padding.unpad_input_for_concatenated_sequences(x, padding * 2),
        "pad": lambda: bert_padding.pad_input(x.flatten(0, 1), indices, 2, 5),
    }


def of_modules() -> dict[str, Run]:
    x, square = torch.randn(2, 5, 16), torch.zeros(5, 5)
    attention = tw.nn.MultiheadAttention(16, 2, batch_first=True, add_bias_kv=True, add_zero_attn=True)
    block, padding = tw.nn.FeedForward(16, dropout=0.1), torch.zeros(2, 5, dtype=torch.bool)
    q, k, sinks = torch.randn(2, 4, 5, 8), torch.randn(2, 2, 7, 8), torch.randn(4)

    def recorded() -> Any:
        with tw.record_attention() as calls:
            attention(x, x, x, need_weights=False)
        return calls[0].map(rows=[-1])

    options: dict[str, Any] = {"alibi_slopes": torch.rand(4), "sinks": sinks, "mask": torch.randn(2, 1, 5, 7)}
    return {
        "attention": lambda: attention(x, x, x, attn_mask=square, key_padding_mask=padding),
        "attention, no weights": lambda: attention(x, x, x, attn_mask=square, need_weights=False),
        "feed forward": lambda: with_gradients(lambda x: block(x, residual=x), x),
        "softmax": lambda: (tw.nn.Softmax(causal="top_left")(x), tw.nn.LogSoftmax(scale=0.5)(x)),
        "map": lambda: tw.attention_map(q, k, causal="bottom_right", **options),
        "map, rows": lambda: tw.attention_map(q, k, rows=[0, -1], window=(2, 1)),
        "map, top": lambda: tuple(tw.attention_map(q, k, top_k=2)),
        "record": recorded,
    }


def of_gpt(folder: Path) -> dict[str, Run]:
    model = GPT(GPTConfig(vocab_size=31, n_positions=40, n_embd=16, n_layer=2, n_head=2, eos_token_id=3)).eval()
    ids, mask, places = torch.arange(12).view(2, 6), torch.ones(2, 6, dtype=torch.bool).triu(-3), torch.arange(6)
    model.save_pretrained(folder)
    shaped: dict[str, Any] = {"top_k": 5, "top_p": 0.9, "temperature": 0.7, "repetition_penalty": 1.2, "seed": 3}
    return {
        "forward": lambda: model(ids, targets=ids, attention_mask=mask).logits,
        "forward, last": lambda: model(ids, attention_mask=mask, position_ids=places, last_token_only=True).logits,
        "generate": lambda: model.generate(ids, attention_mask=mask, max_new_tokens=5),
        "generate, lists": lambda: model.generate([[1, 2, 3], [4]], max_new_tokens=5, stop_token=None, use_cache=False),
        "generate, drawn": lambda: model.generate(ids, max_new_tokens=5, do_sample=True, stop_token=[1], **shaped),
        "load": lambda: GPT.from_pretrained(folder)(ids).logits,
        "save": lambda: model.save_pretrained(folder),
    }


def of_transformers() -> dict[str, Run]:
    apply = {"gpt2": apply_to_gpt2, "llama": apply_to_llama, "mistral": apply_to_llama, "bert": apply_to_bert}

    def forward(name: str) -> Run:
        model, given = build(name), inputs(name, "left")
        apply[name](model)
        # transformers' own windowed caches do not say where their tensors are.
        options = {} if name == "bert" else {"use_cache": name != "mistral"}
        return lambda: logits(model, given, **options)

    model, given = build("llama"), inputs("llama", "left")
    apply_to_llama(model)
    generated = {"generate": lambda: model.generate(**given, max_new_tokens=3, do_sample=False)}
    return {name: forward(name) for name in apply} | generated


@pytest.fixture(params=["meta", torch.float64, torch.bfloat16], ids=str)
def default(request: pytest.FixtureRequest) -> Iterator[Callable[[], None]]:
    """Calling it sets the default."""
    set_default = torch.set_default_device if request.param == "meta" else torch.set_default_dtype
    yield lambda: set_default(request.param)
    torch.set_default_device(None)
    torch.set_default_dtype(torch.float32)


@pytest.mark.parametrize("make", [of_sdpa, of_flash_attn, of_modules, of_gpt, of_transformers])
def test_nothing_depends_on_the_defaults(make: Any, default: Callable[[], None], tmp_path: Path) -> None:
    runs: dict[str, Run] = make(tmp_path) if make is of_gpt else make()

    def results() -> dict[str, list[Tensor]]:
        found = {}
        for name, run in runs.items():
            torch.manual_seed(0)
            found[name] = tensors(run())
        return found

    before = results()
    default()
    for name, after in results().items():
        for ours, expected in zip(after, before[name], strict=True):
            assert (ours.device, ours.dtype) == (expected.device, expected.dtype), name
            assert torch.equal(ours, expected), name
