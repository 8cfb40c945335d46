"""install_as_flash_attn: what is imported, what is restored, and transformers' flash_attention_2 on the CPU."""

from __future__ import annotations

import copy
import functools
import importlib
import importlib.metadata
import importlib.util
import sys
from types import ModuleType
from typing import Any

import pytest
import torch

from tilewright.integrations import bert_padding, rotary
from tilewright.integrations import flash_attn as fa
from tilewright.integrations.flash_attn import install_as_flash_attn


def state() -> tuple[dict[str, ModuleType], list[Any]]:
    return {n: m for n, m in sys.modules.items() if n.split(".")[0] == "flash_attn"}, list(sys.meta_path)


def test_imports_are_ours_and_undone() -> None:
    before = state()
    with install_as_flash_attn(transformers=False):
        import flash_attn
        import flash_attn.layers.rotary
        from flash_attn.bert_padding import pad_input, unpad_input
        from flash_attn.flash_attn_interface import flash_attn_varlen_func

        assert flash_attn.flash_attn_func is fa.flash_attn_func
        assert flash_attn_varlen_func is fa.flash_attn_varlen_func
        assert (pad_input, unpad_input) == (bert_padding.pad_input, bert_padding.unpad_input)
        assert flash_attn.layers.rotary.apply_rotary_emb is rotary.apply_rotary_emb
        assert flash_attn.__version__.startswith("2.8.")
        spec = importlib.util.find_spec("flash_attn")
        assert spec is not None and spec.origin == fa.__file__
        for name in ("flash-attn", "flash_attn"):
            assert importlib.metadata.version(name) == flash_attn.__version__
        assert "flash-attn" in importlib.metadata.packages_distributions()["flash_attn"]
        with pytest.raises(ModuleNotFoundError, match=r"flash_attn\.cute"):
            importlib.import_module("flash_attn.cute")
    assert state() == before, "something of flash_attn is left"


def test_another_flash_attn_is_replaced_only_when_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    other, inside = ModuleType("flash_attn"), ModuleType("flash_attn.ops")
    monkeypatch.setitem(sys.modules, "flash_attn", other)
    monkeypatch.setitem(sys.modules, "flash_attn.ops", inside)
    before = state()
    with pytest.raises(RuntimeError, match=r"imported already.*replace=True"):
        install_as_flash_attn(transformers=False)
    assert state() == before
    with install_as_flash_attn(replace=True, transformers=False):
        assert sys.modules["flash_attn"] is not other and "flash_attn.ops" not in sys.modules
    assert state() == before


def test_handles_nest_and_undo_once() -> None:
    before = state()
    outer, inner = install_as_flash_attn(transformers=False), install_as_flash_attn(transformers=False)
    with pytest.raises(RuntimeError, match="no longer what this handle installed"):
        outer.undo()
    inner.undo()
    inner.undo()
    outer.undo()
    assert state() == before


def test_a_failure_leaves_nothing_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    flash = pytest.importorskip("transformers.modeling_flash_attention_utils")
    before, checks = state(), dict(flash.FLASH_ATTENTION_COMPATIBILITY_MATRIX[2])
    monkeypatch.delattr(flash, "_loaded_implementation")
    with pytest.raises(RuntimeError, match=r"_loaded_implementation.*transformers=False"):
        install_as_flash_attn()
    assert state() == before and checks == flash.FLASH_ATTENTION_COMPATIBILITY_MATRIX[2]


def test_a_failure_while_patching_is_rolled_back(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("transformers")
    queries = importlib.import_module("transformers.utils.import_utils")
    before = state()

    class Broken:
        @staticmethod
        def cache_clear() -> None:
            if "flash_attn" in sys.modules:
                raise OSError("on purpose")

    monkeypatch.setattr(queries, "is_flash_attn_4_available", Broken)
    with pytest.raises(OSError, match="on purpose"):
        install_as_flash_attn()
    assert state() == before


def llama(**more: Any) -> Any:
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=40,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=64,
        dtype=torch.float32,
        **more,
    )
    return LlamaForCausalLM(config).eval()


IDS = torch.randint(1, 40, (3, 11), generator=torch.manual_seed(3))
LEFT = torch.ones(3, 11).long()
LEFT[0, :4] = LEFT[2, :1] = 0


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of our functions that transformers has called."""
    pytest.importorskip("transformers")
    seen: list[str] = []

    def noting(function: Any) -> Any:
        @functools.wraps(function)  # with its signature, which transformers reads
        def noted(*args: Any, **kwargs: Any) -> Any:
            seen.append(function.__name__)
            return function(*args, **kwargs)

        return noted

    for name in ("flash_attn_func", "flash_attn_varlen_func"):
        monkeypatch.setattr(fa, name, noting(getattr(fa, name)))
    return seen


@pytest.mark.parametrize("padding", [None, LEFT, LEFT.flip(1)], ids=["none", "left", "right"])
def test_flash_attention_2_of_transformers_on_the_cpu(padding: torch.Tensor | None, calls: list[str]) -> None:
    torch.manual_seed(0)
    eager = llama(attn_implementation="eager")
    with install_as_flash_attn(), torch.no_grad():
        flash = copy.deepcopy(eager)
        flash.set_attn_implementation("flash_attention_2")
        found = flash(IDS, attention_mask=padding).logits
        expected = eager(IDS, attention_mask=padding).logits
    assert calls == ["flash_attn_func" if padding is None else "flash_attn_varlen_func"] * 2
    counted = torch.ones_like(IDS).bool() if padding is None else padding.bool()
    torch.testing.assert_close(found[counted], expected[counted], rtol=1e-4, atol=1e-5)


def test_generation_with_left_padding_and_a_window(calls: list[str]) -> None:
    from transformers import MistralConfig, MistralForCausalLM

    torch.manual_seed(0)
    sizes = {"vocab_size": 40, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}
    config = MistralConfig(
        **sizes, num_attention_heads=4, num_key_value_heads=2, sliding_window=4, attn_implementation="eager"
    )
    model = MistralForCausalLM(config).float().eval()
    options = {"attention_mask": LEFT, "max_new_tokens": 6, "do_sample": False, "pad_token_id": 0, "eos_token_id": None}
    expected = model.generate(IDS, **options)
    with install_as_flash_attn():
        model.set_attn_implementation("flash_attention_2")
        found = model.generate(IDS, **options)
    assert torch.equal(found, expected) and "flash_attn_varlen_func" in calls


def test_transformers_is_itself_again_afterwards() -> None:
    flash = pytest.importorskip("transformers.modeling_flash_attention_utils")
    checks = dict(flash.FLASH_ATTENTION_COMPATIBILITY_MATRIX[2])
    with install_as_flash_attn():
        llama(attn_implementation="flash_attention_2")
        assert flash.is_flash_attn_2_available()
    assert flash.FLASH_ATTENTION_COMPATIBILITY_MATRIX[2] == checks
    assert flash.is_flash_attn_2_available is importlib.import_module("transformers.utils").is_flash_attn_2_available
    if importlib.util.find_spec("flash_attn") is None and not torch.cuda.is_available():
        with pytest.raises(ImportError, match="FlashAttention2"):
            llama(attn_implementation="flash_attention_2")
