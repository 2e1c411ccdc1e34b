# The closures, without nixpkgs: Debian's Nix and the stand-in of tests/nix. See docs/nix.md.
NIX_PYTEST := $(BIN)/python -m pytest tests/nix

.PHONY: wheels nix-check nix-build

# Which wheel files the closures are made of, from the lock. Asks the package index; writes nix/wheels.json.
wheels: setup
	$(BIN)/python -m nix.wheels

# A minute: style, syntax, every output of both systems evaluates, the wheels are those of the lock.
nix-check: setup
	$(BIN)/ruff check nix tests/nix
	$(BIN)/ruff format --check nix tests/nix
	$(BIN)/mypy nix
	$(NIX_PYTEST) -m "not slow" $(ARGS)

# About ten minutes, as root: this machine's closures for real, twice, and the demo out of them.
nix-build: setup
	$(NIX_PYTEST) -s -m slow --timeout 3600 $(ARGS)
