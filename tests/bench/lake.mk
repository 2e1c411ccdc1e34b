.PHONY: bench-lake

# Books, exports, bytes and scans of a lake of recorded captures: about three minutes.
bench-lake: setup
	$(BIN)/python -m tests.bench.lake $(ARGS)
