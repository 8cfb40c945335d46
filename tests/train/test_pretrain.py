"""Pretraining learns, obeys its settings, and resumes to exactly the same weights."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from tilewright.models import GPT, ByteTokenizer, GPTConfig, load_tokenizer
from tilewright.train import Corpus, Settings, StepInfo, evaluate_loss, make_corpus, pretrain
from tilewright.train.pretrain import parameter_groups

CONFIG = GPTConfig(
    vocab_size=257,
    n_positions=32,
    n_embd=16,
    n_layer=2,
    n_head=2,
    resid_pdrop=0.1,
    embd_pdrop=0.1,
    attn_pdrop=0.1,
    bos_token_id=None,
    eos_token_id=256,
)
RUN: dict[str, Any] = {"steps": 8, "batch_size": 4, "seq_len": 16, "lr": 3e-3, "warmup_steps": 2, "seed": 7}


@pytest.fixture(scope="module")
def corpus() -> Corpus:
    return make_corpus([f"x{i} = f({i % 7})\n" * 4 for i in range(60)])


def fresh(config: GPTConfig = CONFIG) -> GPT:
    torch.manual_seed(1)
    return GPT(config)


def weights(model: GPT) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in model.parameters()])


def test_it_learns(corpus: Corpus) -> None:
    model = fresh(replace(CONFIG, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0))
    options = {**RUN, "steps": 80, "lr": 1e-2, "batch_size": 8}
    history = pretrain(model, corpus, **options, eval_every=40)
    assert history.losses[0] == pytest.approx(math.log(257), abs=0.1)
    assert sum(history.losses[-5:]) / 5 < 2.0
    assert [step for step, _ in history.validation] == [40, 80]
    assert history.validation[1][1] < history.validation[0][1] < history.losses[0]
    assert history.tokens == 80 * 8 * 16
    assert history.tokens_per_second > 0
    assert not model.training


class Stop(Exception):
    pass


def interrupted_at(step: int) -> Any:
    def on_step(info: StepInfo) -> None:
        if info.step == step:
            raise Stop

    return on_step


@pytest.mark.parametrize("autocast", [None, torch.float16])
def test_resuming_gives_exactly_the_same_weights(corpus: Corpus, tmp_path: Path, autocast: torch.dtype | None) -> None:
    options = {**RUN, "autocast": autocast, "grad_accum": 2, "eval_every": 3}
    whole = fresh()
    expected = pretrain(whole, corpus, **options)
    checkpoints = {"checkpoint_folder": tmp_path, "checkpoint_every": 3}
    with pytest.raises(Stop):
        pretrain(fresh(), corpus, **options, **checkpoints, on_step=interrupted_at(5))
    resumed = GPT(CONFIG)  # its own weights must not matter
    steps: list[int] = []
    history = pretrain(
        resumed, corpus, **options, **checkpoints, resume=True, on_step=lambda info: steps.append(info.step)
    )
    assert steps == [4, 5, 6, 7, 8]
    assert torch.equal(weights(resumed), weights(whole))
    assert (history.losses, history.validation) == (expected.losses, expected.validation)
    assert torch.equal(weights(GPT.from_pretrained(tmp_path)), weights(whole))
    again = pretrain(fresh(), corpus, **options, **checkpoints, resume=True)  # nothing left to do
    assert again.losses == expected.losses


def test_a_different_run_is_not_resumed(corpus: Corpus, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no training_state\.pt to resume from"):
        pretrain(fresh(), corpus, **RUN, checkpoint_folder=tmp_path, resume=True)
    pretrain(fresh(), corpus, **{**RUN, "steps": 1}, checkpoint_folder=tmp_path, tokenizer=ByteTokenizer())
    assert isinstance(load_tokenizer(tmp_path), ByteTokenizer)
    with pytest.raises(ValueError, match=r"different run: lr=0\.1, saved with 0\.003; steps=8, saved with 1"):
        pretrain(fresh(), corpus, **{**RUN, "lr": 0.1}, checkpoint_folder=tmp_path, resume=True)
    smaller = fresh(replace(CONFIG, n_layer=1))
    with pytest.raises(ValueError, match=r"model\.n_layer=1, saved with 2"):
        pretrain(smaller, corpus, **{**RUN, "steps": 1}, checkpoint_folder=tmp_path, resume=True)


def test_seed_decides_and_global_randomness_is_put_back(corpus: Corpus) -> None:
    models = [fresh() for _ in range(3)]
    torch.manual_seed(99)
    state = torch.get_rng_state()
    for model, seed in zip(models, (1, 1, 2), strict=True):
        pretrain(model, corpus, **{**RUN, "steps": 2, "seed": seed})
        assert torch.equal(torch.get_rng_state(), state)
        torch.rand(5)  # what came before must not matter
        state = torch.get_rng_state()
    assert torch.equal(weights(models[0]), weights(models[1]))
    assert not torch.equal(weights(models[0]), weights(models[2]))


def test_accumulated_gradients_are_the_whole_batchs(corpus: Corpus) -> None:
    plain = replace(CONFIG, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0)
    # One step of plain size: Adam turns a rounding error in a tiny gradient into a whole step later on.
    losses, norms = [], []
    for parts in (1, 2, 4):
        history = pretrain(
            fresh(plain),
            corpus,
            **{**RUN, "steps": 1, "grad_accum": parts},
            on_step=lambda info: norms.append(info.grad_norm),
        )
        losses.append(history.losses[0])
    assert losses == pytest.approx([losses[0]] * 3, rel=1e-6)
    assert norms == pytest.approx([norms[0]] * 3, rel=1e-5)


def test_learning_rate_schedule(corpus: Corpus) -> None:
    seen: list[float] = []
    pretrain(fresh(), corpus, **{**RUN, "min_lr_ratio": 0.2}, on_step=lambda info: seen.append(info.lr))
    cosine = [0.2 + 0.8 * 0.5 * (1 + math.cos(math.pi * i / 6)) for i in range(6)]
    assert seen == pytest.approx([3e-3 * x for x in [0.5, 1.0, *cosine]])


def test_gradient_clipping(corpus: Corpus) -> None:
    def moved(clip: float) -> float:
        model = fresh()
        before = weights(model)
        # Adam divides a gradient by its own size, down to an epsilon: only a gradient clipped below that moves less.
        norms: list[float] = []
        pretrain(model, corpus, **{**RUN, "steps": 1, "grad_clip": clip}, on_step=lambda i: norms.append(i.grad_norm))
        assert norms[0] > 0.1  # reported before clipping
        return float((weights(model) - before).norm())

    assert moved(1e-9) < 0.5 * moved(0.0)


def test_weight_decay_groups() -> None:
    model = fresh()
    decayed, others = parameter_groups(model, 0.3)
    assert (decayed["weight_decay"], others["weight_decay"]) == (0.3, 0.0)
    names = {id(p): name for name, p in model.named_parameters()}
    assert {names[id(p)].rsplit(".", 1)[1] for p in decayed["params"]} == {"weight"}
    assert all("ln_" in names[id(p)] or names[id(p)].endswith("bias") for p in others["params"])
    assert len(decayed["params"]) + len(others["params"]) == len(names)


def test_time_limit_ends_with_the_rate_decayed(corpus: Corpus) -> None:
    infos: list[StepInfo] = []
    options = {**RUN, "steps": 10**6, "warmup_steps": 0, "time_limit_s": 1.0}
    pretrain(fresh(), corpus, **options, eval_every=10**6, on_step=infos.append)
    assert infos[-1].progress == 1.0
    assert infos[-1].elapsed_s < 3.0
    assert infos[-1].validation_loss is not None
    assert infos[0].lr > 0.9 * RUN["lr"]
    assert infos[-1].lr < infos[len(infos) // 2].lr < infos[0].lr


def test_a_loss_that_is_not_finite_ends_the_run(corpus: Corpus) -> None:
    model = fresh()
    model.wpe.weight.data[3] = math.inf
    with pytest.raises(FloatingPointError, match="at step 1; a lower lr"):
        pretrain(model, corpus, **RUN)


def test_evaluate_loss_is_the_mean_over_everything() -> None:
    model, tokens = fresh(), torch.randint(257, (10 * 8 + 1,))
    with torch.no_grad():
        model.eval()
        expected = model(tokens[:-1].view(10, 8), targets=tokens[1:].view(10, 8)).loss
        model.train()
    for batch_size in (1, 3, 16):
        assert evaluate_loss(model, tokens, seq_len=8, batch_size=batch_size) == pytest.approx(
            float(expected), rel=1e-5
        )
    assert model.training
    with pytest.raises(ValueError, match="more than seq_len=81"):
        evaluate_loss(model, tokens, seq_len=81)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"steps": 0}, "steps=0 must be at least 1"),
        ({"grad_accum": 3}, "batch_size=4 must be a multiple of grad_accum=3"),
        ({"lr": 0.0}, r"lr=0\.0 must be positive"),
        ({"min_lr_ratio": 2.0}, "min_lr_ratio"),
        ({"weight_decay": -1.0}, "weight_decay"),
        ({"autocast": torch.float64}, "autocast=torch.float64"),
        ({"time_limit_s": 0.0}, "time_limit_s"),
        ({"seq_len": 33}, "seq_len=33 is more than the model's n_positions=32"),
        ({"eval_every": 0}, "eval_every=0"),
        ({"resume": True}, "resume needs a checkpoint_folder"),
        ({"checkpoint_every": 2}, "checkpoint_every needs a checkpoint_folder"),
    ],
)
def test_bad_settings(corpus: Corpus, change: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        pretrain(fresh(), corpus, **{**RUN, **change})


def test_corpus_and_model_must_fit(corpus: Corpus) -> None:
    with pytest.raises(ValueError, match="corpus has 257 tokens, the model a vocabulary of 100"):
        pretrain(fresh(replace(CONFIG, vocab_size=100, eos_token_id=None)), corpus, **RUN)
    assert Settings(steps=1, batch_size=1, seq_len=1).lr_at(0) == 1e-3
