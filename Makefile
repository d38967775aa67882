# Everything runs in .venv, which `make setup` creates; only Python >= 3.11 and make are needed.
#   make demo ARGS=--quick     options for the demo, and for pytest in `make test-rest`
#   make test WORKERS=8        more test processes
#   make setup PYTHON3=/path/to/python3.12
VENV := .venv
PYTHON := $(VENV)/bin/python
READY := $(VENV)/.ready
PYTHON3 ?= python3 python3.13 python3.12 python3.11
WORKERS ?= 2
PYTEST = OMP_NUM_THREADS=1 $(PYTHON) -m pytest -n $(WORKERS) --dist worksteal

.PHONY: help setup demo serve test test-fast test-rest test-all docs check-install check-wheel lint typecheck format clean
.DEFAULT_GOAL := help

help:  ## list these targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-13s %s\n", $$1, $$2 }' Makefile

setup: $(READY)  ## virtual environment in .venv with the pinned packages

# uv, not pip: pip may be set up with local wheel folders, whose torch and torchvision need not fit together.
$(READY): requirements.txt pyproject.toml
	@for python in $(PYTHON3); do \
	    $$python -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && break; \
	    python=; \
	done; \
	if [ -z "$$python" ]; then \
	    echo "VisCoIN needs Python 3.11 or newer and found none as: $(PYTHON3)." >&2; \
	    echo "Install one, or say where it is: make setup PYTHON3=/path/to/python3.12" >&2; \
	    exit 1; \
	fi; \
	echo "Setting up $(VENV) with $$($$python --version); PyTorch with CUDA takes about 6 GB of disk."; \
	$$python -m venv $(VENV)
	$(PYTHON) -m pip install --quiet --disable-pip-version-check uv
	$(PYTHON) -m uv pip install --python $(PYTHON) -r requirements.txt
	$(PYTHON) -m uv pip install --quiet --python $(PYTHON) --no-deps -e .
	@touch $(READY)

demo: setup  ## the whole pipeline on the built-in birds, with a report in runs/demo
	$(PYTHON) main.py demo $(ARGS)

serve: setup  ## the service with its pages, on the shipped birds
	$(PYTHON) main.py serve $(ARGS)

test: setup lint typecheck  ## every check, and all tests but the long ones
	$(PYTEST) -m "not long"

test-fast: setup  ## the tests that take seconds
	$(PYTEST) -m "not slow and not long"

test-rest: setup  ## the long tests, which `make test` leaves out
	$(PYTEST) -m long $(ARGS)

test-all: setup lint typecheck  ## every check and every test
	$(PYTEST)

docs: setup  ## the documentation as a website in site/, from docs/ and the docstrings
	NO_MKDOCS_2_WARNING=1 $(PYTHON) -m mkdocs build --strict --quiet

check-install: setup  ## fresh environments without extras, and with each alone
	$(PYTHON) scripts/check_minimal_install.py

check-wheel: setup  ## the wheel in a fresh environment, outside this folder
	$(PYTHON) scripts/check_wheel.py

lint: setup  ## rules and formatting, by ruff
	$(PYTHON) -m ruff check --quiet .
	$(PYTHON) -m ruff format --quiet --check .

typecheck: setup  ## types, by mypy
	$(PYTHON) -m mypy

format: setup  ## let ruff mend what it can
	$(PYTHON) -m ruff check --fix .
	$(PYTHON) -m ruff format .

clean:  ## remove the environment and caches; runs/ stays
	rm -rf $(VENV) .mypy_cache .pytest_cache .ruff_cache build dist site
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
