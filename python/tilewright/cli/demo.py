"""``tilewright demo``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def demo(
    output: Annotated[Path, typer.Option(help="Folder for the trained model, the chart and the figures.")] = Path(
        "demo-output"
    ),
    seconds_to_train: Annotated[float, typer.Option(min=1.0, help="How long to train the small model.")] = 60.0,
    seed: Annotated[int, typer.Option(min=0)] = 0,
) -> None:
    """Verify the kernels, train a small GPT on them, compare it with transformers, and measure them beside PyTorch.

    Takes a few minutes on two cores and needs no GPU, no download and no data. Exits 1 if verification fails or the
    models disagree, 3 if a step could not run.
    """
    from ..demo import run

    code = run(output, seconds_to_train, seed)
    if code:
        raise typer.Exit(code)
