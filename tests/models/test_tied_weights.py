"""The token embedding that is the output layer too: either name of it is enough, in whatever it is loaded from."""

from __future__ import annotations

import copy
import json
import pickle
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tilewright.models import GPT, GPTConfig

safetensors = pytest.importorskip("safetensors.torch")

CONFIG = GPTConfig(vocab_size=61, n_positions=12, n_embd=24, n_layer=2, n_head=4)
IDS = torch.arange(12).view(2, 6)
NAMES = ("wte.weight", "lm_head.weight")


def model(**changes: Any) -> GPT:
    return GPT(replace(CONFIG, **changes)).eval()


def assert_tied_and_same(loaded: GPT, original: GPT) -> None:
    assert loaded.lm_head.weight is loaded.wte.weight
    assert torch.equal(loaded(IDS).logits, original(IDS).logits)


def without(name: str, original: nn.Module) -> dict[str, Tensor]:
    return {key: t.clone() for key, t in original.state_dict().items() if not key.endswith(name)}


def folder_of(path: Path, tensors: dict[str, Tensor], prefix: str = "") -> Path:
    path.mkdir(exist_ok=True)
    CONFIG.to_json(path / "config.json")
    named = {name if name == "lm_head.weight" else prefix + name: t for name, t in tensors.items()}
    safetensors.save_file(named, path / "model.safetensors", metadata={"format": "pt"})
    return path


@pytest.mark.parametrize("prefix", ["", "transformer."])
@pytest.mark.parametrize("missing", [*NAMES, "neither"])
def test_a_file_with_either_name_or_both(tmp_path: Path, missing: str, prefix: str) -> None:
    original = model()
    loaded = GPT.from_pretrained(folder_of(tmp_path, without(missing, original), prefix))
    assert_tied_and_same(loaded, original)
    assert sum(p.numel() for p in loaded.parameters()) == original.num_parameters()


@pytest.mark.parametrize("missing", NAMES)
def test_shards_and_the_hub_cache(tmp_path: Path, missing: str, monkeypatch: pytest.MonkeyPatch) -> None:
    constants = pytest.importorskip("huggingface_hub.constants")
    original = model()
    tensors = without(missing, original)
    folder = folder_of(tmp_path / "whole", tensors)
    (folder / "model.safetensors").unlink()
    weight_map = {name: f"model-{index % 2}.safetensors" for index, name in enumerate(tensors)}
    for file in set(weight_map.values()):
        safetensors.save_file({n: t for n, t in tensors.items() if weight_map[n] == file}, folder / file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    assert_tied_and_same(GPT.from_pretrained(folder), original)
    repository = tmp_path / "hub" / "models--someone--tied"
    shutil.copytree(folder, repository / "snapshots" / ("0" * 40))
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("0" * 40)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert_tied_and_same(GPT.from_pretrained("someone/tied"), original)


def test_save_model_and_back(tmp_path: Path) -> None:
    original, file = model(), tmp_path / "model.safetensors"
    safetensors.save_model(original, file)
    assert len([name for name in safetensors.load_file(file) if name in NAMES]) == 1, "this test is of one name"
    CONFIG.to_json(tmp_path / "config.json")
    assert_tied_and_same(GPT.from_pretrained(tmp_path), original)
    loaded = model()
    assert safetensors.load_model(loaded, file) == (set(), [])
    assert_tied_and_same(loaded, original)
    loaded.save_pretrained(tmp_path / "again")
    assert_tied_and_same(GPT.from_pretrained(tmp_path / "again"), original)


def test_save_model_of_transformers(make_checkpoint: Callable[..., Any], tmp_path: Path) -> None:
    folder, theirs = make_checkpoint()
    safetensors.save_model(theirs, folder / "model.safetensors")
    torch.testing.assert_close(GPT.from_pretrained(folder)(IDS).logits, theirs(IDS).logits, rtol=1e-4, atol=2e-5)


@pytest.mark.parametrize("assign", [False, True])
@pytest.mark.parametrize("strict", [False, True])
@pytest.mark.parametrize("missing", [*NAMES, "neither"])
def test_state_dicts(missing: str, strict: bool, assign: bool) -> None:
    original, loaded = model(), model()
    given = without(missing, original)
    names = list(given)
    report = loaded.load_state_dict(given, strict=strict, assign=assign)
    assert list(given) == names, "the caller's state dict was changed"
    assert_tied_and_same(loaded, original)
    # safetensors' load_model goes by this.
    silent = strict or assign or missing == "neither"
    assert report.missing_keys == ([] if silent else [missing]) and not report.unexpected_keys


def test_inside_another_module() -> None:
    original, loaded = nn.Sequential(model()), nn.Sequential(model())
    loaded.load_state_dict(original.state_dict(), assign=True)
    assert_tied_and_same(loaded[0], original[0])
    for missing in NAMES:
        loaded = nn.Sequential(model())
        loaded.load_state_dict(without(missing, original), strict=False, assign=True)
        assert_tied_and_same(loaded[0], original[0])
    different = {name: t + 1 if name == "0.lm_head.weight" else t for name, t in original.state_dict().items()}
    with pytest.raises(ValueError, match=r"0\.lm_head\.weight differs from 0\.wte\.weight"):
        loaded.load_state_dict(different)


def test_both_and_different_is_refused(tmp_path: Path) -> None:
    original = model()
    tensors = without("neither", original)
    tensors["lm_head.weight"] = tensors["lm_head.weight"] + 1
    message = r"tie_word_embeddings is true, but lm_head\.weight differs from wte\.weight; set it to false"
    with pytest.raises(ValueError, match=message):
        GPT.from_pretrained(folder_of(tmp_path, tensors))
    for strict in (True, False):
        loaded = model()
        before = loaded(IDS).logits
        with pytest.raises(ValueError, match=message):
            loaded.load_state_dict(tensors, strict=strict)
        assert torch.equal(loaded(IDS).logits, before), "a part was loaded before the refusal"
    untied = model(tie_word_embeddings=False)
    untied.load_state_dict(tensors)
    assert torch.equal(untied.lm_head.weight, untied.wte.weight + 1)
    for missing in NAMES:
        with pytest.raises(RuntimeError, match=f"Missing key.*{missing}"):
            untied.load_state_dict(without(missing, untied))


def test_equal_is_equal_in_other_types_and_with_nan(tmp_path: Path) -> None:
    tensors = without("neither", model())
    tensors["wte.weight"] = tensors["wte.weight"].bfloat16()
    tensors["wte.weight"][0, 0] = torch.nan
    tensors["lm_head.weight"] = tensors["wte.weight"].float()
    loaded = GPT.from_pretrained(folder_of(tmp_path, tensors))
    assert loaded.lm_head.weight is loaded.wte.weight and loaded.dtype == torch.float32


def test_what_was_untied_by_hand_is_not_saved_as_tied(tmp_path: Path) -> None:
    original = model()
    original.lm_head.weight = nn.Parameter(original.wte.weight + 1)
    with pytest.raises(ValueError, match=r"the model cannot be saved: .* lm_head\.weight differs from wte\.weight"):
        original.save_pretrained(tmp_path)


def test_copies_and_pickles_stay_tied() -> None:
    original = model()
    for other in (copy.deepcopy(original), pickle.loads(pickle.dumps(original))):
        other.load_state_dict(without("wte.weight", original), assign=True)
        assert_tied_and_same(other, original)
