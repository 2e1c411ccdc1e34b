.PHONY: bench-shards

# What several mergers of one tape cost, together and each: about fifteen minutes (ARGS=--short: two).
bench-shards: setup
	$(BIN)/python -m tests.bench.shards $(ARGS)
