# make demo     set up, and tune a real small model on real text with two processes as two nodes
# make test     set up, and run every check and test that this machine allows; names what it skipped
# make quick    for every edit: make check, and the unit tests that start no process (three minutes on two cores)
# make check    lint, types, layers and wording only    make fix       format, and fix what can be fixed
# make generate the CRD and generated docs              make bench     benchmarks beside rivals (not pass/fail)
# make docs     the documentation as a site, links checked; prints how to read it
# make proof    what takes longer: docs/models.md again (every method on every family), and what remedies against
#               forgetting save on a real model (each run of that is stored: it resumes where it was stopped)
# make pictures docs/watch.svg, and docs/report.png from the last demo
# make images   both images with buildah on a base of Debian packages (root on Debian), the operator's twice: one digest;
#               then `helm test` with both on the test cluster (15 GB of disk)
# make audit    known vulnerabilities and licences of what requirements.lock pins
# make setup    .venv from requirements.lock            make lock      pin anew what pyproject.toml asks for
# make gpu-rehearsal   the kit for a borrowed GPU (tests/gpu) on CPUs, with tiny models; `make test` runs it too
.PHONY: docs pictures images audit proof demo test quick check fix generate bench gpu-rehearsal setup lock unit e2e integration cluster
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

gpu-rehearsal: setup
	@$(PY) tests/gpu/run.py --rehearsal --budget 1700 --out .finetune/gpu-rehearsal

quick unit e2e integration cluster: setup
	@$(PY) tools/check.py $@

fix: setup
	@.venv/bin/ruff check --fix -q . ; .venv/bin/ruff format .

generate: setup
	@$(PY) tools/generate.py

proof: setup
	@$(PY) -m tests.matrix
	@$(PY) -m tests.proof.coverage
	@$(PY) -m tests.proof.fuzzed
	@$(PY) -m tests.proof.ladder
	@$(PY) -m tests.benchmarks.transfer.bench_forgetting
	@$(PY) -m tests.benchmarks.transfer.bench_domains
	@$(PY) -m tests.benchmarks.transfer.bench_sequence
	@$(PY) -m tests.proof.scripts
	@$(PY) -m tests.proof.trackers
	@$(PY) -m tests.proof.tasks

pictures: setup
	@$(PY) tools/pictures.py

images: setup
	@$(PY) tools/image_build.py operator --twice
	@$(PY) tools/image_build.py trainer
	@FINETUNE_TRAINER_IMAGE=1 $(PY) -m pytest -q -p no:cacheprovider tests/cluster/test_helm_test.py

audit: setup
	@$(PY) tools/audit.py

bench: setup
	@$(PY) -m tests.benchmarks

docs: setup
	@$(PY) tools/docs_site.py

lock:
	@tools/lock.sh
