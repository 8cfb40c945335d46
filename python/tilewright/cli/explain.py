"""``tilewright explain``: the decision for a call that is described in options, without running it."""

from __future__ import annotations

from contextlib import nullcontext
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .console import UserError, print_table, user_errors, write_json
from .options import JsonFile, check_choice, parse_dtype, parse_ints

if TYPE_CHECKING:
    from torch import Tensor

SDPA = "scaled_dot_product_attention"
_SHAPES = {
    "attention": ("2,8,1024,64", "B,H,S,D"),
    "varlen_attention": ("1024,8,64", "total,H,D"),
    "kvcache_attention": ("2,8,1,64", "B,H,S,D"),
    "softmax": ("64,1024", "any"),
    "log_softmax": ("64,1024", "any"),
    "ffn": ("128,768", "rows,C"),
    "scaled_dot_product_attention": ("2,8,1024,64", "B,H,S,D"),
}


def explain(
    op: Annotated[
        str,
        typer.Argument(
            help="attention, varlen_attention, kvcache_attention, softmax, log_softmax, ffn; or "
            "scaled_dot_product_attention: what replace_sdpa would do with a call of PyTorch's function."
        ),
    ],
    shape: Annotated[str | None, typer.Option(help="Of q (B,H,S,D; total,H,D for varlen_attention) or of x.")] = None,
    dtype: Annotated[str, typer.Option(help="float32, float16, bfloat16 or float64.")] = "float32",
    device: Annotated[str, typer.Option(help="Where the tensors would be; it need not exist here.")] = "cpu",
    backend: Annotated[str | None, typer.Option(help="As the op's argument of that name.")] = None,
    kv_heads: Annotated[int | None, typer.Option(help="Heads of k and v.")] = None,
    seqlen_k: Annotated[
        int | None, typer.Option(help="Keys; positions that the cache holds for kvcache_attention.")
    ] = None,
    head_dim_v: Annotated[int | None, typer.Option(help="Head dim of v.")] = None,
    causal: Annotated[str | None, typer.Option(help="top_left or bottom_right.")] = None,
    window: Annotated[str | None, typer.Option(help="LEFT,RIGHT; 'none' for no limit.")] = None,
    mask: Annotated[str | None, typer.Option(help="bool or float.")] = None,
    softcap: Annotated[float, typer.Option()] = 0.0,
    alibi: Annotated[bool, typer.Option("--alibi", help="With ALiBi slopes.")] = False,
    sinks: Annotated[bool, typer.Option("--sinks", help="With a sink logit per head.")] = False,
    dropout: Annotated[float, typer.Option()] = 0.0,
    page_size: Annotated[int | None, typer.Option(help="Of a paged cache.")] = None,
    dim: Annotated[int, typer.Option(help="Of softmax.")] = -1,
    hidden: Annotated[int | None, typer.Option(help="Width of the ffn's inner layer; 4 C if not given.")] = None,
    activation: Annotated[str, typer.Option(help="Of ffn.")] = "gelu_tanh",
    bias: Annotated[bool, typer.Option("--bias", help="ffn with biases.")] = False,
    json: JsonFile = None,
) -> None:
    """Show which backend would serve a call, how that was decided, and what every backend says about it."""
    import torch

    check_choice("OP", op, tuple(_SHAPES))
    sizes = parse_ints("--shape", shape or _SHAPES[op][0])
    with user_errors(RuntimeError):
        there = torch.device(device)
    options = {
        "kv_heads": kv_heads,
        "seqlen_k": seqlen_k,
        "head_dim_v": head_dim_v,
        "mask": mask,
        "alibi": alibi,
        "sinks": sinks,
        "page_size": page_size,
        "hidden": hidden,
        "activation": activation,
        "bias": bias,
    }
    keywords: dict[str, Any] = {}
    if op in ("softmax", "log_softmax"):
        keywords = {"dim": dim, "causal": causal}
    elif op == "ffn":
        keywords = {"dropout_p": dropout, "activation": activation}
    elif op == SDPA:
        given = {"--window": window, "--softcap": softcap, "--alibi": alibi, "--sinks": sinks}
        if extra := [name for name, value in given.items() if value]:
            raise UserError(f"{extra[0]}: {SDPA} has no such argument; leave it out, or explain attention")
        keywords = {"causal": causal, "dropout_p": dropout}
    else:
        keywords = {"causal": causal, "window": _window(window), "softcap": softcap}
        if op != "kvcache_attention":
            keywords["dropout_p"] = dropout
    # Tensors of a device that is not here, and large ones, are described rather than made.
    from torch._subclasses.fake_tensor import FakeTensorMode

    absent = there.type != "cpu" and not _exists(there)
    with user_errors(ValueError, TypeError), FakeTensorMode() if absent else nullcontext():
        tensors = _tensors(op, sizes, parse_dtype(dtype), there, options)
        decision, cost = _decide(op, tensors, keywords, backend)
        cost = None if absent else cost
    print(f"{op}: {f'runs on {decision.chosen}' if decision.chosen else 'cannot be served'} ({decision.how})\n")
    print_table(("backend", "verdict"), [(b, r or "can serve this call") for b, r in decision.reasons.items()])
    if decision.notes:
        print(f"\n{decision.notes}")
    if cost is not None:
        print(f"\nleast work: {cost.flops / 1e9:.3g} GFLOP, {cost.bytes / 1e6:.3g} MB moved")
    if json is not None:
        least = None if cost is None else {"flops": cost.flops, "bytes": cost.bytes}
        write_json(
            json, {"op": op, "chosen": decision.chosen, "how": decision.how, "reasons": decision.reasons, "cost": least}
        )
    if decision.chosen is None:
        raise typer.Exit(1)


