# The commands of the README. Each sets up what it needs: nothing but Python 3.11 or 3.12, git and make must be there.
SHELL := /bin/bash
.DEFAULT_GOAL := help

PYTHON ?=
export PYTHON

ENGINE_LOCK := $(shell nvidia-smi >/dev/null 2>&1 && echo requirements/cuda.lock || echo requirements/cpu.lock)
# What is not given here stays as the environment or the configuration says.
ENVIRONMENT = $(if $(API_KEY),SERVING_API_KEY='$(API_KEY)') $(if $(CONFIG),SERVING_CONFIG='$(CONFIG)')
OPTIONS = $(if $(HOST),--host '$(HOST)') $(if $(PORT),--port '$(PORT)')

.PHONY: help serve test clients system-deps needed chaos check format clean

help: ## list the commands
	@grep -E '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 12

serve: .venv/serve.stamp ## start the server (HOST, PORT, API_KEY, CONFIG)
	@$(ENVIRONMENT) exec .venv/bin/python -m serving serve $(OPTIONS)

test: .venv/test.stamp ## run all tests, with a real engine on this machine
	.venv/bin/python -m pytest

clients: needed .venv/clients.stamp tests/clients/node_modules/.stamp ## run the tests with the published clients
	.venv/bin/python -m pytest tests/clients

system-deps: ## install what these need of Debian (as root)
	@deploy/system-deps.sh

needed:
	@deploy/system-deps.sh check

chaos: .venv/test.stamp ## kill everything under load, and see whether the books add up
	.venv/bin/python -m loadtests.ledger_chaos

check: .venv/test.stamp ## ruff, mypy, import-linter
	.venv/bin/ruff check
	.venv/bin/ruff format --check
	.venv/bin/mypy
	.venv/bin/lint-imports

format: .venv/test.stamp ## let ruff format the code
	.venv/bin/ruff check --fix
	.venv/bin/ruff format

clean: ## remove what make installed
	rm -rf .venv tests/clients/node_modules

.venv/serve.stamp: $(ENGINE_LOCK) pyproject.toml
	@deploy/setup.sh $(ENGINE_LOCK)
	@touch $@

.venv/test.stamp: .venv/serve.stamp requirements/test.lock
	@deploy/setup.sh $(ENGINE_LOCK) requirements/test.lock
	@touch $@

.venv/clients.stamp: .venv/test.stamp requirements/clients.lock
	@deploy/setup.sh $(ENGINE_LOCK) requirements/test.lock requirements/clients.lock
	@touch $@

tests/clients/node_modules/.stamp: tests/clients/package-lock.json
	cd tests/clients && npm ci
	@touch $@
