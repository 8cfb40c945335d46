"""Sizes and hyperparameters that are known to work, with what was tried for them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ..models.config import GPTConfig


@dataclass(frozen=True)
class Preset:
    """model: the configuration; training: keyword arguments of :func:`tilewright.train.pretrain`."""

    model: GPTConfig
    training: dict[str, Any]


# A byte-level model that writes recognisable Python after about a minute on two cores: 2565 steps and a validation loss
# of 1.64 nats per byte took 112 s of one Zen 3 core's time on the CPU kernels. What was tried: validation loss on the
# standard library's sources, each pair at about equal cost (2 blocks of width 128 where nothing is said).
#   weights' deviation 0.06 instead of GPT-2's 0.02           2.23 against 2.39 (410k bytes; 0.1: 2.31)
#   steps of 512 bytes instead of 1024                        2.09 against 2.23 (410k bytes)
#   2 blocks of width 128 instead of 4; instead of width 192  2.09 against 2.29; 2.35
#   second-moment decay 0.99 instead of 0.95                  1.73 against 1.75 (820k bytes)
#   learning rate 3e-3 instead of 2e-3; 5e-3                  1.75 against 1.77; 2.15 (820k bytes)
#   4 sequences of 128 instead of 2 of 256                    1.75 (770k bytes) against 1.89 (1020k bytes)
#   an output layer of its own instead of a tied one          1.75 either way
# So few bytes are seen that nothing is seen twice, and dropout would only slow it down. seq_len is n_positions:
# positions that training never reaches are noise when generating.
_DEMO = Preset(
    model=GPTConfig(
        vocab_size=257,
        n_positions=128,
        n_embd=128,
        n_layer=2,
        n_head=4,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        initializer_range=0.06,
        bos_token_id=None,
        eos_token_id=256,
    ),
    training={
        "steps": 4000,
        "batch_size": 4,
        "seq_len": 128,
        "lr": 3e-3,
        "min_lr_ratio": 0.05,
        "warmup_steps": 40,
        "betas": (0.9, 0.99),
        "time_limit_s": 60.0,
    },
)

PRESETS = {"demo": _DEMO}
