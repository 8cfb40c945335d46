"""``import flash_attn`` answered by us: modules, package metadata, and what transformers asks before it believes it."""

from __future__ import annotations

import importlib
import importlib.abc
import importlib.machinery
import importlib.metadata
import importlib.util
import sys
from collections.abc import Iterable
from pathlib import Path
from types import ModuleType, TracebackType
from typing import Any

#: The release of flash-attn whose interface this is. Code compares it, so it is a plain release number.
INTERFACE_VERSION = "2.8.4"

_DISTRIBUTION = {
    "METADATA": f"Metadata-Version: 2.1\nName: flash-attn\nVersion: {INTERFACE_VERSION}\n",
    "top_level.txt": "flash_attn\n",
}


def install_as_flash_attn(*, replace: bool = False, transformers: bool | None = None) -> Installation:
    """From here on, in this process, ``import flash_attn`` gives tilewright's functions.

    What can be imported: ``flash_attn`` and ``flash_attn.flash_attn_interface`` with FlashAttention 2's functions,
    ``flash_attn.bert_padding``, and ``flash_attn.layers.rotary``. Package metadata names flash-attn in the version
    whose interface this is. Names that a module has already imported from another flash_attn stay what they were.

    transformers then serves ``attn_implementation="flash_attention_2"`` through us, on CPU models as well, where by
    itself it refuses the package.

    Args:
        replace: take the place of a flash_attn that has been imported already.
        transformers: also make transformers' checks accept us. None: if it is installed.

    Returns:
        A handle: ``handle.undo()``, or leaving ``with install_as_flash_attn():``, restores what was there before.

    Raises:
        RuntimeError: another flash_attn is imported already and replace is False, or transformers is not laid out as
            this function knows it. Nothing has been changed then.
        ModuleNotFoundError: transformers=True and it is not installed.

    >>> with install_as_flash_attn(transformers=False):
    ...     from flash_attn import flash_attn_func
    >>> flash_attn_func.__module__
    'tilewright.integrations.flash_attn'
    """
    present = sys.modules.get("flash_attn")
    if present is not None and not _is_ours(present) and not replace:
        raise RuntimeError(
            f"flash_attn is imported already, from {getattr(present, '__file__', None)}; call install_as_flash_attn "
            "before it is imported, or with replace=True"
        )
    modules = _modules()
    if transformers is None:
        transformers = importlib.util.find_spec("transformers") is not None
    patch = _TransformersPatch() if transformers else None
    return Installation(modules, patch)


class Installation:
    """What :func:`install_as_flash_attn` has put in place, until :meth:`undo`. Also a context manager."""

    def __init__(self, modules: dict[str, ModuleType], patch: _TransformersPatch | None) -> None:
        self._modules, self._patch = modules, patch
        self._finder = _MetadataFinder()
        self._replaced = {name: m for name, m in sys.modules.items() if name.split(".")[0] == "flash_attn"}
        self._active = True
        _swap(self._replaced, modules)
        sys.meta_path.insert(0, self._finder)
        if patch is not None:
            try:
                patch.apply()
            except BaseException:
                self.undo()
                raise

    def undo(self) -> None:
        """Put back what was there before. Calling it again does nothing.

        Raises:
            RuntimeError: flash_attn has been replaced by something else since; undo that first.
        """
        if not self._active:
            return
        if sys.modules.get("flash_attn") is not self._modules["flash_attn"]:
            raise RuntimeError(
                "flash_attn is no longer what this handle installed; undo what was installed later first"
            )
        self._active = False
        if self._patch is not None:
            self._patch.revert()
        sys.meta_path.remove(self._finder)
        _swap(self._modules, self._replaced)
        if self._patch is not None:
            self._patch.forget()

    def __enter__(self) -> Installation:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.undo()


def _swap(out: Iterable[str], into: dict[str, ModuleType]) -> None:
    for name in out:
        sys.modules.pop(name, None)
    sys.modules.update(into)


def _is_ours(module: ModuleType) -> bool:
    return isinstance(getattr(module.__spec__, "loader", None), _Loader)


class _Loader(importlib.abc.Loader):
    """Marks the modules made here. They are complete when they are made."""

    def exec_module(self, module: ModuleType) -> None:
        """Nothing is left to load."""


