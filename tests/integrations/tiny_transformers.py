"""Small models of transformers with random weights, and inputs for them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import transformers as T
from torch import Tensor

T.logging.set_verbosity_error()

VOCAB, LENGTH, WINDOW = 61, 13, 4
SMALL: dict[str, Any] = {"vocab_size": VOCAB, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
DECODER: dict[str, Any] = {
    **SMALL,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 64,
}
ENCODER_DECODER: dict[str, Any] = {
    **SMALL,
    "d_model": 32,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 48,
    "decoder_ffn_dim": 48,
    "decoder_start_token_id": 1,
    "dropout": 0.0,
}
HALVES = ["sliding_attention", "full_attention"]

BUILD: dict[str, Callable[[], Any]] = {
    "gpt2": lambda: T.GPT2LMHeadModel(
        T.GPT2Config(**SMALL, n_embd=32, n_head=4, n_layer=2, n_positions=64, resid_pdrop=0, attn_pdrop=0, embd_pdrop=0)
    ),
    "llama": lambda: T.LlamaForCausalLM(T.LlamaConfig(**DECODER)),
    "qwen2": lambda: T.Qwen2ForCausalLM(T.Qwen2Config(**{k: v for k, v in DECODER.items() if k != "head_dim"})),
    "mistral": lambda: T.MistralForCausalLM(T.MistralConfig(**DECODER, sliding_window=WINDOW)),
    "gemma2": lambda: T.Gemma2ForCausalLM(
        T.Gemma2Config(**DECODER, sliding_window=WINDOW, layer_types=HALVES, attn_logit_softcapping=2.0)
    ),
    "gpt_oss": lambda: T.GptOssForCausalLM(
        T.GptOssConfig(**DECODER, sliding_window=WINDOW, layer_types=HALVES, num_local_experts=2, num_experts_per_tok=1)
    ),
    "bert": lambda: T.BertForMaskedLM(
        T.BertConfig(
            **{k: v for k, v in DECODER.items() if k not in ("head_dim", "num_key_value_heads")},
            hidden_dropout_prob=0.0,
            attention_probs_dropout_prob=0.0,
        )
    ),
    "t5": lambda: T.T5ForConditionalGeneration(
        T.T5Config(
            **SMALL,
            d_model=32,
            d_kv=8,
            d_ff=48,
            num_layers=2,
            num_heads=4,
            decoder_start_token_id=1,
            dropout_rate=0.0,
            relative_attention_num_buckets=8,
            relative_attention_max_distance=16,
        )
    ),
    "bart": lambda: T.BartForConditionalGeneration(
        T.BartConfig(**ENCODER_DECODER, max_position_embeddings=64, forced_eos_token_id=None)
    ),
    "whisper": lambda: T.WhisperForConditionalGeneration(
        T.WhisperConfig(
            **ENCODER_DECODER,
            num_mel_bins=8,
            max_source_positions=20,
            max_target_positions=64,
            suppress_tokens=[],
            begin_suppress_tokens=[],
        )
    ),
    "vit": lambda: T.ViTForImageClassification(
        T.ViTConfig(
            hidden_size=32,
            intermediate_size=48,
            num_hidden_layers=2,
            num_attention_heads=4,
            image_size=12,
            patch_size=4,
            num_labels=5,
        )
    ),
}
CAUSAL = ("gpt2", "llama", "qwen2", "mistral", "gemma2", "gpt_oss")
TEXT_TO_TEXT = ("t5", "bart")


def build(name: str) -> Any:
    """The model under eager attention, with weights large enough that attention is far from uniform, and embeddings
    small enough that a model which ties them to its output does not repeat its input."""
    torch.manual_seed(0)
    model = BUILD[name]().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.normal_(std=(0.3 if parameter.shape[0] == VOCAB else 1.5) * parameter.shape[-1] ** -0.5)
            elif parameter.dim() == 1:
                parameter.add_(torch.randn_like(parameter) * 0.1)
    model.set_attn_implementation("eager")
    return model


def padding(side: str, batch: int = 3) -> Tensor:
    """(B, LENGTH): the first sequence whole, the others shorter."""
    mask = torch.ones(batch, LENGTH, dtype=torch.long)
    for b in range(1, batch):
        if side == "left":
            mask[b, : 3 * b] = 0
        elif side == "right":
            mask[b, LENGTH - 3 * b :] = 0
    return mask


def inputs(name: str, side: str = "none") -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(1)
    if name == "vit":
        return {"pixel_values": torch.randn(2, 3, 12, 12, generator=generator)}
    ids = torch.randint(3, VOCAB, (3, LENGTH), generator=generator)
    mask = padding(side)
    if name == "whisper":
        features = torch.randn(3, 8, 40, generator=generator)
        return {"input_features": features, "decoder_input_ids": ids, "decoder_attention_mask": mask}
    given = {"input_ids": ids, "attention_mask": mask}
    if name in TEXT_TO_TEXT:
        given |= {"decoder_input_ids": ids.flip(1), "decoder_attention_mask": mask}
    return given


def logits(model: Any, given: dict[str, Tensor], **options: Any) -> Tensor:
    """Those of tokens, without those at padding, which mean nothing."""
    out: Tensor = model(**given, **options).logits
    mask = given.get("decoder_attention_mask", given.get("attention_mask"))
    return out if mask is None else out[mask.bool()]


def assert_rounding(ours: Tensor, theirs: Tensor, what: str, scale: float | None = None) -> None:
    """Equal but for the order of float32 sums: rounding errors of some sixty operations, of the largest value."""
    bound = 64 * torch.finfo(torch.float32).eps * (theirs.abs().max().item() if scale is None else scale)
    error = (ours - theirs).abs().max().item()
    assert error <= bound, f"{what}: differs by {error:.2e} from transformers' eager attention, more than {bound:.2e}"


def checkpoint(model: Any) -> None:
    """Gradient checkpointing, by the name that it has in this release of transformers."""
    getattr(model, "activation_checkpointing_enable", model.gradient_checkpointing_enable)()


def gradients(model: Any, given: dict[str, Tensor]) -> dict[str, Tensor]:
    model.zero_grad(set_to_none=True)
    out = logits(model, given)
    out.logsumexp(-1).mean().backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def assert_same_gradients(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> None:
    assert ours.keys() == theirs.keys()
    scale = max(g.abs().max().item() for g in theirs.values())
    for name, g in theirs.items():
        assert_rounding(ours[name], g, f"gradient of {name}", scale)
