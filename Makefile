# demo, test, lint and the benchmarks: each sets up what it needs in .venv.

PYTHON ?= python3
BIN := .venv/bin
RUN := $(BIN)/python
# One pinned torch, installed before what depends on it. On Linux without a GPU this saves gigabytes:
#   make TORCH='torch==2.13.0 --index-url https://download.pytorch.org/whl/cpu' ...
TORCH ?= torch==2.13.0
PIP := $(RUN) -m pip install --quiet --disable-pip-version-check
ARGS ?=

.PHONY: demo test lint format bench bench-registration bench-fusion clean

demo: .venv/demo
	$(RUN) -m MedFusionLib demo $(ARGS)

test: .venv/test .venv/lint
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	QT_QPA_PLATFORM=offscreen $(RUN) -m pytest -n 2 $(ARGS)

lint: .venv/lint
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

format: .venv/lint
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: bench-registration bench-fusion

bench-registration: .venv/bench
	$(RUN) Testing/Benchmarks/registration.py $(ARGS)

bench-fusion: .venv/bench
	$(RUN) Testing/Benchmarks/fusion.py $(ARGS)

clean:
	rm -rf .venv build demo-output test-output bench-output

.venv/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
	  || { echo "MedFusion needs Python 3.11 or newer: make PYTHON=/path/to/python3.12 ..." >&2; exit 1; }
	$(PYTHON) -m venv .venv
	@touch $@

.venv/torch: .venv/python
	$(PIP) $(TORCH)
	@touch $@

.venv/lint: .venv/python pyproject.toml
	$(PIP) "$$($(RUN) -c 'import tomllib; print(*tomllib.load(open("pyproject.toml", "rb"))["project"]["optional-dependencies"]["lint"])')"
	@touch $@

# The demo saves a Slicer scene too, so it needs what the scene tests need.
.venv/demo: .venv/test
	@touch $@

.venv/test: .venv/torch pyproject.toml Testing/system_libraries.sh
	bash Testing/system_libraries.sh $(RUN)
	$(PIP) --editable ".[test]"
	@touch $@

.venv/bench: .venv/test
	$(PIP) --editable ".[bench]"
	@touch $@
