# `make demo` shows it, `make test` checks it. Each makes what it needs in this directory; what the tests create on
# engines, they remove.
PYTHON ?= $(shell for p in python3.11 python3.12 python3.13 python3 python; do \
	$$p -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$p && break; done)
IN := .venv/bin/
WORKERS ?= 4

.PHONY: setup demo test test-fast lint mutants bench bench-kubernetes lock clean

setup: .venv/.installed

.venv/.installed: requirements.lock pyproject.toml
	@test -n "$(PYTHON)" || { echo "Python 3.11 or newer with its venv module is needed, and none was found (on Debian: apt-get install python3-venv)"; exit 1; }
	@echo "setup: .venv from requirements.lock"
	@$(PYTHON) -m venv .venv
	@$(IN)pip install --quiet --disable-pip-version-check --require-hashes -r requirements.lock
	@$(IN)pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
	@touch $@

demo: setup
	@$(IN)python -m controller demo

# Most tests wait for engines most of their time, so more run at once than there are cores.
test: lint
	@$(IN)pytest -n $(WORKERS) -m "not alone"
	@$(IN)pytest -m alone

test-fast: lint
	@$(IN)pytest -n $(WORKERS) tests/unit tests/infra

lint: setup
	@$(IN)ruff check --quiet .
	@$(IN)ruff format --quiet --check .
	@$(IN)lint-imports --no-logo --no-cache
	@$(IN)mypy

# Removes each guard of the protocol in a copy of the project, one at a time: its test must fail.
mutants: setup
	@$(IN)python -m tests.mutants

bench: setup
	@$(IN)python -m tests.bench

bench-kubernetes: setup
	@$(IN)python -m tests.bench.kubernetes

# Pins every dependency anew; needs uv, and writes no registry's name.
lock:
	uv pip compile pyproject.toml --extra demo --group dev --universal --python-version 3.11 --generate-hashes \
		--no-emit-index-url --no-header --quiet --output-file requirements.lock
	uv pip compile pyproject.toml --universal --python-version 3.11 --generate-hashes \
		--no-emit-index-url --no-header --quiet --output-file requirements-app.lock
	cd images/sandbox && uv pip compile requirements.in --python-platform linux --python-version 3.11 --generate-hashes \
		--no-emit-index-url --no-header --quiet --output-file requirements.lock

clean:
	rm -rf .venv .work build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
