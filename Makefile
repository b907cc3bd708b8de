# Everything starts from a machine with Python >= 3.11 and make; each target sets up .venv by itself.
PYTHON ?= python3
BIN := .venv/bin
JOBS ?= $(shell $(PYTHON) -c "import os; print(min(4, (os.cpu_count() or 1) + 1))")  # tests often wait
# --no-compile: what is imported compiles itself then, which is a small part of it all; and it is kept, whatever the
# environment says: every worker is a process of its own, and without compiled files each takes .5 s more to start
unexport PYTHONDONTWRITEBYTECODE
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --no-compile -c constraints.txt

.PHONY: train test lint types pytest soak bench clean

train: .venv/.installed          ## train the default preset to its end, with live progress
	$(BIN)/python -m trainers train

test: lint                       ## everything that CI checks
	+$(MAKE) --no-print-directory -j 2 types pytest

lint: .venv/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: .venv/.installed-dev
	$(BIN)/mypy

pytest: .venv/.installed-dev
	$(BIN)/python -m pytest -n $(JOBS) --dist worksteal

soak: .venv/.installed-dev        ## ten minutes of random faults; the table must add up
	$(BIN)/python -m aio_vecenv.chaos --seconds 600

bench: .venv/.installed-bench     ## side by side with other vectorised envs; tables and charts in bench-results/
	$(BIN)/python -m benchmarks --out bench-results

.venv/bin/python:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or later is needed, this is %d.%d" % sys.version_info[:2])'
	$(PYTHON) -m venv .venv

.venv/.installed: .venv/bin/python pyproject.toml constraints.txt
	$(PIP) -e '.[plots]'
	@touch $@

.venv/.installed-dev: .venv/bin/python pyproject.toml constraints.txt
	$(PIP) -e '.[dev]'
	@touch $@ .venv/.installed

.venv/.installed-bench: .venv/bin/python pyproject.toml constraints.txt
	$(PIP) -e '.[bench]'
	-$(PIP) envpool               # where it fits the machine
	@touch $@ .venv/.installed

clean:
	rm -rf .venv build dist .mypy_cache .pytest_cache .ruff_cache
