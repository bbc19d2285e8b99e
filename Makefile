# make serve    start the server (embedded weights unless JANUS_MODEL or ARGS say otherwise)
# make test     lint, types and tests; .ci/run runs it, then test-clients, test-hardening, test-teeth and test-ui
# Every target creates .venv when it is missing and installs pinned versions into it, once.

PYTHON ?= python3.11
VENV ?= .venv
ARGS ?=
BIN := $(VENV)/bin

# pip reads pins for the build backend from the environment only.
export PIP_CONSTRAINT := $(CURDIR)/constraints.txt
export PIP_DISABLE_PIP_VERSION_CHECK := 1

# Environments of client packages, made once and again when their pins change.
CLIENTS := $(patsubst %,build/clients/%/.installed,current older helm $(if $(shell command -v npm),node))

.DEFAULT_GOAL := help
.PHONY: help serve test lint types format unit test-slow test-hardening test-teeth test-soak fuzz test-clients test-ui screenshots test-gpu test-kernels gpu-check bench bench-large pictures clean

help: ## Show the targets
	@grep -E '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

# torch first and by itself: whatever comes after finds the pinned one and cannot pull another.
$(VENV)/.installed: pyproject.toml constraints.txt $(wildcard janus_core/ops/native/*.cpp janus_core/ops/native/*.h janus_core/ops/native/*.inl janus_core/ops/native/build.py)
	@echo "Installing into $(VENV), once. The first time this downloads PyTorch and takes a minute or two."
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet torch
	$(BIN)/python -m pip install --quiet --editable .
	touch $@

$(VENV)/.installed-dev: $(VENV)/.installed
	$(BIN)/python -m pip install --quiet --editable '.[dev]'
	touch $@

serve: $(VENV)/.installed ## Start the server; honours JANUS_* variables and ARGS="--port 9000"
	exec $(BIN)/janus serve $(ARGS)

test: lint types unit ## Lint, types and tests

lint: $(VENV)/.installed-dev ## Rules and format, checked
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/.installed-dev ## mypy --strict on both packages
	$(BIN)/mypy

unit: $(VENV)/.installed-dev ## Tests that need no GPU and little time; ARGS="tests/core -k slots"
	$(BIN)/python -m pytest --ignore tests/hardening $(ARGS)

test-hardening: $(VENV)/.installed-dev ## Attacks and faults against a running server
	$(BIN)/python -m pytest tests/hardening $(ARGS)

test-teeth: $(VENV)/.installed-dev ## The same against a naive demo, which must fail every row
	$(BIN)/python -m pytest -m slow tests/hardening/test_teeth.py $(ARGS)

test-soak: $(VENV)/.installed-dev ## Minutes of mixed traffic, and every query and alert, under a real Prometheus; installs it on Debian, as root
	tests/debian.sh prometheus prometheus
	$(BIN)/python -m pytest -m 'slow or not slow' tests/benchmarks/test_soak.py tests/docker/test_monitoring.py $(ARGS)

fuzz: $(VENV)/.installed-dev ## 500 requests of each operation, made from the OpenAPI schema, to fit it and not to
	$(BIN)/python -m pytest -m slow tests/hardening/test_fuzz.py tests/hardening/test_parameters.py $(ARGS)

test-slow: $(VENV)/.installed-dev ## The tests that take longer
	$(BIN)/python -m pytest -m 'slow and not gpu' $(ARGS)

test-clients: $(VENV)/.installed-dev $(CLIENTS) ## Client packages from PyPI and npm against the server
	$(BIN)/python -m pytest -m packages tests/clients tests/docker $(ARGS)

# Their pins are their own: they need other versions than the server. npm is optional.
build/clients/%/.installed: tests/clients/requirements/%.txt
	rm -rf $(@D)
	$(PYTHON) -m venv $(@D)
	PIP_CONSTRAINT= $(@D)/bin/python -m pip install --quiet --no-deps --requirement $<
	touch $@

build/clients/node/.installed: tests/clients/requirements/node/package-lock.json
	rm -rf $(@D)
	mkdir -p $(@D)
	cp $(<D)/package.json $< $(@D)
	npm ci --prefix $(@D) --no-audit --no-fund --ignore-scripts
	touch $@

test-ui: $(VENV)/.installed-dev build/ui/.installed ## The page in a browser; installs Chromium on Debian, as root
	tests/debian.sh chromium,chromium-browser chromium fonts-inter
	$(BIN)/python -m pytest -m ui tests/ui $(ARGS)

screenshots: $(VENV)/.installed-dev ## Take the pictures of the page in the README again
	tests/debian.sh chromium,chromium-browser chromium fonts-inter
	$(BIN)/python -m tests.ui.screenshots

# axe-core, which knows the rules of accessibility. Without npm its tests are skipped.
build/ui/.installed: tests/ui/requirements/package-lock.json
	rm -rf $(@D)
	mkdir -p $(@D)
	cp $(<D)/package.json $< $(@D)
	! command -v npm > /dev/null || npm ci --prefix $(@D) --no-audit --no-fund --ignore-scripts
	touch $@

test-gpu: $(VENV)/.installed-dev ## The CUDA kernels on a GPU, compiled instead of interpreted
	$(BIN)/python -c 'import torch, triton; assert torch.cuda.is_available(), "no CUDA device"'
	$(BIN)/python -m pytest tests/core/ops/cuda $(ARGS)

test-kernels: $(VENV)/.installed-dev ## The CUDA kernels in Triton's interpreter and compiled for Hopper; installs Triton (0.3 GB)
	$(BIN)/python -m pip install --quiet --editable '.[triton]'
	$(BIN)/python -m pytest tests/core/ops/cuda $(ARGS)

# Where python3 has a torch that sees a GPU, it is used as it is: such a machine may have no network.
gpu-check: ## On a GPU: is the CUDA path right, and how fast; ARGS="--models 1b"
	if python3 -c 'import torch; assert torch.cuda.is_available()' 2> /dev/null; \
	then python3 -m benchmarks.gpu_check $(ARGS); \
	else $(MAKE) $(VENV)/.installed && $(BIN)/python -m benchmarks.gpu_check $(ARGS); fi

format: $(VENV)/.installed-dev ## Rewrite files in the house format
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(VENV)/.installed ## This engine and others, side by side, at the embedded checkpoint
	$(BIN)/python -m benchmarks.compare $(ARGS)

bench-large: $(VENV)/.installed ## The same at Janus-Pro-1B's shapes; compiles llama.cpp, once
	$(BIN)/python -m benchmarks.compare --shape 1b --prepare
	$(BIN)/python -m benchmarks.compare --shape 1b $(ARGS)

pictures: $(VENV)/.installed ## Draw the pictures of the README again, by its own commands
	grep '^janus draw ' README.md | (cd docs/images && PATH=$(CURDIR)/$(BIN):$$PATH bash -eu)

clean: ## Remove the environment and every cache
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -not -path './.git/*' -prune -exec rm -rf {} +
