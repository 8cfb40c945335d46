"""training_state.pt: everything a run needs to go on exactly where it was."""

from __future__ import annotations

import os
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from .pretrain import Run

STATE_FILE = "training_state.pt"

_FORMAT = 1


def write_state(folder: Path, run: Run) -> None:
    """Self-contained: it holds the weights too, so that weights and optimizer can never be of different steps."""
    history = run.history
    state = {
        "format": _FORMAT,
        "fingerprint": _fingerprint(run),
        "done": run.done,
        "model": run.model.state_dict(),
        "optimizer": run.optimizer.state_dict(),
        "scaler": run.scaler.state_dict(),
        "sampler": run.sampler.generator.get_state(),
        "rng": torch.get_rng_state(),
        "device_rng": torch.cuda.get_rng_state(run.model.device) if run.model.device.type == "cuda" else None,
        "history": {**asdict(history), "validation": [list(pair) for pair in history.validation]},
    }
    partial = folder / (STATE_FILE + ".partial")
    torch.save(state, partial)
    os.replace(partial, folder / STATE_FILE)


def read_state(folder: Path, run: Run) -> None:
    """Bring a new run to where the saved one was. ``ValueError`` when the two are not the same run."""
    path = folder / STATE_FILE
    if not path.is_file():
        raise FileNotFoundError(f"{folder} has no {STATE_FILE} to resume from")
    state = torch.load(path, map_location=run.model.device, weights_only=True)
    if state.get("format") != _FORMAT:
        raise ValueError(f"{path} has format {state.get('format')}; this version reads format {_FORMAT}")
    _check_same(path, state["fingerprint"], _fingerprint(run))
    run.model.load_state_dict(state["model"])
    run.optimizer.load_state_dict(state["optimizer"])
    run.scaler.load_state_dict(state["scaler"])
    run.sampler.generator.set_state(state["sampler"].cpu())
    torch.set_rng_state(state["rng"].cpu())
    if run.model.device.type == "cuda" and state["device_rng"] is not None:
        torch.cuda.set_rng_state(state["device_rng"].cpu(), run.model.device)
    run.done = state["done"]
    saved = state["history"]
    run.history.losses = saved["losses"]
    run.history.validation = [(int(step), float(loss)) for step, loss in saved["validation"]]
    run.history.tokens, run.history.seconds = saved["tokens"], saved["seconds"]


def _fingerprint(run: Run) -> dict[str, Any]:
    """What must agree for the continuation to be the same run, as plain values."""
    settings = {**vars(run.settings), "betas": list(run.settings.betas), "autocast": str(run.settings.autocast)}
    model = {f"model.{name}": value for name, value in run.model.config.to_dict().items()}
    return {**settings, **model, "model.dtype": str(run.model.dtype), "training tokens": len(run.data.train)}


def _check_same(path: Path, saved: dict[str, Any], given: dict[str, Any]) -> None:
    different = [
        f"{k}={given.get(k)!r}, saved with {saved.get(k)!r}"
        for k in sorted({*saved, *given})
        if saved.get(k) != given.get(k)
    ]
    if different:
        raise ValueError(f"{path} belongs to a different run: " + "; ".join(different))
