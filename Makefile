# Everyday commands. Each sets up .venv first, and again only when what it was installed from has changed.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check

# Installed as a user has it, or (with the tests' and linters' tools) from the checkout itself.
USER_STAMP := $(VENV)/.installed
DEV_STAMP := $(VENV)/.installed-for-development
BUILD_SOURCES := $(shell find csrc -type f) setup.py pyproject.toml constraints.txt
PYTHON_SOURCES := $(shell find python triton_kernels -name '*.py' -not -name _build_info.py)
CPP_SOURCES := $(shell find csrc python/tilewright -name '*.cpp' -o -name '*.c' -o -name '*.h' -o -name '*.cu')

.DEFAULT_GOAL := help
.PHONY: help demo test lint format bench gpu gpu-contact gpu-measure gpu-kit gpu-python gpu-rehearsal sanitize mutants clean

help: ## Show these commands
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-13s %s\n", $$1, $$2 }' Makefile

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

$(USER_STAMP): $(BUILD_SOURCES) $(PYTHON_SOURCES) | $(BIN)/python
	$(PIP) install -c constraints.txt '.[transformers,bench]'
	@touch $@

# Python files of an editable install are read from the checkout, so only the compiled module has to be renewed.
$(DEV_STAMP): $(BUILD_SOURCES) | $(BIN)/python
	$(PIP) install -c constraints.txt -e '.[dev]'
	@rm -f $(USER_STAMP)
	@touch $@

demo: $(if $(wildcard $(DEV_STAMP)),$(DEV_STAMP),$(USER_STAMP)) ## Verify, train, compare with transformers, measure: a few minutes
	$(BIN)/tilewright demo

# Two workers with a thread each: OpenMP threads of two processes on the same cores spin against each other. Tests of
# threading set the number themselves. A file stays on one worker, since building in two of them would collide; files in
# the order that tests/conftest.py gives them.
test: $(DEV_STAMP) ## Every test that needs no GPU
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

lint: $(DEV_STAMP) ## Style, types and formatting
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/clang-format --dry-run -Werror $(CPP_SOURCES)

format: $(DEV_STAMP) ## Rewrite the sources as lint wants them
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/clang-format -i $(CPP_SOURCES)

bench: $(DEV_STAMP) ## Every op beside every other implementation that is installed: a report in build/bench
	$(BIN)/tilewright bench --output build/bench

# On a machine with a GPU and its software, without a network: docs/gpu.md. Anything is found through $(GPU_PYTHON), which is
# left as it is. OUT is the folder of the results; LONG=1 measures every call.
GPU_PYTHON ?= $(if $(wildcard $(BIN)/python),$(BIN)/python,$(PYTHON))
OUT ?= build/gpu
gpu: ## On a GPU machine: gpu-contact, then gpu-measure
	@$(MAKE) gpu-contact; contact=$$?; $(MAKE) gpu-measure && exit $$contact

gpu-contact: ## On a GPU machine, two minutes: does everything run there, and is it right
	@$(GPU_PYTHON) benchmarks/gpu contact --out "$(OUT)"

gpu-measure: ## On a GPU machine, four minutes: how fast, beside other implementations
	@$(GPU_PYTHON) benchmarks/gpu measure --out "$(OUT)" $(if $(LONG),--long)

# PYTHON312 is a Python 3.12; else one on PATH or of pyenv's is taken.
gpu-kit: ## Prepare both: the package and Triton's cache, compiled here, in build/gpu-kit (half an hour of processor time)
	@$(PYTHON) benchmarks/gpu kit $(if $(PYTHON312),--python "$(PYTHON312)")

gpu-python: ## The Python and torch that the kit is for, which the rehearsal in `make test` then takes (5 GB)
	@$(PYTHON) benchmarks/gpu kit --environment $(if $(PYTHON312),--python "$(PYTHON312)")

gpu-rehearsal: ## Both calls with the kit, without a GPU: everything runs, and nothing is measured
	@$(PYTHON) benchmarks/gpu rehearse

# A copy of the package around a CPU module built with AddressSanitizer and UndefinedBehaviorSanitizer, so that the
# installed one stays as it is. The leak checker is off: the interpreter keeps memory until it exits.
SANITIZE := build/sanitize
SANITIZE_ISAS ?= $(if $(filter x86_64 amd64,$(shell uname -m)),portable avx2 wide tiles,portable)
sanitize: $(DEV_STAMP) ## All verification cases on CPU kernels built with ASan and UBSan
	PATH="$(abspath $(BIN)):$$PATH" cmake -S csrc -B $(SANITIZE) -G Ninja -DTILEWRIGHT_SANITIZE=address,undefined \
	  -DTILEWRIGHT_CPU_TEST_ISA=ON -DPython_EXECUTABLE="$(abspath $(BIN))/python"
	PATH="$(abspath $(BIN)):$$PATH" cmake --build $(SANITIZE) --target _cpu
	rm -rf $(SANITIZE)/python && mkdir -p $(SANITIZE)/python && cp -R python/tilewright $(SANITIZE)/python/
	rm -f $(SANITIZE)/python/tilewright/_cpu*.so && cp $(SANITIZE)/_cpu*.so $(SANITIZE)/python/tilewright/
	for isa in $(SANITIZE_ISAS); do \
	  TILEWRIGHT_CPU_ISA=$$isa PYTHONPATH=$(SANITIZE)/python ASAN_OPTIONS=detect_leaks=0 UBSAN_OPTIONS=print_stacktrace=1 \
	    LD_PRELOAD="$$($${CXX:-c++} -print-file-name=libasan.so) $$($${CXX:-c++} -print-file-name=libubsan.so)" \
	    $(BIN)/python -m tilewright verify --backend cpu || exit 1; \
	done

mutants: $(DEV_STAMP) ## Break the CUDA kernels in many places, to see that each is noticed
	$(BIN)/python tests/cuda/mutate.py

clean: ## Remove everything that was built, and .venv
	rm -rf $(VENV) build dist demo-output bench-output python/*.egg-info python/tilewright/_build_info.py
	find python -name '*.so' -delete
