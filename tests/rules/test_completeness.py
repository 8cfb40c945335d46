"""Every op has what an op has, under the same stem everywhere."""

from __future__ import annotations

import importlib
import inspect
from pathlib import Path

import pytest

import tilewright as tw
from tilewright.catalog import OPS
from tilewright.config import BACKENDS
from tilewright.registry import TABLE, Implementation, unavailable

ROOT = Path(__file__).parents[2]

#: The file stem of each op: softmax and log_softmax are one kernel with a flag.
STEMS = {name: "softmax" if name == "log_softmax" else name for name in OPS}


def test_table_and_catalogue_list_the_same_ops() -> None:
    assert set(TABLE) == set(OPS)


@pytest.mark.parametrize("name", OPS)
def test_op_has_contract_reference_docs_cost_and_public_name(name: str) -> None:
    op, function = OPS[name]
    assert op.name == name
    assert getattr(tw, name) is function
    stem = STEMS[name]
    for path in (f"python/tilewright/ops/{stem}.py", f"python/tilewright/reference/{stem}.py", f"docs/ops/{stem}.md"):
        assert (ROOT / path).is_file(), f"{name} has no {path}"
    assert callable(op.cost)
    assert "reference" in TABLE[name]


@pytest.mark.parametrize("name", OPS)
def test_docstring_covers_every_parameter(name: str) -> None:
    function = OPS[name][1]
    document = inspect.getdoc(function) or ""
    for parameter in inspect.signature(function).parameters:
        assert parameter in document, f"{name}'s docstring does not mention {parameter}"
    for section in ("Args:", "Returns:", "Raises:"):
        assert section in document, f"{name}'s docstring has no {section} section"


@pytest.mark.parametrize("name", OPS)
def test_every_row_resolves(name: str) -> None:
    op = OPS[name][0]
    for backend, row in TABLE[name].items():
        assert backend in BACKENDS
        if unavailable(backend) is None:
            module, attribute = row.split(":")
            implementation = getattr(importlib.import_module(module), attribute)
            assert isinstance(implementation, Implementation)
            assert (implementation.backward is not None) == bool(op.differentiable), f"{row}: backward"


@pytest.mark.parametrize("name", OPS)
def test_verification_has_cases(name: str) -> None:
    from tilewright.verify.cases import CASES

    found = [case for case in CASES if case.op == name]
    assert len(found) >= 10, f"verify/cases has {len(found)} cases of {name}"


def test_kernel_files_stay_small() -> None:
    for folder, patterns, limit in (
        ("csrc", ("*.cpp", "*.h", "*.cu", "*.cuh"), 400),
        ("python", ("*.py",), 400),
        ("tests", ("*.py",), 300),
        ("benchmarks", ("*.py",), 300),
    ):
        for pattern in patterns:
            for file in (ROOT / folder).rglob(pattern):
                lines = len(file.read_text().splitlines())
                assert lines <= limit, f"{file.relative_to(ROOT)} has {lines} lines; split it (limit {limit})"
