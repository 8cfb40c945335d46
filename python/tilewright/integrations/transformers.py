"""Hugging Face transformers models (5.0 or later) on our kernels: their attention, and the MLPs of some families.

    from tilewright.integrations.transformers import register
    register()
    model = AutoModelForCausalLM.from_pretrained(..., attn_implementation="tilewright")

serves any model that calls its attention through transformers' AttentionInterface; see
:func:`~.transformers_attention.attention_forward` for what is served and what is refused. ``apply_to_gpt2``,
``apply_to_bert`` and ``apply_to_llama`` also put a model's MLPs on :func:`tilewright.ffn`.
"""

from __future__ import annotations

from .transformers_attention import attention_forward, register
from .transformers_mask import attention_mask
from .transformers_patch import Patch, apply_to_bert, apply_to_gpt2, apply_to_llama

__all__ = [
    "Patch",
    "apply_to_bert",
    "apply_to_gpt2",
    "apply_to_llama",
    "attention_forward",
    "attention_mask",
    "register",
]
