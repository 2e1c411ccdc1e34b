# The lake on a local Spark (Java 17 or newer). Spark lies in a folder of its own, beside the packages of setup.
SPARK_PACKAGES := .spark-packages

.PHONY: spark spark-lock

$(SPARK_PACKAGES)/.ready: tests/spark/requirements.lock | setup
	rm -rf $(SPARK_PACKAGES)
	$(BIN)/python -m pip install --quiet --no-compile --no-deps --require-hashes --target $(SPARK_PACKAGES) -r $<
	touch $@

spark: setup $(SPARK_PACKAGES)/.ready
	env PYTHONPATH=$(CURDIR)/$(SPARK_PACKAGES):$(CURDIR) $(BIN)/python -m pytest tests/spark $(ARGS)

# Needs uv.
spark-lock:
	uv pip compile --universal --generate-hashes --python-version 3.11 --no-header --no-annotate --no-emit-index-url tests/spark/requirements.in -o tests/spark/requirements.lock
