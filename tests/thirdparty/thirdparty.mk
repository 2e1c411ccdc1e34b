# Clients that others wrote, unmodified, against the simulated exchange. What each needs: tests/thirdparty/rig.py.
THIRDPARTY_VENV := .venv-thirdparty

.PHONY: thirdparty thirdparty-check thirdparty-lock

# --ignore-requires-python: the exchange's present client asks for 3.13; 3.11 runs it as it is.
$(THIRDPARTY_VENV)/.ready: tests/thirdparty/requirements.lock
	$(PYTHON) -m venv --clear $(THIRDPARTY_VENV)
	$(THIRDPARTY_VENV)/bin/python -m pip install --quiet --no-compile --no-deps --require-hashes --only-binary :all: --ignore-requires-python -r $<
	$(THIRDPARTY_VENV)/bin/python -m pip check
	touch $@

thirdparty: setup $(THIRDPARTY_VENV)/.ready thirdparty-check
	env KT_THIRDPARTY_PYTHON=$(CURDIR)/$(THIRDPARTY_VENV)/bin/python $(BIN)/python -m pytest tests/thirdparty --ignore tests/thirdparty/exports $(ARGS)

thirdparty-check: setup
	$(BIN)/ruff check tests/thirdparty
	$(BIN)/ruff format --check tests/thirdparty
	$(BIN)/mypy --follow-imports=silent --exclude tests/thirdparty/clients tests/thirdparty

# Needs uv. 3.13: what the exchange's present client asks for.
thirdparty-lock:
	uv pip compile --universal --generate-hashes --python-version 3.13 --no-header --no-annotate --no-emit-index-url tests/thirdparty/requirements.in -o tests/thirdparty/requirements.lock
