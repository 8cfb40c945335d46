"""A benchmark: everything compiled in parallel, then one item after the other measured in one process.

A provider that crashes, hangs, runs out of memory or is wrong costs its row, and nothing else.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from .environment import usable_cpus
from .items.end_to_end import MODEL
from .items.rooflines import COPY, GEMM, READ, ROOFLINE
from .process import Answer, Worker, run_pool

SECONDS_TO_COMPILE = 120.0
SECONDS_AN_ITEM = 75.0
#: What a whole model may take, with compiling where that is done on the spot.
SECONDS_A_MODEL = 600.0

#: For an item, the providers that are not to be tried (again), with the row to show.
Excluded = dict[str, dict[str, str]]
Row = dict[str, Any]
#: (items done, of so many, what is being done)
Show = Callable[[int, int, str], None]

NOT_REACHED = {"status": "not reached", "reason": "the benchmark's time was over"}


@dataclass
class Session:
    """make_worker: a worker of ``tilewright.bench.worker`` or one with more handlers, with these variables added to its
    environment. settings: of measure.Bench. deadline: when all has to be over, by time.monotonic().
    """

    make_worker: Callable[[dict[str, str]], Worker]
    settings: dict[str, Any]
    deadline: float
    show: Show
    rows: list[Row] = field(default_factory=list)
    _worker: Worker | None = None

    @property
    def worker(self) -> Worker:
        if self._worker is None:
            self._worker = self.make_worker({})
        return self._worker

    def close(self) -> None:
        if self._worker is not None:
            self._worker.close()

    def environment(self) -> dict[str, Any]:
        answer = self.worker.ask({"do": "environment"}, 120.0)
        found = answer.result.get("environment") or {"missing": answer.result.get("raised") or answer.reason}
        return dict(found)

    def items(self, ops: tuple[str, ...] | None = None) -> list[dict[str, Any]]:
        """ "name", "unit" and facts of each, of the set's ops (None: all) and of one's own calls."""
        request: dict[str, Any] = {"do": "items", "shapes": self.settings["shapes"]}
        request["calls"] = list(self.settings.get("calls", ()))
        if ops is not None:
            request["ops"] = list(ops)
        answer = self.worker.ask(request, 120.0)
        if "items" not in answer.result:
            raise RuntimeError(f"the items cannot be listed: {answer.result.get('raised') or answer.reason}")
        return list(answer.result["items"])

    def compile_all(self, names: list[str], deadline: float, workers: int) -> dict[str, Excluded]:
        """Fill the caches of Triton and Inductor. Answers what crashed or hung, which will not be tried again."""
        excluded: dict[str, Excluded] = {}
        done = 0

        def finished(request: dict[str, Any], answer: Answer) -> None:
            nonlocal done
            done += 1
            culprit = _culprit(answer)
            if answer.ending != "answered" and culprit is not None:
                row = {"status": answer.ending, "reason": f"while compiling: {answer.reason}"}
                excluded.setdefault(request["item"], {})[culprit] = row
            self.show(done, len(names), "compiling")

        settings = {**self.settings, "timed": False}
        requests = [{"do": "item", "item": n, "bench": settings, "without": {}} for n in names]
        # A worker for each processor already: by default every one of them would start as many of its own.
        alone = {"TORCHINDUCTOR_COMPILE_THREADS": "1", "OMP_NUM_THREADS": "1"}
        run_pool(lambda: self.make_worker(alone), workers, requests, SECONDS_TO_COMPILE, deadline, finished)
        return excluded

    def measure_all(self, names: list[str], excluded: dict[str, Excluded] | None = None) -> Iterator[list[Row]]:
        """The rows of one item after the other. self.rows keeps them, also when this is interrupted."""
        for done, name in enumerate(names):
            if time.monotonic() >= self.deadline:
                self.rows += [{"item": n, "provider": "all", **NOT_REACHED} for n in names[done:]]
                return
            self.show(done, len(names), name)
            found = self.measure_item(name, dict((excluded or {}).get(name, {})))
            self.rows += found
            yield found
        self.show(len(names), len(names), "")

    def measure_item(self, name: str, without: Excluded) -> list[Row]:
        """A provider that crashes or hangs gets its row, and the others are measured without it."""
        while True:
            left = self.deadline - time.monotonic()
            if left <= 0:
                return [{"item": name, "provider": "all", **NOT_REACHED}, *_rows_of(name, without)]
            request = {"do": "item", "item": name, "bench": self.settings, "without": without}
            longest = SECONDS_A_MODEL if name.startswith(MODEL) else SECONDS_AN_ITEM
            answer = self.worker.ask(request, min(longest, left))
            if answer.ending == "hung" and left < longest:
                return [{"item": name, "provider": "all", **NOT_REACHED}, *_rows_of(name, without)]
            broken = answer.result.get("device")
            if answer.ending == "answered" and not broken:
                if "rows" in answer.result:
                    return list(answer.result["rows"])
                return [{"item": name, "provider": "all", "status": "raised", "reason": answer.result["raised"]}]
            # Where the context broke, the first provider that raised is to blame: all later ones raise as well.
            raised = [r["provider"] for r in answer.result.get("rows", ()) if r["status"] == "raised"]
            culprit = next((p for p in raised if p not in without), None) if broken else _culprit(answer)
            reason = {"status": "crashed" if broken else answer.ending, "reason": broken or answer.reason}
            if culprit is None or culprit in without:
                return [{"item": name, "provider": "all", **reason}, *_rows_of(name, without)]
            without[culprit] = reason


def compilers() -> int:
    """Processes that compile at the same time, where that is what takes long; two processors stay free."""
    return max(1, min(12, usable_cpus() - 2))


def _culprit(answer: Answer) -> str | None:
    provider: str | None = answer.progress[-1]["provider"] if answer.progress else None
    return provider


def _rows_of(name: str, without: Excluded) -> list[Row]:
    return [{"item": name, "provider": p, **r} for p, r in without.items()]


def add_rooflines(rows: list[Row]) -> list[Row]:
    """Each result's share of its roofline: of the item's own turns, or of what the same run measured for a matrix
    product of its dtype (or a faster one of another: 16-bit numbers can be multiplied as float32), or for a copy or a
    read, whichever was faster. Above 100% is a fault of the measurement."""
    timed = [r for r in rows if r["status"] == "timed"]
    moves = [r["result"] for r in timed if r["item"] in (COPY, READ)]
    products = {r.get("dtype", "bfloat16"): r["result"] for r in timed if r["item"].startswith(GEMM)}
    for row in timed:
        if row["item"].startswith(ROOFLINE):
            continue
        roof = row.get("roofline")  # of the item's own turns, where it was timed so
        if roof is None and row["unit"] == "GB/s" and moves:
            roof = max(moves)
        elif roof is None and (row["unit"] == "TFLOP/s" or "flops_per_token" in row) and products:
            dtype = row.get("dtype", "bfloat16")
            roof = max((v for d, v in products.items() if d == dtype or dtype != "float32"), default=None)
            if roof is not None and "flops_per_token" in row:  # the share is then what training calls MFU
                roof *= 1e12 / row["flops_per_token"]
        if roof is not None:
            row["of_roofline"] = row["result"] / roof
            if row["of_roofline"] > 1.0:
                row["fault"] = f"{100 * row['of_roofline']:.0f}% of the roofline: the measurement is wrong"
    return rows
