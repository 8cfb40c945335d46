"""Corpora: the same text everywhere, honest splits, windows that line up with their targets."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest
import torch

from tilewright.models import ByteTokenizer
from tilewright.train import BatchSampler, make_corpus, python_sources, read_texts


def test_the_standard_library_is_a_corpus() -> None:
    texts = python_sources()
    assert sum(map(len, texts)) > 2_000_000
    assert texts == python_sources()
    for text in texts[::40]:
        ast.parse(text)
    some = python_sources(300_000)
    assert 100_000 < sum(len(text.encode()) for text in some) <= 300_000
    assert set(some) < set(texts)
    with pytest.raises(ValueError, match="max_bytes=0 is less than any source file"):
        python_sources(0)


def test_files_and_folders(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "b.txt").write_text("second")
    (tmp_path / "a.py").write_text("first")
    (tmp_path / "sub" / "c.md").write_text("third é")
    (tmp_path / "image.png").write_bytes(b"\x89PNG")
    (tmp_path / "latin.txt").write_bytes(b"caf\xe9")
    assert read_texts(tmp_path) == ["first", "second", "third é"]
    assert read_texts(tmp_path / "b.txt") == ["second"]
    assert read_texts(tmp_path, ["*.md"]) == ["third é"]
    with pytest.raises(ValueError, match=r"latin\.txt is not UTF-8"):
        read_texts(tmp_path / "latin.txt")
    with pytest.raises(FileNotFoundError, match="no file or folder"):
        read_texts(tmp_path / "nothing")
    with pytest.raises(FileNotFoundError, match="holds no UTF-8 text file"):
        read_texts(tmp_path, ["*.rst"])


def test_split_keeps_every_token_once() -> None:
    texts = [f"document {i} " * 5 for i in range(40)]
    corpus = make_corpus(texts, validation_fraction=0.25)
    tokens = torch.cat([corpus.train, corpus.validation])
    assert tokens.dtype == torch.int16
    assert corpus.vocab_size == 257
    assert len(corpus.validation) == len(tokens) // 4
    documents = ByteTokenizer().decode(tokens.tolist(), skip_special_tokens=False).split("<|endoftext|>")
    assert sorted(documents) == sorted([*texts, ""])
    assert documents[:-1] != texts
    assert torch.equal(make_corpus(texts, validation_fraction=0.25).train, corpus.train)
    assert not torch.equal(make_corpus(texts, validation_fraction=0.25, seed=1).train, corpus.train)


def test_large_vocabularies_and_refusals() -> None:
    class Large(ByteTokenizer):
        vocab_size = 50257

    assert make_corpus(["some text to split"] * 3, Large()).train.dtype == torch.int32
    with pytest.raises(ValueError, match="too few to train on"):
        make_corpus(["tiny"])
    with pytest.raises(ValueError, match="0 tokens are too few"):
        make_corpus([])
    with pytest.raises(ValueError, match=r"validation_fraction=1\.0"):
        make_corpus(["text"], validation_fraction=1.0)


def test_windows_line_up_and_repeat() -> None:
    tokens = torch.arange(50, dtype=torch.int16)
    sampler = BatchSampler(tokens, 64, 7, seed=3)
    ids, targets = sampler.draw()
    assert ids.shape == targets.shape == (64, 7)
    assert ids.dtype == torch.int64
    assert torch.equal(targets, ids + 1)
    assert torch.equal(ids, ids[:, :1] + torch.arange(7))
    many = torch.cat([BatchSampler(tokens, 500, 7, seed=s).draw()[0][:, 0] for s in range(4)])
    assert (int(many.min()), int(many.max())) == (0, 42)  # every window, the last one included
    assert torch.equal(BatchSampler(tokens, 64, 7, seed=3).draw()[0], ids)
    assert not torch.equal(sampler.draw()[0], ids)
    with pytest.raises(ValueError, match="50 tokens are too few for windows of seq_len=50"):
        BatchSampler(tokens, 1, 50, seed=0)
    with pytest.raises(ValueError, match="1-D"):
        BatchSampler(tokens.view(5, 10), 1, 3, seed=0)
