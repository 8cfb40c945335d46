"""Which backend the user asked for: ``backend=`` beats ``use_backend``, which beats ``TILEWRIGHT_BACKEND``.

The environment variable is read when tilewright is imported.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from .errors import SettingError

#: Every backend.
BACKENDS = ("cuda", "triton", "cpu", "reference")

ENVIRONMENT_VARIABLE = "TILEWRIGHT_BACKEND"

# Read once: looking into os.environ costs a small op a tenth of its time.
_from_environment = os.environ.get(ENVIRONMENT_VARIABLE, "")


class _Requested(threading.local):
    backend: str | None = None


_requested = _Requested()


def check_backend(name: str, argument: str = "backend") -> str:
    if name not in BACKENDS:
        kind = SettingError if argument == ENVIRONMENT_VARIABLE else ValueError
        raise kind(f"{argument}={name!r} is not a backend; choose one of {', '.join(map(repr, BACKENDS))}")
    return name


@contextmanager
def use_backend(name: str) -> Iterator[None]:
    """Every tilewright op called inside, by this thread, runs on backend ``name`` or raises saying why it cannot.

    Gradients run on the backend of their forward, also after the block has ended. Nesting works; the innermost wins.
    """
    check_backend(name, "name")
    previous, _requested.backend = _requested.backend, name
    try:
        yield
    finally:
        _requested.backend = previous


def requested_backend(argument: str | None) -> str:
    """The backend that was asked for, or ``""`` for automatic selection."""
    if argument is not None:
        return check_backend(argument)
    if _requested.backend is not None:
        return _requested.backend
    return check_backend(_from_environment, ENVIRONMENT_VARIABLE) if _from_environment else ""