def _modules() -> dict[str, ModuleType]:
    """The modules of ``flash_attn``, by full name, complete and bound to their parents."""
    from . import bert_padding, flash_attn, rotary

    functions = {name: getattr(flash_attn, name) for name in flash_attn.__all__ if name.startswith("flash_attn_")}
    contents: dict[str, tuple[ModuleType, dict[str, Any]]] = {
        "flash_attn": (flash_attn, {"__version__": INTERFACE_VERSION, **functions}),
        "flash_attn.flash_attn_interface": (flash_attn, functions),
        "flash_attn.bert_padding": (bert_padding, _public(bert_padding)),
        "flash_attn.layers": (rotary, {}),
        "flash_attn.layers.rotary": (rotary, _public(rotary)),
    }
    modules: dict[str, ModuleType] = {}
    for name, (source, names) in contents.items():
        module = modules[name] = ModuleType(name, source.__doc__)
        is_package = any(other.startswith(f"{name}.") for other in contents)
        spec = importlib.machinery.ModuleSpec(name, _Loader(), origin=source.__file__, is_package=is_package)
        module.__spec__, module.__loader__, module.__file__ = spec, spec.loader, source.__file__
        module.__package__ = name if is_package else name.rpartition(".")[0]
        if is_package:
            module.__path__ = []
        module.__dict__.update(names)
        parent, _, leaf = name.rpartition(".")
        if parent:
            setattr(modules[parent], leaf, module)
    return modules


def _public(module: ModuleType) -> dict[str, Any]:
    return {name: getattr(module, name) for name in module.__all__}


class _Distribution(importlib.metadata.Distribution):
    def read_text(self, filename: Any) -> str | None:
        return _DISTRIBUTION.get(str(filename))

    def locate_file(self, path: Any) -> Any:
        return Path(__file__).parent / path


class _MetadataFinder(importlib.metadata.DistributionFinder):
    """Lets importlib.metadata know a distribution called flash-attn."""

    def find_spec(self, *_: Any) -> None:
        return None

    def find_distributions(self, context: Any = None) -> Iterable[importlib.metadata.Distribution]:
        name = getattr(context, "name", None)
        return [_Distribution()] if name is None or name.lower().replace("_", "-") == "flash-attn" else []


class _TransformersPatch:
    """What transformers must be told so that it takes us for FlashAttention 2, on CPU models as well.

    It accepts the package on accelerators only, in two places: whether it imports flash_attn, and a table of checks
    that a model makes of its attn_implementation. It also remembers answers, and which implementation it has loaded.
    """

    _REMEMBERED = (
        "_package_distribution_mapping",
        "is_flash_attn_2_available",
        "is_flash_attn_4_available",
        "is_flash_attn_greater_or_equal",
    )

    def __init__(self) -> None:
        flash: Any = importlib.import_module("transformers.modeling_flash_attention_utils")
        queries = importlib.import_module("transformers.utils.import_utils")
        try:
            self._checks: dict[str, Any] = flash.FLASH_ATTENTION_COMPATIBILITY_MATRIX[2]
            self._devices = self._checks["supported_devices"]
            self._check = self._checks["general_availability_check"]
            self._forget = [getattr(queries, name).cache_clear for name in self._REMEMBERED]
            self._is_available, _ = flash.is_flash_attn_2_available, flash._loaded_implementation
        except (AttributeError, KeyError) as error:
            import transformers

            raise RuntimeError(
                f"transformers {transformers.__version__} does not check for flash_attn in the way that is known here "
                f"({error}); call install_as_flash_attn(transformers=False)"
            ) from error
        self._flash = flash

    def apply(self) -> None:
        self._flash.is_flash_attn_2_available = _yes
        self._checks["general_availability_check"] = _yes
        self._checks["supported_devices"] = (*self._devices, (_yes, "cpu"))
        self.forget()

    def revert(self) -> None:
        self._flash.is_flash_attn_2_available = self._is_available
        self._checks["general_availability_check"] = self._check
        self._checks["supported_devices"] = self._devices

    def forget(self) -> None:
        """Drop remembered answers, so that transformers asks again, and imports flash_attn anew at the next call."""
        for clear in self._forget:
            clear()
        self._flash._loaded_implementation = None


def _yes(*_: Any, **__: Any) -> bool:
    return True
