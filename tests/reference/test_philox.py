"""Philox4x32-10 against the known answers that its authors publish, and the statistics of the masks made from it."""

from __future__ import annotations

import pytest
import torch

from tilewright.ops._dropout import dropout_scale, dropout_threshold
from tilewright.reference.philox import keep_mask, philox

# Random123's kat_vectors: (counter, key) -> lanes.
KNOWN = [
    ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
    ((0xFFFFFFFF,) * 4, (0xFFFFFFFF,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
    (
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
        (0xA4093822, 0x299F31D0),
        (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
    ),
]


def signed(value: int) -> int:
    return value - 2**64 if value >= 2**63 else value


@pytest.mark.parametrize(("counter", "key", "lanes"), KNOWN)
def test_known_answers(counter: tuple[int, ...], key: tuple[int, int], lanes: tuple[int, ...]) -> None:
    seed = torch.tensor(signed(key[0] | key[1] << 32))
    found = philox(seed, tuple(torch.tensor(c) for c in counter))  # type: ignore[arg-type]
    assert tuple(int(x) for x in found) == lanes


def test_mask_keeps_the_asked_share_and_depends_on_every_coordinate() -> None:
    rng = torch.tensor([123, 5])
    planes, rows = torch.arange(6).view(6, 1), torch.arange(64)
    kept = keep_mask(rng, planes, rows, 101, 0.3)
    assert kept.shape == (6, 64, 101)
    assert abs(kept.float().mean().item() - 0.7) < 0.01
    assert not torch.equal(kept[0], kept[1])
    assert not torch.equal(kept[:, 0], kept[:, 1])
    assert not torch.equal(kept, keep_mask(torch.tensor([124, 5]), planes, rows, 101, 0.3))
    assert not torch.equal(kept, keep_mask(torch.tensor([123, 6]), planes, rows, 101, 0.3))
    # A narrower mask is the same mask, cut: positions decide, not shapes.
    assert torch.equal(kept[2:3, :9, :7], keep_mask(rng, planes[2:3], rows[:9], 7, 0.3))


def test_extremes() -> None:
    rng, zero, rows = torch.tensor([1, 2]), torch.zeros(1, 1, dtype=torch.int64), torch.arange(8)
    assert keep_mask(rng, zero, rows, 8, 0.0).all()
    assert not keep_mask(rng, zero, rows, 8, 1.0).any()
    assert dropout_threshold(1.0) == 2**32 - 1
    assert dropout_scale(1.0) == 0.0
    assert dropout_threshold(0.5) == 2**31
    assert dropout_scale(0.5) == 2.0
