"""The built-in cases, and the traps around them."""

from __future__ import annotations

import inspect

import pytest
import torch

import tilewright as tw
from tilewright.catalog import OPS
from tilewright.registry import backends
from tilewright.verify.case import DTYPES, GUARD_BYTES, Case, Maker
from tilewright.verify.cases import CASES, find_case, select_cases
from tilewright.verify.fuzz import fuzz_case
from tilewright.verify.run import run_case
from tilewright.verify.tolerance import Comparison, Errors

# Triton's interpreter is slow: tests/triton chooses cases for it.
AVAILABLE = [name for name, reason in backends().items() if reason is None and name != "triton"]

#: One case in seven keeps this test quick (no list of features is a multiple of it); `tilewright verify` runs all.
SAMPLE = CASES[::7]


@pytest.mark.parametrize("case", SAMPLE, ids=lambda c: c.id)
def test_every_backend_passes(case: Case) -> None:
    for record in run_case(case, AVAILABLE):
        assert record.status == "passed", f"{record.backend}: {record.problems}"


def test_identities_are_unique() -> None:
    assert len({c.id for c in CASES}) == len(CASES)


@pytest.mark.parametrize("op", OPS)
def test_every_argument_of_every_op_is_used(op: str) -> None:
    used: set[str] = set()
    for case in CASES:
        if case.op == op and case.dtype == torch.float32:
            used |= case.make(Maker(0, case.dtype)).keys()
    assert used == set(inspect.signature(OPS[op][1]).parameters) - {"backend"}


@pytest.mark.parametrize("op", OPS)
def test_every_gradient_is_compared_in_every_dtype(op: str) -> None:
    contract = OPS[op][0]
    for dtype in DTYPES.values():
        compared = {g for c in CASES if c.op == op and c.dtype == dtype for g in c.gradients}
        assert compared == set(contract.differentiable) | set(contract.passes_through)


def test_selection_by_pattern() -> None:
    assert {c.op for c in select_cases(["softmax", "ffn"])} == {"softmax", "ffn"}
    assert {c.name for c in select_cases(patterns=["scalar"])} == {"scalar"}
    assert {c.dtype for c in select_cases(["ffn"], [torch.bfloat16])} == {torch.bfloat16}
    assert [c.id for c in select_cases(patterns=["softmax/scalar/float64"])] == ["softmax/scalar/float64"]


def test_a_case_is_found_by_its_id() -> None:
    assert find_case("softmax/scalar/float64").id == "softmax/scalar/float64"
    with pytest.raises(LookupError, match="there is no verification case 'softmax/scalar'"):
        find_case("softmax/scalar")


def test_inputs_lie_in_guarded_memory_as_asked() -> None:
    m = Maker(0, torch.float32)
    t = m.normal(3, 4, order=(1, 0), pad=2, offset=1)
    guard = GUARD_BYTES // 4
    assert t.stride() == (1, 5)
    assert t.storage_offset() == guard + 1
    block = m.blocks[0]
    assert len(block) == 2 * guard + 1 + 4 * 5
    assert block[: guard + 1].isnan().all()
    assert block[-guard:].isnan().all()
    assert t.isfinite().all()


def test_the_same_seed_makes_the_same_inputs() -> None:
    case = select_cases(["attention"], [torch.float16], ["everything"])[0]
    first, second, other = (case.make(Maker(seed, case.dtype)) for seed in (3, 3, 4))
    assert torch.equal(first["q"], second["q"])
    assert not torch.equal(first["q"], other["q"])


def test_global_random_state_is_left_alone() -> None:
    case = select_cases(["attention"], [torch.float32], ["dropout_0.5"])[0]
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    run_case(case, ["reference"])
    assert torch.equal(torch.rand(3), expected)
    assert not torch.are_deterministic_algorithms_enabled()


def test_fuzzing_is_reproducible_and_varied() -> None:
    specs = [fuzz_case(s) for s in range(60)]
    again = [fuzz_case(s) for s in range(60)]
    assert [(c.id, c.spec) for c in specs] == [(c.id, c.spec) for c in again]
    assert {c.op for c in specs} == set(OPS)
    assert {c.dtype for c in specs} == set(DTYPES.values())


@pytest.mark.parametrize("seed", range(40))
def test_random_cases_pass(seed: int) -> None:
    for record in run_case(fuzz_case(seed), AVAILABLE, seed):
        assert record.status == "passed", f"{record.backend} {record.case.spec}: {record.problems}"


def test_baseline_is_torchs_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """SDPA is what runs, wherever it can express the call."""
    from tilewright.verify import baseline

    calls = []
    sdpa = torch.nn.functional.scaled_dot_product_attention
    monkeypatch.setattr(baseline.F, "scaled_dot_product_attention", lambda *a, **k: calls.append(k) or sdpa(*a, **k))
    q = torch.randn(1, 2, 5, 8)
    for options in ({}, {"causal": "top_left"}, {"window": (2, 0)}, {"mask": torch.ones(5, 5).tril().bool()}):
        out = baseline.run_baseline("attention", {"q": q, "k": q, "v": q, **options}, ())["out"]
        torch.testing.assert_close(out, tw.attention(q, q, q, **options, backend="reference"))
    assert len(calls) == 4
    assert calls[1]["is_causal"]
    baseline.run_baseline("attention", {"q": q, "k": q, "v": q, "softcap": 3.0}, ())
    assert len(calls) == 4


@pytest.mark.parametrize("case", CASES[3::37], ids=lambda c: c.id)
def test_no_tensor_lies_anywhere_but_on_its_backends_device(case: Case) -> None:
    """With a default device that holds no numbers, a tensor made without naming one cannot meet the others."""
    torch.set_default_device("meta")
    try:
        (record,) = run_case(case, ["cpu" if "cpu" in AVAILABLE else "reference"])
    finally:
        torch.set_default_device(None)
    assert record.status == "passed", f"{record.problems}: name the device of every tensor in verify/ and reference/"


@pytest.mark.parametrize(
    ("shares", "draws"),
    [([1.0], 1), ([1.2, 0.8], 16), ([1.2, 0.9, 1.0], 64), ([1.2, 1.1, 1.1, 0.9], 512), ([1.2, 0.9, 1.1, 1.1], 512)],
)
def test_draws_of_few_elements_settle_what_is_well_within_the_gate(
    shares: list[float], draws: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """shares: of the gate, after one draw and after each of the steps."""
    after = dict(zip((1, 16, 64, 512), shares, strict=False))

    def compared(name: str, _: torch.dtype, errors: list[Errors], *others: object) -> Comparison:
        used = after[len(errors)]
        return Comparison(name, used, used, 0.0, 0.0, 1.0, 1.0, None if used <= 1.0 else "misses")

    monkeypatch.setattr("tilewright.verify.run.compare", compared)
    (record,) = run_case(find_case("softmax/scalar/float32"), ["reference"])
    assert (record.draws, record.status) == (draws, "passed" if shares[-1] <= 1.0 else "failed")
