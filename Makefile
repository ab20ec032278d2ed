# make demo   a picture of what a trained Vision Transformer based its answer on
# make test   the whole test suite, on WORKERS=2 processes; PYTEST="tests/maths -x" for a part of it
# make check  lint, types, import contracts, doctests
# make docs   the docs site, into site/: strict, and checked that it stands alone
# make bench  the tables of docs/performance.md
# make soak   runs killed, starved and damaged: the table of docs/runs.md (20 minutes)
# make dist   wheel and sdist in dist/, checked and tried in empty environments; DIST="--python 3.11" for one Python
# make licences   docs/licences.md, and a failure where a licence is not on the list
PYTHON ?= python3
WORKERS ?= 2
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check install --quiet --constraint constraints.txt

.PHONY: demo test check docs bench soak dist licences clean

demo: $(VENV)/ready
	$(BIN)/zeroline demo

test: $(VENV)/ready-test
	$(BIN)/python -m pytest --numprocesses $(WORKERS) --dist loadfile --no-loadscope-reorder $(PYTEST)

check: $(VENV)/ready-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python -m pytest --doctest-modules src/zeroline

docs: $(VENV)/ready-docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet
	$(BIN)/python docs/check_site.py site

bench: $(VENV)/ready-test
	$(PIP) --editable '.[bench]'
	$(BIN)/python benchmarks/integrated_gradients.py
	$(BIN)/python benchmarks/attention.py
	$(BIN)/python benchmarks/layers.py
	$(BIN)/python benchmarks/eclip.py
	$(BIN)/python benchmarks/rewriting.py

soak: $(VENV)/ready-test
	$(BIN)/python benchmarks/soak.py

dist: $(VENV)/tools/ready
	$(VENV)/tools/bin/python release/check_dist.py $(DIST)

licences: $(VENV)/ready-test
	$(PIP) --editable '.[bench]'
	$(BIN)/python release/licences.py --also $(VENV)/test-only --write

# What builds and checks a release, apart from what it checks.
$(VENV)/tools/ready: release/requirements.txt
	$(PYTHON) -m venv $(VENV)/tools
	$(VENV)/tools/bin/python -m pip --disable-pip-version-check install --quiet --requirement release/requirements.txt
	touch $@

$(VENV)/ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(PIP) --editable .
	touch $@

# Packages for tests only go into a folder of their own: torchvision, which timm needs, may not match
# the torch build here, and a torchvision that fails to import would take transformers down with it.
$(VENV)/ready-test: $(VENV)/ready tests/packages.txt
	$(PIP) --editable '.[test,dev]'
	$(PIP) --no-deps --upgrade --target $(VENV)/test-only --requirement tests/packages.txt
	touch $@

$(VENV)/ready-docs: $(VENV)/ready
	$(PIP) --editable '.[docs]'
	touch $@

clean:
	rm -rf $(VENV) out dist site
