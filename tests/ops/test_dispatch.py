"""Choosing a backend: who asked, what it answers, and that nothing falls back silently."""

from __future__ import annotations

import logging
import threading
from typing import Any

import pytest
import torch

import tilewright as tw
from tilewright import config, dispatch, registry
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
