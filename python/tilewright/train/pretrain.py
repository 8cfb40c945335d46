"""Pretraining from scratch: AdamW, linear warm-up and cosine decay, and runs that resume bit for bit."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from ..models import GPT
from ..models.tokenizer import Tokenizer
from .data import BatchSampler, Corpus
from .evaluate import evaluate_loss
from .state import read_state, write_state


@dataclass(frozen=True)
class Settings:
    """What determines a run besides model and data; a resumed run must have the same.

    steps: optimizer steps. batch_size: sequences per step, worked on in ``grad_accum`` equal parts (which changes
    memory, not the result, beyond rounding and the random draws of dropout). seq_len: tokens per sequence.
    lr: the highest learning rate, reached after ``warmup_steps``, then cosine decay to ``min_lr_ratio * lr``
    (Loshchilov and Hutter, "SGDR", 2017). weight_decay: of matrices and embeddings only. grad_clip: largest gradient
    norm, 0 for no limit.
    autocast: None, torch.bfloat16, or torch.float16 with loss scaling.
    time_limit_s: end early, with the learning rate fully decayed, after this many seconds; None: no limit.
    """

    steps: int
    batch_size: int
    seq_len: int
    lr: float = 1e-3
    min_lr_ratio: float = 0.1
    warmup_steps: int = 0
    weight_decay: float = 0.1
    betas: tuple[float, float] = (0.9, 0.95)
    grad_clip: float = 1.0
    grad_accum: int = 1
    autocast: torch.dtype | None = None
    seed: int = 0
    time_limit_s: float | None = None

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size", "seq_len", "grad_accum"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} must be at least 1")
        if self.batch_size % self.grad_accum:
            raise ValueError(f"batch_size={self.batch_size} must be a multiple of grad_accum={self.grad_accum}")
        if not self.lr > 0:
            raise ValueError(f"lr={self.lr} must be positive")
        if not 0 <= self.min_lr_ratio <= 1:
            raise ValueError(f"min_lr_ratio={self.min_lr_ratio} must be between 0 and 1")
        for name in ("warmup_steps", "weight_decay", "grad_clip"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name}={getattr(self, name)} must not be negative")
        if self.autocast not in (None, torch.bfloat16, torch.float16):
            raise ValueError(f"autocast={self.autocast} must be None, torch.bfloat16 or torch.float16")
        if self.time_limit_s is not None and not self.time_limit_s > 0:
            raise ValueError(f"time_limit_s={self.time_limit_s} must be positive, or None")

    def lr_at(self, step: int, elapsed_s: float = 0.0) -> float:
        """Learning rate of step ``step`` (from 0)."""
        warmup = min(1.0, (step + 1) / self.warmup_steps) if self.warmup_steps else 1.0
        progress = max(0, step - self.warmup_steps) / max(1, self.steps - self.warmup_steps)
        if self.time_limit_s is not None:
            # Also while warming up: a run cut short on a slow machine still ends with the rate decayed.
            progress = max(progress, elapsed_s / self.time_limit_s)
        cosine = 0.5 * (1.0 + math.cos(math.pi * min(1.0, progress)))
        return self.lr * warmup * (self.min_lr_ratio + (1.0 - self.min_lr_ratio) * cosine)


@dataclass
class History:
    """losses: training loss of each step, nats per token. validation: (steps done, loss) pairs.
    tokens: trained on; seconds: spent in steps, evaluation and checkpoints left out."""

    losses: list[float] = field(default_factory=list)
    validation: list[tuple[int, float]] = field(default_factory=list)
    tokens: int = 0
    seconds: float = 0.0

    @property
    def tokens_per_second(self) -> float:
        return self.tokens / self.seconds if self.seconds else 0.0


@dataclass(frozen=True)
class StepInfo:
    """After a step. step: steps done (from 1); grad_norm: before clipping; elapsed_s: since pretrain was called;
    progress: the share of the run that is done, by steps or by time; validation_loss: None if not measured."""

    step: int
    steps: int
    loss: float
    lr: float
    grad_norm: float
    tokens_per_second: float
    elapsed_s: float
    progress: float
    validation_loss: float | None


OnStep = Callable[[StepInfo], None]


def pretrain(
    model: GPT,
    data: Corpus,
    *,
    steps: int,
    batch_size: int,
    seq_len: int,
    lr: float = 1e-3,
    min_lr_ratio: float = 0.1,
    warmup_steps: int = 0,
    weight_decay: float = 0.1,
    betas: tuple[float, float] = (0.9, 0.95),
    grad_clip: float = 1.0,
    grad_accum: int = 1,
    autocast: torch.dtype | None = None,
    seed: int = 0,
    time_limit_s: float | None = None,
    eval_every: int | None = None,
    eval_batches: int = 16,
    on_step: OnStep | None = None,
    checkpoint_folder: str | Path | None = None,
    checkpoint_every: int | None = None,
    resume: bool = False,
    tokenizer: Tokenizer | None = None,
) -> History:
    """Train ``model`` in place on next-token prediction; see :class:`Settings` for the hyperparameters.

    eval_every: measure the validation loss (on at most eval_batches batches) every so many steps, and after the last.
    on_step: called after each step; an exception it raises, KeyboardInterrupt included, ends the run.
    checkpoint_folder: gets config.json and model.safetensors (loadable with ``GPT.from_pretrained``), training_state.pt
        and, when given, the tokenizer, every checkpoint_every steps and at the end; an earlier checkpoint is replaced.
    resume: go on from checkpoint_folder's training_state.pt. The weights then become exactly those of an uninterrupted
        run of the same settings, backend and machine. Not with time_limit_s, where the
        learning rate follows the clock.

    Randomness (batches and dropout) comes from ``seed``; torch's global random state is put back afterwards. The model
    is left in evaluation mode. Raises ``FloatingPointError`` when the loss is not finite.
    """
    settings = Settings(
        steps,
        batch_size,
        seq_len,
        lr,
        min_lr_ratio,
        warmup_steps,
        weight_decay,
        (betas[0], betas[1]),
        grad_clip,
        grad_accum,
        autocast,
        seed,
        time_limit_s,
    )
    for name, value in (
        ("eval_every", eval_every),
        ("checkpoint_every", checkpoint_every),
        ("eval_batches", eval_batches),
    ):
        if value is not None and value < 1:
            raise ValueError(f"{name}={value} must be at least 1, or None")
    if checkpoint_folder is None and (checkpoint_every is not None or resume):
        raise ValueError(f"{'resume' if resume else 'checkpoint_every'} needs a checkpoint_folder")
    folder = None if checkpoint_folder is None else Path(checkpoint_folder)
    device = model.device
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        run = Run(model, data, settings)
        if folder is not None and resume:
            run.load(folder)
        model.train()
        try:
            last = run.finished
            while not last:
                info = run.step()
                # Asked once a turn: with a time limit the answer may change while the rest of it runs.
                last = run.finished
                if eval_every is not None and (last or run.done % eval_every == 0):
                    info = run.evaluate(info, eval_batches)
                if folder is not None and (last or (checkpoint_every is not None and run.done % checkpoint_every == 0)):
                    run.save(folder, tokenizer)
                if on_step is not None:
                    on_step(info)
        finally:
            model.eval()
    return run.history


class Run:
    """A training run between two steps: everything that a checkpoint holds."""

    def __init__(self, model: GPT, data: Corpus, settings: Settings) -> None:
        if data.vocab_size > model.config.vocab_size:
            raise ValueError(
                f"the corpus has {data.vocab_size} tokens, the model a vocabulary of {model.config.vocab_size}"
            )
        if settings.seq_len > model.config.n_positions:
            raise ValueError(
                f"seq_len={settings.seq_len} is more than the model's n_positions={model.config.n_positions}"
            )
        self.model, self.data, self.settings = model, data, settings
        self.sampler = BatchSampler(data.train, settings.batch_size, settings.seq_len, settings.seed)
        self.optimizer = torch.optim.AdamW(
            parameter_groups(model, settings.weight_decay), lr=settings.lr, betas=settings.betas, fused=True
        )
        # Gradients in float16 underflow; multiplying the loss keeps them in range. Disabled, it does nothing.
        self.scaler = torch.amp.GradScaler(model.device.type, enabled=settings.autocast == torch.float16)
        self.done = 0
        self.history = History()
        self.started = time.perf_counter()

    @property
    def elapsed_s(self) -> float:
        return time.perf_counter() - self.started

    @property
    def progress(self) -> float:
        by_steps = self.done / self.settings.steps
        limit = self.settings.time_limit_s
        return min(1.0, by_steps if limit is None else max(by_steps, self.elapsed_s / limit))

    @property
    def finished(self) -> bool:
        return self.progress >= 1.0

    def step(self) -> StepInfo:
        """One optimizer step."""
        settings, started = self.settings, time.perf_counter()
        lr = settings.lr_at(self.done, self.elapsed_s)
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        input_ids, targets = (t.to(self.model.device) for t in self.sampler.draw())
        total = torch.zeros((), device=self.model.device)
        for ids, wanted in zip(input_ids.chunk(settings.grad_accum), targets.chunk(settings.grad_accum), strict=True):
            with _autocast(self.model.device, settings.autocast):
                loss = self.model(ids, targets=wanted).loss
            assert loss is not None
            loss = loss / settings.grad_accum
            self.scaler.scale(loss).backward()
            total += loss.detach()
        loss_value = float(total)
        if not math.isfinite(loss_value):
            raise FloatingPointError(
                f"the loss became {loss_value} at step {self.done + 1}; a lower lr (now {lr:.2e}) or more warmup_steps "
                f"usually helps"
            )
        self.scaler.unscale_(self.optimizer)
        norm = torch.nn.utils.clip_grad_norm_(self.model.parameters(), settings.grad_clip or math.inf)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        grad_norm = float(norm)
        seconds = time.perf_counter() - started
        self.done += 1
        self.history.losses.append(loss_value)
        self.history.tokens += input_ids.numel()
        self.history.seconds += seconds
        speed = input_ids.numel() / seconds
        return StepInfo(
            self.done, settings.steps, loss_value, lr, grad_norm, speed, self.elapsed_s, self.progress, None
        )

    def evaluate(self, info: StepInfo, batches: int) -> StepInfo:
        """The same StepInfo with the validation loss."""
        settings = self.settings
        with _autocast(self.model.device, settings.autocast):
            # Memory, like training's, is bounded by one part of the batch.
            loss = evaluate_loss(
                self.model,
                self.data.validation,
                seq_len=settings.seq_len,
                batch_size=settings.batch_size // settings.grad_accum,
                max_batches=batches,
            )
        self.history.validation.append((self.done, loss))
        return StepInfo(**{**vars(info), "validation_loss": loss})

    def save(self, folder: Path, tokenizer: Tokenizer | None) -> None:
        self.model.save_pretrained(folder, tokenizer=tokenizer)
        write_state(folder, self)

    def load(self, folder: Path) -> None:
        read_state(folder, self)


def parameter_groups(model: torch.nn.Module, weight_decay: float) -> list[dict[str, object]]:
    """Matrices and embeddings are decayed; biases and normalisation gains, which set scales, are not."""
    decayed: list[Tensor] = [p for p in model.parameters() if p.dim() >= 2]
    others: list[Tensor] = [p for p in model.parameters() if p.dim() < 2]
    return [{"params": decayed, "weight_decay": weight_decay}, {"params": others, "weight_decay": 0.0}]


def _autocast(device: torch.device, dtype: torch.dtype | None) -> AbstractContextManager[object]:
    return nullcontext() if dtype is None else torch.autocast(device.type, dtype)
