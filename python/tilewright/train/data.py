"""Training text: the standard library's own sources, which every machine has, or any file or folder of text."""

from __future__ import annotations

import math
import sysconfig
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from ..models.tokenizer import ByteTokenizer, Tokenizer

# Not ordinary code: test suites and the editor that distributions often leave out, tables of characters, and packages
# that were installed beside the library.
_SKIPPED_FOLDERS = {
    "__pycache__",
    "dist-packages",
    "encodings",
    "idle_test",
    "idlelib",
    "lib2to3",
    "pydoc_data",
    "site-packages",
    "test",
    "tests",
}

_MAX_FILE_BYTES = 400_000  # the largest hand-written module is below it; longer ones are generated tables


@dataclass(frozen=True)
class Corpus:
    """Tokens to train on and tokens to measure on: two 1-D tensors, documents joined by the end-of-text token.

    train, validation: int16 or int32, whichever holds the vocabulary; vocab_size: of the tokenizer that made them.
    """

    train: Tensor
    validation: Tensor
    vocab_size: int


def python_sources(max_bytes: int | None = None) -> list[str]:
    """The standard library's modules as texts, in the order of their paths.

    max_bytes: stop before passing this many bytes in total, spread evenly over the library (every n-th file).
    Tests, tables of characters and files that are not UTF-8 are left out. The same Python gives the same texts.
    """
    folder = Path(sysconfig.get_path("stdlib"))
    texts = _read_texts(sorted(_walk(folder)), _MAX_FILE_BYTES)
    if not texts:
        raise FileNotFoundError(
            f"the Python standard library at {folder} holds no readable .py file; train on a text folder instead"
        )
    return texts if max_bytes is None else _spread(texts, max_bytes)


def read_texts(path: str | Path, patterns: Iterable[str] = ("*.txt", "*.md", "*.py", "*.rst")) -> list[str]:
    """One text file, or a folder's files that match ``patterns``, in the order of their paths.

    A file that is named must be UTF-8 (``ValueError`` otherwise); inside a folder, files that are not are left out.
    """
    path = Path(path).expanduser()
    if path.is_file():
        try:
            return [path.read_text(encoding="utf-8")]
        except UnicodeDecodeError as error:
            raise ValueError(f"{path} is not UTF-8 text: {error}") from error
    if not path.is_dir():
        raise FileNotFoundError(f"there is no file or folder {path}")
    patterns = tuple(patterns)
    texts = _read_texts(sorted({file for pattern in patterns for file in path.rglob(pattern) if file.is_file()}))
    if not texts:
        raise FileNotFoundError(f"{path} holds no UTF-8 text file matching {', '.join(patterns)}")
    return texts


def make_corpus(
    texts: Iterable[str], tokenizer: Tokenizer | None = None, *, validation_fraction: float = 0.05, seed: int = 0
) -> Corpus:
    """Tokenize texts and split them.

    The documents are put in a random order (fixed by ``seed``), joined with an end-of-text token after each, and the
    last ``validation_fraction`` of the tokens is the validation split: other documents than those trained on, except
    the one at the cut. tokenizer: None is bytes.
    """
    if not 0.0 < validation_fraction < 1.0:
        raise ValueError(f"validation_fraction={validation_fraction} must be between 0 and 1")
    tokenizer = ByteTokenizer() if tokenizer is None else tokenizer
    texts = list(texts)
    order = torch.randperm(len(texts), generator=torch.Generator("cpu").manual_seed(seed), device="cpu").tolist()
    dtype = torch.int16 if tokenizer.vocab_size <= 2**15 else torch.int32
    end = [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]
    # One small tensor per document, so that Python lists of all tokens never exist at once.
    parts = [torch.tensor(tokenizer.encode(texts[index]) + end, dtype=dtype, device="cpu") for index in order]
    tokens = torch.cat(parts) if parts else torch.empty(0, dtype=dtype, device="cpu")
    cut = len(tokens) - int(len(tokens) * validation_fraction)
    if cut == len(tokens) or cut == 0:
        raise ValueError(
            f"{len(tokens)} tokens are too few to train on and to hold {validation_fraction:.0%} back for validation"
        )
    return Corpus(tokens[:cut], tokens[cut:], tokenizer.vocab_size)


class BatchSampler:
    """Random windows of a token sequence, each with the window one token later as its targets."""

    def __init__(self, tokens: Tensor, batch_size: int, seq_len: int, seed: int) -> None:
        """tokens: 1-D integers, more than seq_len of them. The same seed draws the same windows."""
        if tokens.dim() != 1:
            raise ValueError(f"tokens of shape {tuple(tokens.shape)} must be one sequence, 1-D")
        if batch_size < 1 or seq_len < 1:
            raise ValueError(f"batch_size={batch_size} and seq_len={seq_len} must be at least 1")
        if len(tokens) <= seq_len:
            raise ValueError(f"{len(tokens)} tokens are too few for windows of seq_len={seq_len} and the token after")
        self.tokens, self.batch_size, self.seq_len = tokens, batch_size, seq_len
        self.generator = torch.Generator("cpu").manual_seed(seed)

    def draw(self) -> tuple[Tensor, Tensor]:
        """input_ids and targets, (batch_size, seq_len) int64 each."""
        starts = torch.randint(
            len(self.tokens) - self.seq_len, (self.batch_size, 1), generator=self.generator, device="cpu"
        )
        return windows(self.tokens, starts, self.seq_len)


def windows(tokens: Tensor, starts: Tensor, seq_len: int) -> tuple[Tensor, Tensor]:
    """Inputs and targets (B, seq_len) int64 from positions ``starts`` (B, 1)."""
    taken = tokens[starts + torch.arange(seq_len + 1, device=starts.device)].long()
    return taken[:, :-1], taken[:, 1:]


def _walk(folder: Path) -> Iterable[Path]:
    for entry in folder.iterdir():
        if entry.is_dir():
            if entry.name not in _SKIPPED_FOLDERS and not entry.name.startswith("config-"):
                yield from _walk(entry)
        elif entry.suffix == ".py":
            yield entry


def _read_texts(files: Iterable[Path], max_file_bytes: float = math.inf) -> list[str]:
    texts = []
    for file in files:
        if not 0 < file.stat().st_size <= max_file_bytes:
            continue
        try:
            texts.append(file.read_text(encoding="utf-8"))
        except UnicodeDecodeError:
            continue  # documented: not text to learn from
    return texts


def _spread(texts: list[str], max_bytes: int) -> list[str]:
    sizes = [len(text.encode("utf-8")) for text in texts]
    every = max(1, -(-sum(sizes) // max_bytes)) if max_bytes > 0 else len(texts) + 1
    kept, total = [], 0
    for text, size in zip(texts[::every], sizes[::every], strict=True):
        if total + size <= max_bytes:
            kept.append(text)
            total += size
    if not kept:
        raise ValueError(f"max_bytes={max_bytes} is less than any source file")
    return kept
