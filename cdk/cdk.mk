# The AWS side, in its own virtual environment so that the tape's closures never see the CDK.
# Included by the root Makefile; every target also works from a machine with only python3, node and make.
CDK_VENV := .venv-cdk
CDK_BIN := $(CDK_VENV)/bin
CDK_PYTHON := $(CDK_BIN)/python
CDK_PYTEST := $(CDK_PYTHON) -m pytest -c cdk/pyproject.toml --rootdir .
NICE ?= nice -n 19

.PHONY: setup-cdk setup-cdk-cli aws-check aws-synth aws-test aws-test-all aws-conformance aws-deviations aws-matrix aws-cli aws-golden cost aws-picture lock-cdk

$(CDK_VENV)/.ready: cdk/requirements.lock
	$(or $(PYTHON),python3) -m venv $(CDK_VENV)
	$(CDK_PYTHON) -m pip install --quiet --no-compile --require-hashes --only-binary :all: -r cdk/requirements.lock
	touch $@

cdk/node_modules/.ready: cdk/package-lock.json
	cd cdk && npm ci --silent --ignore-scripts
	touch $@

setup-cdk: $(CDK_VENV)/.ready

setup-cdk-cli: cdk/node_modules/.ready
