"""Two weights as one matrix: a view of both where they lie so, differentiable, and moved by nobody but pack."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch.nn import Parameter

from tilewright.integrations.adjacent import as_one, notice_changes, pack, unpack, why_not_pack

X = torch.randn(2, 4)


def pair() -> tuple[Parameter, Parameter]:
    return Parameter(torch.randn(3, 4)), Parameter(torch.randn(5, 4))


def packed() -> tuple[Parameter, Parameter]:
    weights = pair()
    pack(*weights)
    return weights


def joined(first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    found = as_one(first, second)
    assert found is not None
    return found


def test_apart_is_left_apart() -> None:
    first, second = pair()
    places = first.data_ptr(), second.data_ptr()
    assert as_one(first, second) is None
    assert (first.data_ptr(), second.data_ptr()) == places


def test_packed_is_a_view_of_both() -> None:
    weights = first, second = pair()
    values = torch.cat(weights)
    pack(first, second)
    assert torch.equal(torch.cat(weights), values)
    view = joined(first, second)
    assert torch.equal(view, values) and view.data_ptr() == first.data_ptr()
    pack(first, second)
    assert view.data_ptr() == first.data_ptr(), "packing twice moves again"
    with torch.no_grad():
        second.zero_()
        assert not joined(first, second)[3:].any()


TEAR: dict[str, Callable[[torch.nn.ParameterList], torch.nn.ParameterList]] = {
    "cast": lambda p: p.double(),
    "deepcopy": copy.deepcopy,
    "assigned": lambda p: (p.load_state_dict({k: v + 1 for k, v in p.state_dict().items()}, assign=True), p)[1],
    "data": lambda p: (setattr(p[0], "data", torch.ones(3, 4)), p)[1],
}


@pytest.mark.parametrize("how", TEAR)
def test_weights_torn_apart_are_not_taken_for_one(how: str) -> None:
    torn = TEAR[how](torch.nn.ParameterList(packed()))
    assert as_one(*torn) is None
    pack(*torn)
    assert torch.equal(joined(*torn), torch.cat(tuple(torn)))


def test_a_flat_vector_of_parameters_needs_no_packing() -> None:
    weights = pair()
    torch.nn.utils.vector_to_parameters(torch.arange(32.0), weights)
    assert torch.equal(joined(*weights), torch.arange(32.0).view(8, 4))
    # A gap, the other order, another width: not one matrix.
    flat = torch.zeros(100)
    for first, second in ((flat[:12], flat[13:33]), (flat[20:32], flat[:20])):
        assert as_one(first.view(3, 4), second.view(5, 4)) is None
    assert as_one(flat[:12].view(3, 4), flat[12:30].view(6, 3)) is None


def test_gradients_reach_all_and_twice() -> None:
    first, second = (Parameter(p.double()) for p in pair())
    pack(first, second)
    assert torch.autograd.gradcheck(lambda a, b: joined(a, b).sin(), (first, second))
    assert torch.autograd.gradgradcheck(lambda a, b: joined(a, b).sin(), (first, second))
    second.requires_grad_(False)
    assert torch.autograd.grad(joined(first, second).sum(), first)[0].eq(1).all()
    first.requires_grad_(False)
    assert not joined(first, second).requires_grad


@pytest.mark.parametrize("changed", [0, 1])
@pytest.mark.parametrize("wanted", ["weights", "x", "x, the weights being frozen"])
def test_a_change_between_forward_and_backward_is_noticed(changed: int, wanted: str) -> None:
    weights = packed()
    for weight in weights:
        weight.requires_grad_("frozen" not in wanted)
    x = X.clone().requires_grad_()
    out = x @ joined(*weights).t()
    notice_changes(out, *weights)
    loss = out.square().sum()
    with torch.no_grad():
        weights[changed].add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        torch.autograd.grad(loss, weights if wanted == "weights" else x)


def test_transforms_and_compilers_see_no_view() -> None:
    first, second = packed()
    assert torch.func.vmap(lambda x: x.new_ones(()) * (as_one(first, second) is None))(X).all()


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_packing_without_gradients_leaves_parameters_trainable(mode: type) -> None:
    weights = first, _ = pair()
    with mode():
        pack(*weights)
        assert as_one(*weights) is not None
    joined(*weights).square().sum().backward()
    assert torch.allclose(first.grad, 2 * first.detach())


def mapped(path: Path, shared: bool) -> Parameter:
    return Parameter(torch.from_file(str(path), shared=shared, size=12).view(3, 4))


def test_memory_of_others_is_not_moved(tmp_path: Path) -> None:
    first, second = pair()
    assert why_not_pack(first, second) is None
    for kept in (first.data, first.detach(), first.detach().numpy(), first.view(-1)):
        assert "also held by another tensor" in str(why_not_pack(first, second))
        del kept
    tied = Parameter(first.data)
    assert "also held by another tensor" in str(why_not_pack(second, tied))
    part = Parameter(torch.randn(6, 4)[:3])
    assert why_not_pack(part, second) == "one is a part of a larger storage"
    (tmp_path / "weights").write_bytes(bytes(48))
    assert "shared between processes" in str(why_not_pack(mapped(tmp_path / "weights", True), second))
    other = Parameter(torch.randn(3, 4))
    other.share_memory_()
    assert "shared between processes" in str(why_not_pack(second, other))
    assert why_not_pack(second, second) == "the two are one parameter"
    assert "differ in type" in str(why_not_pack(second, Parameter(torch.randn(3, 4).double())))
    assert "not a parameter" in str(why_not_pack(torch.randn(3, 4), second))
    del tied
    loss = (first.sum() + second.sum()).backward()
    torch.optim.AdamW([first, second]).step()
    assert loss is None and why_not_pack(first, second) is None, "gradients and an optimizer are in the way"


def test_packed_memory_can_be_shared_afterwards() -> None:
    first, second = packed()
    for weight in (first, second):
        weight.share_memory_()
    assert first.is_shared() and second.is_shared()
    with torch.no_grad():
        second.data.fill_(2)
        assert joined(first, second)[3:].eq(2).all()


def test_unpacked_each_has_its_own_again_unless_somebody_reads_it() -> None:
    weights = packed()
    values = torch.cat(weights)
    for kept in (weights[0].data, weights[1].detach().numpy()):
        unpack(*weights)
        assert as_one(*weights) is not None
        del kept
    unpack(*weights)
    assert as_one(*weights) is None and why_not_pack(*weights) is None
    assert torch.equal(torch.cat(weights), values)
    unpack(*weights)
    pack(*weights)
    weights[0].share_memory_()
    unpack(*weights)
    assert as_one(*weights) is not None
