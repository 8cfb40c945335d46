"""The compiled CPU module itself: random numbers, conversions, instruction sets, parameter structs, working memory."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator

import pytest
import torch

_cpu = pytest.importorskip("tilewright._cpu", reason="the CPU module was left out of this build", exc_type=ImportError)


@pytest.fixture
def restored_isa() -> Iterator[None]:
    before = _cpu.isa()
    yield
    _cpu.set_isa(before)


@pytest.mark.parametrize(
    ("seed", "counter", "expected"),
    [  # the known answers that the authors publish with Random123: zeros, ones, and digits of pi
        (0, (0, 0, 0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
        (2**64 - 1, (2**32 - 1,) * 4, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
        (
            0x299F31D0A4093822,
            (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
            (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
        ),
    ],
)
def test_philox_known_answers(seed: int, counter: tuple[int, ...], expected: tuple[int, ...]) -> None:
    assert _cpu.philox(seed, *counter) == expected


@pytest.mark.parametrize(
    ("dtype", "widen", "narrow"),
    [
        (torch.float16, _cpu.half_to_float, _cpu.float_to_half),
        (torch.bfloat16, _cpu.bfloat16_to_float, _cpu.float_to_bfloat16),
    ],
)
def test_every_half_value_converts_both_ways(dtype: torch.dtype, widen: object, narrow: object) -> None:
    assert callable(widen)
    assert callable(narrow)
    bits = torch.arange(-(2**15), 2**15, dtype=torch.int16)
    values = bits.view(dtype)
    expected = values.float()
    ours = torch.tensor([widen(b & 0xFFFF) for b in bits.tolist()])
    assert torch.equal(ours.isnan(), expected.isnan())
    number = ~expected.isnan()
    assert torch.equal(ours[number], expected[number])
    back = torch.tensor([narrow(x) for x in expected[number].tolist()])
    assert torch.equal(back, bits[number].int() & 0xFFFF)


@pytest.mark.parametrize(
    ("dtype", "narrow"), [(torch.float16, _cpu.float_to_half), (torch.bfloat16, _cpu.float_to_bfloat16)]
)
def test_rounding_to_half_is_to_nearest_even(dtype: torch.dtype, narrow: object) -> None:
    assert callable(narrow)
    values = torch.arange(0, 2**15, dtype=torch.int16).view(dtype).float()
    values = values[values.isfinite()]
    ties = (values[:-1] + values[1:]) / 2
    just_off = torch.cat([torch.nextafter(ties, torch.tensor(torch.inf)), torch.nextafter(ties, torch.tensor(0.0))])
    overflow = torch.tensor([65519.99, 65520.0, 1e38, 3.4e38, torch.inf, -torch.inf, torch.nan])
    for x in torch.cat([ties, just_off, -ties, overflow]):
        expected = x.to(dtype)
        ours = narrow(float(x))
        if expected.isnan():
            assert torch.tensor([ours], dtype=torch.int32).to(torch.int16).view(dtype).isnan()
        else:
            assert ours == int(expected.view(torch.int16)) & 0xFFFF, float(x)


def test_instruction_sets(restored_isa: None) -> None:
    names = _cpu.available_isas()
    assert "portable" in names
    assert _cpu.best_isa() == names[0]
    for name in names:
        _cpu.set_isa(name)
        assert _cpu.isa() == name
    with pytest.raises(ValueError, match=r"'sse9' is not one this CPU and this build have: .*portable"):
        _cpu.set_isa("sse9")


def _isa_in_a_fresh_process(name: str) -> subprocess.CompletedProcess[str]:
    code = "import torch, tilewright._cpu as c; print(c.isa())"
    env = {**os.environ, "TILEWRIGHT_CPU_ISA": name}
    return subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=False)


def test_the_environment_chooses_the_instruction_set() -> None:
    assert _isa_in_a_fresh_process("portable").stdout.strip() == "portable"
    assert _isa_in_a_fresh_process("").stdout.strip() == _cpu.best_isa()
    refused = _isa_in_a_fresh_process("sse9")
    assert refused.returncode != 0
    assert "TILEWRIGHT_CPU_ISA 'sse9' is not one this CPU and this build have" in refused.stderr


@pytest.mark.parametrize("params", [_cpu.AttentionParams, _cpu.SoftmaxParams, _cpu.FfnParams])
def test_every_field_can_be_read_and_written_back(params: type) -> None:
    p = params()
    fields = [name for name in dir(p) if not name.startswith("_")]
    assert "dtype" in fields
    for name in fields:
        value = getattr(p, name)
        setattr(p, name, value)
        assert getattr(p, name) == value
    assert repr(p) == f"{params.__name__}()"


def test_fields_take_what_they_describe() -> None:
    p = _cpu.AttentionParams()
    p.q = (64, (4, 3, 2, 1))
    p.lse = (128, (2, 1))
    p.rng, p.scale, p.causal, p.window_left = 256, 2, 2, -1
    assert p.q == (64, (4, 3, 2, 1))
    assert p.lse == (128, (2, 1, 0, 0))
    assert repr(p) == ("AttentionParams(q=(64, (4, 3, 2, 1)), lse=(128, (2, 1, 0, 0)), rng=256, causal=2, scale=2.0)")
    p.q = None
    assert p.q is None
    s = _cpu.SoftmaxParams()
    s.row_shape = (5, 6)
    assert s.row_shape == (5, 6, 0, 0, 0, 0, 0)


@pytest.mark.parametrize(
    ("field", "value", "error", "message"),
    [
        ("q", 64, TypeError, r"q must be \(address, strides\) or None, got 64"),
        ("q", (64, (1, 2, 3, 4, 5)), TypeError, r"q must be a tuple of at most 4 ints"),
        ("q", (64, (1.0,)), TypeError, r"q must be an int, got 1.0"),
        ("rng", None, TypeError, r"rng must be an address \(int\), got None"),
        ("batch", 1.5, TypeError, r"batch must be an int, got 1.5"),
        ("batch", 2**63, ValueError, r"batch=9223372036854775808 is out of range"),
        ("num_threads", 2**31, ValueError, r"num_threads=2147483648 is out of range"),
        ("dtype", 9, ValueError, r"dtype=9 is out of range: accepted are 0 to 4"),
        ("scale", "1", TypeError, r"scale must be a float, got '1'"),
        ("deterministic", 1, TypeError, r"deterministic must be a bool, got 1"),
        ("no_such_field", 1, AttributeError, r"no_such_field"),
    ],
)
def test_wrong_fields_are_refused_by_name(field: str, value: object, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        setattr(_cpu.AttentionParams(), field, value)


def test_fields_cannot_be_deleted() -> None:
    with pytest.raises(AttributeError, match="scale cannot be deleted"):
        del _cpu.AttentionParams().scale


def test_a_bad_shape_is_an_error_that_names_kernel_and_arguments() -> None:
    p = _cpu.SoftmaxParams()
    p.n = -1
    with pytest.raises(ValueError, match=r"softmax_forward \(\w+\): a size is negative .*; SoftmaxParams\(n=-1\)"):
        _cpu.softmax_forward(p)
    f = _cpu.FfnParams()
    f.dtype = 4
    with pytest.raises(ValueError, match=r"ffn_forward \(\w+\): a dtype is not one that this kernel takes"):
        _cpu.ffn_forward(f)
    with pytest.raises(RuntimeError, match="cast"):
        _cpu.ffn_forward(p)


def test_memory_that_cannot_be_had_is_a_memory_error() -> None:
    x = torch.zeros(1)
    p = _cpu.FfnParams()
    p.rows, p.in_features, p.hidden, p.out_features = 1, 1, 2**56, 1
    p.x = p.w_in = p.w_out = p.out = (x.data_ptr(), (0, 0))
    with pytest.raises(MemoryError, match="ffn_forward"):
        _cpu.ffn_forward(p)


def test_the_module_says_what_built_it() -> None:
    assert _cpu.compiler.split()[0] in ("gcc", "clang")
