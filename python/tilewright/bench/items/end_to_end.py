"""A whole GPT-2: a training step, greedy generation, and the time to the first token.

Every provider gets the same random weights and tokens. Training is what people do: float32 weights, for bfloat16 under
autocast, and AdamW. Generation has its weights in the dtype. The peak of a training step's memory is what comes to the
weights and AdamW's moments: activations, gradients and what kernels need.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor

from ... import use_backend
from ...models import GPT, GPTConfig
from .. import exact
from ..measure import Bench, Built, Function, Item, refusing
from ..peers.gpt2 import PEERS, Eager, LanguageModel, Plain, Weights, config_of, filled
from ..shapes import Gpt2

#: What the names of these items begin with. They take longer than a call of one op.
MODEL = "gpt-2"

#: So small that a thousand steps leave the weights, and with them the loss, what they are.
LEARNING_RATE = 1e-8
BETAS = (0.9, 0.95)


class Ours:
    """tilewright.models.GPT with every op on this backend."""

    def __init__(self, weights: Weights, *, shape: Gpt2, backend: str) -> None:
        tied = {"lm_head.weight": weights["wte.weight"]}
        self.module: GPT = filled(lambda: GPT(GPTConfig(**config_of(shape))), {**weights, **tied})
        self.module.tie_weights()
        self._backend = backend

    def loss(self, ids: Tensor, targets: Tensor) -> Tensor:
        with use_backend(self._backend):
            loss: Tensor = self.module(ids, targets=targets).loss
        return loss

    @torch.no_grad()
    def prefill(self, ids: Tensor) -> Tensor:
        cache = self.module.make_cache(ids.shape[0], ids.shape[1] + 1)
        with use_backend(self._backend):
            logits: Tensor = self.module(ids, cache=cache, last_token_only=True).logits[:, 0]
        return logits

    def generate(self, ids: Tensor, new: int) -> Tensor:
        with use_backend(self._backend):
            tokens: Tensor = self.module.generate(ids, max_new_tokens=new, stop_token=None)
        return tokens[:, ids.shape[1] :]


def random_weights(shape: Gpt2, device: str) -> dict[str, Tensor]:
    """float32, by the checkpoint's names.

    The layers' weights are three times what GPT-2 small is initialised with. Attention would be nearly uniform
    otherwise, and the likeliest next token always the last one: wrong keys would hardly show.
    """
    with torch.device("meta"):
        sizes = {n: p.shape for n, p in Plain(shape).named_parameters()}
    weights = {}
    for name, size in sizes.items():
        bias, norm = name.endswith(".bias"), "ln_" in name
        std = 1.7 * shape.width**-0.5 if name.startswith("h.") else 0.02
        weights[name] = torch.randn(size, device=device).mul_(std) + (1.0 if norm and not bias else 0.0)
    return weights


def _providers(
    bench: Bench, shape: Gpt2, weights: Weights, function: Callable[[LanguageModel], Function]
) -> dict[str, Callable[[], Function]]:
    """Each makes its model, and of that the function to time."""
    made: dict[str, Callable[[], Callable[[Weights], LanguageModel]]] = bench.ours(Ours, shape=shape)
    made |= {p.name: functools.partial(p.make, shape, bench.device) for p in PEERS if bench.device in p.devices}
    return {name: lambda make=make: function(make()(weights)) for name, make in made.items()}  # type: ignore[misc]


def _train(bench: Bench, shape: Gpt2) -> Built:
    weights = random_weights(shape, bench.device)
    tokens = torch.randint(shape.vocab_size, (shape.batch, shape.seqlen + 1), device=bench.device)
    ids, targets = tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous()

    @functools.cache
    def expected() -> list[Tensor]:
        model = Eager(shape, {n: w.double() for n, w in weights.items()})
        loss = torch.zeros((), dtype=torch.float64, device=bench.device)
        for row in range(shape.batch):  # one after the other: float64 takes much memory
            part = model.loss(ids[row : row + 1], targets[row : row + 1]) / shape.batch
            part.backward()
            loss += part.detach()
        return [loss, *(p.grad for p in in_order(model.module, weights) if p.grad is not None)]

    def error(result: Any) -> float:
        loss, *moments = result
        # AdamW's first moments begin at zero: after one step they are 1 - beta1 times the gradients.
        return exact.distance([loss, *(m / (1.0 - BETAS[0]) for m in moments)], expected())

    def step_of(model: LanguageModel) -> Function:
        parameters = in_order(model.module, weights)
        optimizer = torch.optim.AdamW(parameters, lr=LEARNING_RATE, betas=BETAS, fused=True)
        half = shape.dtype != "float32"

        def step() -> tuple[Tensor, ...]:
            with torch.autocast(bench.device, getattr(torch, shape.dtype)) if half else nullcontext():
                loss = model.loss(ids, targets)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            return loss.detach(), *(optimizer.state[p]["exp_avg"] for p in parameters)

        model.module.train()
        return step

    providers = _providers(bench, shape, weights, step_of)
    if bench.device == "cpu" and bench.shapes != "cpu-long":
        providers["hf compile"] = refusing("compiling its training step takes a CPU minutes: only cpu-long does")
    return Built(providers, error)


def in_order(module: torch.nn.Module, weights: Weights) -> list[torch.nn.Parameter]:
    """The parameters, in the order of these weights."""
    by_name = {name.removeprefix("transformer."): p for name, p in module.named_parameters()}
    return [by_name[name] for name in weights]


def _inference(bench: Bench, shape: Gpt2) -> tuple[dict[str, Tensor], Tensor, Eager]:
    """Weights in the dtype, the prompts (B, P), and the model that knows the right answers."""
    weights = {n: w.to(getattr(torch, shape.dtype)) for n, w in random_weights(shape, bench.device).items()}
    prompts = torch.randint(shape.vocab_size, (shape.batch, shape.seqlen), device=bench.device)
    return weights, prompts, Eager(shape, {n: w.double() for n, w in weights.items()})


def _first_token(bench: Bench, shape: Gpt2) -> Built:
    weights, prompts, exactly = _inference(bench, shape)

    @functools.cache
    def expected() -> Tensor:
        return exactly.last_logits(prompts, 1)[:, 0]

    def first(model: LanguageModel) -> Function:
        model.module.eval()

        def prefill() -> Tensor:
            logits = model.prefill(prompts)
            logits.argmax(-1).tolist()  # the reader has the token then
            return logits

        return prefill

    return Built(_providers(bench, shape, weights, first), lambda logits: exact.distance([logits], [expected()]))


def _generate(bench: Bench, shape: Gpt2) -> Built:
    weights, prompts, exactly = _inference(bench, shape)
    new = shape.new or 0

    @functools.cache
    def regret(tokens: tuple[tuple[int, ...], ...]) -> float:
        return greedy_error(exactly, prompts, torch.tensor(tokens, device=bench.device))

    def error(tokens: Any) -> float:
        if tuple(tokens.shape) != (shape.batch, new):
            raise ValueError(f"tokens of shape {tuple(tokens.shape)} instead of {(shape.batch, new)}")
        return regret(tuple(map(tuple, tokens.tolist())))

    def generation(model: LanguageModel) -> Function:
        model.module.eval()
        return lambda: model.generate(prompts, new)

    return Built(_providers(bench, shape, weights, generation), error)


def greedy_error(exactly: Eager, prompts: Tensor, tokens: Tensor) -> float:
    """How far tokens (B, new) are from each being the likeliest after those before it.

    The float64 model reads the prompts (B, P) with these very tokens, so that a tie which rounding broke the other way
    changes nothing after it. 0 where each has the largest logit; else the largest gap below it, as a share of the
    largest logit's distance from their mean: what an error of that relative size can choose. 1 is any token at all.
    """
    logits = exactly.last_logits(torch.cat([prompts, tokens[:, :-1]], 1), tokens.shape[1])
    largest, chosen = logits.amax(-1), logits.gather(-1, tokens[..., None]).squeeze(-1)
    return float(((largest - chosen) / (largest - logits.mean(-1))).max())


#: By mode: how an item is made, its unit, and what its label begins with.
MODES: dict[str, tuple[Callable[[Bench, Gpt2], Built], str, str]] = {
    "train": (_train, "tokens/s", "training step"),
    "generate": (_generate, "tokens/s", "greedy generation"),
    "first token": (_first_token, "ms", "first token"),
}

#: How many times a call's limit a model may be from float64: what its layers round adds up. Measured: up to 2.7 times.
ROUNDINGS = 4.0


def item(mode: str, shape: Gpt2) -> Item:
    build, unit, words = MODES[mode]
    facts = {"op": "end_to_end", "mode": mode, **shape.facts(), "label": f"{words}, {shape.label}"}
    facts["parameters"] = shape.parameters
    work = float(shape.batch * (shape.new or 1))
    if mode == "train":
        work = float(shape.batch * shape.seqlen)
        facts["flops_per_token"] = shape.flops_per_token
        facts["precision"] = "float32" if shape.dtype == "float32" else f"float32 weights, {shape.dtype} autocast"
    name = f"{MODEL} {mode} {shape.name}"
    return Item(
        name, unit, lambda bench: build(bench, shape), work, by="wall", long=True, roundings=ROUNDINGS, facts=facts
    )


def items(shapes: str) -> Iterator[Item]:
    for mode, shape in SETS[shapes]():
        yield item(mode, shape)


Calls = Iterator[tuple[str, Gpt2]]
SMALL = "GPT-2 124M"


def _gpu() -> Calls:
    yield "train", Gpt2(SMALL, "bfloat16", 16, 1024)
    yield "generate", Gpt2(SMALL, "bfloat16", 1, 512, 128)
    yield "first token", Gpt2(SMALL, "bfloat16", 1, 512)


def _gpu_long() -> Calls:
    yield from _gpu()
    yield "train", Gpt2(SMALL, "bfloat16", 4, 1024)
    yield "train", Gpt2(SMALL, "bfloat16", 64, 256)
    yield "train", Gpt2(SMALL, "float32", 4, 1024)
    yield "generate", Gpt2(SMALL, "bfloat16", 8, 512, 128)
    yield "generate", Gpt2(SMALL, "bfloat16", 64, 128, 128)
    yield "first token", Gpt2(SMALL, "bfloat16", 8, 512)
    yield "first token", Gpt2(SMALL, "bfloat16", 1, 1023)


def _cpu() -> Calls:
    yield "train", Gpt2(SMALL, "float32", 1, 128)
    yield "generate", Gpt2(SMALL, "float32", 1, 64, 16)
    yield "first token", Gpt2(SMALL, "float32", 1, 64)


def _cpu_long() -> Calls:
    yield from _cpu()
    yield "train", Gpt2(SMALL, "float32", 4, 512)
    yield "train", Gpt2(SMALL, "float32", 1, 1024)
    yield "train", Gpt2(SMALL, "bfloat16", 4, 512)
    for dtype in ("float32", "bfloat16"):
        yield "generate", Gpt2(SMALL, dtype, 1, 512, 64)
        yield "generate", Gpt2(SMALL, dtype, 8, 128, 64)
        yield "first token", Gpt2(SMALL, dtype, 1, 512)
        yield "first token", Gpt2(SMALL, dtype, 8, 128)


def _tiny() -> Calls:
    sizes: dict[str, Any] = {"layers": 2, "heads": 2, "width": 32, "vocab_size": 97, "positions": 64}
    yield "train", Gpt2("tiny", "float32", 2, 24, **sizes)
    yield "train", Gpt2("tiny", "bfloat16", 1, 16, **sizes)
    yield "generate", Gpt2("tiny", "float32", 2, 12, 6, **sizes)
    yield "first token", Gpt2("tiny", "float32", 2, 12, **sizes)


SETS = {
    "gpu-first": lambda: iter(()),
    "gpu": _gpu,
    "gpu-long": _gpu_long,
    "cpu": _cpu,
    "cpu-long": _cpu_long,
    "tiny": _tiny,
}
