# Programs that read our exports, from the package index: the files of `tape export` in the hands of their readers.
EXPORTS_VENV := .venv-exports

.PHONY: thirdparty-exports thirdparty-exports-lock

$(EXPORTS_VENV)/.ready: tests/thirdparty/exports/requirements.lock
	$(PYTHON) -m venv --clear $(EXPORTS_VENV)
	$(EXPORTS_VENV)/bin/python -m pip install --quiet --no-compile --no-deps --require-hashes --only-binary :all: -r $<
	$(EXPORTS_VENV)/bin/python -m pip check
	touch $@

thirdparty-exports: setup $(EXPORTS_VENV)/.ready thirdparty-check
	env KT_EXPORTS_PYTHON=$(CURDIR)/$(EXPORTS_VENV)/bin/python $(BIN)/python -m pytest tests/thirdparty/exports $(ARGS)

# Needs uv.
thirdparty-exports-lock:
	uv pip compile --universal --generate-hashes --python-version 3.11 --no-header --no-annotate --no-emit-index-url tests/thirdparty/exports/requirements.in -o tests/thirdparty/exports/requirements.lock
