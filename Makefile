# Thin: one command a line. `make demo` and `make test` work on a bare machine with python3 >= 3.11 and make.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
MEMBERS := marketdata runtime gatherer lake dedup exchange deploy cli
DATA ?= ../shared/data
SEEDS ?= 1 2 3
SYNTHETIC_SEEDS ?= $(shell seq 1 20)

.PHONY: setup demo deploy test check bench bench-live bench-dedup soak scale acceptance acceptance-short lock clean help

help:
	@echo "make demo        record, merge and prove a made-up exchange on this machine (about a minute)"
	@echo "make test        the test suite (closures and units: make nix-check, as root)"
	@echo "make deploy      release, infrastructure and rollout to every host (docs/deploy.md)"
	@echo "make check       ruff, mypy --strict, the rule tests"
	@echo "make acceptance  every recorded capture and twenty made-up exchanges (about an hour)"
	@echo "make bench       speed and size as ratios (add ARGS=--json)"
	@echo "make bench-dedup the deduplicator: limit, naive peer, memory, backlog (about 25 minutes, 20 GB)"
	@echo "make bench-latency from receipt to the row in production at 5,000 events/s (about 4 minutes)"
	@echo "make bench-lake  books, exports, bytes and scans of a lake of recorded captures (about two minutes)"
	@echo "make bench-live  a whole gatherer under steady rates: loss, lag, cost (about 12 minutes)"
	@echo "make scale       100,000 markets, 50 opening and closing a second (about 20 minutes)"
	@echo "make soak        thirty minutes at 5,000 frames/s and a picture of what might grow"
	@echo "make nix-check   every Nix output evaluates (make nix-build builds them; as root)"
	@echo "make sim SEED=n  the whole data path in virtual time, one world (sim-many SEEDS=n, sim-mutants)"
	@echo "make trials      the merge on every recorded capture under harsh faults, 20 seeds (hours, resumable)"
	@echo "make faults      one gatherer against every fault, real lengths (about 50 minutes)"
	@echo "make alerts      every alert by a real fault, none in a quiet hour (about 12 minutes; alerts-short)"
	@echo "make aarch64     the hosts' processor, emulated: wheels, capture, Parquet, S3 (as root)"
	@echo "make lake-s3     the lake's tests on S3 instead of a directory, every request recorded (about two minutes)"
	@echo "make pg-matrix   the database tests on PostgreSQL 15, 16, and 17 with TimescaleDB (as root)"
	@echo "make thirdparty  clients that others wrote, against the simulated exchange (about a minute)"
	@echo "make pictures    the pictures of docs/ that show recorded data (about two minutes)"
	@echo "make page        the status page in a real browser, made-up requests, misuse (as root; make page-bench: its cost)"
	@echo "make spark       books, bars and the verifier on a local Spark; needs Java (about three minutes)"
	@echo "make thirdparty-exports  files of tape export, read by the programs they are for (about three minutes)"
	@echo "make lock        resolve the dependencies again"

# --no-deps: the lock is the whole answer. pip would resolve extras again and stop at a newer release it has no hash for.
$(VENV)/.ready: requirements.lock pyproject.toml $(wildcard python/*/pyproject.toml)
	$(PYTHON) -c 'import sys; v = sys.version_info[:2]; sys.exit(None if (3, 11) <= v <= (3, 13) else f"python 3.11 to 3.13 is needed, {sys.version.split()[0]} was found; hint: make PYTHON=python3.12 setup")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --no-compile --no-deps --require-hashes --only-binary :all: -r requirements.lock
	$(BIN)/python -m pip install --quiet --no-deps --no-build-isolation $(foreach m,$(MEMBERS),-e python/$(m))
	$(BIN)/python -m pip check
	touch $@

setup: $(VENV)/.ready

demo: setup
	$(BIN)/tape demo $(ARGS)

# Phases: make deploy ARGS="rollout --plan"; docs/deploy.md.
deploy: setup
	$(BIN)/tape deploy $(ARGS)

test: setup
	$(BIN)/python -m pytest -m "not slow" --ignore tests/nix --ignore tests/onhost --ignore tests/aarch64 --ignore tests/thirdparty --ignore tests/spark $(ARGS)

check: setup
	$(BIN)/ruff check python tests
	$(BIN)/ruff format --check python tests
	$(BIN)/mypy $(foreach m,$(MEMBERS),python/$(m)/src)
	$(BIN)/python -m pytest -q tests/rules

acceptance: setup
	$(BIN)/python -m tests.acceptance.matrix --data $(DATA) --seeds "$(SEEDS)" --synthetic-seeds "$(SYNTHETIC_SEEDS)"

acceptance-short: setup
	$(BIN)/python -m tests.acceptance.matrix --data $(DATA) --short

bench: setup
	$(BIN)/python -m tests.bench $(ARGS)

bench-dedup: setup
	$(BIN)/python -m tests.bench.deduplicator $(ARGS)

bench-live: setup
	$(BIN)/python -m tests.bench.live $(ARGS)

# A hundred thousand markets on one gatherer, fifty opening and closing a second: about 20 minutes.
scale: setup
	$(BIN)/python -m tests.acceptance.scale $(ARGS)

soak: setup
	$(BIN)/python -m tests.bench.live --soak 30 $(ARGS)

# Needs uv. The lock names versions and hashes only, never an address.
lock:
	uv pip compile --universal --generate-hashes --python-version 3.11 --no-header --no-annotate --no-emit-index-url $(foreach p,kalshi-tape-marketdata kalshi-tape-runtime kalshi-tape-gatherer kalshi-tape-dedup kalshi-tape-exchange kalshi-tape-deploy kalshi-tape-cli kalshilake,--no-emit-package $(p)) --group dev pyproject.toml -o requirements.lock

clean:
	rm -rf $(VENV) .mypy_cache .pytest_cache .ruff_cache

-include cdk/cdk.mk
-include systemd/systemd.mk
-include nix/nix.mk
-include tests/onhost/onhost.mk
-include tests/aarch64/aarch64.mk
-include tests/thirdparty/thirdparty.mk
-include tests/thirdparty/exports/exports.mk
-include tests/pgmatrix/pgmatrix.mk
-include tests/faults/faults.mk
-include tests/monitoring/alerts.mk
-include tests/sim/sim.mk
-include tests/bench/latency.mk
-include tests/bench/shards.mk
-include tests/bench/replay.mk
-include tests/bench/lake.mk
-include tests/acceptance/trials.mk
-include tests/lake_on_s3.mk
-include tests/spark/spark.mk
-include tests/pictures/pictures.mk
-include tests/page/page.mk
