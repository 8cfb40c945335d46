"""GPT-2 end to end: implementations agree, what is wrong is not timed, and the arithmetic of its figures."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from tilewright.bench import measure, session
from tilewright.bench.items import end_to_end
from tilewright.bench.items.rooflines import GEMM
from tilewright.bench.peers import Peer, gpt2
from tilewright.bench.shapes import Gpt2
from tilewright.registry import unavailable

BACKEND = "cpu" if unavailable("cpu") is None else "reference"
SMALL = Gpt2("tiny", "float32", 2, 12, 6, layers=2, heads=2, width=32, vocab_size=97, positions=64)


def rows_of(item: measure.Item, **options: Any) -> dict[str, dict[str, Any]]:
    bench = measure.Bench("cpu", (BACKEND,), "tiny", 0.0, **options)
    rows = measure.run_item(item, bench, {}, lambda message: None)
    return {r["provider"]: r for r in session.add_rooflines(rows)}


@pytest.mark.parametrize("item", list(end_to_end.items("tiny")), ids=lambda i: i.name)
def test_every_implementation_agrees_and_is_timed(item: measure.Item) -> None:
    rows = rows_of(item)
    assert set(rows) == {f"tilewright {BACKEND}", *(p.name for p in gpt2.PEERS)}
    assert rows.pop("hf compile")["status"] in ("refused", "missing")
    if rows["hf sdpa"]["status"] == "missing":
        del rows["hf sdpa"]
    for row in rows.values():
        assert row["status"] == "timed", row
        assert row["wall"]["samples"] >= 3
        seconds = row["wall"]["p50"]
        if item.facts["mode"] == "first token":
            assert row["result"] == pytest.approx(1e3 * seconds)
            continue
        tokens = row["batch"] * (row["new"] if item.facts["mode"] == "generate" else row["seqlen"])
        assert row["result"] == pytest.approx(tokens / seconds)
        assert (item.facts["mode"] == "train") == ("of_roofline" in row)
    errors = [r["error"] for r in rows.values()]
    assert max(errors) > 0.0 or item.facts["mode"] == "generate", "a result was held against itself"


def test_parameters_and_operations_of_gpt2_small() -> None:
    shape = Gpt2("GPT-2", "bfloat16", 16, 1024)
    assert shape.parameters == 124_439_808
    # 6 N = 6 * (124439808 - 1024 * 768), and 12 L H Q T = 12 * 12 * 768 * 1024.
    assert shape.flops_per_token == 741_920_256 + 113_246_208
    with torch.device("meta"):
        assert sum(p.numel() for p in gpt2.Plain(shape).parameters()) == shape.parameters


@pytest.mark.parametrize("seqlen", [16, 32])
def test_the_operations_are_those_that_torch_counts(seqlen: int) -> None:
    from torch.utils.flop_counter import FlopCounterMode

    shape = Gpt2("GPT-2", "float32", 1, seqlen, layers=3, heads=2, width=64, vocab_size=500)
    weights = end_to_end.random_weights(shape, "cpu")
    model, ids = gpt2.Eager(shape, weights), torch.zeros(1, seqlen, dtype=torch.int64)
    with FlopCounterMode(display=False) as counted:
        model.loss(ids, ids).backward()
    norms_and_biases = sum(w.numel() for w in weights.values() if w.dim() == 1)  # no products
    assert counted.get_total_flops() == seqlen * (shape.flops_per_token - 6 * norms_and_biases)


def test_the_share_of_the_product_is_mfu_and_above_all_of_it_a_fault() -> None:
    def row(item: str, unit: str, result: float, **facts: Any) -> dict[str, Any]:
        return {"item": item, "provider": "eager", "status": "timed", "unit": unit, "result": result, **facts}

    roof = row(GEMM, "TFLOP/s", 500.0, dtype="bfloat16")
    half, too_fast = (
        row("gpt-2 train", "tokens/s", r, dtype="bfloat16", flops_per_token=1_000_000_000) for r in (250e3, 600e3)
    )
    generated = row("gpt-2 generate", "tokens/s", 1e3, dtype="bfloat16")
    session.add_rooflines([roof, half, too_fast, generated])
    assert half["of_roofline"] == pytest.approx(0.5)
    assert "fault" not in half
    assert "120% of the roofline" in too_fast["fault"]
    assert "of_roofline" not in generated


class Spoiled(gpt2.Eager):
    """Wrong where ``how`` says."""

    def __init__(self, how: str, shape: Gpt2, weights: gpt2.Weights) -> None:
        if how == "weights":
            weights = {**weights, "h.1.mlp.c_fc.weight": 1.01 * weights["h.1.mlp.c_fc.weight"]}
        super().__init__(shape, weights)
        self.how = how

    def loss(self, ids: Tensor, targets: Tensor) -> Tensor:
        loss = super().loss(ids, targets)
        return loss.detach() + 0.5 * (loss - loss.detach()) if self.how == "gradients" else loss

    def generate(self, ids: Tensor, new: int) -> Tensor:
        tokens = super().generate(ids, new)
        if self.how == "last token":
            tokens[0, -1] = (tokens[0, -1] + 1) % 97
        return tokens[:, 1:] if self.how == "too few" else tokens

    def prefill(self, ids: Tensor) -> Tensor:
        return super().prefill(ids[:, :-1] if self.how == "position" else ids)


def spoil(monkeypatch: pytest.MonkeyPatch, how: str) -> None:
    def make(shape: Gpt2, device: str) -> Callable[[gpt2.Weights], gpt2.LanguageModel]:
        if how == "raises":
            raise RuntimeError("no such model")
        return functools.partial(Spoiled, how, shape)

    monkeypatch.setattr(end_to_end, "PEERS", (Peer("spoiled", ("torch",), make), gpt2.PEERS[-1]))


@pytest.mark.parametrize(
    ("mode", "how"),
    [
        ("train", "weights"),
        ("train", "gradients"),
        ("first token", "weights"),
        ("first token", "position"),
        ("generate", "last token"),
    ],
)
def test_a_wrong_model_is_not_timed(monkeypatch: pytest.MonkeyPatch, mode: str, how: str) -> None:
    spoil(monkeypatch, how)
    rows = rows_of(end_to_end.item(mode, SMALL))
    assert rows["spoiled"]["status"] == "wrong", rows["spoiled"]
    assert "result" not in rows["spoiled"]
    assert rows["eager"]["status"] == "timed"


@pytest.mark.parametrize(("how", "told"), [("raises", "no such model"), ("too few", "(2, 5) instead of (2, 6)")])
def test_a_model_that_raises_is_one_row(monkeypatch: pytest.MonkeyPatch, how: str, told: str) -> None:
    spoil(monkeypatch, how)
    rows = rows_of(end_to_end.item("generate", SMALL))
    assert rows["spoiled"]["status"] == "raised"
    assert told in rows["spoiled"]["reason"]
    assert rows["eager"]["status"] == "timed"
    assert rows[f"tilewright {BACKEND}"]["status"] == "timed"


def exact_model() -> tuple[gpt2.Eager, Tensor]:
    weights = {n: w.double() for n, w in end_to_end.random_weights(SMALL, "cpu").items()}
    return gpt2.Eager(SMALL, weights), torch.randint(SMALL.vocab_size, (2, 12))


def test_generation_depends_on_all_that_came_before() -> None:
    """Or a cache with wrong keys would generate the same."""
    model, prompts = exact_model()
    tokens = model.generate(prompts, 20)
    assert all(len(set(row)) > 5 for row in tokens.tolist())
    other = prompts.clone()
    other[:, 0] = (other[:, 0] + 1) % SMALL.vocab_size
    assert not torch.equal(tokens, model.generate(other, 20))


def test_cached_generation_is_what_all_of_the_text_gives() -> None:
    model, prompts = exact_model()
    text = prompts
    for _ in range(6):
        text = torch.cat([text, model.last_logits(text, 1).argmax(-1)], 1)
    assert torch.equal(model.generate(prompts, 6), text[:, 12:])


def test_a_tie_broken_the_other_way_costs_no_more_than_its_gap() -> None:
    model, prompts = exact_model()
    tokens = model.generate(prompts, 6)
    assert end_to_end.greedy_error(model, prompts, tokens) == 0.0
    logits = model.last_logits(prompts, 1)[:, 0]
    (first, second), places = (t[0] for t in logits.topk(2))
    # The second likeliest token, and from there on greedily.
    prompt = prompts[:1]
    branch = torch.cat([prompt, places[1].view(1, 1)], 1)
    other = torch.cat([places[1].view(1, 1), model.generate(branch, 5)], 1)
    expected = float((first - second) / (first - logits[0].mean()))
    assert end_to_end.greedy_error(model, prompt, other) == pytest.approx(expected)


def test_transformers_in_float64_is_the_same_model() -> None:
    pytest.importorskip("transformers")
    model, prompts = exact_model()
    theirs = gpt2.Transformers(SMALL, False, model.module.state_dict())
    theirs.module.eval()
    torch.testing.assert_close(theirs.prefill(prompts), model.last_logits(prompts, 1)[:, 0], rtol=1e-9, atol=1e-9)
    assert torch.equal(theirs.generate(prompts, 6), model.generate(prompts, 6))


def test_the_compiled_model_compiles_its_loss(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("transformers")
    compiled: list[Any] = []

    def compile_(function: Callable[..., Any], **options: Any) -> Callable[..., Any]:
        compiled.append(function)
        return function

    monkeypatch.setattr(torch, "compile", compile_)
    model, prompts = exact_model()
    theirs = gpt2.Transformers(SMALL, True, model.module.state_dict())
    assert len(compiled) == 1
    torch.testing.assert_close(theirs.loss(prompts, prompts), model.loss(prompts, prompts), rtol=1e-9, atol=0.0)


def test_a_long_call_is_made_few_times() -> None:
    calls = []
    item = measure.Item("x", "ms", lambda _: measure.Built({"a": lambda: count}, lambda result: 0.0), long=True)

    def count() -> Tensor:
        calls.append(1)
        torch.linalg.svd(torch.ones(300, 300))  # longer than a sample must be
        return torch.ones(1)

    row = rows_of(item)["a"]
    assert row["wall"]["samples"] == measure.LEAST_SAMPLES_OF_LONG == 5
    assert len(calls) <= 1 + 2 + 1 + 5  # checking, memory, planning, samples
    assert row["result"] == pytest.approx(1e3 * row["wall"]["p50"])
