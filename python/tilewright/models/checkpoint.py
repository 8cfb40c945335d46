"""Reading and writing GPT-2 checkpoints in Hugging Face's format: config.json and model.safetensors, sharded or not."""

from __future__ import annotations

import functools
import json
import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from . import tied
from .config import GPTConfig
from .hub import Source, open_source

if TYPE_CHECKING:
    from .gpt import GPT
    from .tokenizer import Tokenizer

_WEIGHTS = "model.safetensors"
_INDEX = "model.safetensors.index.json"
_PICKLE = ("pytorch_model.bin", "pytorch_model.bin.index.json")
_PREFIX = "transformer."

# Constant causal masks that old versions of transformers saved among the weights.
_LEGACY_BUFFER = re.compile(r"h\.\d+\.attn\.(bias|masked_bias)")


def load(
    model_class: type[GPT], name_or_folder: str | Path, *, dtype: torch.dtype | None, device: torch.device | str | None
) -> GPT:
    """See :meth:`tilewright.models.GPT.from_pretrained`."""
    if dtype is not None and not dtype.is_floating_point:
        raise ValueError(f"dtype={dtype} must be a floating-point type")
    source = open_source(name_or_folder)
    config_file = source.find("config.json")
    if config_file is None:
        raise FileNotFoundError(f"{source.name} has no config.json; it is not a checkpoint in Hugging Face's format")
    config = GPTConfig.from_json(config_file)
    tensors = _read_weights(source, torch.device("cpu" if device is None else device))
    with torch.device("meta"):  # every weight is about to be replaced: neither allocate nor initialise
        model = model_class(config)
    _match(tensors, model, source.name)
    if dtype is None:
        dtype = functools.reduce(torch.promote_types, (t.dtype for t in tensors.values()))
    model.load_state_dict({name: t.to(dtype) for name, t in tensors.items()}, assign=True)
    model.tie_weights()
    return model.eval()


def _read_weights(source: Source, device: torch.device) -> dict[str, Tensor]:
    """Every tensor, under the model's own names."""
    found = source.find(_WEIGHTS, _INDEX)
    if found is None:
        if source.find(*_PICKLE) is not None:
            raise ValueError(
                f"{source.name} has its weights as a pickle only ({_PICKLE[0]}), which can run code when opened and is "
                f"not read here. Convert it once with transformers, "
                f"AutoModelForCausalLM.from_pretrained({source.name!r}).save_pretrained(FOLDER), and load FOLDER"
            )
        raise FileNotFoundError(f"{source.name} has neither {_WEIGHTS} nor {_INDEX}")
    tensors: dict[str, Tensor] = {}
    for file in [found] if found.name == _WEIGHTS else _shards(source, found):
        for name, tensor in _read_file(file, device).items():
            name = name.removeprefix(_PREFIX)
            if _LEGACY_BUFFER.fullmatch(name):
                continue
            if name in tensors:
                raise ValueError(f"{source.name} holds {name} twice (with and without {_PREFIX!r}, or in two shards)")
            tensors[name] = tensor
    return tensors


def _shards(source: Source, index_file: Path) -> list[Path]:
    try:
        filenames = sorted(set(json.loads(index_file.read_text(encoding="utf-8"))["weight_map"].values()))
    except (json.JSONDecodeError, KeyError, AttributeError, TypeError) as error:
        raise ValueError(f"{index_file} is not a safetensors index: {error!r}") from error
    files = []
    for filename in filenames:
        if Path(filename).name != filename:
            raise ValueError(f"{index_file} names {filename!r}; shards must be files beside the index")
        file = source.find(filename)
        if file is None:
            raise FileNotFoundError(f"{source.name} lacks {filename}, which {index_file.name} lists")
        files.append(file)
    return files


def _read_file(path: Path, device: torch.device) -> dict[str, Tensor]:
    safetensors = _safetensors()
    try:
        tensors: dict[str, Tensor] = safetensors.torch.load_file(path, device=str(device))
    except safetensors.SafetensorError as error:
        raise ValueError(
            f"{path} is not a readable safetensors file (an incomplete download or a Git LFS pointer?): {error}"
        ) from error
    return tensors


def _match(tensors: dict[str, Tensor], model: GPT, where: str) -> None:
    """Fill in a tied output layer, then raise one ``ValueError`` that lists everything that does not fit the model."""
    expected = model.state_dict()
    if model.config.tie_word_embeddings:
        differ = tied.why_not_one(tensors)
        if differ is not None:
            raise ValueError(f"{where}: {differ}")
        tied.complete(tensors)
    problems = [f"missing: {name} {tuple(t.shape)}" for name, t in expected.items() if name not in tensors]
    for name, tensor in tensors.items():
        if name not in expected:
            problems.append(f"unexpected: {name} {tuple(tensor.shape)}")
        elif tensor.shape != expected[name].shape:
            problems.append(
                f"wrong shape: {name} {tuple(tensor.shape)}, the configuration asks for {tuple(expected[name].shape)}"
            )
        elif not tensor.is_floating_point():
            problems.append(f"wrong dtype: {name} {tensor.dtype}, a floating-point type is needed")
    if problems:
        raise ValueError(f"{where} does not hold the GPT that its config.json describes:\n  " + "\n  ".join(problems))


def save(model: GPT, folder: str | Path, *, tokenizer: Tokenizer | None) -> None:
    """See :meth:`tilewright.models.GPT.save_pretrained`."""
    safetensors = _safetensors()
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {}
    state = model.state_dict()
    differ = tied.why_not_one(state) if model.config.tie_word_embeddings else None
    if differ is not None:
        raise ValueError(f"the model cannot be saved: {differ}")
    for name, tensor in state.items():
        if name == tied.OUTPUT:
            if model.config.tie_word_embeddings:
                continue
        else:
            name = _PREFIX + name
        tensors[name] = tensor.detach().cpu().contiguous()
    model.config.to_json(folder / "config.json", dtype=str(model.dtype).removeprefix("torch."))
    # Written aside and renamed: a reader, or an interruption, never meets half a file.
    partial = folder / (_WEIGHTS + ".partial")
    safetensors.torch.save_file(tensors, partial, metadata={"format": "pt"})
    os.replace(partial, folder / _WEIGHTS)
    if tokenizer is not None:
        tokenizer.save_pretrained(folder)


def _safetensors() -> Any:
    try:
        import safetensors
        import safetensors.torch
    except ImportError as error:
        raise ImportError(
            "checkpoints are safetensors files and need the safetensors package: pip install safetensors"
        ) from error
    return safetensors
