# Everything a checkout needs: Python 3.11 or newer, make, and a network for pip. No virtual environment to activate.
#
#   make run ARGS='--config examples/dicom-to-jmix/config.toml'
#   make test ARGS='tests/ul -k pdu'

ARGS ?=
PYTHON ?=
VENV := .venv
BIN := $(VENV)/bin

.PHONY: help run test style types bench check clean

help:
	@echo 'make run    start Harmony            ARGS="--config FILE" is passed on'
	@echo 'make test   run the tests            ARGS="tests/ul -k pdu" is passed on'
	@echo 'make style  ruff: lint and format    make types  mypy --strict    make check  style, types, test'
	@echo 'make bench  a part of each benchmark, two minutes at most'

run: $(VENV)/.run-installed
	@$(BIN)/python -m harmony $(ARGS)

test: $(VENV)/.test-installed
	@$(BIN)/python -m pytest $(ARGS)

style: $(VENV)/.test-installed
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .

types: $(VENV)/.test-installed
	@$(BIN)/mypy

bench: $(VENV)/.test-installed
	@$(BIN)/python -m benchmarks all --quick $(ARGS)

check: style types test

clean:
	rm -rf $(VENV) .mypy_cache .pytest_cache .ruff_cache build *.egg-info

# A stamp per set of dependencies, older than pyproject.toml means: install again. The test set contains the other one.
$(VENV)/.run-installed: pyproject.toml | $(VENV)/bin/pip
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable .
	@touch $@

$(VENV)/.test-installed: pyproject.toml | $(VENV)/bin/pip
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[test]'
	@touch $(VENV)/.run-installed $@

# pip is the last thing that venv writes, so its presence means a complete environment.
$(VENV)/bin/pip:
	@for python in $(PYTHON) python3 python3.14 python3.13 python3.12 python3.11 python; do \
	    command -v "$$python" >/dev/null 2>&1 || continue; \
	    "$$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || continue; \
	    if ! "$$python" -c 'import ensurepip, venv' 2>/dev/null; then \
	        version=$$("$$python" -c 'import sys; print("%d.%d" % sys.version_info[:2])'); \
	        echo "$$python ($$version) cannot make virtual environments: its ensurepip or venv module is missing." >&2; \
	        echo "On Debian and Ubuntu: apt-get install python$$version-venv (as root), then run make again." >&2; \
	        exit 1; \
	    fi; \
	    echo "Making $(VENV) with $$("$$python" --version)"; \
	    exec "$$python" -m venv --clear $(VENV); \
	done; \
	echo "Harmony needs Python 3.11 or newer; none of python3, python3.14 ... python3.11 on the PATH is." >&2; \
	echo "Install one, or name it: make PYTHON=/path/to/python3.13 ..." >&2; \
	exit 1
