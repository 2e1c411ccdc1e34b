# The AWS side, in its own virtual environment so that the tape's closures never see the CDK.
# Included by the root Makefile; every target also works from a machine with only python3, node and make.
CDK_VENV := .venv-cdk
CDK_BIN := $(CDK_VENV)/bin
CDK_PYTHON := $(CDK_BIN)/python
CDK_PYTEST := $(CDK_PYTHON) -m pytest -c cdk/pyproject.toml --confcutdir tests/infra -p no:cacheprovider
CDK_RUN := env PYTHONPATH=cdk:tests/infra $(CDK_PYTHON)
NICE ?= nice -n 19
HOST ?=
export JSII_SILENCE_WARNING_END_OF_LIFE_NODE_VERSION := 20

.PHONY: setup-cdk setup-cdk-cli lock-cdk aws-check aws-synth aws-test aws-test-all aws-conformance \
	aws-deviations aws-matrix aws-golden aws-cli aws-picture aws-lake-columns aws-guard aws-deploy cost

$(CDK_VENV)/.ready: cdk/requirements.lock
	$(or $(PYTHON),python3) -m venv $(CDK_VENV)
	$(CDK_PYTHON) -m pip install --quiet --no-compile --no-deps --require-hashes --only-binary :all: -r cdk/requirements.lock
	$(CDK_PYTHON) -m pip check
	touch $@

cdk/node_modules/.ready: cdk/package-lock.json
	cd cdk && npm ci --silent --ignore-scripts
	touch $@

setup-cdk: $(CDK_VENV)/.ready

setup-cdk-cli: cdk/node_modules/.ready

# Needs uv. Shared packages stay at the tape's versions.
lock-cdk:
	cd cdk && uv pip compile --universal --python-version 3.11 --generate-hashes --no-header --no-annotate --no-emit-index-url --no-emit-find-links --group pyproject.toml:test pyproject.toml -c ../requirements.lock -o requirements.lock -q

# Types and style. The first mypy run reads all of aws-cdk-lib (about 3 minutes); later ones take seconds.
aws-check: setup-cdk
	$(CDK_BIN)/ruff check cdk tests/infra
	$(CDK_BIN)/ruff format --check cdk tests/infra
	MYPYPATH=cdk $(NICE) $(CDK_BIN)/mypy --config-file pyproject.toml --cache-dir cdk/.mypy_cache cdk/kalshi_infra cdk/app.py

# Templates into cdk/cdk.out with the example site; no account, no network.
aws-synth: setup-cdk
	cd cdk && CDK_OUTDIR=cdk.out CDK_CONTEXT_JSON='{"site": "site.example.toml"}' ../$(CDK_PYTHON) app.py

# The tests that take seconds each.
aws-test: setup-cdk
	$(NICE) $(CDK_PYTEST) tests/infra -q -m "not slow"

# All of them: cdk-nag and the real CLI too.
aws-test-all: setup-cdk setup-cdk-cli
	$(NICE) $(CDK_PYTEST) tests/infra -q

# Every row of the specification against configuration, template and read-back.
aws-conformance: setup-cdk
	$(NICE) $(CDK_RUN) -m conform

# Where the specification cannot or should not be deployed as written, why, and the option that changes it.
aws-deviations: setup-cdk
	@$(CDK_RUN) -m kalshi_infra.deviations

# Who may reach whom, from the templates in cdk/cdk.out.
aws-matrix: aws-synth
	@$(CDK_RUN) -m kalshi_infra.flows cdk/cdk.out --admin-cidr 203.0.113.7/32

# The golden templates: write them, then read the diff.
aws-golden: setup-cdk
	$(CDK_RUN) -m golden

# The real CDK CLI against moto, with nothing but the loopback interface (Linux).
aws-cli: setup-cdk setup-cdk-cli
	$(NICE) $(CDK_RUN) tests/infra/cli_run.py

# The monthly bill: the specification's lines, ours, the difference; every profile and option.
cost: setup-cdk
	@$(NICE) $(CDK_RUN) -m kalshi_infra.cost_table

aws-picture: aws-synth
	$(CDK_RUN) -m kalshi_infra.picture cdk/cdk.out --admin-cidr 203.0.113.7/32 --out docs/aws-network

# Columns of the Athena tables, from the exporter's schema (needs the tape's environment: make setup).
aws-lake-columns:
	.venv/bin/python cdk/kalshi_infra/lake_columns.py

# Both need credentials and cdk/site.toml; docs/aws.md. HOST=gatherer-2 names the one host that may be disturbed.
aws-guard: setup-cdk
	cd cdk && CDK_OUTDIR=cdk.out ../$(CDK_PYTHON) app.py
	$(CDK_RUN) -m kalshi_infra.guard cdk/cdk.out --host "$(HOST)"

aws-deploy: aws-guard setup-cdk-cli
	cd cdk && npx --no-install cdk deploy --app cdk.out --all --outputs-file outputs.json
