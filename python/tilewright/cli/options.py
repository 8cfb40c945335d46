"""Options that several commands take, and turning their text into values."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from .console import UserError

if TYPE_CHECKING:
    import torch

JsonFile = Annotated[
    Path | None, typer.Option("--json", metavar="FILE", help="Also write the result to FILE, as JSON.")
]


def parse_dtype(name: str) -> torch.dtype:
    from ..verify.case import DTYPES

    if name not in DTYPES:
        raise UserError(f"--dtype {name}: choose one of {', '.join(DTYPES)}")
    return DTYPES[name]


def parse_ints(option: str, text: str) -> list[int]:
    """Whole numbers separated by commas."""
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise UserError(f"{option} {text}: give whole numbers separated by commas") from None


def check_choice(option: str, value: str, choices: tuple[str, ...]) -> str:
    if value not in choices:
        raise UserError(f"{option} {value}: choose one of {', '.join(choices)}")
    return value
