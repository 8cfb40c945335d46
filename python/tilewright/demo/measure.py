"""The demo's fourth step."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import TYPE_CHECKING, Any

from . import FAILED, NOT_RUN, PASSED, Outcome

if TYPE_CHECKING:
    from ..bench.measure import Item

SECONDS_EACH = 1.0

#: Ways of torch that need no compiler and take no time to compile.
TORCH = ("eager", "sdpa flash", "sdpa math")

#: Of the set "cpu" of ``tilewright bench``: GPT-2's attention and feed-forward block, a softmax, and decoding.
CALLS = (
    "attention forward GPT-2 B1 d64 causal S512 float32",
    "attention both GPT-2 B1 d64 causal S512 float32",
    "attention forward GPT-2 B1 d64 causal S512",
    "attention both GPT-2 B1 d64 causal S512",
    "softmax forward 1000 float32",
    "softmax both 1000 float32",
    "softmax forward 4096",
    "softmax both 4096",
    "ffn forward 768/3072 gelu_tanh bias rows 128 float32",
    "ffn both 768/3072 gelu_tanh bias rows 128 float32",
    "ffn forward 768/3072 gelu_tanh bias rows 128",
    "decode B8 KV1024 float32",
    "decode B8 KV1024",
)


def calls() -> list[Item]:
    from ..bench.items import all_items

    found = {item.name: item for item in all_items("cpu")}
    return [found[name] for name in CALLS]


def measure_step(output: Path) -> Outcome:
    """Times beside the fastest of torch's own ways, in turns, after a check of every result against float64."""
    from ..bench.environment import cpu_name
    from ..bench.markdown import time_text
    from ..bench.measure import OURS, Bench, run_item
    from ..bench.single import backends_on
    from ..bench.stats import geometric_mean
    from ..bench.summary import is_ours, summarize
    from ..cli.console import print_table, progress_bar

    (backend,) = backends_on("cpu")
    bench = Bench("cpu", (backend,), "cpu", SECONDS_EACH, providers=(OURS + backend, *TORCH))
    rows: list[dict[str, Any]] = []
    chosen = calls()
    with progress_bar("measuring", len(chosen)) as progress:
        for number, item in enumerate(chosen):

            def show(message: dict[str, Any], done: int = number, name: str = item.name) -> None:
                progress(done, f"{name}: {message['doing']} {message['provider'] or ''}")

            rows += run_item(item, bench, {}, show)
    summaries = summarize(rows)
    problems = [f"{r['item']}: {r['status']}: {r['reason']}" for r in rows if is_ours(r) and r["status"] != "timed"]
    compared = [s for s in summaries if s.lead is not None]
    lines = [
        (s.item, time_text(s.ours), f"{s.peer['provider']} {time_text(s.peer)}", str(s.lead))
        for s in compared
        if s.ours is not None and s.peer is not None
    ]
    columns = ("call", "tilewright", "fastest of torch's", "speedup")
    print_table(columns, lines, f"median time of one call, backend {backend}")
    for problem in problems:
        print(f"not measured: {problem}")
    leads = [s.lead for s in compared if s.lead is not None]
    report: dict[str, Any] = {"backend": backend, "rows": rows, "problems": problems}
    if problems or not leads:
        return Outcome(FAILED, f"{len(problems)} calls failed and were not measured", report)
    mean = report["geometric_mean_speedup"] = geometric_mean([lead.value for lead in leads])
    slower = sum(lead.value < 1.0 for lead in leads)
    summary = f"{mean:.2f} times torch's speed (geometric mean of {len(leads)} measurements, {slower} of them slower)"
    if importlib.util.find_spec("matplotlib") is None:
        return Outcome(NOT_RUN, f"{summary}; no chart without matplotlib: pip install 'tilewright[bench]'", report)
    from .chart import draw

    draw(compared, f"tilewright ({backend}) beside PyTorch, {cpu_name()}", output / "speedup.png")
    return Outcome(PASSED, f"{summary}; chart in {output / 'speedup.png'}", report)
