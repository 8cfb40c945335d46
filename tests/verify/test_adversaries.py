"""Verification cannot be fooled: every wrong implementation fails, and for the right reason; the honest one passes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from tilewright.registry import Implementation
from tilewright.verify.case import Case
from tilewright.verify.cases import attention, ffn, kvcache_attention, softmax
from tilewright.verify.run import run_case

from . import adversaries as bad


def _run(monkeypatch: pytest.MonkeyPatch, case: Case, implementation: Implementation) -> Any:
    bad.install(monkeypatch, case.op, implementation)
    return run_case(case, [bad.BACKEND])[0]


def _case(op: str, dtype: torch.dtype = torch.float32) -> Case:
    if op == "attention":
        return attention.case("adversarial", dtype, causal="top_left", seqlen_q=20, seqlen_k=24)
    if op == "ffn":
        return ffn.case("adversarial", dtype, biases=True)
    return softmax.case(op, "adversarial", dtype, shape=(6, 40))


OPS = ("attention", "softmax", "log_softmax", "ffn")

EVERYWHERE: dict[str, tuple[Callable[[str], Implementation], str]] = {
    "zeros": (bad.zeros, "error"),
    "cached": (bad.cached, "error"),
    "reused_buffer": (bad.reused_buffer, "the first call's result changed"),
    "dropped_tail_rows": (bad.dropped_tail_rows, "not finite"),
    "unwritten_column": (bad.unwritten_column, "not finite"),
    "mutates_input": (bad.mutates_input, "was changed"),
    "writes_past_input": (bad.writes_past_input, "was changed"),
    "nan_in_one_row": (bad.nan_in_one_row, "not finite"),
    "wrong_strides": (bad.wrong_strides, "strides"),
    "wrong_dtype": (bad.wrong_dtype, "dtype"),
    "less_precise": (bad.less_precise, "error"),
    "raises": (bad.raises, "launch failed"),
    "missing_gradient": (bad.missing_gradient, "no gradient"),
}


@pytest.mark.parametrize("op", OPS)
def test_the_honest_implementation_passes(monkeypatch: pytest.MonkeyPatch, op: str) -> None:
    record = _run(monkeypatch, _case(op), bad.honest(op))
    assert record.status == "passed", record.problems


@pytest.mark.parametrize("name", EVERYWHERE)
@pytest.mark.parametrize("op", OPS)
def test_wrong_implementations_fail(monkeypatch: pytest.MonkeyPatch, op: str, name: str) -> None:
    make, why = EVERYWHERE[name]
    record = _run(monkeypatch, _case(op), make(op))
    assert record.status == "failed"
    assert why in " ".join(record.problems)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    ("what", "change"),
    [
        ("scale off by 1%", lambda call: call._replace(scale=call.scale * 1.01)),
        ("causal bound off by one", lambda call: call._replace(causal=None, window_right=1)),
        ("last key left out", lambda call: call._replace(k=call.k[:, :, :-1], v=call.v[:, :, :-1])),
        ("no causal bound", lambda call: call._replace(causal=None)),
    ],
)
def test_wrong_attention_fails(
    monkeypatch: pytest.MonkeyPatch, what: str, change: Callable[[Any], Any], dtype: torch.dtype
) -> None:
    case = attention.case("adversarial", dtype, causal="top_left", seqlen_q=24, seqlen_k=24, gradients=[])
    record = _run(monkeypatch, case, bad.with_call("attention", change))
    assert record.status == "failed", what


def test_skipped_last_block_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    case = attention.case("adversarial", torch.bfloat16, seqlen_q=16, seqlen_k=200, gradients=[])
    wrong = bad.with_call("attention", lambda call: call._replace(k=call.k[:, :, :192], v=call.v[:, :, :192]))
    assert _run(monkeypatch, case, wrong).status == "failed"


def test_reading_past_a_tensor_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    record = _run(monkeypatch, _case("attention"), bad.reads_past_keys("attention"))
    assert record.status == "failed"
    assert "not finite" in " ".join(record.problems)


def test_a_zero_output_fails_on_wide_softmax_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every element is below any fixed tolerance: only errors held against their own magnitude tell."""
    case = softmax.case("softmax", "wide", torch.bfloat16, shape=(2, 100_000), values="equal")
    assert _run(monkeypatch, case, bad.zeros("softmax")).status == "failed"


def test_a_wrong_gradient_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    record = _run(monkeypatch, _case("attention"), bad.scaled_gradient("attention"))
    assert record.status == "failed"
    assert all("dk" in p for p in record.problems)


def test_another_dropout_mask_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    case = attention.case("adversarial", torch.float32, dropout_p=0.2, gradients=[])
    wrong = bad.with_call("attention", lambda call: call._replace(rng=call.rng + 1))
    assert _run(monkeypatch, case, wrong).status == "failed"


def test_the_wrong_cache_position_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    case = kvcache_attention.case("adversarial", torch.float32, lengths=[9, 3], new=1)
    wrong = bad.with_call("kvcache_attention", lambda call: call._replace(cache_seqlens=call.cache_seqlens + 1))
    record = _run(monkeypatch, case, wrong)
    assert record.status == "failed"
    assert "k_cache: not what it should hold" in " ".join(record.problems)


def test_unequal_reruns_fail_where_determinism_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[None] = []

    def change(call: Any, out: bad.Outputs) -> bad.Outputs:
        calls.append(None)
        return (torch.nextafter(out[0], out[0] + len(calls) % 2), *out[1:])

    case = attention.case("adversarial", torch.float32, deterministic=True)
    record = _run(monkeypatch, case, bad.with_forward("attention", change))
    assert record.status == "failed"
    assert "differs between two runs" in " ".join(record.problems)


def test_a_refusal_is_recorded_with_its_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    from dataclasses import replace

    refusing = replace(bad.honest("softmax"), unsupported=lambda call: "only on Sundays")
    record = _run(monkeypatch, _case("softmax"), refusing)
    assert record.status == "refused"
    assert record.problems == ("only on Sundays",)
