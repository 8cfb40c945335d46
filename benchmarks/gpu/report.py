"""What was found, in one table that fits a screen; the JSON file has the rest."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from tilewright.bench.measure import OURS
from tilewright.bench.summary import three_digits

from .run import Outcome

Rows = Sequence[dict[str, Any]]


def table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [list(columns), *(list(r) for r in rows)]
    widths = [max(len(line[i]) for line in lines) for i in range(len(columns))]
    return "\n".join("  ".join(c.ljust(w) for c, w in zip(line, widths, strict=True)).rstrip() for line in lines)


def find(rows: Rows, item: str, provider: str) -> float | None:
    return next(
        (r["result"] for r in rows if (r["item"], r["provider"]) == (item, provider) and r["status"] == "timed"), None
    )


def best(rows: Rows, item: str) -> dict[str, Any] | None:
    """The row of tilewright's fastest backend."""
    ours = [r for r in rows if r["item"] == item and r["provider"].startswith(OURS) and r["status"] == "timed"]
    return min(ours, key=lambda r: r["result"] if r["unit"] == "us" else -r["result"], default=None)


def measured_table(rows: Rows) -> str:
    """An item per line: each provider's result, and why one has none in as few letters as possible."""
    by_item: dict[str, dict[str, dict[str, Any]]] = {}
    for row in rows:
        by_item.setdefault(row["item"], {})[row["provider"]] = row
    ours = dict.fromkeys(r["provider"] for r in rows if r["provider"].startswith(OURS))
    peers = dict.fromkeys(r["provider"] for r in rows if r["provider"] not in ours and r["status"] == "timed")
    providers = [*ours, *peers]
    lines = []
    for item, found in by_item.items():
        if set(found) == {"all"}:
            continue
        unit = next((r["unit"] for r in found.values() if "unit" in r), "")
        lines.append([item, unit, *(cell(found.get(p)) for p in providers)])
    missed = sum(set(found) == {"all"} for found in by_item.values())
    text = table(("", "", *providers), lines)
    return text + (f"\n{missed} items have no row: see bench.rows in the file" if missed else "")


def cell(row: dict[str, Any] | None) -> str:
    if row is None:
        return ""
    if row["status"] != "timed":
        return str(row["status"])
    share = f" {100 * row['of_roofline']:.0f}%" if "of_roofline" in row else ""
    return f"{three_digits(row['result'])}{share}" + ("!" if "fault" in row else "")


def targets(rows: Rows) -> list[tuple[str, str, str]]:
    """(target, measured, "met" or "missed" or "unknown") for each that was set, by our fastest backend."""
    found: list[tuple[str, str, str]] = []

    def least(text: str, value: float | None, target: float, shown: str) -> None:
        found.append((text, shown if value is not None else "-", verdict(value, target)))

    for causal in ("full", "causal"):
        for seqlen in (4096, 16384):
            for mode in ("forward", "backward"):
                item = f"attention {mode} d128 {causal} S{seqlen}"
                ours, by = _result(rows, item)
                if mode == "forward":
                    least(f"{item} >= 490 TFLOP/s", ours, 490.0, f"{ours or 0:.0f}{by}")
                ratio = _smallest_ratio(rows, [item], "flex")
                least(f"{item} >= 1.2x FlexAttention", ratio, 1.2, f"{ratio or 0:.2f}x{by}")
    widths = sorted({r["width"] for r in rows if r.get("op") == "softmax" and "width" in r})
    groups = ((">= 4K", [w for w in widths if w >= 4096], 0.95), ("1K", [1024], 0.8), ("256", [256], 0.6))
    for mode in ("forward", "backward"):
        for name, group, target in groups:
            shares = [_share(rows, f"softmax {mode} {w}") for w in group]
            value = min((s for s in shares if s is not None), default=None)
            value = None if None in shares else value
            text = f"softmax {mode} {name} columns >= {100 * target:.0f}% of copy"
            least(text, value, target, f"{100 * (value or 0):.0f}%")
        for peer in ("quack", "liger"):
            ratio = _smallest_ratio(rows, [f"softmax {mode} {w}" for w in widths], peer)
            least(f"softmax {mode} >= 1.0x {peer} at every width", ratio, 1.0, f"{ratio or 0:.2f}x")
    decodes = [i for i in dict.fromkeys(r["item"] for r in rows) if i.startswith("decode B")]
    for item in decodes:
        share = _share(rows, item)
        least(f"{item} >= 90% of copy", share, 0.9, f"{100 * (share or 0):.0f}%{_result(rows, item)[1]}")
    latency, by = _result(rows, "decode latency B1 KV1024")
    shown = f"{latency:.1f} us{by}" if latency else "-"
    found.append(("decode latency B1 KV1024 <= 7 us", shown, verdict(latency and -latency, -7.0)))
    item = "ffn forward 768/3072 gelu_tanh rows 32768"
    for peer, name, target in (("eager", "eager", 1.18), ("compile", "torch.compile", 1.08)):
        ratio = _smallest_ratio(rows, [item], peer)
        least(f"{item} >= {target}x {name}", ratio, target, f"{ratio or 0:.2f}x{_result(rows, item)[1]}")
    return found


def _result(rows: Rows, item: str) -> tuple[float | None, str]:
    """The fastest backend's, and which one that is, for behind the figure."""
    row = best(rows, item)
    return (row["result"], f" ({row['provider'][len(OURS) :]})") if row else (None, "")


def verdict(value: float | None, target: float) -> str:
    return "unknown" if value is None else "met" if value >= target else "missed"


def _share(rows: Rows, item: str) -> float | None:
    return (best(rows, item) or {}).get("of_roofline")


def _smallest_ratio(rows: Rows, items: Sequence[str], peer: str) -> float | None:
    pairs = [(_result(rows, i)[0], find(rows, i, peer)) for i in items]
    ratios = [ours / theirs for ours, theirs in pairs if ours and theirs]
    return min(ratios, default=None)


def stage_table(outcomes: dict[str, Outcome]) -> str:
    lines = [(name, o.status, f"{o.seconds:.0f} s", o.reason[:400]) for name, o in outcomes.items()]
    return table(("stage", "", "", ""), lines)
