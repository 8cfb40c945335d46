"""``tilewright generate``."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .console import UserError, progress_bar, user_errors, write_json
from .options import JsonFile

if TYPE_CHECKING:
    from ..models.tokenizer import Tokenizer


def generate(
    model: Annotated[
        str, typer.Argument(help="A folder with a GPT-2 checkpoint in Hugging Face's format, or a hub name.")
    ],
    prompt: Annotated[str, typer.Option("--prompt", "-p", help="Text to continue; '-' reads standard input.")] = "",
    max_length: Annotated[int | None, typer.Option(min=1, help="Longest result in tokens, prompt included.")] = None,
    max_new_tokens: Annotated[
        int | None, typer.Option(min=0, help="Most tokens to add. Default: 64, or what fits.")
    ] = None,
    num_return_sequences: Annotated[
        int, typer.Option(min=1, help="How many continuations; more than one needs sampling.")
    ] = 1,
    temperature: Annotated[float | None, typer.Option(help="Sample; below 1 is bolder towards likely tokens.")] = None,
    top_k: Annotated[int | None, typer.Option(help="Sample among the K likeliest tokens.")] = None,
    top_p: Annotated[
        float | None, typer.Option(help="Sample among the likeliest tokens that make up this probability.")
    ] = None,
    repetition_penalty: Annotated[
        float | None, typer.Option(help="Above 1: tokens that were used are less likely.")
    ] = None,
    stop: Annotated[str | None, typer.Option(help="End a continuation before this text.")] = None,
    seed: Annotated[int | None, typer.Option(help="Makes sampling repeatable.")] = None,
    greedy: Annotated[
        bool, typer.Option("--greedy", help="Always the likeliest token. The default without a sampling option.")
    ] = False,
    backend: Annotated[
        str | None, typer.Option(help="Run every op on this backend, or fail saying why it cannot.")
    ] = None,
    json: JsonFile = None,
) -> None:
    """Continue a text with a GPT-2 model."""
    sampled = {"temperature": temperature, "top_k": top_k, "top_p": top_p}
    sampling = any(v is not None for v in sampled.values()) or (num_return_sequences > 1 and not greedy)
    if greedy and sampling:
        given = ", ".join("--" + n.replace("_", "-") for n, v in sampled.items() if v is not None)
        raise UserError(f"--greedy takes the likeliest token always; drop it or {given}")
    if max_length is not None and max_new_tokens is not None:
        raise UserError("--max-length and --max-new-tokens both bound the result; give one of them")
    if stop == "":
        raise UserError("--stop is empty; give the text to stop at, or leave it out")
    text = sys.stdin.read() if prompt == "-" else prompt

    from contextlib import nullcontext

    from ..config import use_backend
    from ..errors import BackendError
    from ..models import GPT, load_tokenizer

    with user_errors(OSError, ImportError, exit_code=1), user_errors(ValueError, TypeError):
        gpt, tokenizer = GPT.from_pretrained(model), load_tokenizer(model)
    tokens = tokenizer.encode(text)
    if not tokens:
        if tokenizer.eos_token_id is None:
            raise UserError(
                "the prompt is empty, and this tokenizer has no end-of-text token to start from; give --prompt"
            )
        tokens = [tokenizer.eos_token_id]
    if max_new_tokens is None and max_length is None:
        max_new_tokens = max(0, min(64, gpt.config.n_positions - len(tokens)))
    options: dict[str, Any] = {
        "max_length": max_length,
        "max_new_tokens": max_new_tokens,
        "num_return_sequences": num_return_sequences,
        "do_sample": sampling,
        **{n: v for n, v in sampled.items() if v is not None},
        "repetition_penalty": repetition_penalty,
        "seed": seed,
    }
    if stop is not None:
        options["stop_token"] = _stop_tokens(stop, tokenizer, gpt.config.eos_token_ids)
    total = (max_new_tokens if max_new_tokens is not None else max(0, (max_length or 0) - len(tokens))) or 1
    start = time.perf_counter()
    with (
        progress_bar("generating", total) as progress,
        user_errors(BackendError, exit_code=1),
        user_errors(ValueError, TypeError),
        use_backend(backend) if backend else nullcontext(),
    ):
        rows = gpt.generate([tokens], on_token=lambda count, _: progress(count), **options)
    seconds = time.perf_counter() - start
    results = [_finish(row[len(tokens) :], tokenizer, gpt.config.eos_token_ids, stop) for row in rows.tolist()]
    for i, result in enumerate(results):
        if len(results) > 1:
            print(f"--- {i + 1} ---")
        print(text + result["text"])
    if json is not None:
        report = {
            "model": model,
            "prompt": text,
            "prompt_tokens": tokens,
            "options": {k: v for k, v in options.items() if v is not None},
            "sequences": results,
            "seconds": seconds,
            "tokens_per_second": sum(len(r["tokens"]) for r in results) / seconds,
        }
        write_json(Path(json), report)


def _stop_tokens(stop: str, tokenizer: Tokenizer, eos: tuple[int, ...]) -> list[int]:
    """Where the text is one token, that token ends the work early too; it is cut out of the text in any case."""
    encoded = tokenizer.encode(stop)
    return [*eos, *encoded] if len(encoded) == 1 else list(eos)


def _finish(tokens: list[int], tokenizer: Tokenizer, eos: tuple[int, ...], stop: str | None) -> dict[str, Any]:
    """Without the end-of-text token and what follows it, and without the stop text and what follows that."""
    end = next((i for i, t in enumerate(tokens) if t in eos), len(tokens))
    text = tokenizer.decode(tokens[:end])
    stopped = stop is not None and stop in text
    if stop is not None:
        text = text.split(stop, 1)[0]
    reason = "stop" if stopped else "end of text" if end < len(tokens) else "length"
    return {"text": text, "tokens": tokens[:end], "finished_by": reason}
