"""``tilewright explain-attention``."""

from __future__ import annotations

import sys
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .console import UserError, print_table, user_errors, write_json
from .options import JsonFile, parse_ints

if TYPE_CHECKING:
    from torch import Tensor

    from ..attention_record import RecordedAttention

#: Longer texts make a matrix of cells too small to see.
MATRIX_LIMIT = 256

#: Attention weights held at once while rows are averaged over heads.
_CHUNK = 1 << 24

_PICTURES = (".png", ".svg", ".pdf")


@dataclass(frozen=True)
class Picture:
    """What is drawn: a title, the text's tokens, the positions of the queries (rows), and the weights.

    maps: (name, (rows, tokens) weights) for each panel of a matrix picture; None where arcs are drawn.
    attended: for each row its strongest keys as (position, weight), descending.
    """

    title: str
    tokens: list[str]
    rows: list[int]
    maps: list[tuple[str, Any]] | None
    attended: list[list[tuple[int, float]]]


def explain_attention(
    model: Annotated[
        str, typer.Argument(help="A folder with a causal language model in Hugging Face's format, or a hub name.")
    ],
    text: Annotated[str, typer.Option("--text", "-t", help="The text; '-' reads standard input.")] = "",
    layer: Annotated[int, typer.Option(help="Which layer, from 0; negative counts from the last.")] = 0,
    head: Annotated[
        str, typer.Option(help="'all' (a grid; the table has their mean), 'mean', or a head's number, from 0.")
    ] = "all",
    rows: Annotated[
        str | None, typer.Option(help="Positions of the tokens to explain, as 3,7 or -1. Default: every token.")
    ] = None,
    top_k: Annotated[
        int | None,
        typer.Option(min=1, help="Draw arcs to each token's K strongest keys, for texts too long for a matrix."),
    ] = None,
    output: Annotated[Path, typer.Option("--output", "-o", help="The picture: .png, .svg or .pdf.")] = Path(
        "attention.png"
    ),
    picture: Annotated[bool, typer.Option("--picture/--no-picture", help="Draw, or print the table only.")] = True,
    backend: Annotated[
        str | None, typer.Option(help="Run the model on this backend, or fail saying why it cannot.")
    ] = None,
    json: JsonFile = None,
) -> None:
    """Draw and list which tokens of a text a model's tokens attend to."""
    if picture:
        if output.suffix.lower() not in _PICTURES:
            raise UserError(f"--output {output}: the name must end in {', '.join(_PICTURES)}")
        _require_matplotlib()
    content = sys.stdin.read() if text == "-" else text
    ids, tokens, calls = _run(model, content, backend)
    if not -len(calls) <= layer < len(calls):
        raise UserError(f"--layer {layer}: the model has {len(calls)} layers, 0 to {len(calls) - 1}")
    layer %= len(calls)
    call = calls[layer]
    heads = call.q.shape[1]
    chosen = _choose_head(head, heads)
    wanted = list(range(len(ids))) if rows is None else _choose_rows(rows, len(ids))
    if top_k is None and picture and len(ids) > MATRIX_LIMIT:
        raise UserError(
            f"the text has {len(ids)} tokens; a matrix can be read up to {MATRIX_LIMIT}. Give --top-k K for arcs to "
            "each token's strongest keys (--rows chooses tokens)"
        )
    attended = _attended(call, wanted, chosen, min(top_k or 3, len(ids)))
    maps = _maps(call, wanted, head, chosen) if top_k is None and len(ids) <= MATRIX_LIMIT else None
    which = f"head {chosen} of {heads}" if chosen is not None else f"{heads} heads"
    mean = "mean of " if chosen is None and (maps is None or head == "mean") else ""
    title = f"{Path(model).name}: layer {layer} of {len(calls)}, {mean}{which}"
    shown = Picture(title, tokens, wanted, maps, attended)
    print_table(
        ("position", "token", "attends to"),
        [
            (str(row), tokens[row], ", ".join(f"{tokens[key]}@{key} {weight:.2f}" for key, weight in keys))
            for row, keys in zip(wanted, attended, strict=True)
        ],
        title=title if chosen is not None else f"{title}{'' if mean else ' (their mean)'}",
    )
    if picture:
        from .attention_chart import draw

        with user_errors(OSError, exit_code=1):
            draw(shown, output)
        print(f"wrote {output}")
    if json is not None:
        write_json(json, _report(model, content, ids, layer, len(calls), head, shown, output if picture else None))


