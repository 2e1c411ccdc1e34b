# The hosts' processor under emulation: wheels, capture, Parquet, S3. See docs/aarch64.md.
.PHONY: aarch64 aarch64-check aarch64-test aarch64-clean

# As root on Debian 12 (x86_64). Fetches a Debian 13 tree, qemu and the wheels; they are kept only in a cache that was named.
aarch64: setup
	status=0; nice -n 15 $(BIN)/python -m tests.aarch64 || status=$$?; \
	test -n "$(KT_AARCH64_CACHE)" || rm -rf /var/tmp/kalshi-tape-aarch64; exit $$status

# The same checks as tests, and how a run ends that is interrupted or cannot be made.
aarch64-test: setup aarch64-check
	nice -n 15 $(BIN)/python -m pytest tests/aarch64 -m aarch64 $(ARGS)

aarch64-check: setup
	$(BIN)/ruff check tests/aarch64
	$(BIN)/ruff format --check tests/aarch64
	$(BIN)/mypy --follow-imports=silent tests/aarch64

# What is kept between runs.
aarch64-clean:
	rm -rf $(or $(KT_AARCH64_CACHE),/var/tmp/kalshi-tape-aarch64)
