"""Two builds in turns: the order, what belongs together, and what a failure costs."""

from __future__ import annotations

from typing import Any

import pytest

from tilewright.bench.process import Answer
from tilewright.bench.rounds import ROUNDS, measure_in_turns

FIRST, SECOND = "tilewright triton", "tilewright cuda"


class Fake:
    """In the place of a session and its worker. fails: in this round this provider does. status: of the item's rows."""

    def __init__(
        self, name: str, turns: list[str], fails: tuple[int, str, Answer] | None = None, status: str = "timed"
    ) -> None:
        self.name, self.turns, self.fails, self.status = name, turns, fails, status
        self.settings: dict[str, Any] = {"seconds": 1.2, "device": "cuda"}
        self.rounds = 0
        self.worker = self

    def measure_item(self, name: str, without: dict[str, Any]) -> list[dict[str, Any]]:
        assert self.settings["seconds"] == 0.0
        facts = {"item": name, "status": self.status, "unit": "GB/s", "op": "softmax", "device": {"values": [9.0]}}
        return [{"provider": p, **facts} for p in (FIRST, SECOND)]

    def ask(self, request: dict[str, Any], seconds: float) -> Answer:
        assert request["do"] == "round" and request["bench"]["seconds"] == pytest.approx(1.2 / ROUNDS)
        if self.fails and self.rounds == self.fails[0] and self.fails[1] in request["providers"]:
            self.fails[2].progress = [{"doing": "timing", "provider": self.fails[1]}]
            return self.fails[2]
        self.rounds += 1
        self.turns.append(self.name)
        return Answer("answered", {"seconds": {p: float(self.rounds) for p in request["providers"]}})


def measure(before: Fake, after: Fake) -> tuple[dict[str, dict[str, Any]], ...]:
    ((old, new),) = measure_in_turns(before, after, ["softmax"])  # type: ignore[arg-type]
    return tuple({r["provider"]: r for r in rows} for rows in (old, new))


def test_each_round_has_both_and_the_first_is_the_other_each_time() -> None:
    turns: list[str] = []
    old, new = measure(Fake("A", turns), Fake("B", turns))
    assert "".join(turns) == "ABBA" * (ROUNDS // 2)
    for rows in (old, new):
        assert rows[FIRST]["device"]["values"] == [float(i + 1) for i in range(ROUNDS)]


@pytest.mark.parametrize(
    ("answer", "status", "reason"),
    [
        (Answer("crashed", reason="SIGSEGV"), "crashed", "SIGSEGV"),
        (Answer("hung", reason="stopped after 75 s"), "hung", "stopped"),
        (Answer("answered", {"raised": "RuntimeError: no"}), "raised", "no"),
        (Answer("answered", {"seconds": {FIRST: 1.0}, "device": "illegal access"}), "raised", "illegal access"),
    ],
)
def test_a_provider_that_fails_in_a_round_costs_its_own_row_alone(answer: Answer, status: str, reason: str) -> None:
    turns: list[str] = []
    old, new = measure(Fake("A", turns), Fake("B", turns, (4, SECOND, answer)))
    assert new[SECOND]["status"] == status and reason in new[SECOND]["reason"]
    assert old[SECOND]["status"] == "timed" and len(old[SECOND]["device"]["values"]) == 4
    for rows in (old, new):
        assert rows[FIRST]["status"] == "timed" and len(rows[FIRST]["device"]["values"]) == ROUNDS


def test_what_has_no_time_on_one_side_takes_no_turns() -> None:
    turns: list[str] = []
    old, new = measure(Fake("A", turns), Fake("B", turns, status="wrong"))
    assert turns == [] and new[FIRST]["status"] == "wrong" and old[FIRST]["device"]["values"] == [9.0]
