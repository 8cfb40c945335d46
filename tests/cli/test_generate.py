"""``tilewright generate``, on a tiny model of random weights."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from .conftest import Run


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    from tilewright.models import GPT, ByteTokenizer, GPTConfig

    torch.manual_seed(0)
    config = GPTConfig(257, 64, 16, 1, 2, bos_token_id=None, eos_token_id=256, initializer_range=0.5)
    folder = tmp_path_factory.mktemp("model")
    GPT(config).save_pretrained(folder, tokenizer=ByteTokenizer())
    return str(folder)


def test_greedy_is_repeatable_and_starts_with_the_prompt(run: Run, model: str) -> None:
    first, second = (run("generate", model, "-p", "abc", "--max-new-tokens", "8") for _ in range(2))
    assert first.code == 0
    assert first.out.startswith("abc")
    assert first.out == second.out


def test_seeds_options_and_json(run: Run, model: str, tmp_path: Path) -> None:
    file = tmp_path / "out.json"
    options = ["--temperature", "0.9", "--top-k", "40", "--top-p", "0.9", "--repetition-penalty", "1.1"]
    options += ["--num-return-sequences", "3", "--max-length", "20", "--seed"]
    a = run("generate", model, "-p", "abc", *options, "1", "--json", str(file))
    assert a.out == run("generate", model, "-p", "abc", *options, "1").out
    assert a.out != run("generate", model, "-p", "abc", *options, "2").out
    found = json.loads(file.read_text())
    assert found["prompt_tokens"] == [97, 98, 99]
    assert len(found["sequences"]) == 3
    assert all(len(s["tokens"]) <= 17 for s in found["sequences"])
    assert found["options"]["temperature"] == 0.9


def test_stop_text_is_cut_off(run: Run, model: str) -> None:
    from tilewright.models import GPT, load_tokenizer

    tokenizer = load_tokenizer(model)
    tokens = GPT.from_pretrained(model).generate([[97]], max_new_tokens=12, stop_token=None)[0].tolist()
    text = tokenizer.decode(tokens[1:])
    stop = text[4:6]
    result = run("generate", model, "-p", "a", "--max-new-tokens", "12", "--stop", stop)
    assert result.out.rstrip("\n") == "a" + text.split(stop, 1)[0]


@pytest.mark.parametrize(
    ("arguments", "code", "names"),
    [
        (["--greedy", "--top-k", "3"], 2, "--top-k"),
        (["--max-length", "9", "--max-new-tokens", "3"], 2, "--max-length"),
        (["--stop", ""], 2, "--stop"),
        (["--temperature", "-1"], 2, "temperature"),
        (["--max-length", "1000"], 2, "n_positions"),
        (["--backend", "nonsense"], 2, "nonsense"),
    ],
)
def test_wrong_options(run: Run, model: str, arguments: list[str], code: int, names: str) -> None:
    result = run("generate", model, "-p", "abc", *arguments)
    assert result.code == code
    assert result.err.startswith("error: ")
    assert result.err.count("\n") == 1
    assert names in result.err


def test_no_such_model(run: Run, tmp_path: Path) -> None:
    result = run("generate", str(tmp_path / "missing"), "-p", "abc")
    assert result.code == 1
    assert "missing" in result.err
