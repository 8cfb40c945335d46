"""Exceptions. Bad arguments are plain ``ValueError`` and ``TypeError``; these are for calls that nothing can serve."""

from __future__ import annotations


class SettingError(ValueError):
    """An environment variable has a value that is not accepted. The message names it, and what is."""


class BackendError(RuntimeError):
    """No implementation can serve this call. The message lists every backend that was considered and its reason."""


def list_reasons(reasons: dict[str, str]) -> str:
    """One indented line per backend."""
    return "\n".join(f"  {backend}: {reason}" for backend, reason in reasons.items())
