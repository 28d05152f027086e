# make demo   set up, then run the whole pipeline on real pictures and sentences
# make test   set up, then run the tests
# make check  set up, then lint, types and tests
# PYTHON=python3.12 chooses the interpreter that makes .venv. WORKERS=8 shares the tests out among eight processes.

PYTHON ?= python3
WORKERS ?= 2
READY := .venv/.ready
RUN := .venv/bin/python

.PHONY: help setup demo test lint check

help:
	@sed -n 's/^# //p' Makefile

setup: $(READY)

# The stamp is written last, so an installation that was cut short is done again.
$(READY): pyproject.toml constraints.txt bootstrap.py
	@$(PYTHON) bootstrap.py

demo: $(READY)
	@$(RUN) -m pipeline demo

test: $(READY)
	@$(RUN) -m pytest -n $(WORKERS)

lint: $(READY)
	@$(RUN) -m ruff check .
	@$(RUN) -m mypy

check: lint test
