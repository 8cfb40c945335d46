"""The fused MLPs read the weights where they are: nothing is moved that somebody else reads, and nothing is missed."""

from __future__ import annotations

import copy
import multiprocessing
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch as safetensors
import torch
import torch.distributed as dist
from test_transformers_patch import APPLY
from tiny_transformers import assert_rounding, assert_same_gradients, build, checkpoint, gradients, inputs, logits
from torch import nn
from torch.nn.utils import parameters_to_vector, vector_to_parameters

import tilewright as tw
from tilewright.integrations import transformers_mlp
from tilewright.integrations.transformers import apply_to_llama

#: The linear layers that one call replaces, in the first layer of each model.
LINEAR = {
    "gpt2": ("transformer.h.0.mlp.c_fc", "transformer.h.0.mlp.c_proj"),
    "bert": ("bert.encoder.layer.0.intermediate.dense", "bert.encoder.layer.0.output.dense"),
    "llama": tuple(f"model.layers.0.mlp.{name}_proj" for name in ("gate", "up", "down")),
}
LAYERS = [(name, layer) for name, layers in LINEAR.items() for layer in layers]


def one_row(name: str) -> dict[str, torch.Tensor]:
    return {"input_ids": inputs(name)["input_ids"][:1, :1]}


def in_shared_memory(model: nn.Module, path: Path) -> None:
    model.share_memory()


def in_one_vector(model: nn.Module, path: Path) -> None:
    vector_to_parameters(parameters_to_vector(model.parameters()), model.parameters())


def in_a_file(model: nn.Module, path: Path) -> None:
    total = sum(p.numel() for p in model.parameters())
    path.write_bytes(bytes(4 * total))
    flat = torch.from_file(str(path), shared=True, size=total)
    flat.copy_(parameters_to_vector(model.parameters()))
    vector_to_parameters(flat, model.parameters())


def apart(model: nn.Module, path: Path) -> None:
    pass


@pytest.mark.parametrize("place", [apart, in_shared_memory, in_one_vector, in_a_file])
@pytest.mark.parametrize("name", APPLY)
def test_no_parameter_is_moved(name: str, place: Callable[..., None], tmp_path: Path) -> None:
    model, given = build(name), inputs(name)
    with torch.no_grad():
        place(model, tmp_path / "weights")
    theirs = gradients(model, given)
    views = [p.data for p in model.parameters()]  # what an optimizer of flat buffers holds, and another process
    places = [p.data_ptr() for p in model.parameters()]
    APPLY[name](model, attention=False)
    assert_same_gradients(gradients(model, given), theirs)
    with torch.no_grad():
        logits(model, given)
        logits(model, one_row(name))
        assert [p.data_ptr() for p in model.parameters()] == places
        for view in views:
            view.mul_(0.9)
        ours = [logits(model, one_row(name)), logits(model, given)]
        for module in model.modules():
            if type(module).__module__.endswith("transformers_mlp"):
                module.__class__ = type(module).__mro__[1]
        for mine, rows in zip(ours, (one_row(name), given), strict=True):
            assert_rounding(mine, logits(model, rows), "a change through another view is not seen")


def add_one(weight: torch.Tensor) -> None:
    weight.data.add_(1.0)


def test_another_process_trains_shared_weights() -> None:
    model, given = build("llama"), inputs("llama")
    model.share_memory()
    apply_to_llama(model)
    up = model.model.layers[0].mlp.up_proj.weight
    with torch.no_grad():
        before, value = logits(model, given), up[0, 0].item()
        process = multiprocessing.get_context("fork").Process(target=add_one, args=(up,))
        process.start()
        process.join(60)
        assert process.exitcode == 0 and up[0, 0].item() == pytest.approx(value + 1)
        assert not torch.allclose(logits(model, given), before, atol=1e-3)


@pytest.mark.parametrize(
    ("name", "layer", "pack"), [(*row, False) for row in LAYERS] + [(*row, True) for row in LAYERS if row[0] == "llama"]
)
def test_a_weight_that_changes_before_the_backward(name: str, layer: str, pack: bool) -> None:
    model, given = build(name), inputs(name)
    theirs = gradients(model, given)
    APPLY[name](model, attention=False, **({"pack": True} if pack else {}))
    model.zero_grad()
    loss = logits(model, given).logsumexp(-1).mean()
    with torch.no_grad():
        model.get_submodule(layer).weight.add_(1.0)
    if name == "llama" and not pack and not layer.endswith("down_proj"):
        loss.backward()  # of the copy that was multiplied with
        assert_same_gradients({n: p.grad for n, p in model.named_parameters() if p.grad is not None}, theirs)
    else:
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            loss.backward()


def test_packing_is_asked_for() -> None:
    model, given = build("llama"), inputs("llama")
    mlp = model.model.layers[1].mlp
    with torch.no_grad():
        theirs = logits(model, given), logits(model, one_row("llama"))
        patch = apply_to_llama(model, pack=True)
        assert mlp.gate_proj.weight.data_ptr() + mlp.gate_proj.weight.nbytes == mlp.up_proj.weight.data_ptr()
        assert_rounding(logits(model, given), theirs[0], "packed")
        assert_rounding(logits(model, one_row("llama")), theirs[1], "one row, packed")
        model.double().float()
        assert_rounding(logits(model, given), theirs[0], "torn apart")
        apply_to_llama(model, pack=True)
        assert mlp.gate_proj.weight.data_ptr() + mlp.gate_proj.weight.nbytes == mlp.up_proj.weight.data_ptr()
        patch.undo()
        assert torch.equal(logits(model, given), theirs[0])


