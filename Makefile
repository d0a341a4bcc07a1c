# Two commands do all the set-up on a fresh machine: `make demo` and `make test`.
# As root the Debian packages of the tests are installed too; PYTHON picks the interpreter.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install -qq --disable-pip-version-check

.PHONY: demo test lint types pytest packages bench clean

demo: $(VENV)/demo.installed
	$(BIN)/ckptfs demo

test: packages $(VENV)/dev.installed
	@$(MAKE) --no-print-directory lint types pytest

lint: $(VENV)/dev.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

# The installed package is what is typed, so that the mapping of folders is part of it.
types: $(VENV)/dev.installed
	rm -rf build $(VENV)/typed
	$(PIP) --no-deps --target $(VENV)/typed .
	rm -rf build
	MYPYPATH=$(VENV)/typed $(BIN)/mypy --strict --cache-dir $(VENV)/mypy -p ckptfs

pytest: $(VENV)/dev.installed
	$(BIN)/pytest $(TESTS)

bench: $(VENV)/dev.installed
	$(BIN)/python -m ckptfs.tools.bench .

packages:
	@sh .ci/packages

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/demo.installed: $(VENV)/bin/python pyproject.toml
	$(PIP) --editable '.[torch]'
	@touch $@

$(VENV)/dev.installed: $(VENV)/bin/python pyproject.toml
	$(PIP) --editable '.[dev]'
	@touch $@

clean:
	rm -rf $(VENV) build *.egg-info
