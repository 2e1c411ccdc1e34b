# The status page in a real browser, its API under made-up requests, and what it costs. docs/page.md.
PAGE_PACKAGES := .page-packages
PAGE_SECONDS ?= 120

.PHONY: page page-tools page-bench

$(PAGE_PACKAGES)/.ready: tests/page/requirements.lock setup
	$(BIN)/python -m pip install --quiet --no-compile --no-deps --require-hashes --only-binary :all: --upgrade --target $(PAGE_PACKAGES) -r $<
	touch $@

# As root: installs a browser where there is none.
page-tools: $(PAGE_PACKAGES)/.ready
	command -v chromium > /dev/null || { apt-get update && apt-get install -y --no-install-recommends chromium; }
	cd tests/page && npm ci --ignore-scripts

page: page-tools
	env PYTHONPATH=$(PAGE_PACKAGES) $(BIN)/python -m pytest -s tests/page $(ARGS)

# Ten thousand markets; an hour: PAGE_SECONDS=3600.
page-bench: page-tools
	env PYTHONPATH=$(PAGE_PACKAGES) $(BIN)/python -m tests.page.bench --seconds $(PAGE_SECONDS) $(ARGS)
