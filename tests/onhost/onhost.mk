# Real systemd, real units, the specification's network, on this machine. See docs/onhost.md.
ONHOST_PYTEST := nice -n 15 $(BIN)/python -m pytest tests/onhost

.PHONY: onhost onhost-check

# As root on Debian 12. The first run makes a Debian 13 tree and the closures, and keeps them.
onhost: setup setup-cdk onhost-check
	$(ONHOST_PYTEST) -s -m onhost --timeout 3600 $(ARGS)

onhost-check: setup
	$(BIN)/ruff check tests/onhost
	$(BIN)/ruff format --check tests/onhost
	env MYPYPATH=cdk $(BIN)/mypy --follow-imports=silent tests/onhost
