"""Training: text corpora, pretraining and evaluation."""

from .data import BatchSampler, Corpus, make_corpus, python_sources, read_texts
from .evaluate import evaluate_loss
from .presets import PRESETS, Preset
from .pretrain import History, Settings, StepInfo, pretrain

__all__ = [
    "PRESETS",
    "BatchSampler",
    "Corpus",
    "History",
    "Preset",
    "Settings",
    "StepInfo",
    "evaluate_loss",
    "make_corpus",
    "pretrain",
    "python_sources",
    "read_texts",
]
