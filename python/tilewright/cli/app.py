"""The command line's entry. Heavy imports live inside the commands, so that --help and --version answer at once."""

from __future__ import annotations

import os
import sys
from typing import Annotated

import typer

from ..errors import SettingError
from .bench import bench
from .console import UserError
from .demo import demo
from .explain import explain
from .explain_attention import explain_attention
from .generate import generate
from .info import info
from .tune import tune
from .verify import verify

# click's base class of wrong usage; recent versions of typer carry a click of their own, older ones import it.
_UsageProblem: type[Exception] = typer.BadParameter.__mro__[2]

app = typer.Typer(
    name="tilewright",
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command()(info)
app.command()(explain)
app.command()(explain_attention)
app.command()(verify)
app.command()(bench)
app.command()(tune)
app.command()(generate)
app.command()(demo)


def _show_version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        print(f"tilewright {version('tilewright')}")
        raise typer.Exit


@app.callback(invoke_without_command=True)
def _options(
    context: typer.Context,
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Fused attention, softmax and feed-forward kernels, verified against float64 on any machine."""
    if context.invoked_subcommand is None:
        print(context.get_help())


def main(arguments: list[str] | None = None) -> None:
    """Run the command and exit: 0 done, 1 something failed or was not found, 2 the command was given wrong."""
    try:
        code = app(arguments, standalone_mode=False)
    except SettingError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
    except _UsageProblem as error:
        print(f"error: {' '.join(error.format_message().split())}", file=sys.stderr)  # type: ignore[attr-defined]
        sys.exit(2)
    except (typer.Abort, KeyboardInterrupt):
        print("interrupted", file=sys.stderr)
        sys.exit(130)
    except BrokenPipeError:  # the reader has gone away, as `| head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    sys.exit(code if isinstance(code, int) else 0)
