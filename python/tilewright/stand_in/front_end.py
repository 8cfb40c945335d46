"""The front end alone: kernels become Triton's intermediate representation and are compiled no further, which takes a
twentieth of the time. Tables, grids, arguments and descriptors are the real ones, and are checked as on a GPU.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
import itertools
import warnings
from types import SimpleNamespace
from typing import Any, NamedTuple

import triton
from triton.compiler import code_generator
from triton.runtime.jit import JITFunction
from triton.tools.tensor_descriptor import TensorDescriptor

from .driver import Launch, launches, refuses

#: The widest swizzle, in bytes: a box's rows are cut to it. And a box's most elements along the other dimensions.
_SWIZZLE_BYTES, _BOX = 128, 256
_SWIZZLE_128B = 3
#: Of CUtensorMapDataType, by Triton's names of elements.
_ELEMENTS = {"float16": (2, 6), "bfloat16": (2, 9), "float32": (4, 7)}


class Instance(NamedTuple):
    """A kernel as it was launched: what Triton's compiler is given. attributes: which arguments are multiples of 16."""

    kernel: Any
    signature: dict[str, str]
    constants: dict[tuple[int, ...], Any]
    attributes: dict[tuple[int, ...], Any]
    options: Any

    @property
    def constants_by_name(self) -> dict[str, Any]:
        """Those of the kernel's own parameters; numbers that are 1 are constants as well, and none of these."""
        names = self.kernel.arg_names
        own = {names[p] for p in self.kernel.constexprs}
        found = {names[path[0]]: value for path, value in self.constants.items()}
        return {n: v for n, v in found.items() if n in own or v is None}

    @property
    def types(self) -> list[str]:
        """Of tensors and descriptors."""
        return [t for t in self.signature.values() if t.startswith(("*", "tensordesc"))]


#: What has been launched since front_end_only(), each once for every chip.
instances: list[Instance] = []

#: Pairs of constants and types that a kernel has been lowered with.
_met: set[frozenset[str]] = set()
_lowering = True


def front_end_only(*, lower: bool = True) -> None:
    """From here on, nothing is compiled, for the rest of the process. lower: False leaves out the front end as well,
    where only what is launched is asked for."""
    global _lowering
    JITFunction._do_compile, _lowering = _do_compile, lower
    # Else each of a kernel's functions is parsed again for each instance of it, each call of a builtin asks for its
    # signature, and each node of the syntax changes the filters of warnings: a fifth of the front end's time.
    JITFunction.parse = functools.cache(JITFunction.parse)
    code_generator.inspect = SimpleNamespace(**{**vars(inspect), "signature": functools.cache(inspect.signature)})
    without_filters = {"catch_warnings": contextlib.nullcontext, "simplefilter": lambda *_: None}
    code_generator.warnings = SimpleNamespace(**{**vars(warnings), **without_filters})


def _do_compile(
    self: Any, key: Any, signature: Any, device: Any, constexprs: Any, options: Any, attrs: Any, warmup: bool
) -> _Kernel:
    kernel_cache, _, target, backend, _ = self.device_caches[device]
    instance = Instance(self, signature, constexprs, attrs, options)
    instances.append(instance)
    if _lowering and not (pairs := _pairs(instance)) <= _met:
        _lower(self.ASTSource(self, signature, constexprs, attrs), target, backend, options)
        _met.update(pairs)
    kernel_cache[key] = found = _Kernel(self.__name__, options.num_warps)
    return found


def _pairs(instance: Instance) -> set[frozenset[str]]:
    """Any two of its constants and types. An instance is lowered where two meet for the first time in its kernel: what
    only three decide together is rare, and with all of them everything takes half as long again. What is aligned
    changes no more than hints, warps and stages nothing, and types of 16 bits are alike."""
    kernel, tensors = instance.kernel.cache_key, instance.types
    types = {n: t.replace("fp16", "bf16") for n, t in instance.signature.items() if t in tensors}
    named = [f"{kernel} {name}={value}" for name, value in (types | instance.constants_by_name).items()]
    return {frozenset(pair) for pair in itertools.combinations(named, 2)}


def _lower(source: Any, target: Any, backend: Any, options: Any) -> Any:
    from triton._C.libtriton import ir

    context = ir.context()
    ir.load_dialects(context)
    backend.load_dialects(context)
    module = source.make_ir(
        target, options, backend.get_codegen_implementation(options), backend.get_module_map(), context
    )
    module.verify()
    return module


def shared_bytes(instance: Instance) -> int:
    """Of shared memory that a block takes: the compiler's stages up to where that is known, a tenth of all."""
    from triton._C.libtriton import ir, nvidia, passes
    from triton.backends.nvidia.compiler import get_ptx_version_from_options
    from triton.compiler import ASTSource, make_backend

    target = triton.runtime.driver.active.get_current_target()
    backend, options = make_backend(target), instance.options
    metadata: dict[str, Any] = {}
    stages: dict[str, Any] = {}
    source = ASTSource(instance.kernel, instance.signature, instance.constants, instance.attributes)
    module = _lower(source, target, backend, options)
    backend.add_stages(stages, options, source.language)
    for stage in ("ttir", "ttgir"):
        module = stages[stage](module, metadata)
    manager = ir.pass_manager(module.context)
    passes.ttgpuir.add_combine_tensor_select_and_if(manager)
    passes.ttgpuir.add_allocate_warp_groups(manager)
    passes.convert.add_scf_to_cf(manager)
    passes.gluon.add_inliner(manager)
    version = get_ptx_version_from_options(options, target.arch)
    nvidia.passes.ttgpuir.add_allocate_shared_memory_nv(manager, target.arch, version)
    manager.run(module, "shared_bytes")
    return int(module.get_int_attr("ttg.shared"))


class _Kernel:
    """What the front end made, in the place of a compiled kernel."""

    function = packed_metadata = None

    def __init__(self, name: str, num_warps: int) -> None:
        self._name, self._num_warps = name, num_warps

    def launch_metadata(self, *_: Any) -> None:
        return None

    def run(self, x: int, y: int, z: int, *others: Any) -> None:
        reason = refuses((x, y, z), 32 * self._num_warps)
        if reason is not None:
            raise RuntimeError(f"{self._name}: {reason}")
        for argument in others:
            if isinstance(argument, TensorDescriptor):
                _encode(argument)
        launches.append(Launch(self._name, (x, y, z), self._num_warps, None))


def _encode(descriptor: TensorDescriptor) -> None:
    """As Triton's launcher does it after compiling, which cuts boxes to what a copy takes."""
    size, element = _ELEMENTS[str(descriptor.base.dtype).removeprefix("torch.")]
    box = [min(n, _BOX) for n in descriptor.block_shape]
    box[-1] = min(box[-1], _SWIZZLE_BYTES // size)
    triton.runtime.driver.active.utils.fill_tma_descriptor(
        descriptor.base.data_ptr(), _SWIZZLE_128B, size, element, box, descriptor.shape, descriptor.strides, 0
    )
