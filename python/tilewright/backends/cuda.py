"""CUDA C++ kernels."""

from __future__ import annotations


def unavailable() -> str | None:
    return "this version has no CUDA C++ kernels yet"
