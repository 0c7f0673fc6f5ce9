# Everything here works in .venv, which it makes itself.
PYTHON ?= python3
# The version that is tested. By name, because a range may take a build of several GB.
TORCH ?= torch==2.13.0
BIN := .venv/bin
KERNELS := import torch; print("auto" if torch.version.cuda else 0)
CPP := $(shell git ls-files 'csrc/*.h' 'csrc/*.cpp' 'csrc/*.cu' 'csrc/*.cuh')
CPP_TESTS := $(shell git ls-files 'tests/native/*' 'tests/ptx/*.h' 'tests/ptx/*.cpp')

.PHONY: example test test-deep test-integrations test-ptx sanitize torch-suite bench bench-report gpu-prepare gpu-report lint format docs wheel

example: .venv/installed  ## train a ViT and a ResNet on real images with every kind of optimizer
	$(BIN)/python examples/train_images.py $(ARGS)

test: .venv/installed  ## run the tests that take minutes, on all cores; says what it leaves out
	$(BIN)/pytest -n auto --dist worksteal -m 'not deep' $(ARGS)

test-deep: .venv/installed  ## run the others: compilers, interpreter, torch.compile, processes, trainings
	$(BIN)/pytest -n auto --dist loadfile -m deep $(ARGS)

test-integrations: .venv/installed  ## run what needs other libraries, too; installs some 800 MB
	$(BIN)/pip install --quiet 'friction-kernels[integrations]'
	$(BIN)/pytest tests/test_integrations_*.py tests/test_finetune_text.py tests/test_pages.py $(ARGS)

test-ptx: .venv/installed  ## execute the PTX of the CUDA kernels, without a GPU; needs nvcc
	$(BIN)/python tests/ptx/run.py

sanitize: .venv/installed  ## run native code and random sequences under sanitizers: ARGS="--examples 5000" for long
	$(BIN)/python tests/sanitize.py $(ARGS)

torch-suite: .venv/installed  ## run torch's own optimizer tests: UPSTREAM=folder that holds PyTorch v2.6.0's sources
	$(BIN)/pip install --quiet expecttest
	$(BIN)/python tests/torch_suite.py '$(UPSTREAM)' $(ARGS)

bench: .venv/installed  ## measure against eager code and every peer: ARGS="scale gloss" for some suites
	$(BIN)/python -m bench run $(ARGS)

bench-report: .venv/installed  ## results as one page with pictures
	$(BIN)/python -m bench report $(ARGS)

gpu-prepare: .venv/installed  ## build the library for another machine's GPU: ARGS="--python python3.12 --capability 90"
	$(BIN)/python bench/gpu_prepare.py $(ARGS)

gpu-report:  ## settle on a GPU what only a GPU can: tests, sanitizers, benchmarks; installs nothing
	$(PYTHON) bench/gpu_report.py $(ARGS)

lint: .venv/installed  ## check style and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/clang-format --dry-run --Werror $(CPP) $(CPP_TESTS)
	$(BIN)/mypy

format: .venv/installed
	$(BIN)/ruff format .
	$(BIN)/clang-format -i $(CPP) $(CPP_TESTS)

docs: .venv/dev build/npm/node_modules  ## build the documents into build/site, with Node.js; a warning is an error
	$(BIN)/mkdocs build --strict

wheel: .venv/dev  ## an sdist, and a manylinux wheel that is built from it, in dist/
	rm -rf dist
	$(BIN)/python -m build --outdir build/dist
	PATH="$$PWD/$(BIN):$$PATH" $(BIN)/auditwheel repair --wheel-dir dist build/dist/*.whl
	mv build/dist/*.tar.gz dist
	rm -r build/dist
	$(BIN)/twine check --strict dist/*

# What the built pages bring along: docs/site_hooks.py copies it.
build/npm/node_modules: Makefile
	npm install --silent --no-audit --no-fund --prefix build/npm katex@0.16.47 iframe-worker@1.0.4
	touch $@

.venv/bin/python:
	$(PYTHON) -m venv .venv

# Installed anew when the build or the native sources change; Python files are used where they are.
.venv/installed: .venv/bin/python pyproject.toml setup.py CMakeLists.txt friction_kernels/optim/states.def $(CPP)
	$(BIN)/pip install --quiet '$(TORCH)'
	@echo 'compiling the kernels: a few minutes, some ten with GPU kernels, which a torch without CUDA has no use for'
	FRICTION_CUDA="$${FRICTION_CUDA-$$($(BIN)/python -c '$(KERNELS)')}" \
		$(BIN)/pip install --quiet --editable '.[test]'
	touch $@

# What the project, as it is installed, asks for beside: the project itself is not built again.
.venv/dev: .venv/installed
	$(BIN)/pip install --quiet 'friction-kernels[dev]'
	touch $@
