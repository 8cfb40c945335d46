"""Triton kernels."""

from __future__ import annotations


def unavailable() -> str | None:
    return "this version has no Triton kernels yet"
