"""What the benchmark files share: the calls of ``tilewright bench`` as parameters, each on every provider."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import pytest
import torch

from tilewright.bench.environment import environment
from tilewright.bench.items import SETS
from tilewright.bench.measure import OURS
from tilewright.bench.single import Call, NotMeasured, bench_of, items_of, providers

#: Of a call with cold caches, whose samples are single calls: how many, at most, and for about how long.
COLD_ROUNDS, COLD_SECONDS = 100, 0.5

#: Of a peer's: not measured here, and no fault of anybody's. What a backend of tilewright may do is refuse.
EXCUSES = ("refused", "missing", "out of memory", "raised")


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("tilewright")
    group.addoption("--shapes", choices=SETS, help="set of calls; by default cpu or gpu, by the device")
    group.addoption("--device", choices=("cpu", "cuda"), help="default: cuda where torch sees one")


def pytest_configure(config: pytest.Config) -> None:
    if config.getoption("--device") == "cuda" and not torch.cuda.is_available():
        raise pytest.UsageError("--device cuda: torch sees no CUDA device here; --device cpu measures CPU kernels")


def pytest_benchmark_update_json(config: pytest.Config, benchmarks: list[Any], output_json: dict[str, Any]) -> None:
    output_json["environment"] = environment()


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """A module's OP says whose calls its tests take. Those of one call follow one another, and share its inputs."""
    if "call" not in metafunc.fixturenames:
        return
    device = metafunc.config.getoption("--device") or ("cuda" if torch.cuda.is_available() else "cpu")
    bench, op = bench_of(device, metafunc.config.getoption("--shapes")), metafunc.module.OP
    calls = [pytest.param((item, bench), id=item.name) for item in items_of(op, bench.shapes)]
    metafunc.parametrize("call", calls, indirect=True, scope="module")
    metafunc.parametrize("provider", providers(op, bench))


@pytest.fixture(scope="module")
def call(request: pytest.FixtureRequest) -> Call:
    return Call(*request.param)


@pytest.fixture
def time_it(benchmark: Any) -> Callable[[Call, str], None]:
    """Check one provider of a call, and time it if it was right."""

    def measure(call: Call, provider: str) -> None:
        item = call.item
        try:
            checked = call.checked(provider)
        except NotMeasured as found:
            allowed = ("refused",) if provider.startswith(OURS) else EXCUSES
            if found.status in allowed:
                pytest.skip(str(found))
            pytest.fail(f"{provider}: {found}", pytrace=False)
        function, flush = call.synchronized(checked.function), call.flush()
        benchmark.group = item.name
        benchmark.extra_info.update(item.facts, item=item.name, unit=item.unit, provider=provider, error=checked.error)
        benchmark.extra_info.update(caches="cold" if flush else "warm", threads=torch.get_num_threads())
        if flush is None:
            benchmark(function)
        else:
            start = time.perf_counter()
            function()
            once = max(time.perf_counter() - start, 1e-6)
            rounds = min(COLD_ROUNDS, max(5, round(COLD_SECONDS / once)))
            benchmark.pedantic(function, setup=flush, rounds=rounds)
        if benchmark.stats is not None:  # None with --benchmark-disable
            benchmark.extra_info["result"] = item.result(benchmark.stats.stats.median)

    return measure
