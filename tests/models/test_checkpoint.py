"""Checkpoints: every form transformers writes, back again, and errors that say what is wrong."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from tilewright.models import GPT, ByteTokenizer, GPTConfig

safetensors = pytest.importorskip("safetensors.torch")
transformers = pytest.importorskip("transformers")

IDS = torch.arange(12).view(2, 6)


def rewrite(folder: Path, change: Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]]) -> None:
    file = folder / "model.safetensors"
    tensors = change(safetensors.load_file(file))
    safetensors.save_file({name: t.contiguous() for name, t in tensors.items()}, file, metadata={"format": "pt"})


def test_sharded(make_checkpoint: Callable[..., Any]) -> None:
    folder, theirs = make_checkpoint(save={"max_shard_size": "20KB"})
    assert not (folder / "model.safetensors").exists()
    torch.testing.assert_close(GPT.from_pretrained(folder)(IDS).logits, theirs(IDS).logits, rtol=1e-4, atol=2e-5)
    index = folder / "model.safetensors.index.json"
    next(folder.glob("model-00002-of-*")).unlink()
    with pytest.raises(FileNotFoundError, match=r"lacks model-00002-of-\d+\.safetensors"):
        GPT.from_pretrained(folder)
    index.write_text(json.dumps({"weight_map": {"wte.weight": "../elsewhere.safetensors"}}))
    with pytest.raises(ValueError, match="shards must be files beside the index"):
        GPT.from_pretrained(folder)
    index.write_text("{}")
    with pytest.raises(ValueError, match="not a safetensors index"):
        GPT.from_pretrained(folder)


def test_old_forms_of_the_same_weights(make_checkpoint: Callable[..., Any]) -> None:
    """No prefix, the causal masks of old versions, and the tied output layer written out."""
    folder, theirs = make_checkpoint()

    def as_in_2019(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        old = {name.removeprefix("transformer."): t for name, t in tensors.items()}
        for layer in range(3):
            old[f"h.{layer}.attn.bias"] = torch.ones(1, 1, 40, 40).tril()
            old[f"h.{layer}.attn.masked_bias"] = torch.tensor(-1e4)
        return {**old, "lm_head.weight": old["wte.weight"].clone()}

    rewrite(folder, as_in_2019)
    model = GPT.from_pretrained(folder)
    torch.testing.assert_close(model(IDS).logits, theirs(IDS).logits, rtol=1e-4, atol=2e-5)
    assert model.lm_head.weight is model.wte.weight
    rewrite(folder, lambda tensors: {**tensors, "lm_head.weight": tensors["lm_head.weight"] + 1})
    with pytest.raises(ValueError, match=r"lm_head\.weight differs from wte\.weight"):
        GPT.from_pretrained(folder)


@pytest.mark.parametrize("tied", [True, False])
def test_transformers_loads_what_is_saved(make_checkpoint: Callable[..., Any], tmp_path: Path, tied: bool) -> None:
    folder, theirs = make_checkpoint(tie_word_embeddings=tied, activation_function="relu", n_inner=20)
    saved = tmp_path / "saved"
    GPT.from_pretrained(folder).save_pretrained(saved, tokenizer=ByteTokenizer())
    original, written = (safetensors.load_file(f / "model.safetensors") for f in (folder, saved))
    assert set(written) == set(original)
    assert all(torch.equal(written[name], original[name]) for name in original)
    again, report = transformers.GPT2LMHeadModel.from_pretrained(saved, output_loading_info=True)
    assert not any(report[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert torch.equal(again.eval()(IDS).logits, theirs(IDS).logits)
    config = json.loads((saved / "config.json").read_text())
    assert (config["dtype"], config["activation_function"], config["eos_token_id"]) == ("float32", "relu", 2)
    assert sorted(f.name for f in saved.iterdir()) == [
        "config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
    ]


def test_dtype_device_and_mode(make_checkpoint: Callable[..., Any]) -> None:
    folder, _ = make_checkpoint()
    assert GPT.from_pretrained(str(folder)).dtype == torch.float32
    half = GPT.from_pretrained(folder, dtype=torch.bfloat16, device="cpu")
    assert {p.dtype for p in half.parameters()} == {torch.bfloat16}
    assert not half.training
    assert all(p.requires_grad and not p.is_meta for p in half.parameters())
    half.save_pretrained(folder)
    assert GPT.from_pretrained(folder).dtype == torch.bfloat16
    with pytest.raises(ValueError, match="floating-point"):
        GPT.from_pretrained(folder, dtype=torch.int8)


def test_everything_that_does_not_fit_is_listed(make_checkpoint: Callable[..., Any]) -> None:
    folder, _ = make_checkpoint()

    def damage(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        del tensors["transformer.h.1.ln_2.bias"]
        weight = "transformer.h.0.mlp.c_fc.weight"
        return {
            **tensors,
            weight: tensors[weight].t(),
            "transformer.h.3.ln_1.bias": torch.zeros(2),
            "transformer.ln_f.bias": torch.zeros(24, dtype=torch.int8),
        }

    rewrite(folder, damage)
    with pytest.raises(ValueError, match="does not hold the GPT that") as caught:
        GPT.from_pretrained(folder)
    message = str(caught.value)
    assert "missing: h.1.ln_2.bias (24,)" in message
    assert "unexpected: h.3.ln_1.bias (2,)" in message
    assert "wrong shape: h.0.mlp.c_fc.weight (96, 24), the configuration asks for (24, 96)" in message
    assert "wrong dtype: ln_f.bias torch.int8" in message


def test_untied_without_an_output_layer(make_checkpoint: Callable[..., Any]) -> None:
    folder, _ = make_checkpoint()
    config = GPTConfig.from_json(folder)
    GPTConfig(**{**vars(config), "tie_word_embeddings": False}).to_json(folder / "config.json")
    with pytest.raises(ValueError, match=r"missing: lm_head\.weight"):
        GPT.from_pretrained(folder)


def test_broken_or_missing_files(make_checkpoint: Callable[..., Any], tmp_path: Path) -> None:
    folder, _ = make_checkpoint()
    weights = folder / "model.safetensors"
    whole = weights.read_bytes()
    for broken in (whole[: len(whole) // 2], b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n"):
        weights.write_bytes(broken)
        with pytest.raises(ValueError, match="not a readable safetensors file"):
            GPT.from_pretrained(folder)
    weights.unlink()
    with pytest.raises(FileNotFoundError, match=r"neither model\.safetensors nor model\.safetensors\.index\.json"):
        GPT.from_pretrained(folder)
    torch.save({}, folder / "pytorch_model.bin")
    with pytest.raises(ValueError, match=r"pickle only.*save_pretrained"):
        GPT.from_pretrained(folder)
    (folder / "config.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"no config\.json"):
        GPT.from_pretrained(folder)
    with pytest.raises(NotADirectoryError, match="is a file"):
        GPT.from_pretrained(folder / "pytorch_model.bin")
    for missing in (tmp_path / "nowhere", str(tmp_path / "nowhere"), "./nowhere", "a/b/c"):
        with pytest.raises(FileNotFoundError, match=r"no such folder.*local folder.*hf download"):
            GPT.from_pretrained(missing)


@pytest.fixture
def hub_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    constants = pytest.importorskip("huggingface_hub").constants
    cache = tmp_path / "hub"
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    return cache


@pytest.mark.parametrize("save", [{}, {"max_shard_size": "20KB"}])
def test_a_name_is_read_from_the_hub_cache(make_checkpoint: Callable[..., Any], hub_cache: Path, save: Any) -> None:
    folder, theirs = make_checkpoint(save=save)
    repository, revision = hub_cache / "models--someone--small-gpt", "0" * 40
    shutil.copytree(folder, repository / "snapshots" / revision)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(revision)
    ours = GPT.from_pretrained("someone/small-gpt")
    torch.testing.assert_close(ours(IDS).logits, theirs(IDS).logits, rtol=1e-4, atol=2e-5)


@pytest.mark.parametrize("name", ["gpt2", "someone/unknown"])
def test_offline_and_not_cached(hub_cache: Path, name: str) -> None:
    with pytest.raises(FileNotFoundError, match=r"not in the local cache.*local folder.*hf download.*huggingface-cli"):
        GPT.from_pretrained(name)


def test_not_a_name(hub_cache: Path) -> None:
    with pytest.raises(FileNotFoundError, match="not a repository name either"):
        GPT.from_pretrained("no spaces allowed")
