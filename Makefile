# `make demo` and `make test` each build .venv when it is missing or out of date; neither needs the other.

VENV := .venv
PYTHON ?= $(shell command -v python3.11 || command -v python3)
INSTALL = $(VENV)/bin/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt

# The pipeline's commands are `nsf ...`, found on the PATH as in an activated environment.
export PATH := $(CURDIR)/$(VENV)/bin:$(PATH)

.PHONY: demo test clean

demo: $(VENV)/installed
	@dvc repro
	@nsf metrics

test: $(VENV)/installed-dev
	@ruff check .
	@ruff format --check .
	@mypy
	@pytest -n auto

clean:
	rm -rf $(VENV) artifacts

$(VENV)/installed: pyproject.toml constraints.txt
	@test -x $(VENV)/bin/python || $(PYTHON) -m venv $(VENV)
	@echo "Installing nsf into $(VENV) (some GB of PyTorch the first time) ..."
	@$(INSTALL) --editable .
	@touch $@

$(VENV)/installed-dev: $(VENV)/installed
	@echo "Installing what the tests need ..."
	@$(INSTALL) --editable ".[dev]"
	@touch $@
