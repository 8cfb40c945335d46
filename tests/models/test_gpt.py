"""The GPT against transformers' GPT-2, and what its forward accepts and refuses."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch

import tilewright as tw
from tilewright.models import GPT, GPTConfig

#: Settings that change what a GPT-2 computes, over sizes that are neither round nor equal.
VARIANTS: dict[str, dict[str, Any]] = {
    "plain": {},
    "three heads of 10": {"n_embd": 30, "n_head": 3},
    "one head": {"n_head": 1},
    "untied": {"tie_word_embeddings": False},
    "exact gelu, narrow mlp": {"activation_function": "gelu", "n_inner": 19},
    "relu": {"activation_function": "relu"},
    "silu": {"activation_function": "silu"},
    "scores over layer number": {"scale_attn_by_inverse_layer_idx": True},
    "unscaled scores": {"scale_attn_weights": False, "layer_norm_epsilon": 1e-3},
}

SMALL = GPTConfig(vocab_size=61, n_positions=40, n_embd=24, n_layer=3, n_head=4, bos_token_id=1, eos_token_id=2)


def close(a: torch.Tensor, b: torch.Tensor) -> None:
    """Equal within float32 rounding accumulated over a forward pass."""
    torch.testing.assert_close(a, b, rtol=1e-4, atol=2e-5)


@pytest.mark.parametrize("variant", VARIANTS)
def test_agrees_with_transformers(make_checkpoint: Callable[..., Any], variant: str) -> None:
    folder, theirs = make_checkpoint(**VARIANTS[variant])
    ours = GPT.from_pretrained(folder)
    ids = torch.randint(61, (3, 17))
    close(ours(ids).logits, theirs(ids).logits)
    # transformers shifts labels itself; ours are given shifted.
    labels = ids.clone()
    labels[0, :5] = -100
    targets = torch.cat([labels[:, 1:], torch.full((3, 1), -100)], 1)
    loss = ours(ids, targets=targets).loss
    their_loss = theirs(ids, labels=labels).loss
    close(loss, their_loss)
    loss.backward()
    their_loss.backward()
    expected = {name.removeprefix("transformer."): p.grad for name, p in theirs.named_parameters()}
    assert {name for name, _ in ours.named_parameters()} == set(expected)
    for name, parameter in ours.named_parameters():
        close(parameter.grad, expected[name])


@pytest.mark.parametrize("side", ["left", "right", "between"])
def test_padding_takes_no_part(make_checkpoint: Callable[..., Any], side: str) -> None:
    folder, theirs = make_checkpoint()
    ours = GPT.from_pretrained(folder)
    ids, mask = torch.randint(61, (3, 9)), torch.ones(3, 9, dtype=torch.int64)
    padded = {"left": slice(0, 4), "right": slice(5, 9), "between": slice(2, 6)}[side]
    mask[1, padded] = 0
    mask[2, 3 if side == "between" else padded] = 0
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    real = mask.bool()
    logits = ours(ids, attention_mask=mask).logits
    close(logits[real], theirs(ids, attention_mask=mask, position_ids=positions).logits[real])
    for row in range(3):  # each sequence as if it were alone
        close(logits[row][real[row]], ours(ids[row][real[row]].unsqueeze(0)).logits[0])
    changed = torch.where(real, ids, (ids + 1) % 61)
    assert torch.equal(ours(changed, attention_mask=real).logits[real], logits[real])
    last = ours(ids, attention_mask=mask, last_token_only=True).logits
    assert last.shape == (3, 1, 61)
    close(last[:, 0], torch.stack([logits[row][real[row]][-1] for row in range(3)]))
    explicit = ours(ids, attention_mask=mask, position_ids=positions).logits
    close(explicit[real], logits[real])


def test_position_ids(make_checkpoint: Callable[..., Any]) -> None:
    folder, theirs = make_checkpoint()
    ours = GPT.from_pretrained(folder)
    ids = torch.randint(61, (2, 7))
    positions = torch.randint(40, (2, 7))
    close(ours(ids, position_ids=positions).logits, theirs(ids, position_ids=positions).logits)
    close(ours(ids, position_ids=positions[0]).logits, ours(ids, position_ids=positions[:1].expand(2, 7)).logits)


def test_loss_without_targets_is_zero_and_has_zero_gradients() -> None:
    model = GPT(SMALL)
    loss = model(torch.zeros(1, 4, dtype=torch.int64), targets=torch.full((1, 4), -100)).loss
    loss.backward()
    assert loss.item() == 0.0
    assert all(p.grad is not None and not p.grad.any() for p in model.parameters())


def test_dropout_in_training_only() -> None:
    ids = torch.randint(61, (2, 12))
    for only in ("resid_pdrop", "embd_pdrop", "attn_pdrop"):
        model = GPT(replace(SMALL, **{"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0, only: 0.5}))
        torch.manual_seed(3)
        first, second = model(ids).logits, model(ids).logits
        assert not torch.equal(first, second), only
        torch.manual_seed(3)
        assert torch.equal(model(ids).logits, first), only
        model.eval()
        assert torch.equal(model(ids).logits, model(ids).logits), only


def test_ops_read_the_weights_and_the_fused_projection_in_place(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: dict[str, Any] = {}
    attention, ffn = tw.attention, tw.ffn

    def spy_attention(q: Any, k: Any, v: Any, **options: Any) -> Any:
        seen["qkv"] = (q, k, v)
        return attention(q, k, v, **options)

    def spy_ffn(x: Any, w_in: Any, w_out: Any, **options: Any) -> Any:
        seen["ffn"], seen["residual"] = (w_in, w_out), options["residual"]
        return ffn(x, w_in, w_out, **options)

    monkeypatch.setattr(tw, "attention", spy_attention)
    monkeypatch.setattr(tw, "ffn", spy_ffn)
    model = GPT(replace(SMALL, n_layer=1))
    model(torch.zeros(2, 5, dtype=torch.int64))
    q, k, v = seen["qkv"]
    assert q.untyped_storage().data_ptr() == k.untyped_storage().data_ptr() == v.untyped_storage().data_ptr()
    mlp = model.h[0].mlp
    assert [w.data_ptr() for w in seen["ffn"]] == [mlp.c_fc.weight.data_ptr(), mlp.c_proj.weight.data_ptr()]
    assert seen["residual"] is not None


def test_the_chosen_backend_applies() -> None:
    model, ids = GPT(SMALL), torch.zeros(1, 3, dtype=torch.int64)
    with tw.use_backend("reference"):
        model(ids)
    with tw.use_backend("cuda"), pytest.raises(tw.BackendError):
        model(ids)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_dtypes(dtype: torch.dtype) -> None:
    model = GPT(SMALL).eval()
    ids = torch.randint(61, (2, 8))
    expected = model(ids, targets=ids)
    out = model.to(dtype)(ids, targets=ids)
    assert out.logits.dtype == dtype
    assert out.loss.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    torch.testing.assert_close(out.loss.float(), expected.loss, rtol=2e-2, atol=0)


def test_autocast_keeps_the_residual_stream_in_float32() -> None:
    model = GPT(SMALL).eval()
    streams: list[torch.dtype] = []
    for block in model.h:
        block.register_forward_hook(lambda module, args, out: streams.append(out.dtype))
    ids = torch.randint(61, (2, 8))
    expected = model(ids, targets=ids).loss
    streams.clear()
    with torch.autocast("cpu", torch.bfloat16):
        out = model(ids, targets=ids)
        tokens = model.generate(ids, max_new_tokens=3)
    assert streams[:3] == [torch.float32] * 3
    assert out.logits.dtype == torch.bfloat16
    assert tokens.shape == (2, 11)
    torch.testing.assert_close(out.loss, expected, rtol=2e-2, atol=0)


def test_compiles_without_graph_breaks() -> None:
    model = GPT(replace(SMALL, n_layer=1, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0))
    ids, mask = torch.randint(61, (2, 9)), torch.ones(2, 9, dtype=torch.bool)
    mask[0, :3] = False
    expected = model(ids, targets=ids, attention_mask=mask).loss
    expected.backward()
    gradients = [p.grad.clone() for p in model.parameters()]
    model.zero_grad()
    loss = torch.compile(model, fullgraph=True, backend="aot_eager")(ids, targets=ids, attention_mask=mask).loss
    loss.backward()
    close(loss, expected)
    for parameter, gradient in zip(model.parameters(), gradients, strict=True):
        close(parameter.grad, gradient)


IDS = torch.zeros(2, 5, dtype=torch.int64)


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        ({"input_ids": IDS.float()}, TypeError, "input_ids has dtype torch.float32"),
        ({"input_ids": [[1, 2]]}, TypeError, "input_ids must be a torch.Tensor"),
        ({"input_ids": IDS[0]}, ValueError, r"input_ids of shape \(5,\)"),
        ({"input_ids": IDS[:, :0]}, ValueError, "length at least 1"),
        ({"input_ids": IDS + 61}, ValueError, r"input_ids holds 61; entries must be in \[0, 61\)"),
        ({"input_ids": IDS - 1}, ValueError, "input_ids holds -1"),
        ({"input_ids": IDS.repeat(1, 9)}, ValueError, "45 tokens long.*n_positions=40"),
        ({"input_ids": IDS, "targets": IDS[:, 1:]}, ValueError, "targets of shape"),
        ({"input_ids": IDS, "targets": IDS - 2}, ValueError, "targets holds -2.*or -100"),
        ({"input_ids": IDS, "attention_mask": IDS.float()}, TypeError, "attention_mask must be a bool or integer"),
        ({"input_ids": IDS, "attention_mask": IDS[:1]}, ValueError, "attention_mask of shape"),
        ({"input_ids": IDS, "position_ids": IDS + 40}, ValueError, r"position_ids holds 40.*\[0, 40\)"),
        ({"input_ids": IDS, "position_ids": IDS[:, :2]}, ValueError, "position_ids of shape"),
    ],
)
def test_bad_input(arguments: dict[str, Any], error: type[Exception], words: str) -> None:
    model = GPT(replace(SMALL, n_layer=1))
    with pytest.raises(error, match=words):
        model(arguments.pop("input_ids"), **arguments)


def test_hooks_see_every_module_or_are_refused() -> None:
    model, ids = GPT(SMALL).eval(), torch.randint(61, (2, 5))
    seen: list[str] = []
    for name, module in model.named_modules():
        if not name.endswith(("mlp.c_fc", "mlp.c_proj")):
            module.register_forward_hook(lambda *_, name=name: seen.append(name))
    model(ids)
    containers = {"h"}  # a list of blocks, which nobody calls
    expected = {n for n, _ in model.named_modules() if not n.endswith(("mlp.c_fc", "mlp.c_proj"))} - containers
    assert set(seen) == expected
    handle = model.h[0].mlp.c_fc.register_full_backward_hook(lambda *_: None)
    with pytest.raises(ValueError, match="c_fc of FeedForward has hooks or a forward of its own"):
        model(ids)
    handle.remove()
    model(ids)
