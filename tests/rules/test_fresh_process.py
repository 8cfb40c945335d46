"""A fresh interpreter: importing needs torch alone, loads nothing early, and the reference computes with all else
blocked."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

BLOCK = """
import sys
class Block:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {names} or name in {names}:
            raise ImportError("blocked: " + name)
sys.meta_path.insert(0, Block())
"""


def run(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_works_with_triton_and_the_extensions_blocked() -> None:
    blocked = BLOCK.format(
        names={"triton", "tilewright._cpu", "tilewright._cuda", "transformers", "tokenizers", "rich", "typer"}
    )
    out = run(
        blocked
        + """
import logging; logging.disable(logging.WARNING)
import torch, tilewright as tw
q = torch.randn(1, 2, 5, 8)
assert torch.allclose(tw.attention(q, q, q), torch.nn.functional.scaled_dot_product_attention(q, q, q), atol=1e-5)
assert torch.allclose(tw.softmax(q), q.softmax(-1))
print(tw.backends()["cpu"])
"""
    )
    assert "blocked: tilewright._cpu" in out or "left out" in out


def test_import_loads_no_kernels_and_nothing_heavy() -> None:
    out = run(
        """
import sys, torch
before = set(sys.modules)
import tilewright
loaded = {m.split(".")[0] for m in set(sys.modules) - before}
print(sorted(loaded))
print([m for m in sys.modules if m in ("tilewright._cpu", "tilewright._cuda", "triton", "tilewright.triton_kernels")])
"""
    )
    assert out.splitlines()[1] == "[]"
    for heavy in ("rich", "typer", "transformers", "tokenizers", "safetensors", "matplotlib", "numpy"):
        assert f"'{heavy}'" not in out.splitlines()[0], f"import tilewright loads {heavy}"


def test_import_costs_little_beyond_torch() -> None:
    out = run(
        """
import time, torch
start = time.process_time()
import tilewright
print(time.process_time() - start)
"""
    )
    # The promise is 0.2 s; processor time, and twice that, so that a busy machine does not fail it.
    assert float(out) < 0.4


def test_a_model_that_is_not_there_is_explained(tmp_path: Path) -> None:
    # In a process that has imported nothing else of the hub's library.
    out = run(
        f"""
import os
os.environ.update(HF_HUB_OFFLINE="1", HF_HOME={str(tmp_path)!r})
from tilewright.models.gpt import GPT
try:
    GPT.from_pretrained("gpt2")
except FileNotFoundError as error:
    print(error)
"""
    )
    assert "not in the local cache" in out
    assert "hf download" in out
