"""Two weights as one matrix: a view of both, differentiable, and never stale."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch.nn import Parameter

from tilewright.integrations.adjacent import adjacent_rows


def pair() -> tuple[Parameter, Parameter]:
    return Parameter(torch.randn(3, 4)), Parameter(torch.randn(5, 4))


def test_moves_once_and_is_a_view() -> None:
    first, second = pair()
    values = torch.cat((first, second))
    joined = adjacent_rows(first, second)
    assert torch.equal(joined, values)
    assert torch.equal(torch.cat((first, second)), values)
    assert joined.data_ptr() == first.data_ptr()
    place = first.data_ptr()
    assert adjacent_rows(first, second).data_ptr() == place == first.data_ptr()
    with torch.no_grad():
        second.zero_()
        assert not adjacent_rows(first, second)[3:].any()


TEAR: dict[str, Callable[[torch.nn.ParameterList], torch.nn.ParameterList]] = {
    "cast": lambda p: p.double(),
    "deepcopy": copy.deepcopy,
    "assigned": lambda p: (p.load_state_dict({k: v + 1 for k, v in p.state_dict().items()}, assign=True), p)[1],
    "data": lambda p: (setattr(p[0], "data", torch.ones(3, 4)), p)[1],
}


@pytest.mark.parametrize("how", TEAR)
def test_weights_torn_apart_are_joined_again(how: str) -> None:
    weights = torch.nn.ParameterList(pair())
    adjacent_rows(*weights)
    torn = TEAR[how](weights)
    for _ in range(2):
        assert torch.equal(adjacent_rows(*torn), torch.cat(tuple(torn)))


def test_gradients_reach_both_and_twice() -> None:
    first, second = (Parameter(p.double()) for p in pair())
    assert torch.autograd.gradcheck(lambda a, b: adjacent_rows(a, b).sin(), (first, second))
    assert torch.autograd.gradgradcheck(lambda a, b: adjacent_rows(a, b).sin(), (first, second))
    second.requires_grad_(False)
    assert torch.autograd.grad(adjacent_rows(first, second).sum(), first)[0].eq(1).all()


def test_a_change_between_forward_and_backward_is_noticed() -> None:
    first, second = pair()
    loss = adjacent_rows(first, second).square().sum()
    with torch.no_grad():
        first.add_(1)
    with pytest.raises(RuntimeError, match="modified"):
        loss.backward()


def test_what_cannot_be_moved_is_copied() -> None:
    first, second = torch.randn(3, 4), torch.randn(5, 4)
    joined = adjacent_rows(first, second)
    assert torch.equal(joined, torch.cat((first, second)))
    assert joined.data_ptr() != first.data_ptr()
    both = torch.func.vmap(adjacent_rows)(torch.randn(2, 3, 4), torch.randn(2, 5, 4))
    assert both.shape == (2, 8, 4)


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_first_use_without_gradients_leaves_parameters_trainable(mode: type) -> None:
    first, second = pair()
    with mode():
        adjacent_rows(first, second)
    adjacent_rows(first, second).square().sum().backward()
    assert torch.allclose(first.grad, 2 * first.detach())
