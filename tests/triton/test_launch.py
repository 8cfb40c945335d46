"""Which table of launch configurations serves which chip."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

pytest.importorskip("triton")

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
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _device: capability)
    properties = SimpleNamespace(shared_memory_per_block_optin=kibibytes * 1024)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _device: properties)
    assert launch.architecture(torch.device("cuda", 0)) == table


def test_every_attention_call_has_a_configuration_of_its_own() -> None:
    for architecture in launch.ARCHITECTURES:
        for kernel, rows in attention_table.TABLE[architecture].items():
            for size in (2, 4):
                for width in attention_table.WIDTHS:
                    for load in range(8):
                        key = attention_table.table_key(size, width, load)
                        assert key in rows or "" in rows, f"{architecture} {kernel} has no entry for {key!r}"
