.PHONY: bench-replay replay-again

# `tape replay --rate max` from a lake of recorded captures (ARGS=--spool: from a spool): events a
# second, about a minute.
bench-replay: setup
	$(BIN)/python -m tests.bench.replay $(ARGS)

# A replay recorded by our own gatherer and merged again is the same tape: about five minutes.
replay-again: setup
	$(BIN)/python -m pytest tests/integration/test_spool_again.py tests/acceptance/test_replay_again.py $(ARGS)
