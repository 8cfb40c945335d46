"""The timer by device events, on a device that the test makes up: what is between the two events, and what is not."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tilewright.bench import device


@pytest.fixture
def queue(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What is put into the device's queue, in order. A call takes 30 us there."""
    put: list[str] = []

    class Event:
        def __init__(self, enable_timing: bool) -> None:
            assert enable_timing

        def record(self) -> None:
            self.at = put.count("call")
            put.append("event")

        def synchronize(self) -> None:
            pass

        def elapsed_time(self, end: Any) -> float:
            return 30e-3 * (end.at - self.at)  # milliseconds

    assert callable(torch.cuda._sleep), "this torch has no torch.cuda._sleep: DeviceTimer needs another pause"
    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda *_: None)
    monkeypatch.setattr(torch.cuda, "_sleep", lambda cycles: put.append("pause"))
    return put


def test_a_sample_is_the_calls_between_two_events_after_a_pause(queue: list[str]) -> None:
    timer = device.DeviceTimer("cpu")
    assert timer.sample(lambda: queue.append("call"), 3) == pytest.approx(30e-6)
    assert queue == ["pause", "event", "call", "call", "call", "event"]
    assert timer.plan(lambda: queue.append("call")) == round(device.SAMPLE_SECONDS / 30e-6)


def test_cold_samples_are_one_call_after_the_caches_were_overwritten(
    queue: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(device, "FLUSH_BYTES", 16)
    timer = device.DeviceTimer("cpu", cold=True)
    assert timer._flush is not None
    timer._flush.fill_(1)
    assert timer.plan(lambda: queue.append("call")) == 1
    timer.sample(lambda: queue.append("call"), 1)
    assert not timer._flush.any(), "the caches still held what an earlier call left"


def test_poison_takes_the_shapes_of_results() -> None:
    device.poison((torch.ones(3), torch.ones(2, 2, dtype=torch.bfloat16)))
    device.poison(())
