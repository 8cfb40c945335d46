"""``tilewright explain``."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from tilewright.catalog import OPS
from tilewright.registry import backends, unavailable

from .conftest import Run


@pytest.mark.parametrize("op", OPS)
def test_every_op_by_default(run: Run, op: str, tmp_path: Path) -> None:
    file = tmp_path / "explain.json"
    result = run("explain", op, "--json", str(file))
    assert result.code == 0
    found = json.loads(file.read_text())
    assert found["op"] == op
    assert found["chosen"] == ("reference" if unavailable("cpu") else "cpu")
    assert list(found["reasons"]) == list(backends())
    assert found["cost"]["flops"] > 0
    for name in backends():
        assert f"\n{name} " in result.out


def test_features_reach_the_call(run: Run) -> None:
    options = [
        "--kv-heads",
        "2",
        "--causal",
        "bottom_right",
        "--window",
        "64,none",
        "--mask",
        "float",
        "--softcap",
        "30",
    ]
    options += ["--alibi", "--sinks", "--dtype", "bfloat16", "--head-dim-v", "32"]
    assert run("explain", "attention", "--dropout", "0.1", *options).code == 0
    assert run("explain", "varlen_attention", *options).code == 0
    assert run("explain", "kvcache_attention", "--page-size", "16", *options).code == 0


def test_cost_follows_the_options(run: Run) -> None:
    full = run("explain", "attention", "--shape", "1,1,1000,64").out
    causal = run("explain", "attention", "--shape", "1,1,1000,64", "--causal", "top_left").out
    assert "0.256 GFLOP" in full
    assert "0.128 GFLOP" in causal


def test_ffn_and_softmax_options(run: Run) -> None:
    assert run("explain", "ffn", "--activation", "swiglu", "--hidden", "100", "--bias", "--dropout", "0.1").code == 0
    assert run("explain", "softmax", "--dim", "0", "--mask", "bool").code == 0
    assert run("explain", "log_softmax", "--causal", "top_left").code == 0


@pytest.mark.skipif(torch.cuda.is_available(), reason="describes a device that is not here")
def test_a_device_that_is_not_here(run: Run) -> None:
    result = run("explain", "attention", "--device", "cuda")
    assert result.code == 0
    assert "automatic for cuda tensors" in result.out
    assert "the cpu backend reads host memory only" in result.out or unavailable("cpu")


def test_a_requested_backend_that_cannot_is_exit_code_1(run: Run) -> None:
    missing = next((name for name, reason in backends().items() if reason is not None), None)
    if missing is None:
        pytest.skip("every backend works here")
    result = run("explain", "attention", "--backend", missing)
    assert result.code == 1
    assert "cannot be served (requested by backend=)" in result.out


def test_pytorchs_function(run: Run, tmp_path: Path) -> None:
    file = tmp_path / "explain.json"
    options = ["--kv-heads", "2", "--dropout", "0.1", "--seqlen-k", "2048", "--json", str(file)]
    result = run("explain", "scaled_dot_product_attention", "--causal", "bottom_right", *options)
    assert result.code == 0
    assert json.loads(file.read_text())["chosen"] == ("reference" if unavailable("cpu") else "cpu")
    assert "calls served by tilewright" in result.out
    assert run("explain", "scaled_dot_product_attention", "--mask", "float").code == 0
    refused = run("explain", "scaled_dot_product_attention", "--window", "8,0")
    assert (refused.code, "--window" in refused.err) == (2, True)
    both = run("explain", "scaled_dot_product_attention", "--mask", "bool", "--causal", "bottom_right")
    assert (both.code, "--mask" in both.err) == (2, True)
