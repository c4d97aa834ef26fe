# SPDX-FileCopyrightText: lmr-guard contributors
# SPDX-License-Identifier: Apache-2.0
PYTHON ?= python3
OUT ?= lmr-guard-demo
WORKERS ?= 2
COMMA := ,
HOSTS := hosts,mlflow,torchao,nncf,olive,ray,signing
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
WHEEL := .make/wheel
SITE := .make/site
TOOLS := .make/tools
APART := .make/hosts
GUIDED := .make/atheris
PIN_dvc := dvc==3.67.1
PIN_kfp := kfp==2.17.3
PIN_airflow := apache-airflow==3.3.2
PIN_atheris := atheris==3.0.0
PIP := $(BIN)/python -m pip --disable-pip-version-check

.DEFAULT_GOAL := help
.PHONY: help demo test lint types pytest coverage examples long docs structure reliability guided hosts install clean release advisories lock

help: ## Show this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "make %-11s %s\n", $$1, $$2 }' Makefile
	@echo "Variables: PYTHON=python3 (3.11 or newer), OUT=lmr-guard-demo, WORKERS=2"

demo: $(STAMP) ## Plant two sleeping backdoors, guard against them, write reports to OUT
	$(BIN)/lmr-guard demo --out "$(OUT)"

test: lint types pytest ## Lint, type-check and test the package; CI runs it and make examples

lint: $(STAMP) ## Check style and format
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

# What is type-checked is what ships: a type checker cannot follow the mapped folders of an
# editable install. The examples stand beside the package as a user's code would.
types: $(STAMP) ## Type-check the built wheel and the examples
	rm -rf build "$(WHEEL)" "$(SITE)"
	$(BIN)/python -m build --quiet --wheel --no-isolation --outdir "$(WHEEL)" .
	$(PIP) install --quiet --no-deps --no-index --target "$(SITE)" $(WHEEL)/*.whl
	cp -R examples "$(SITE)/examples"
	cd / && MYPYPATH="$(CURDIR)/$(SITE)" "$(CURDIR)/$(BIN)/mypy" \
		--config-file "$(CURDIR)/pyproject.toml" --cache-dir "$(CURDIR)/.mypy_cache" \
		-p lmr_guard -p examples

# One thread a worker: two workers with a thread pool each would fight over two cores.
pytest: $(STAMP) ## Run the tests alone
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS)

# The tracer slows these tests down, so it is asked for by itself.
coverage: $(STAMP) ## The tests of the package under coverage, 90 % at least
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS) --cov --cov-report=term-missing \
		--cov-fail-under=90 -m "not examples and not gpu and not shared and not hosts and not long"

# The examples and the lab, which are copied or asked for numbers, not installed, and its attacks.
examples: $(STAMP) ## Run the tests of what stands in examples/, and of the lab's attacks
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS) \
		-m "(examples or attacks) and not gpu and not shared and not hosts and not long"

# Of each kind a shorter test is in `make test`; see CONTRIBUTING.md.
long: $(STAMP) ## The long tests, which make test leaves out
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS) -m long

# A warning is an error: a link that leads nowhere, a page in no list.
docs: $(STAMP) ## Build the documentation as a site into .make/docs
	$(BIN)/python -m sphinx -W --keep-going -n -q -b html docs .make/docs

structure: $(STAMP) ## Count modules, functions, imports and files: how long, how wide, how many
	$(BIN)/python -m examples.lab.structure

reliability: $(STAMP) ## The long runs: bad inputs, kills, fuzzing; writes docs/reliability.md
	-OMP_NUM_THREADS=1 $(BIN)/python -m examples.lab.reliability inputs
	-OMP_NUM_THREADS=1 $(BIN)/python -m examples.lab.reliability kills
	-OMP_NUM_THREADS=1 $(BIN)/python -m examples.lab.reliability fuzz
	-OMP_NUM_THREADS=1 $(BIN)/python -m examples.lab.reliability large
	-OMP_NUM_THREADS=1 $(BIN)/python -m examples.lab.reliability bypasses
	$(BIN)/python -m examples.lab.reliability show --write

# A fuzzer that only this command needs, and that runs on few versions of Python: no dependency.
$(GUIDED)/.installed: Makefile
	$(PIP) install --quiet --no-deps --only-binary :all: --upgrade --target $(GUIDED) $(PIN_atheris)
	@touch $@

guided: $(STAMP) $(GUIDED)/.installed ## Coverage-guided fuzzing of what reads files; writes docs/reliability.md
	-OMP_NUM_THREADS=1 PYTHONPATH=$(GUIDED) $(BIN)/python -m examples.lab.reliability guided
	$(BIN)/python -m examples.lab.reliability show --write

# Hosts whose pins may not agree with ours live apart, as their users install them: our command
# line is found on the path.
$(APART)/%/.installed: Makefile
	$(PYTHON) -m venv $(APART)/$*
	$(APART)/$*/bin/pip install --quiet --disable-pip-version-check $(PIN_$*)
	@touch $@

