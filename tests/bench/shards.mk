.PHONY: bench-shards test-shards

# What several mergers of one tape cost, together and each: about fifteen minutes (ARGS=--short: two).
bench-shards: setup
	$(BIN)/python -m tests.bench.shards $(ARGS)

# Several mergers of one tape, two of them killed with kill -9 and the third running twice: a minute or two.
test-shards: setup
	SHARDS_LONG=1 $(BIN)/python -m pytest -q tests/integration/test_dedup_shards.py
