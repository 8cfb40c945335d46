"""Choosing a backend: who asked, what it answers, and that nothing falls back silently."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch

import tilewright as tw
from tilewright import config, dispatch, registry
from tilewright.chips import Chip
from tilewright.config import BACKENDS, requested_backend
from tilewright.registry import Implementation


def refuses(reason: str) -> Implementation:
    def never(*_: Any) -> Any:
        raise AssertionError("a refused backend was run")

    return Implementation(never, never, lambda call: reason)


@pytest.fixture
def cpu_refuses(monkeypatch: pytest.MonkeyPatch) -> None:
    """A cpu backend that is available and says no to every softmax call."""
    real = registry.find
    monkeypatch.setattr(
        registry,
        "find",
        lambda op, b: refuses("the moon is full") if (op, b) == ("softmax", "cpu") else real(op, b),
    )
    monkeypatch.setattr(dispatch, "_logged", set())


def test_order_of_authority(monkeypatch: pytest.MonkeyPatch) -> None:
    assert requested_backend(None) == ""
    monkeypatch.setattr(config, "_from_environment", "cuda")  # what the variable held at import
    assert requested_backend(None) == "cuda"
    with tw.use_backend("triton"):
        assert requested_backend(None) == "triton"
        with tw.use_backend("reference"):
            assert requested_backend(None) == "reference"
        assert requested_backend(None) == "triton"
        assert requested_backend("cpu") == "cpu"
    assert requested_backend(None) == "cuda"


def test_use_backend_is_undone_by_an_exception_and_is_per_thread() -> None:
    seen: list[str] = []

    def fail_inside() -> None:
        with tw.use_backend("reference"):
            thread = threading.Thread(target=lambda: seen.append(requested_backend(None)))
            thread.start()
            thread.join()
            raise RuntimeError("boom")

    with pytest.raises(RuntimeError, match="boom"):
        fail_inside()
    assert seen == [""]
    assert requested_backend(None) == ""


@pytest.mark.usefixtures("cpu_refuses")
def test_requested_backend_never_falls_back() -> None:
    with pytest.raises(tw.BackendError) as error:
        tw.softmax(torch.randn(3), backend="cpu")
    message = str(error.value)
    assert "backend 'cpu' cannot serve this softmax call: the moon is full" in message
    assert "reference: can serve this call" in message
    assert all(backend in message for backend in BACKENDS)


@pytest.mark.usefixtures("cpu_refuses")
def test_automatic_skip_is_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    x = torch.randn(3)
    with caplog.at_level(logging.WARNING, "tilewright"):
        first, second = tw.softmax(x), tw.softmax(x)
    torch.testing.assert_close(first, torch.softmax(x, -1))
    assert torch.equal(first, second)
    assert [r.message for r in caplog.records] == ["softmax: skipping backend cpu (the moon is full); using reference"]


@pytest.mark.usefixtures("cpu_refuses")
def test_explain_names_choice_and_every_reason() -> None:
    explanation = tw.explain("softmax", torch.randn(3))
    assert explanation.chosen == "reference"
    assert explanation.reasons["cpu"] == "the moon is full"
    assert set(explanation.reasons) == set(BACKENDS)
    assert "softmax runs on reference (automatic for cpu tensors: cpu, then reference)" in str(explanation)
    requested = tw.explain("softmax", torch.randn(3), backend="cpu")
    assert requested.chosen is None
    assert "softmax cannot be served (requested by backend=)" in str(requested)


def test_backends_lists_each_with_a_reason_or_none() -> None:
    found = tw.backends()
    assert list(found) == list(BACKENDS)
    assert found["reference"] is None
    assert all(reason is None or len(reason) > 10 for reason in found.values())


def test_backward_runs_where_its_forward_ran(monkeypatch: pytest.MonkeyPatch) -> None:
    ran: list[str] = []
    real = dispatch.select

    def recording(op: str, call: Any, requested: str) -> Implementation:
        ran.append(requested)
        return real(op, call, requested)

    monkeypatch.setattr("tilewright.ops._op.select", recording)
    x = torch.randn(3, 4, requires_grad=True)
    with tw.use_backend("reference"):
        y = tw.softmax(x)
    y.sum().backward()
    assert ran == ["reference", "reference"]


def test_no_gradient_is_recorded_without_need() -> None:
    x = torch.randn(3, 4)
    assert tw.softmax(x).grad_fn is None
    with torch.no_grad():
        assert tw.softmax(x.requires_grad_()).grad_fn is None


@pytest.fixture
def chip(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[int, int], torch.device]]:
    """Makes cuda:0 a chip of that compute capability."""

    def make(major: int, minor: int) -> torch.device:
        dispatch.candidates.cache_clear()
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        monkeypatch.setattr(dispatch, "chip_of", lambda _device: Chip("a GPU", (major, minor), 100, 2**17))
        return torch.device("cuda", 0)

    yield make
    dispatch.candidates.cache_clear()


def test_the_order_of_a_gpu_s_backends_is_by_chip_and_op(chip: Callable[[int, int], torch.device]) -> None:
    hopper = {op: dispatch.candidates(op, chip(9, 0)) for op in registry.TABLE}
    assert hopper["attention"] == hopper["ffn"] == ("triton", "cuda", "reference")  # by TMA and wgmma
    assert hopper["kvcache_attention"] == hopper["softmax"] == ("cuda", "triton", "reference")
    ampere = {op: dispatch.candidates(op, chip(8, 6)) for op in registry.TABLE}
    assert ampere["ffn"] == ("cuda", "triton", "reference")
    for op, (*rows, last) in dispatch.ORDERS.items():
        assert all(len(o.why) > 20 for o in (*rows, last)), f"{op}: an order without a reason"
        assert [o.capability for o in rows] == sorted((o.capability for o in rows), reverse=True), f"{op}: newest first"
    assert set(dispatch.ORDERS) == set(registry.TABLE), "every op needs an order of a GPU's backends, with its reason"


def test_an_old_chip_and_other_devices_have_an_order_too(chip: Callable[[int, int], torch.device]) -> None:
    assert dispatch.candidates("attention", chip(7, 5)) == ("triton", "cuda", "reference")  # both will refuse, in words
    assert dispatch.candidates("attention", torch.device("cpu")) == ("cpu", "reference")
    assert dispatch.candidates("attention", torch.device("meta")) == ("reference",)


def test_explain_says_why_a_gpu_s_backend_comes_first(
    chip: Callable[[int, int], torch.device], monkeypatch: pytest.MonkeyPatch
) -> None:
    on_gpu = SimpleNamespace(device=chip(9, 0), is_cpu=False)
    monkeypatch.setattr(registry, "why_not", lambda _op, backend, _call: None if backend != "cpu" else "host memory")
    text = str(dispatch.explain_call("attention", (on_gpu,), None))
    assert "attention runs on triton (automatic for cuda tensors: triton, then cuda, then reference" in text
    assert "triton first on this GPU, since its kernels use TMA and wgmma" in text
