# Thin: one command a line. `make demo` and `make test` work on a bare machine with python3 >= 3.11 and make.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
MEMBERS := marketdata runtime gatherer lake dedup exchange cli

.PHONY: setup demo test check bench lock clean

$(VENV)/.ready: requirements.lock pyproject.toml $(wildcard python/*/pyproject.toml)
	$(PYTHON) -c 'import sys; v = sys.version_info[:2]; sys.exit(None if (3, 11) <= v <= (3, 13) else f"python 3.11 to 3.13 is needed, {sys.version.split()[0]} was found; hint: make PYTHON=python3.12 setup")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --no-compile --require-hashes --only-binary :all: -r requirements.lock
	$(BIN)/python -m pip install --quiet --no-deps --no-build-isolation $(foreach m,$(MEMBERS),-e python/$(m))
	touch $@

setup: $(VENV)/.ready
