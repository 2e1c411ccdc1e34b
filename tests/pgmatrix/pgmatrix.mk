# The tests that use a real database, on PostgreSQL 15 and 16 with partitions and 17 with hypertables. See docs/databases.md.
PGMATRIX_TESTS := tests/integration tests/unit/runtime tests/unit/gatherer tests/unit/dedup tests/unit/tape
PGMATRIX_PYTEST := nice -n 15 $(BIN)/python -m pytest -q -p no:cacheprovider -p tests.pgmatrix.witness -m "not slow"
PGMATRIX_TREE = $(BIN)/python -m tests.pgmatrix.tree
PGMATRIX_CLEAN = test -n "$(PGMATRIX_CACHE)" || rm -rf /var/tmp/kalshi-tape-pgmatrix

.PHONY: pg-matrix pg-matrix-15 pg-matrix-16 pg-matrix-17

# As root on Debian. Unpacks the packages of 15 and 17; they are kept only in a cache that was named.
pg-matrix: setup
	status=0; for version in 17 15 16; do $(MAKE) pg-matrix-$$version || status=$$?; done; $(PGMATRIX_CLEAN); exit $$status

pg-matrix-15: setup
	root=$$($(PGMATRIX_TREE) 15) && TAPE_POSTGRES=$$root $(PGMATRIX_PYTEST) --claim 15:native $(or $(ARGS),$(PGMATRIX_TESTS))

pg-matrix-16: setup
	$(PGMATRIX_PYTEST) --claim 16:native $(or $(ARGS),$(PGMATRIX_TESTS))

pg-matrix-17: setup
	root=$$($(PGMATRIX_TREE) 17) && TAPE_POSTGRES=$$root $(PGMATRIX_PYTEST) --claim 17:hypertable $(or $(ARGS),$(PGMATRIX_TESTS))
