# Every alert by a real fault, with the real Prometheus, and none in a quiet hour. See docs/runbook.md.
.PHONY: alerts alerts-short

# About twelve minutes; as root, for a disk of its own that can be full. One fault: make alerts ARGS="--only clock"
alerts: setup
	nice -n 5 $(BIN)/python -m tests.monitoring $(ARGS)

# Ten quiet minutes and four faults, about two minutes.
alerts-short: setup
	nice -n 5 $(BIN)/python -m tests.monitoring --short $(ARGS)
