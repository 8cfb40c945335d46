"""The list of mutants against the sources and the committed outcome: `make mutants` runs them."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from typing import Any

import pytest

_spec = importlib.util.spec_from_file_location("cuda_mutants", Path(__file__).parent / "mutants.py")
assert _spec is not None and _spec.loader is not None
mutants: Any = importlib.util.module_from_spec(_spec)
sys.modules[_spec.name] = mutants
_spec.loader.exec_module(mutants)

AGAIN = "run them again: make mutants"


@pytest.mark.parametrize("mutant", mutants.MUTANTS, ids=lambda m: m.what)
def test_there_is_one_place_to_break(mutant: Any) -> None:
    text = (mutants.ROOT / "csrc" / "cuda" / mutant.file).read_text()
    assert text.count(mutant.before) == 1, f"{mutant.file} has changed: give the mutant its new text, and {AGAIN}"


def test_every_mutant_was_caught() -> None:
    rows = json.loads(mutants.RESULTS.read_text())
    assert [row["what"] for row in rows] == [m.what for m in mutants.MUTANTS], AGAIN
    assert not [row["what"] for row in rows if row["by"] == "nothing"]


def test_the_page_shows_the_outcome() -> None:
    assert mutants.table(json.loads(mutants.RESULTS.read_text())) in mutants.PAGE.read_text(), AGAIN
