"""The program that runs FlashAttention's tests against us, on a small file of the same form."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

PROGRAM = Path(__file__).parent / "run_flash_attn.py"

FILE = """
import pytest, torch
from flash_attn import flash_attn_func
from flash_attn.flash_attn_interface import _get_block_size_n, USE_TRITON_ROCM
is_sm80 = torch.cuda.get_device_capability("cuda") == (8, 0)

@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("seqlen", [3, 9, 4000])
@pytest.mark.parametrize("d,heads", [(8, 1), (16, 2)])
def test_shape(d, heads, seqlen, causal):
    assert is_sm80 and torch.cuda.get_device_properties("cuda").total_memory > 2**30
    q = torch.randn(1, seqlen, heads, d, device="cuda")
    assert flash_attn_func(q, q, q, causal=causal).shape == q.shape and seqlen < 4000

def test_flash_attn_generator_arg_must_be_none():
    from flash_attn.flash_attn_interface import flash_attn_gpu

def test_replaced():
    assert normalize_flash_attn_S(1) == 1

def test_wrong():
    assert False
"""


def test_samples_redirects_and_tells_explained_failures_from_others(tmp_path: Path) -> None:
    copy, json_file = tmp_path / "test_flash_attn.py", tmp_path / "record.json"
    copy.write_text(FILE)
    command = [sys.executable, PROGRAM, copy, "--sample", "5", "--json", json_file]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 1, f"a failure without a reason must fail the run: {done.stdout}{done.stderr}"
    record = json.loads(json_file.read_text())
    assert record["tests"]["test_shape"] == {"combinations": 12, "passed": 5}
    assert record["tests"]["test_replaced"] == {"combinations": 1, "passed": 1}
    explained = {failure["test"]: failure["explained"] for failure in record["failures"]}
    assert explained == {"test_flash_attn_generator_arg_must_be_none": True, "test_wrong": False}