hosts: $(STAMP) $(patsubst %,$(APART)/%/.installed,dvc kfp airflow) ## Run the steps for other tools in these tools; writes docs/hosts.json
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m "hosts or not hosts" --junitxml=.make/hosts.xml \
		tests/test_hooks_mlflow.py tests/test_hooks_torchao.py tests/test_hooks_nncf.py \
		tests/test_hooks_olive.py tests/test_examples_pipelines_dagster.py \
		tests/test_examples_pipelines_hosts.py tests/test_fleet_ray.py
	$(BIN)/python tests/hosts_record.py .make/hosts.xml docs/hosts.json

install: $(STAMP) ## Make the virtual environment in .venv

# Nothing is taken whose digest is not in locked.txt, and nothing is built: only wheels.
$(STAMP): pyproject.toml locked.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
		echo "expected Python 3.11 or newer, got $$($(PYTHON) --version 2>&1); name one with make PYTHON=..." >&2; \
		exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(PIP) install --require-hashes --no-deps --only-binary :all: --requirement locked.txt
	$(PIP) install --quiet --no-deps --no-build-isolation --editable .
	@touch $@

# The tools stand apart: nothing that ships depends on them.
$(TOOLS)/.installed: Makefile
	$(PYTHON) -m venv $(TOOLS)
	$(TOOLS)/bin/pip install --quiet cyclonedx-bom==7.5.0 pip-audit==2.10.1 uv==0.13.9
	@touch $@

lock: $(TOOLS)/.installed ## Write locked.txt anew: the versions of constraints.txt with the digests of their files
	printf 'pip\nsetuptools\nwheel\n' | $(TOOLS)/bin/uv pip compile pyproject.toml - --quiet \
		$(patsubst %,--extra %,dev timm $(subst $(COMMA), ,$(HOSTS))) --constraint constraints.txt \
		--universal --python-version 3.11 --only-binary :all: --generate-hashes --no-annotate \
		--custom-compile-command "make lock" --output-file locked.txt

# The date of the last commit stands for the time of the build, so that anyone can rebuild the bytes.
release: $(STAMP) $(TOOLS)/.installed ## Build the wheel, its bill of materials and their digests into dist
	rm -rf build dist
	SOURCE_DATE_EPOCH=$$(git log -1 --format=%ct) \
		$(BIN)/python -m build --quiet --wheel --no-isolation --outdir dist .
	$(TOOLS)/bin/cyclonedx-py requirements constraints.txt --pyproject pyproject.toml \
		--output-reproducible --of JSON -o dist/sbom.json
	cd dist && sha256sum *.whl sbom.json > SHA256SUMS

advisories: $(TOOLS)/.installed ## Ask whether a pinned version has a known vulnerability (needs the internet)
	$(TOOLS)/bin/pip-audit --requirement constraints.txt --no-deps --disable-pip

clean: ## Remove what was built; .venv stays
	rm -rf build dist .make *.egg-info .coverage* .mypy_cache .pytest_cache .ruff_cache .hypothesis
