"""Sizes and hyperparameters that are known to work, with what they were measured to give."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from ..models.config import GPTConfig


@dataclass(frozen=True)
class Preset:
    """model: the configuration; training: keyword arguments of :func:`tilewright.train.pretrain`."""

    model: GPTConfig
    training: dict[str, Any] = field(default_factory=dict)


PRESETS = {"demo": Preset(GPTConfig(257, 256, 128, 4, 4), {})}