def _require_matplotlib() -> None:
    try:
        import matplotlib  # noqa: F401
    except ImportError as error:
        raise UserError(
            f"drawing needs matplotlib ({error}): pip install 'tilewright[bench]', or give --no-picture", 1
        ) from error


def _run(model: str, text: str, backend: str | None) -> tuple[list[int], list[str], list[RecordedAttention]]:
    """The text's token ids, each token as it is shown, and the attention call of every layer."""
    import torch

    from ..attention_record import record_attention
    from ..config import use_backend
    from ..errors import BackendError
    from ..models import load_tokenizer

    with user_errors(OSError, ImportError, exit_code=1), user_errors(ValueError, TypeError):
        network, tokenizer = _load(model), load_tokenizer(model)
    ids = tokenizer.encode(text)
    if not ids:
        raise UserError("the text is empty; give --text")
    with (
        user_errors(BackendError, NotImplementedError, exit_code=1),
        user_errors(ValueError, TypeError),
        use_backend(backend) if backend else nullcontext(),
        torch.no_grad(),
        record_attention() as calls,
    ):
        network(torch.tensor([ids]))
    if not calls:
        raise UserError(f"{model} made no call of tilewright.attention, so there is nothing to explain", 1)
    return ids, [show_token(tokenizer.decode([i], skip_special_tokens=False)) for i in ids], calls


def _load(model: str) -> Any:
    """Our GPT-2, or a causal language model of transformers with its attention on our kernels."""
    import json as json_library

    from ..models import GPT
    from ..models.hub import open_source

    file = open_source(model).find("config.json")
    kind = "gpt2" if file is None else json_library.loads(file.read_text(encoding="utf-8")).get("model_type", "gpt2")
    if kind == "gpt2":
        return GPT.from_pretrained(model)
    from transformers import AutoModelForCausalLM

    from ..integrations.transformers import register

    register()
    return AutoModelForCausalLM.from_pretrained(model, attn_implementation="tilewright")  # in evaluation mode


def show_token(token: str) -> str:
    """With its spaces and line breaks visible."""
    return token.replace(" ", "·").replace("\n", "⏎").replace("\t", "⇥") or "∅"


def _choose_head(head: str, heads: int) -> int | None:
    """A head's number, or None for all of them."""
    if head in ("all", "mean"):
        return None
    if not head.isdecimal() or int(head) >= heads:
        raise UserError(f"--head {head}: choose 'all', 'mean' or a number from 0 to {heads - 1}")
    return int(head)


def _choose_rows(rows: str, length: int) -> list[int]:
    chosen = parse_ints("--rows", rows)
    for row in chosen:
        if not -length <= row < length:
            raise UserError(f"--rows {rows}: the text has {length} tokens, 0 to {length - 1}")
    return [row % length for row in chosen]


def _attended(call: RecordedAttention, rows: list[int], head: int | None, count: int) -> list[list[tuple[int, float]]]:
    """Each row's ``count`` strongest keys, of one head or of the heads' mean; a part of the rows at a time."""
    step = max(1, _CHUNK // (call.q.shape[1] * call.k.shape[2]))
    found: list[list[tuple[int, float]]] = []
    for start in range(0, len(rows), step):
        values, keys = _weights(call, rows[start : start + step], head).topk(count)
        for row_values, row_keys in zip(values.tolist(), keys.tolist(), strict=True):
            found.append([(key, weight) for key, weight in zip(row_keys, row_values, strict=True) if weight > 0])
    return found


def _weights(call: RecordedAttention, rows: list[int], head: int | None) -> Tensor:
    """(rows, keys) of one head, or the mean of all."""
    heads = call.map(rows=rows)[0]
    return heads.mean(0) if head is None else heads[head]


def _maps(call: RecordedAttention, rows: list[int], asked: str, head: int | None) -> list[tuple[str, Any]]:
    if asked != "all":
        return [("mean of heads" if head is None else f"head {head}", _weights(call, rows, head).tolist())]
    return [(f"head {i}", weights.tolist()) for i, weights in enumerate(call.map(rows=rows)[0])]


def _report(
    model: str, text: str, ids: list[int], layer: int, layers: int, head: str, shown: Picture, output: Path | None
) -> dict[str, Any]:
    return {
        "model": model,
        "text": text,
        "tokens": [{"id": i, "text": token} for i, token in zip(ids, shown.tokens, strict=True)],
        "layer": layer,
        "layers": layers,
        "head": head,
        "rows": shown.rows,
        "attended": [[{"position": key, "weight": weight} for key, weight in keys] for keys in shown.attended],
        "weights": None if shown.maps is None else dict(shown.maps),
        "picture": None if output is None else str(output),
    }
