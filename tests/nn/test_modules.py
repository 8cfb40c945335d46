"""tilewright.nn.FeedForward, Softmax and LogSoftmax against what torch.nn has for them."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
import torch.nn.utils.prune
from torch import Tensor, nn

from tilewright.nn import FeedForward, LogSoftmax, MultiheadAttention, Softmax

C, INNER = 6, 10


def r(*sizes: int) -> Tensor:
    return torch.randn(*sizes, dtype=torch.float64)


PLAIN: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": F.relu,
    "relu2": lambda x: F.relu(x).square(),
    "gelu": F.gelu,
    "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"),
    "silu": F.silu,
}
GATES = {"reglu": "relu", "geglu": "gelu", "geglu_tanh": "gelu_tanh", "swiglu": "silu"}


def gated(activation: str) -> Callable[[Tensor], Tensor]:
    def act(x: Tensor) -> Tensor:
        gate, up = x.chunk(2, -1)
        return PLAIN[GATES[activation]](gate) * up

    return act


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("activation", [*PLAIN, *GATES])
def test_feed_forward_is_two_linear_layers(activation: str, bias: bool) -> None:
    module = FeedForward(C, INNER, activation=activation, bias=bias, dtype=torch.float64)
    torch.manual_seed(0)
    module.reset_parameters()
    torch.manual_seed(0)
    first = nn.Linear(C, INNER * (2 if activation in GATES else 1), bias=bias, dtype=torch.float64)
    second = nn.Linear(INNER, C, bias=bias, dtype=torch.float64)
    act = gated(activation) if activation in GATES else PLAIN[activation]
    x, residual = r(2, 3, C).requires_grad_(), r(2, 3, C).requires_grad_()
    results = []
    for out, layers in (
        (module(x, residual=residual), (module.linear1, module.linear2)),
        (residual + second(act(first(x))), (first, second)),
    ):
        parameters = [p for layer in layers for p in layer.parameters()]
        results.append((out, *parameters, *torch.autograd.grad(out.square().sum(), [x, residual, *parameters])))
    for mine, torchs in zip(*results, strict=True):
        torch.testing.assert_close(mine, torchs)


def test_feed_forward_loads_an_encoder_layers_weights() -> None:
    layer = nn.TransformerEncoderLayer(C, 2, INNER, activation="gelu", dtype=torch.float64).eval()
    module = FeedForward(C, INNER, dtype=torch.float64)
    state = {k: v for k, v in layer.state_dict().items() if k.startswith("linear")}
    module.load_state_dict(state)
    x = r(2, 3, C)
    torch.testing.assert_close(module(x), layer._ff_block(x))


def test_feed_forward_drops_in_training_only() -> None:
    module, x = FeedForward(C, dropout=0.5, dtype=torch.float64), r(50, C)
    residual = torch.full((50, C), 7.0, dtype=torch.float64)
    dropped = (module(x, residual) == 7.0).double().mean().item()
    assert 0.35 < dropped < 0.65
    module.eval()
    torch.testing.assert_close(module(x, residual), module(x) + residual)
    assert module.linear1.weight.shape == (4 * C, C)


def test_feed_forward_keeps_the_residual_streams_type_under_autocast() -> None:
    module, x = FeedForward(C, INNER), r(3, C).float()
    with torch.autocast("cpu", torch.bfloat16):
        assert module(x).dtype == torch.bfloat16
        out = module(x, residual=x)
    assert out.dtype == torch.float32
    torch.testing.assert_close(out, module(x) + x, rtol=0, atol=2**-6)


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        ((0,), {}, "d_model=0 must be at least 1"),
        ((C, -1), {}, "d_ff=-1 must be at least 1"),
        ((C,), {"activation": "tanh"}, "activation='tanh' must be one of"),
        ((C,), {"dropout": 2.0}, "dropout=2.0"),
    ],
)
def test_feed_forward_refuses(arguments: tuple[int, ...], options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        FeedForward(*arguments, **options)  # type: ignore[arg-type]


@pytest.mark.parametrize("dim", [-1, 0, 1])
def test_softmax_is_torchs(dim: int) -> None:
    x = r(3, 4, 5)
    torch.testing.assert_close(Softmax(dim)(x), nn.Softmax(dim)(x))
    torch.testing.assert_close(LogSoftmax(dim)(x), nn.LogSoftmax(dim)(x))


def test_softmax_with_scale_causal_bound_and_mask() -> None:
    x, mask = r(2, 5, 5), r(5, 5)
    hidden = torch.ones(5, 5).triu(1).bool()
    expected = (0.5 * x + mask).masked_fill(hidden, -torch.inf)
    torch.testing.assert_close(Softmax(scale=0.5, causal="top_left")(x, mask), expected.softmax(-1))
    torch.testing.assert_close(LogSoftmax(scale=0.5, causal="top_left")(x, mask), expected.log_softmax(-1))


def test_softmax_refuses() -> None:
    with pytest.raises(ValueError, match="causal='left'"):
        Softmax(causal="left")
    with pytest.raises(TypeError, match="dim must be an int"):
        LogSoftmax(None)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="dim=3 is out of range"):
        Softmax(3)(r(2, 2))


def test_modules_say_what_they_are_compile_copy_and_pickle() -> None:
    assert repr(Softmax(0)) == "Softmax(dim=0)"
    assert repr(LogSoftmax(scale=2.0, causal="top_left")) == "LogSoftmax(dim=-1, scale=2.0, causal='top_left')"
    assert "activation='swiglu', dropout=0.1" in repr(FeedForward(C, activation="swiglu", dropout=0.1))
    x = r(4, C)
    for module in (Softmax(), LogSoftmax(), FeedForward(C, dtype=torch.float64)):
        compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
        for other in (compiled, copy.deepcopy(module), pickle.loads(pickle.dumps(module))):
            torch.testing.assert_close(other(x), module(x))


def test_shapes_on_the_meta_device() -> None:
    # Where torch.is_autocast_enabled raises.
    x = torch.empty(2, 3, C, device="meta")
    assert FeedForward(C, INNER, device="meta")(x, residual=x).shape == x.shape
    out, weights = MultiheadAttention(C, 2, batch_first=True, device="meta")(x, x, x)
    assert (out.shape, weights.shape) == ((2, 3, C), (2, 3, 3))


@pytest.mark.parametrize("layer", ["linear1", "linear2"])
def test_hooks_on_layers_that_are_not_called(layer: str) -> None:
    for hang in ("register_forward_hook", "register_forward_pre_hook", "register_full_backward_hook"):
        module = FeedForward(C, INNER)
        handle = getattr(getattr(module, layer), hang)(lambda *_: None)
        with pytest.raises(ValueError, match=f"{layer} of FeedForward has hooks or a forward of its own"):
            module(torch.randn(2, C))
        handle.remove()
        module(torch.randn(2, C))
    nn.utils.prune.l1_unstructured(getattr(module, layer), "weight", 0.5)
    with pytest.raises(ValueError, match=f"{layer} of FeedForward has hooks"):
        module(torch.randn(2, C))
    nn.utils.prune.remove(getattr(module, layer), "weight")
    module(torch.randn(2, C))


def test_a_parametrization_is_served() -> None:
    module, x = FeedForward(C, INNER, activation="relu"), torch.randn(2, C)
    nn.utils.parametrizations.weight_norm(module.linear1)
    torch.testing.assert_close(module(x), module.linear2(F.relu(module.linear1(x))))
    module(x).sum().backward()
    assert module.linear1.parametrizations.weight.original0.grad is not None
