"""Tokenizers: bytes, and a byte-pair encoding trained here and compared with transformers' own reader."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tilewright.models import BPETokenizer, ByteTokenizer, load_tokenizer
from tilewright.models.tokenizer import byte_alphabet

END = "<|endoftext|>"
TEXTS = [
    "",
    "plain ascii",
    "  two  spaces\n\ttab",
    "déjà vu — 東京 🎉",
    "it's 1234, don't!",
    "\x00\x7f\x80ÿ",
    " lead",
    "a\r\nb",
]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the vocab.json and merges.txt of a small BPE."""
    tokenizers = pytest.importorskip("tokenizers")
    trainer = tokenizers.ByteLevelBPETokenizer()
    corpus = [*TEXTS, "the cat sat on the mat; the other cat didn't", "def f(x):\n    return x + 1\n" * 3] * 4
    trainer.train_from_iterator(corpus, vocab_size=330, min_frequency=2, special_tokens=[END])
    folder = tmp_path_factory.mktemp("bpe")
    trainer.save_model(str(folder))
    return folder


@pytest.mark.parametrize("text", TEXTS)
def test_bytes(text: str) -> None:
    tokenizer = ByteTokenizer()
    tokens = tokenizer.encode(text)
    assert tokens == list(text.encode())
    assert tokenizer.decode([*tokens, 256]) == text
    assert tokenizer.decode([*tokens, 256, 65], skip_special_tokens=False) == text + END + "A"


def test_bytes_that_are_not_text() -> None:
    tokenizer = ByteTokenizer()
    assert tokenizer.decode([0xE9, 65]) == "\ufffdA"
    assert tokenizer.decode([0xC3, 256, 0xA9]) == "é"  # the end token is no byte
    assert 256 not in tokenizer.encode(END)
    for token in (257, -1):
        with pytest.raises(ValueError, match=f"token {token} is not a byte"):
            tokenizer.decode([token])


def test_bytes_saved_are_read_by_transformers(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    ByteTokenizer().save_pretrained(tmp_path)
    assert isinstance(load_tokenizer(tmp_path), ByteTokenizer)
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    assert (len(theirs), theirs.eos_token_id) == (257, 256)
    for text in TEXTS:
        assert theirs.encode(text) == ByteTokenizer().encode(text)
        assert theirs.decode([*text.encode(), 256], skip_special_tokens=True) == text


def test_byte_alphabet_is_gpt2s() -> None:
    convert = pytest.importorskip("transformers.convert_slow_tokenizer")
    assert dict(enumerate(byte_alphabet())) == convert.bytes_to_unicode()


def test_vocabulary_and_merges_as_transformers_reads_them(trained: Path, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    theirs = transformers.GPT2TokenizerFast.from_pretrained(trained)
    ours = load_tokenizer(trained)
    assert isinstance(ours, BPETokenizer)
    assert (ours.vocab_size, ours.eos_token_id) == (len(theirs), theirs.eos_token_id)
    ours.save_pretrained(tmp_path)
    again, theirs_again = load_tokenizer(tmp_path), transformers.AutoTokenizer.from_pretrained(tmp_path)
    assert theirs_again.eos_token_id == ours.eos_token_id
    for text in [*TEXTS, f"one{END}two", END * 2]:
        tokens = theirs.encode(text)
        for tokenizer in (ours, again, theirs_again):
            assert tokenizer.encode(text) == tokens
            assert tokenizer.decode(tokens, skip_special_tokens=True) == theirs.decode(tokens, skip_special_tokens=True)
            assert tokenizer.decode(tokens, skip_special_tokens=False) == theirs.decode(tokens)
    assert len(ours.encode("the cat")) < len("the cat")
    for token in (ours.vocab_size, -1):
        with pytest.raises(ValueError, match=f"token {token} is not in the vocabulary"):
            ours.decode([token])


def test_end_token_from_the_settings(trained: Path, tmp_path: Path) -> None:
    ours = load_tokenizer(trained)
    ours.save_pretrained(tmp_path)
    settings: dict[str, Any] = {"eos_token": {"content": "the", "special": True}}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
    vocabulary = json.loads((trained / "vocab.json").read_text())
    assert load_tokenizer(tmp_path).eos_token_id == vocabulary["the"]
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"eos_token": "no such token"}))
    assert load_tokenizer(tmp_path).eos_token_id is None


def test_refusals(tmp_path: Path) -> None:
    assert isinstance(load_tokenizer(None), ByteTokenizer)
    with pytest.raises(FileNotFoundError, match=r"no tokenizer: tokenizer\.json, or vocab\.json and merges\.txt"):
        load_tokenizer(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text("{")
    with pytest.raises(ValueError, match="not valid JSON"):
        load_tokenizer(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text("{}")
    pytest.importorskip("tokenizers")
    (tmp_path / "vocab.json").write_text("[]")
    (tmp_path / "merges.txt").write_text("")
    with pytest.raises(ValueError, match="not a GPT-2 vocabulary"):
        load_tokenizer(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(ValueError, match=r"tokenizer\.json is not a tokenizer"):
        load_tokenizer(tmp_path)


def test_without_the_library(trained: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "tokenizers", None)
    with pytest.raises(ImportError, match=r"tilewright\[transformers\]"):
        load_tokenizer(trained)
