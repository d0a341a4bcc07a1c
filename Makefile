# Two commands do all the set-up on a fresh machine: `make demo` and `make test`.
# As root the Debian packages of the tests are installed too; PYTHON picks the interpreter.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
MOUNT_TESTS := $(wildcard tests/mount/*/test_mount*.py) tests/mount/daemon/test_lifecycle.py \
    tests/mount/writers/test_killed_writers.py tests/cli/test_bad_input.py
PIP := $(BIN)/python -m pip install -qq --disable-pip-version-check

# Tests start thousands of programs: what each compiles anew is a third of the time.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: demo test test-frameworks lint types pytest portable packages bench site walk clean

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

# A file of tests is one worker's: its tests share a mount.
pytest: $(VENV)/dev.installed
	$(BIN)/pytest --numprocesses 2 --dist loadfile $(TESTS)

# The trainers of Hugging Face, Lightning, Orbax… killed in their saves; their packages take 1 GB.
test-frameworks: packages $(VENV)/frameworks.installed
	$(BIN)/pytest -m frameworks $(TESTS)

# All tests of mounts, through libfuse; `make pytest` has a selection of them.
portable: packages $(VENV)/dev.installed
	$(BIN)/pytest --binding fusepy $(MOUNT_TESTS)
	$(BIN)/pytest --binding refuse $(MOUNT_TESTS)

bench: $(VENV)/dev.installed
	$(BIN)/python -m ckptfs.tools.bench .

site: $(VENV)/dev.installed
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

# README, line by line as printed, on a fresh machine; installs torch there.
walk: $(VENV)/dev.installed
	$(BIN)/pytest -m walk tests/house/test_readme.py

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

$(VENV)/frameworks.installed: $(VENV)/dev.installed
	$(PIP) --editable '.[dev,frameworks]'
	$(PIP) --no-deps timm==1.0.31 # its torchvision does not load beside a torch for CPUs
	@touch $@

clean:
	rm -rf $(VENV) build site *.egg-info
