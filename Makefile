# Everything here works in .venv, which it makes itself.
PYTHON ?= python3
# The version that is tested. By name, because a range may take a build of several GB.
TORCH ?= torch==2.13.0
BIN := .venv/bin
CPP := $(shell git ls-files 'csrc/*.h' 'csrc/*.cpp' 'csrc/*.cu' 'csrc/*.cuh')
CPP_TESTS := $(shell git ls-files 'tests/native/*')

.PHONY: example test bench bench-gloss bench-scale gpu-report lint format wheel

example: .venv/installed  ## train a ViT and a ResNet on real images with every kind of optimizer
	$(BIN)/python examples/train_images.py $(ARGS)

test: .venv/installed  ## run every test
	$(BIN)/pytest $(ARGS)

bench: .venv/installed  ## measure against eager code and every peer
	$(BIN)/python -m bench.bench_optimizers $(ARGS)

bench-gloss: .venv/installed  ## measure G-Loss against the authors' form
	$(BIN)/python -m bench.bench_gloss $(ARGS)

bench-scale: .venv/installed  ## measure compressed states, bf16 parameters and clipping
	$(BIN)/python -m bench.bench_scale $(ARGS)

gpu-report:  ## settle on a GPU what only a GPU can: tests, sanitizers, benchmarks; installs nothing
	$(PYTHON) bench/gpu_report.py $(ARGS)

lint: .venv/installed  ## check style
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/clang-format --dry-run --Werror $(CPP) $(CPP_TESTS)

format: .venv/installed
	$(BIN)/ruff format .
	$(BIN)/clang-format -i $(CPP) $(CPP_TESTS)

wheel: .venv/installed
	$(BIN)/pip wheel --no-deps --wheel-dir dist .

.venv/bin/python:
	$(PYTHON) -m venv .venv

# Installed anew when the build or the native sources change; Python files are used where they are.
.venv/installed: .venv/bin/python pyproject.toml setup.py CMakeLists.txt $(CPP)
	$(BIN)/pip install --quiet '$(TORCH)'
	$(BIN)/pip install --quiet --editable '.[test]'
	touch $@
