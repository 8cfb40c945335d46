"""What the build of this installation included, and why the rest is missing."""

from __future__ import annotations


def missing_reason(target: str) -> str | None:
    """Why the compiled module of ``target`` ("cpu", "cuda") was left out of this installation; None when it was
    built."""
    try:
        from . import _build_info
    except ImportError:
        return None
    reason: str | None = _build_info.MISSING.get(target)
    return reason
