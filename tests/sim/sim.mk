SEED ?= 1

.PHONY: sim sim-many sim-mutants

# The whole data path in virtual time; see docs/simulation.md.
sim: setup
	$(BIN)/python -m tests.sim.run --seed $(SEED)

sim-many: setup
	$(BIN)/python -m tests.sim.run --seeds $(if $(filter command line environment,$(origin SEEDS)),$(SEEDS),1000)

sim-mutants: setup
	$(BIN)/python -m tests.sim.mutate $(NAMES)
