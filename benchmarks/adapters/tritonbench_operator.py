"""tilewright's ops and their peers as operators of tritonbench (github.com/meta-pytorch/tritonbench).

In a checkout of tritonbench, in whose environment tilewright is installed, one link for each op:

    for op in attention softmax ffn; do
        mkdir -p tritonbench/operators/tilewright_$op
        ln -s /path/to/tilewright/benchmarks/adapters/tritonbench_operator.py \\
            tritonbench/operators/tilewright_$op/__init__.py
    done
    python run.py --op tilewright_attention --metrics latency,speedup,tflops,error
    python run.py --op tilewright_softmax --bwd --metrics latency,speedup,gbps,error
    python run.py --op tilewright_ffn --device cpu --shapes tiny --metrics latency,error

Calls are those of ``tilewright bench`` (--shapes cpu, cpu-long, gpu, gpu-long or tiny; by default by the device), each
in the mode that tritonbench asks for (--mode fwd, bwd, fwd_bwd or fwd_no_grad), in their own dtypes: --precision is not
used. A result is held against float64 first, and one that is wrong ends the run; "error" is its distance. What refuses
a call or is not installed is "not supported" in tritonbench's table.

Verified on a CPU with tritonbench's commit db2155c and torch 2.13, with --device cpu --shapes tiny: attention in fwd,
bwd and fwd_bwd, softmax in the same, ffn in bwd and fwd_no_grad, with these metrics and accuracy. Not run on a GPU
yet.
"""

from __future__ import annotations

import argparse
import functools
from collections.abc import Callable, Iterator
from typing import Any

from tritonbench.utils.triton_op import (
    BenchmarkOperator,
    Mode,
    register_benchmark,
    register_metric,
    register_x_val,
)

from tilewright.bench.items import SETS
from tilewright.bench.measure import OURS
from tilewright.bench.peers import all_peers
from tilewright.bench.single import Call, Checked, NotMeasured, backends_on, bench_of, default_shapes, items_of

#: tritonbench knows an operator by its folder.
OP = __name__.rpartition("tilewright_")[2]

MODES = {Mode.FWD: "forward", Mode.FWD_NO_GRAD: "forward", Mode.BWD: "backward", Mode.FWD_BWD: "both"}

#: What speedups are over.
BASELINE = "eager"


class Input(Call):
    """tritonbench takes functions as they are, and no other object that it does not know."""

    def __call__(self, provider: str) -> Checked:
        return self.checked(provider)


class Operator(BenchmarkOperator):
    def __init__(self, tb_args: argparse.Namespace, extra_args: list[str] | None = None) -> None:
        parser = argparse.ArgumentParser(prog=f"tilewright_{OP}")
        parser.add_argument("--shapes", choices=SETS, default=default_shapes(tb_args.device))
        self.shapes = parser.parse_args(extra_args or []).shapes
        super().__init__(tb_args, extra_args)

    def get_input_iter(self) -> Iterator[tuple[Input]]:
        """A call makes its inputs when the first provider needs them: tritonbench walks this once only to count."""
        bench = bench_of(self.device, self.shapes)
        for item in items_of(OP, self.shapes, MODES[self.mode]):
            yield (Input(item, bench),)

    @register_x_val(label="call")
    def get_x_val(self, example_inputs: tuple[Input]) -> str:
        return example_inputs[0].item.name

    def get_bwd_fn(self, fwd_fn: Callable[[], Any]) -> Callable[[], Any]:
        """The function is the backward already; of forward and backward it does both, and nothing is left to do."""
        return fwd_fn if self.mode is Mode.BWD else lambda: None

    def accuracy(self, fn: Callable[[], Any], baseline_fn: Callable[[], Any]) -> bool:
        return True  # or there would be no function: each is held against float64 when it is made

    @register_metric()
    def error(self, fn: Any, example_inputs: tuple[Input], metrics: Any) -> float:
        """Distance from float64, ||found - exact|| / ||exact||."""
        return self._errors[fn._name]

    @register_metric()
    def flops(self, fn: Any, example_inputs: tuple[Input], metrics: Any) -> float:
        """Of the call, from which tritonbench makes its "tflops"; 0 where memory is the limit."""
        item = example_inputs[0].item
        return item.work if item.unit == "TFLOP/s" else 0.0

    @register_metric()
    def gbps(self, fn: Any, example_inputs: tuple[Input], metrics: Any) -> float:
        """Read and written at least, in GB/s; 0 where products are the limit."""
        item = example_inputs[0].item
        return item.work / (metrics.latency * 1e-3) * 1e-9 if item.unit == "GB/s" else 0.0

    @functools.cached_property
    def _errors(self) -> dict[str, float]:
        """By benchmark, of the call that is being measured."""
        return {}

    def make(self, call: Input, provider: str, name: str) -> Callable[[], Any]:
        try:
            checked = call(provider)
        except NotMeasured as found:
            if found.status == "wrong" or (provider.startswith(OURS) and found.status != "refused"):
                raise
            raise NotImplementedError(f"{provider}: {found}") from found
        self._errors[name] = checked.error
        return lambda: checked.function()  # tritonbench puts names on it


def _register(provider: str) -> None:
    name = provider.replace(" ", "_").replace("-", "_")

    def method(self: Operator, call: Input) -> Callable[[], Any]:
        return self.make(call, provider, name)

    register = register_benchmark(func_name=name, label=provider, baseline=provider == BASELINE)
    setattr(Operator, name, register(method))


# The device is not known yet: what does not exist on it will not be supported.
_found = dict.fromkeys((*backends_on("cuda"), *backends_on("cpu")))
_backends = [b for b in _found if b != "reference"] or ["reference"]
for _provider in (*(OURS + b for b in _backends), *(p.name for p in all_peers()[OP])):
    _register(_provider)
