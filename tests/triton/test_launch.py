"""Which table of launch configurations serves which chip."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

pytest.importorskip("triton")

from tilewright.backends import triton as triton_backend
from tilewright.chips import Chip
from tilewright.errors import BackendError
from tilewright.triton_kernels import attention_table, launch

#: Compute capability, bytes of shared memory that a block may have, and the table.
CHIPS = [
    ((7, 5), 64, "sm_80"),
    ((8, 0), 163, "sm_80"),
    ((8, 6), 99, "sm_80"),
    ((8, 9), 99, "sm_80"),
    ((9, 0), 227, "sm_90"),
    ((10, 0), 227, "sm_100"),
    ((10, 3), 227, "sm_100"),
    ((12, 0), 99, "sm_80"),
]


@pytest.mark.parametrize(("capability", "kibibytes", "table"), CHIPS)
def test_a_chip_takes_the_table_that_its_shared_memory_and_generation_allow(
    capability: tuple[int, int], kibibytes: int, table: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(launch, "INTERPRETED", False)
    monkeypatch.setattr(launch, "chip_of", lambda _device: Chip("a GPU", capability, 100, kibibytes * 1024))
    assert launch.architecture(torch.device("cuda", 0)) == table


def test_a_chip_that_is_too_old_is_refused_in_words(monkeypatch: pytest.MonkeyPatch) -> None:
    """Otherwise a T4 gets what Triton's compiler says about bfloat16."""
    on_gpu = SimpleNamespace(is_cpu=False, is_cuda=True, device=torch.device("cuda", 0), dtype=torch.float16)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    for capability, refused in (((7, 5), True), ((8, 0), False), ((12, 0), False)):
        chip = Chip("Tesla T4", capability, 40, 64 * 1024)
        monkeypatch.setattr(triton_backend.chips, "chip_of", lambda _device, chip=chip: chip)
        triton_backend.why_not_on.cache_clear()
        reason = triton_backend.unsupported((on_gpu,))
        assert (reason is not None) == refused, (capability, reason)
        if refused:
            assert "Tesla T4 of compute capability 7.5" in reason and "8.0 or later" in reason
    triton_backend.why_not_on.cache_clear()


def test_grids_that_no_chip_takes_are_refused() -> None:
    """Triton's launcher multiplies a grid's numbers as 32-bit integers, and launches nothing where that overflows."""
    assert launch.grid(2**31 - 1) == (2**31 - 1, 1)
    assert launch.grid(70000, 256) == (70000, 256)
    for x, y in ((2**31, 1), (2**30, 4), (1, 65536)):
        with pytest.raises(BackendError, match="too large: a GPU takes 2147483647"):
            launch.grid(x, y)


def test_every_attention_call_has_a_configuration_of_its_own() -> None:
    for architecture in launch.ARCHITECTURES:
        for kernel, rows in attention_table.TABLE[architecture].items():
            for size in (2, 4):
                for width in attention_table.WIDTHS:
                    for load in range(8):
                        key = attention_table.table_key(size, width, load)
                        assert key in rows or "" in rows, f"{architecture} {kernel} has no entry for {key!r}"
