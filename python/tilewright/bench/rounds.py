"""Two builds of tilewright measured in turns, A B B A A B ..., each in a process of its own.

What slows the machine down for a while slows both builds. Each round makes its inputs anew, so that where they happen
to lie in memory belongs to neither.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from .process import Answer
from .session import SECONDS_AN_ITEM, Row, Session
from .summary import clock

ROUNDS = 12


def measure_in_turns(before: Session, after: Session, names: Iterable[str]) -> Iterator[tuple[list[Row], list[Row]]]:
    """The rows of one item after the other, before's and after's: sample i of both is of round i.

    Results are checked against float64 first, and memory is measured, as in any benchmark.
    """
    seconds = float(after.settings["seconds"])
    for name in names:
        sides = []
        for session in (before, after):
            session.settings = {**session.settings, "seconds": 0.0}  # a few samples: those that count come in rounds
            sides.append({r["provider"]: r for r in session.measure_item(name, {})})
        old, new = sides
        _take_turns((before, after), (old, new), name, seconds / ROUNDS)
        yield list(old.values()), list(new.values())


def _take_turns(
    sessions: tuple[Session, Session], sides: tuple[dict[str, Row], dict[str, Row]], name: str, seconds: float
) -> None:
    """Put the rounds' times in the place of the rows' own; a provider that fails gets its reason."""
    wanted = [p for p, row in sides[0].items() if row["status"] == sides[1].get(p, {}).get("status") == "timed"]
    samples: dict[str, tuple[list[float], list[float]]] = {p: ([], []) for p in wanted}
    for i in range(ROUNDS):
        found: dict[int, dict[str, float]] = {}
        for side in (0, 1) if i % 2 == 0 else (1, 0):
            found[side] = _round(sessions[side], sides[side], wanted, name, seconds)
            wanted = [p for p in wanted if p in found[side]]
        for provider in wanted:
            for side in (0, 1):
                samples[provider][side].append(found[side][provider])
    for provider, of_sides in samples.items():
        for row, values in zip((s[provider] for s in sides), of_sides, strict=True):
            if row["status"] == "timed":
                row[clock(row)] = {"values": values}


def _round(session: Session, rows: dict[str, Row], wanted: list[str], name: str, seconds: float) -> dict[str, float]:
    """Seconds of a call of each provider. One that crashes, hangs or raises is left out from then on."""
    wanted = list(wanted)
    while wanted:
        bench = {**session.settings, "seconds": seconds}
        request = {"do": "round", "item": name, "bench": bench, "providers": wanted}
        answer = session.worker.ask(request, SECONDS_AN_ITEM)
        if "seconds" in answer.result and "device" not in answer.result:
            return dict(answer.result["seconds"])
        culprit = next((m["provider"] for m in reversed(answer.progress)), None)
        for provider in [culprit] if culprit in wanted else list(wanted):
            rows[provider].update(_failure(answer))
            wanted.remove(provider)
    return {}


def _failure(answer: Answer) -> dict[str, str]:
    if answer.ending != "answered":
        return {"status": answer.ending, "reason": answer.reason}
    return {"status": "raised", "reason": answer.result.get("device") or answer.result["raised"]}
