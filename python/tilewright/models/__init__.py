"""Small, real transformer language models over tilewright's ops, loading and saving Hugging Face checkpoints."""

from .cache import KVCache
from .config import GPTConfig
from .generate import generate
from .gpt import GPT, GPTOutput
from .tokenizer import BPETokenizer, ByteTokenizer, Tokenizer, load_tokenizer

__all__ = [
    "GPT",
    "BPETokenizer",
    "ByteTokenizer",
    "GPTConfig",
    "GPTOutput",
    "KVCache",
    "Tokenizer",
    "generate",
    "load_tokenizer",
]
