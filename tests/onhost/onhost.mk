# Real systemd, real units, the specification's network, on this machine. See docs/onhost.md.
ONHOST_PYTEST := nice -n 15 $(BIN)/python -m pytest tests/onhost

.PHONY: onhost onhost-check

# As root on Debian 12. Makes a Debian 13 tree and the closures; they are kept only in a cache that was named.
onhost: setup setup-cdk setup-cdk-cli onhost-check
	status=0; $(ONHOST_PYTEST) -s -m onhost --timeout 3600 $(ARGS) || status=$$?; \
	test -n "$(KT_ONHOST_CACHE)" || rm -rf /var/tmp/kalshi-tape-onhost; exit $$status

onhost-check: setup
	$(BIN)/ruff check tests/onhost
	$(BIN)/ruff format --check tests/onhost
	env MYPYPATH=cdk $(BIN)/mypy --follow-imports=silent tests/onhost
