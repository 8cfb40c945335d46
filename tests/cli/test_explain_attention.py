"""``tilewright explain-attention``, on tiny models of random weights."""

from __future__ import annotations

import itertools
import json
import struct
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from tilewright.attention_record import record_attention
from tilewright.models import GPT, ByteTokenizer, GPTConfig

from .conftest import Run

TEXT = "a cat\nand $x$"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    torch.manual_seed(0)
    config = GPTConfig(257, 300, 16, 2, 4, bos_token_id=None, eos_token_id=256, initializer_range=0.5)
    folder = tmp_path_factory.mktemp("model")
    GPT(config).save_pretrained(folder, tokenizer=ByteTokenizer())
    return str(folder)


def weights(model: str, layer: int) -> torch.Tensor:
    """(H, S, S) of the text."""
    with record_attention() as calls, torch.no_grad():
        GPT.from_pretrained(model)(torch.tensor([list(TEXT.encode())]))
    found = calls[layer].map()
    assert isinstance(found, torch.Tensor)
    return found[0]


def png_size(file: Path) -> tuple[int, int]:
    data = file.read_bytes()
    assert data[:8] == b"\x89PNG\r\n\x1a\n"
    return struct.unpack(">II", data[16:24])


def test_table_picture_and_json_of_all_heads(run: Run, model: str, tmp_path: Path) -> None:
    picture, file = tmp_path / "a.png", tmp_path / "a.json"
    result = run("explain-attention", model, "-t", TEXT, "--layer", "-1", "-o", str(picture), "--json", str(file))
    assert result.code == 0, result.err
    expected = weights(model, 1)
    lines = result.out.splitlines()
    assert lines[0].split() == ["position", "token", "attends", "to"]
    assert len(lines) == 1 + len(TEXT) + 1 and lines[-1] == f"wrote {picture}"
    value, key = expected.mean(0)[4].max(0)
    shown = TEXT[int(key)].replace(" ", "·")
    assert lines[5].split(maxsplit=2) == ["4", "t", lines[5].split(maxsplit=2)[2]]
    assert f"{shown}@{int(key)} {value:.2f}" in lines[5]
    assert "⏎@5" in result.out or "5         ⏎" in result.out
    width, height = png_size(picture)
    assert width > 500 and height > 500
    report = json.loads(file.read_text())
    assert (report["layer"], report["layers"], report["head"]) == (1, 2, "all")
    assert [t["id"] for t in report["tokens"]] == list(TEXT.encode())
    assert list(report["weights"]) == ["head 0", "head 1", "head 2", "head 3"]
    torch.testing.assert_close(torch.tensor(list(report["weights"].values())), expected)


def test_one_head_chosen_rows_and_arcs(run: Run, model: str, tmp_path: Path) -> None:
    file = tmp_path / "a.json"
    options = ["--head", "2", "--rows", "9,-1", "--top-k", "2", "-o", str(tmp_path / "a.svg"), "--json", str(file)]
    result = run("explain-attention", model, "-t", TEXT, *options)
    assert result.code == 0, result.err
    assert (tmp_path / "a.svg").read_text().startswith("<?xml")
    report = json.loads(file.read_text())
    assert report["rows"] == [9, len(TEXT) - 1] and report["weights"] is None
    for row, keys in zip(report["rows"], report["attended"], strict=True):
        values, indices = weights(model, 0)[2, row].topk(2)
        assert [k["position"] for k in keys] == indices.tolist()
        torch.testing.assert_close(torch.tensor([k["weight"] for k in keys]), values)


def test_a_long_text_needs_arcs_or_no_picture(run: Run, model: str, tmp_path: Path) -> None:
    text, picture = "word " * 55, str(tmp_path / "a.png")
    refused = run("explain-attention", model, "-t", text, "-o", picture)
    assert refused.code == 2 and "275 tokens" in refused.err and "--top-k" in refused.err
    assert run("explain-attention", model, "-t", text, "-o", picture, "--top-k", "1").code == 0
    listed = run("explain-attention", model, "-t", text, "--no-picture", "--rows", "0")
    assert listed.out.splitlines()[1].split() == ["0", "w", "w@0", "1.00"]


