# make demo     set up, and tune a real small model on real text with two processes as two nodes
# make test     set up, and run every check and test that this machine allows; names what it skipped
# make check    lint, types and layers only             make fix       format and mend what can be mended
# make generate the CRD and the manifest reference      make bench     benchmarks beside rivals (not pass/fail)
# make setup    .venv from requirements.lock            make lock      pin anew what pyproject.toml asks for
.PHONY: demo test check fix generate bench setup lock unit e2e integration cluster
SHELL := /bin/bash
export OMP_NUM_THREADS ?= 1
PY := .venv/bin/python

setup:
	@tools/setup.sh

demo: setup
	@$(PY) tools/demo.py

test: setup
	@$(PY) tools/check.py

check: setup
	@$(PY) tools/check.py static

unit e2e integration cluster: setup
	@$(PY) tools/check.py $@

fix: setup
	@.venv/bin/ruff check --fix -q . ; .venv/bin/ruff format .

generate: setup
	@$(PY) tools/generate.py

bench: setup
	@$(PY) -m tests.benchmarks

lock:
	@tools/lock.sh
