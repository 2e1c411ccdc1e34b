# The trials of the merge on recorded data. See docs/acceptance.md.
.PHONY: trials trials-short

# Seven variants and a control, 25 captures, 20 seeds: hours. OUT keeps the cells; a second call goes on.
# One seed (about 20 minutes): make trials ARGS="--seeds 1"
trials: setup
	nice -n 10 $(BIN)/python -m tests.acceptance.trials --out $(if $(OUT),$(OUT),/tmp/kalshi-tape-trials.jsonl) $(ARGS)

# The smallest captures, about 40 seconds; part of make test.
trials-short: setup
	$(BIN)/python -m tests.acceptance.trials --short $(ARGS)
