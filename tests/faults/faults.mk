# The gatherer's fault matrix. See docs/acceptance.md.
.PHONY: faults faults-short

# Every fault at its real length, about 50 minutes. A test: make faults ARGS="-k killed"
faults: setup
	nice -n 5 $(BIN)/python -m pytest tests/faults/matrix.py -s -p no:cacheprovider --timeout 3600 $(ARGS)

# The same faults in one life, about a minute; part of make test.
faults-short: setup
	$(BIN)/python -m pytest tests/faults/test_short.py $(ARGS)
