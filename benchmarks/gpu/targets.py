"""What was set as a target, beside what was measured, by our faster backend."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from .report import OURS, three_digits

Rows = Sequence[dict[str, Any]]

ATTENTION = [
    f"attention {mode} d128 {kind} S{seqlen}"
    for mode in ("forward", "backward")
    for kind in ("full", "causal")
    for seqlen in (4096, 16384)
]
#: (item, another provider whose result counts as 1; "" for the unit itself, "copy" for the machine's copy; at least)
TARGETS: tuple[tuple[str, str, float], ...] = (
    *((item, "", 490.0) for item in ATTENTION if "forward" in item),
    *((item, "flex", 1.2) for item in ATTENTION),
    *((f"softmax {mode} {width}", "copy", 0.95) for mode in ("forward", "backward") for width in (16384, 131072)),
    ("softmax forward 1024", "copy", 0.8),
    ("softmax forward 16384", "quack", 1.0),
    ("softmax forward 16384", "liger", 1.0),
    ("decode B8 KV16384", "copy", 0.9),
    ("decode latency B1 KV1024", "", 7.0),
    ("ffn forward 768/3072 gelu_tanh rows 32768", "eager", 1.18),
)


def targets(rows: Rows) -> list[tuple[str, str, str]]:
    """(target, measured, "met" or "missed"), of those whose call, and whose other provider, was timed."""
    timed: dict[tuple[str, str], dict[str, Any]] = {
        (r["item"], r["provider"]): r for r in rows if r["status"] == "timed"
    }
    found = []
    for item, beside, least in TARGETS:
        ours = [r for (i, provider), r in timed.items() if i == item and provider.startswith(OURS)]
        other = timed.get(("roofline copy", "torch") if beside == "copy" else (item, beside))
        if not ours or (beside and other is None):
            continue
        is_time = ours[0]["unit"] == "us"
        best = (min if is_time else max)(ours, key=lambda r: float(r["result"]))
        value = best["result"] / (other["result"] if other else 1.0)
        sign, unit = ("<=", "us") if is_time else (">=", f"x {beside}" if beside else best["unit"])
        met = value <= least if is_time else value >= least
        shown = f"{three_digits(value)} ({best['provider'].removeprefix(OURS)})"
        found.append((f"{item} {sign} {least:g} {unit}", shown, "met" if met else "missed"))
    return found