def test_packed_models_are_checkpointed() -> None:
    model, given = build("llama").train(), inputs("llama")
    theirs = gradients(model, given)
    apply_to_llama(model, pack=True)
    checkpoint(model)
    assert_same_gradients(gradients(model, given), theirs)


def test_packed_models_are_copied_and_saved(tmp_path: Path) -> None:
    model, given = build("llama"), inputs("llama")
    patch = apply_to_llama(model, pack=True)
    with torch.no_grad():
        theirs = logits(model, given)
        model.save_pretrained(tmp_path)
        safetensors.save_file(model.state_dict(), tmp_path / "all.safetensors")
        torch.save(model.state_dict(), tmp_path / "all.pt")
        others = [copy.deepcopy(model), pickle.loads(pickle.dumps(model)), type(model).from_pretrained(tmp_path)]
        for load in (torch.load, safetensors.load_file):
            others.append(build("llama"))
            others[-1].load_state_dict(load(tmp_path / ("all.pt" if load is torch.load else "all.safetensors")))
        for other in others:
            assert_rounding(logits(other.eval(), given), theirs, "a copy")
            for parameter in other.parameters():
                parameter.zero_()
        assert_rounding(logits(model, given), theirs, "a changed copy changes the original")
        with pytest.raises(RuntimeError, match="found no suitable name"):
            safetensors.save_model(model, tmp_path / "model.safetensors")
        patch.undo()
        safetensors.save_model(model, tmp_path / "model.safetensors")
        assert_rounding(logits(model, given), theirs, "undone")


def test_what_is_fused(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []
    fused = transformers_mlp.ffn
    monkeypatch.setattr(transformers_mlp, "ffn", lambda *a, **k: (calls.append("ffn"), fused(*a, **k))[1])
    model, several, one = build("llama"), inputs("llama"), one_row("llama")

    def fused_calls(given: dict[str, torch.Tensor]) -> int:
        calls.clear()
        with torch.no_grad():
            model(**given)
        return len(calls)

    apply_to_llama(model, attention=False)
    assert (fused_calls(several), fused_calls(one)) == (2, 0)
    with tw.use_backend("cpu"):
        assert fused_calls(one) == 2
    apply_to_llama(model, attention=False, pack=True)
    assert (fused_calls(several), fused_calls(one)) == (2, 2)
    # On a GPU a copy pays later; the rule asks for nothing but the place of x and its sizes.
    assert not transformers_mlp._copy_pays(torch.empty(31, 32, device="meta"))
    assert transformers_mlp._copy_pays(torch.empty(32, 32, device="meta"))


def test_packing_is_refused_where_it_matters() -> None:
    model = build("llama")
    model.share_memory()
    kinds = [type(m) for m in model.modules()]
    with pytest.raises(
        ValueError, match=r"gate and up in model\.layers\.0\.mlp cannot be moved .* shared between proc"
    ):
        apply_to_llama(model, pack=True)
    assert [type(m) for m in model.modules()] == kinds and model.config._attn_implementation == "eager"
    for options in ({"model": None}, {"model": model, "mlp": False}):
        with pytest.raises(ValueError, match="pack=True moves the weights of a model's MLPs"):
            apply_to_llama(pack=True, **options)


def test_a_requested_backend_computes_a_single_row_too() -> None:
    model, given = build("llama"), one_row("llama")
    apply_to_llama(model, attention=False)
    with torch.no_grad(), tw.use_backend("triton"), pytest.raises(tw.BackendError, match="float64"):
        model.double()(**given)


def test_functional_calls_use_the_weights_that_they_are_given() -> None:
    model, given = build("llama"), inputs("llama")
    state = {name: p.detach() * 0.9 for name, p in model.named_parameters()}
    theirs = torch.func.functional_call(model, state, kwargs=given).logits
    apply_to_llama(model, attention=False, pack=True)
    assert_rounding(torch.func.functional_call(model, state, kwargs=given).logits, theirs, "functional_call")


@pytest.fixture
def world() -> Any:
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.mark.parametrize("when", ["before", "after"])
def test_fully_sharded_and_data_parallel(world: None, when: str) -> None:
    from torch.distributed.device_mesh import DeviceMesh
    from torch.distributed.fsdp import fully_shard

    theirs = gradients(build("llama"), inputs("llama"))

    def sharded(model: Any) -> Any:
        for part in (*model.model.layers, model):
            fully_shard(part, mesh=DeviceMesh("cpu", [0]))
        return model

    for wrap in (sharded, nn.parallel.DistributedDataParallel):
        model = build("llama")
        if when == "before":
            apply_to_llama(model, attention=False)
        wrapped = wrap(model)
        if when == "after":
            apply_to_llama(model, attention=False)
        for _ in range(2):
            found = gradients(wrapped, inputs("llama"))
        ours = {name.removeprefix("module."): getattr(g, "_local_tensor", g) for name, g in found.items()}
        assert_same_gradients(ours, theirs)
