"""Modules over tilewright's ops, for models that are built of ``torch.nn`` parts."""

from __future__ import annotations

from .attention import MultiheadAttention
from .feedforward import FeedForward
from .replace import Replaced, replace_attention
from .softmax import LogSoftmax, Softmax

__all__ = ["FeedForward", "LogSoftmax", "MultiheadAttention", "Replaced", "Softmax", "replace_attention"]
