# Everything a developer types; the first two set up the machine by themselves.
PYTHON ?= python3
BIN := .venv/bin
.DEFAULT_GOAL := help
.PHONY: help setup demo test test-portable test-real soak gpu lint check format clean

help:  ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

.venv/.ready: pyproject.toml constraints.txt
	test -d .venv || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt torch
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	touch $@

setup: .venv/.ready  ## create .venv with hfkit and its development tools

demo: setup  ## the main job on built-in text, from tokenizer to classifier, in about four minutes
	$(BIN)/python -m hfkit.cli.demo

test: setup  ## the fast tests: offline, no real data
	$(BIN)/python -m pytest -q -n 2 -m "not real and not soak"

# Each setting chooses other CPU kernels or another number of threads; a comma joins two variables.
PORTABLE ?= ATEN_CPU_CAPABILITY=avx2 ATEN_CPU_CAPABILITY=default ONEDNN_MAX_CPU_ISA=AVX2 \
	MKL_ENABLE_INSTRUCTIONS=AVX2 OMP_NUM_THREADS=1 OMP_NUM_THREADS=2 OMP_NUM_THREADS=3
comma := ,
test-portable: setup  ## the tests that compare runs, under each PORTABLE="VARIABLE=VALUE ..."
	@failed=0; log=$$(mktemp); for setting in $(PORTABLE); do \
		env $$(echo $$setting | tr '$(comma)' ' ') $(BIN)/python -m pytest -q -n 2 \
			-m "portable and not real and not soak" >$$log 2>&1 || { failed=1; cat $$log; }; \
		echo "$$setting: $$(tail -n 1 $$log)"; \
	done; rm -f $$log; exit $$failed

test-real: setup  ## tests with real data sets and models, where ../shared has them
	$(BIN)/python -m pytest -q -m real

SOAK ?= 20
soak: setup  ## kill and stop SOAK=20 runs at random moments: each must end as the unbroken one
	$(BIN)/python -m pytest -q -m soak tests/reliability
	$(BIN)/python tests/reliability/soak.py $(SOAK)

GPU ?=
gpu: setup  ## what hfkit does on a GPU: speeds and claims; GPU="--device cpu --quick" tries the script without one
	$(BIN)/python benchmarks/gpu.py $(GPU)

lint: setup  ## ruff and mypy; dependencies are what is imported, and imports point downwards
	$(BIN)/ruff check src tests benchmarks
	$(BIN)/ruff format --check src tests benchmarks
	$(BIN)/mypy
	$(BIN)/deptry src
	$(BIN)/lint-imports

check: lint test  ## lint and the fast tests

format: setup  ## let ruff rewrite what it can
	$(BIN)/ruff check --fix src tests benchmarks
	$(BIN)/ruff format src tests benchmarks

clean:  ## remove what make made
	rm -rf .venv build dist .mypy_cache .ruff_cache .pytest_cache
