.PHONY: bench-latency

# From a gatherer's receipt to the row in production, at 5,000 events a second: about four minutes.
bench-latency: setup
	$(BIN)/python -m tests.bench.latency $(ARGS)
