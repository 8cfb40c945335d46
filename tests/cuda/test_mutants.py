"""The list of mutants against the sources and the committed outcome: `make mutants` runs them."""

from __future__ import annotations

import json

import mutate
import pytest
from mutants import MUTANTS, Mutant

AGAIN = "run them again: make mutants"


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda m: m.what)
def test_there_is_one_place_to_break(mutant: Mutant) -> None:
    text = (mutate.ROOT / "csrc" / "cuda" / mutant.file).read_text()
    assert text.count(mutant.before) == 1, f"{mutant.file} has changed: give the mutant its new text, and {AGAIN}"


def test_every_mutant_was_caught() -> None:
    rows = json.loads(mutate.RESULTS.read_text())
    assert [row["what"] for row in rows] == [m.what for m in MUTANTS], AGAIN
    assert not [row["what"] for row in rows if row["by"] == "nothing"]


def test_the_page_shows_the_outcome() -> None:
    assert mutate.table(json.loads(mutate.RESULTS.read_text())) in mutate.PAGE.read_text(), AGAIN
