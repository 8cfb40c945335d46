"""Who may import whom: models -> ops -> dispatch -> registry -> backends; backends never import one another."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "python" / "tilewright"

#: For each part of the package, the parts that it must not import, at module level or inside functions.
FORBIDDEN = {
    "config.py": {
        "registry",
        "dispatch",
        "ops",
        "backends",
        "reference",
        "models",
        "verify",
        "train",
        "integrations",
        "cli",
    },
    "registry.py": {"dispatch", "ops", "reference", "models", "verify", "train", "integrations", "cli"},
    "dispatch.py": {"ops", "reference", "models", "verify", "train", "integrations", "cli"},
    "ops": {"backends", "reference", "models", "verify", "train", "integrations", "cli"},
    "reference": {"backends", "registry", "dispatch", "models", "verify", "train", "integrations", "cli"},
    "backends": {"dispatch", "models", "verify", "train", "integrations", "cli"},
    "integrations": {"backends", "reference", "registry", "verify", "train", "cli"},
    "nn": {"backends", "reference", "registry", "dispatch", "models", "verify", "train", "integrations", "cli"},
    "models": {"backends", "reference", "registry", "dispatch", "verify", "train", "integrations", "cli"},
    "train": {"backends", "reference", "registry", "dispatch", "verify", "integrations", "cli"},
    "verify": {"models", "train", "cli"},
}


def sources(part: str) -> list[Path]:
    path = PACKAGE / part
    return [path] if path.is_file() else sorted(path.rglob("*.py"))


def imported_parts(file: Path) -> set[str]:
    """First-level parts of tilewright that ``file`` imports, relative imports resolved."""
    inside = file.relative_to(PACKAGE).parts[:-1]
    found: set[str] = set()
    for node in ast.walk(ast.parse(file.read_text())):
        modules: list[str] = []
        if isinstance(node, ast.Import):
            modules = [a.name for a in node.names]
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            modules = [node.module or ""]
        elif isinstance(node, ast.ImportFrom):
            base = inside[: len(inside) - node.level + 1]
            target = ".".join(("tilewright", *base, *((node.module or "").split(".") if node.module else ())))
            modules = [target] if node.module else [f"{target}.{a.name}" for a in node.names]
        found |= {m.split(".")[1] for m in modules if m.startswith("tilewright.")}
    return found


@pytest.mark.parametrize("part", FORBIDDEN)
def test_imports_point_downwards(part: str) -> None:
    assert sources(part), f"{part} is gone: update FORBIDDEN"
    for file in sources(part):
        wrong = imported_parts(file) & FORBIDDEN[part]
        assert not wrong, f"{file.relative_to(ROOT)} imports {sorted(wrong)}, which lies above or beside it"


def test_backends_do_not_import_one_another() -> None:
    # compiled.py is what the backends of compiled kernels are made of.
    names = {f.stem for f in (PACKAGE / "backends").glob("*.py")} - {"__init__", "compiled"}
    for file in (PACKAGE / "backends").glob("*.py"):
        text = file.read_text()
        family = file.stem.split("_")[0]  # a backend of several files: triton.py, triton_<op>.py, which may use it
        for other in names - {file.stem, family, f"{file.stem}_call"}:
            assert f"backends.{other}" not in text and f"from .{other} " not in text, (
                f"backends/{file.name} imports {other}"
            )


def test_reference_needs_torch_alone() -> None:
    for file in (PACKAGE / "reference").glob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom) and node.level == 0:
                names = [node.module or ""]
            for name in names:
                root = name.split(".")[0]
                assert root in {"torch", "__future__", "collections", "typing"}, f"reference/{file.name} imports {name}"