def _decide(op: str, tensors: dict[str, Any], keywords: dict[str, Any], backend: str | None) -> tuple[Any, Any]:
    """The decision, and the cost of the call."""
    from ..catalog import OPS, canonical_call, explain
    from ..dispatch import explain_call

    if op != SDPA:
        call, requested = canonical_call(op, **tensors, **keywords, backend=backend)
        return explain_call(op, call, requested), OPS[op][0].cost(call)

    from torch.nn.attention.bias import causal_lower_right

    from ..integrations.sdpa import prepare

    q, k, v, mask, causal = (*(tensors[n] for n in "qkv"), tensors.get("mask"), keywords["causal"])
    if causal == "bottom_right":
        if mask is not None:
            raise UserError("--causal bottom_right: PyTorch's function takes it in place of a mask; leave out --mask")
        mask = causal_lower_right(q.shape[2], k.shape[2])
    elif causal is not None:
        check_choice("--causal", causal, ("top_left", "bottom_right"))
    arguments = {"attn_mask": mask, "dropout_p": keywords["dropout_p"], "is_causal": causal == "top_left"}
    arguments["enable_gqa"] = k.shape[1] != q.shape[1]
    call, _ = prepare(q, k, v, **arguments)
    return explain(SDPA, q, k, v, **arguments, backend=backend), OPS["attention"][0].cost(call)


def _exists(device: Any) -> bool:
    import torch

    return device.type == "cuda" and torch.cuda.is_available()


def _window(text: str | None) -> tuple[int | None, int | None] | None:
    if text is None:
        return None
    parts = text.lower().split(",")
    if len(parts) != 2:
        raise UserError(f"--window {text}: give LEFT,RIGHT, each a number or 'none'")
    sides = [None if part == "none" else parse_ints("--window", part)[0] for part in parts]
    return sides[0], sides[1]


def _need(op: str, sizes: list[int], count: int) -> list[int]:
    if len(sizes) != count:
        raise UserError(f"--shape {','.join(map(str, sizes))}: {op} takes {_SHAPES[op][1]}, such as {_SHAPES[op][0]}")
    return sizes


def _tensors(op: str, sizes: list[int], dtype: Any, device: Any, options: dict[str, Any]) -> dict[str, Any]:
    """The op's tensor arguments, uninitialised."""
    import torch

    def empty(*shape: int) -> Tensor:
        return torch.empty(shape, dtype=dtype, device=device)

    def mask(*shape: int) -> dict[str, Tensor]:
        kind = options["mask"]
        if kind is None:
            return {}
        check_choice("--mask", kind, ("bool", "float"))
        return {"mask": torch.empty(shape, dtype=torch.bool if kind == "bool" else dtype, device=device)}

    if op in ("softmax", "log_softmax"):
        return {"x": empty(*sizes), **mask(*sizes)}
    if op == "ffn":
        from ..ops.ffn import GATED

        if len(sizes) < 1:
            raise UserError("--shape: ffn takes rows,C")
        features = sizes[-1]
        hidden = 4 * features if options["hidden"] is None else options["hidden"]
        inner = 2 * hidden if options["activation"] in GATED else hidden
        biases = {"b_in": empty(inner), "b_out": empty(features)} if options["bias"] else {}
        return {"x": empty(*sizes), "w_in": empty(inner, features), "w_out": empty(features, hidden), **biases}
    if op == "varlen_attention":
        total, heads, head_dim = _need(op, sizes, 3)
        batch, seqlen_q, total_k = 1, total, options["seqlen_k"] or total
    else:
        batch, heads, seqlen_q, head_dim = _need(op, sizes, 4)
        total_k = options["seqlen_k"] or max(seqlen_q, 1024 if op == "kvcache_attention" else seqlen_q)
    heads_kv, head_dim_v = options["kv_heads"] or heads, options["head_dim_v"] or head_dim
    options_of_all = mask(batch, heads, seqlen_q, total_k)
    if options["alibi"]:
        options_of_all["alibi_slopes"] = torch.empty(heads, device=device)
    if options["sinks"]:
        options_of_all["sinks"] = empty(heads)
    if op in ("attention", SDPA):
        k, v = empty(batch, heads_kv, total_k, head_dim), empty(batch, heads_kv, total_k, head_dim_v)
        return {"q": empty(batch, heads, seqlen_q, head_dim), "k": k, "v": v, **options_of_all}
    if op == "varlen_attention":
        bounds = {
            f"cu_seqlens_{n}": torch.tensor([0, s], dtype=torch.int32, device=device)
            for n, s in (("q", total), ("k", total_k))
        }
        lengths = {"max_seqlen_q": total, "max_seqlen_k": total_k}
        k, v = empty(total_k, heads_kv, head_dim), empty(total_k, heads_kv, head_dim_v)
        return {"q": empty(total, heads, head_dim), "k": k, "v": v, **bounds, **lengths, **options_of_all}
    page = options["page_size"]
    rows = (batch, heads_kv, total_k)
    table = {}
    if page:
        pages = -(-total_k // page)
        rows = (batch * pages, heads_kv, page)
        table["block_table"] = torch.arange(batch * pages, dtype=torch.int32, device=device).view(batch, pages)
        if "mask" in options_of_all:
            options_of_all.update(mask(batch, heads, seqlen_q, pages * page))
    caches = {"k_cache": empty(*rows, head_dim), "v_cache": empty(*rows, head_dim_v)}
    seqlens = torch.full((batch,), total_k, dtype=torch.int32, device=device)
    return {"q": empty(batch, heads, seqlen_q, head_dim), **caches, "cache_seqlens": seqlens, **table, **options_of_all}