@pytest.mark.parametrize("count", [3, 100])
@pytest.mark.parametrize("kind", ["heads", "one", "arcs"])
def test_labels_do_not_overlap(kind: str, count: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    from matplotlib import pyplot as plt

    from tilewright.cli.attention_chart import draw
    from tilewright.cli.explain_attention import Picture

    rows = list(range(count))
    maps = [(f"head {i}", torch.rand(count, count).tolist()) for i in range(3 if kind == "heads" else 1)]
    attended = [[(key, 0.5) for key in {0, row}] for row in rows]
    picture = Picture("title $", ["$token\\"] * count, rows, None if kind == "arcs" else maps, attended)
    monkeypatch.setattr(plt, "close", lambda _: None)
    draw(picture, tmp_path / "a.png")
    figure = plt.gcf()
    for axis in figure.axes:
        for labels, along in ((axis.get_xticklabels(), "x"), (axis.get_yticklabels(), "y")):
            boxes = [t.get_window_extent() for t in labels if t.get_text()]
            sides = sorted((getattr(b, f"{along}0"), getattr(b, f"{along}1")) for b in boxes)
            for (_, end), (start, _) in itertools.pairwise(sides):
                assert end <= start + 1, f"{len(boxes)} labels along {along} overlap"
    monkeypatch.undo()
    plt.close(figure)


def test_a_model_of_transformers(run: Run, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=257,
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        initializer_range=0.5,
        attn_implementation="eager",
    )
    network = transformers.LlamaForCausalLM(config).eval()
    network.save_pretrained(tmp_path)
    ByteTokenizer().save_pretrained(tmp_path)
    file = tmp_path / "a.json"
    result = run("explain-attention", str(tmp_path), "-t", TEXT, "--layer", "2", "--no-picture", "--json", str(file))
    assert result.code == 0, result.err
    ids = torch.tensor([list(TEXT.encode())])
    expected = network(ids, output_attentions=True).attentions[2][0]
    found = torch.tensor(list(json.loads(file.read_text())["weights"].values()))
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("options", "code", "names"),
    [
        (["--layer", "2"], 2, "--layer 2: the model has 2 layers"),
        (["--head", "4"], 2, "--head 4: choose 'all', 'mean' or a number from 0 to 3"),
        (["--head", "x"], 2, "--head x"),
        (["--rows", "99"], 2, "--rows 99: the text has 13 tokens"),
        (["--rows", "a"], 2, "--rows a"),
        (["--output", "a.gif"], 2, "--output a.gif: the name must end in .png"),
        (["--output", "/nowhere/a.png"], 1, "/nowhere/a.png"),
        (["--text", ""], 2, "the text is empty"),
        (["--text", "x" * 400], 2, "n_positions=300"),
        (["--backend", "nonsense"], 2, "nonsense"),
    ],
)
def test_wrong_options(run: Run, model: str, tmp_path: Path, options: list[str], code: int, names: str) -> None:
    result = run("explain-attention", model, "-t", TEXT, "-o", str(tmp_path / "a.png"), *options)
    assert result.code == code
    assert result.err.startswith("error: ") and result.err.count("\n") == 1
    assert names in result.err


def test_without_matplotlib(run: Run, model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    result = run("explain-attention", model, "-t", TEXT)
    assert result.code == 1
    assert "pip install 'tilewright[bench]'" in result.err
    assert run("explain-attention", model, "-t", TEXT, "--no-picture").code == 0


def test_no_such_model(run: Run, tmp_path: Path) -> None:
    result: Any = run("explain-attention", str(tmp_path / "missing"), "-t", TEXT, "--no-picture")
    assert result.code == 1
    assert "missing" in result.err
