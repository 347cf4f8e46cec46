# Every target but clean builds .venv when it is missing or out of date; none needs another.

VENV := .venv
PYTHON ?= $(shell command -v python3.11 || command -v python3)
INSTALL = $(VENV)/bin/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt

# The pipeline's commands are `nsf ...`, found on the PATH as in an activated environment.
export PATH := $(CURDIR)/$(VENV)/bin:$(PATH)

.PHONY: demo demo-text demo-image test bench clean

demo: $(VENV)/installed
	@dvc repro
	@nsf metrics

# Two more, each a folder as `nsf init` makes it: sentences with MiniLM, Dominoes with a pretrained EfficientNet-Lite0.
demo-text demo-image: demo-%: $(VENV)/installed-demos
	@cd demos/$* && dvc repro && nsf metrics

test: $(VENV)/installed-dev
	@ruff check .
	@ruff format --check .
	@mypy
	@pytest -n auto

# One table of speed and memory, kept in benchmarks/results/speed.json: an hour of a machine that does nothing else, 5 GB of
# disk. `make bench BENCH="--only eliminate update"` measures these sections again; see benchmarks/speed.py.
bench: $(VENV)/installed-dev
	@python -m benchmarks.speed $(BENCH)

clean:
	rm -rf $(VENV) artifacts demos/*/artifacts demos/text/encoder

$(VENV)/installed: pyproject.toml constraints.txt
	@test -x $(VENV)/bin/python || $(PYTHON) -m venv $(VENV)
	@echo "Installing nsf into $(VENV) (some GB of PyTorch the first time) ..."
	@$(INSTALL) --editable .
	@touch $@

$(VENV)/installed-demos: $(VENV)/installed
	@echo "Installing the encoders of the demos ..."
	@$(INSTALL) --editable ".[demos]"
	@touch $@

$(VENV)/installed-dev: $(VENV)/installed
	@echo "Installing what the tests need ..."
	@$(INSTALL) --editable ".[dev]"
	@touch $@
