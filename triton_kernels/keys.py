"""What Triton's cache calls a kernel, whatever was launched before it."""

from __future__ import annotations

import functools
import importlib
import pkgutil

from triton.runtime.jit import JITFunction


@functools.cache
def settle() -> None:
    """Make every kernel's part of its key in the cache, in a fixed order, before any of them is launched.

    Triton 3.6 takes the constants of the functions that a kernel calls into its key if those functions have theirs
    already. So the key depended on what the process had launched before, and a kernel that another program had compiled
    was compiled again. It takes 50 ms for all of them, which parse their sources once in any case.
    """
    for function in functions():
        _ = function.cache_key


def functions() -> list[JITFunction]:
    """All kernels, and the functions that they are made of; none in Triton's interpreter."""
    package = __name__.rpartition(".")[0]
    modules = [
        importlib.import_module(found.name)
        for found in pkgutil.walk_packages(importlib.import_module(package).__path__, f"{package}.")
    ]
    return [f for m in modules for f in vars(m).values() if isinstance(f, JITFunction) and f.__module__ == m.__name__]
