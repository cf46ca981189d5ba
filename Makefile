# Everything begins with one of these; each makes .venv from the lock by itself.
PYTHON ?= python3
BIN := .venv/bin
WORKERS ?= 3        # test processes: some wait for Slurm while others compute

.PHONY: demo test test-full lint bench

demo: .venv/ready
	$(BIN)/python -m slurm submit experiment=glyphs16 cluster=local

test: .venv/ready
	$(BIN)/python -m pytest -n $(WORKERS) --dist loadfile

test-full: .venv/ready
	$(BIN)/python -m pytest -m full

lint: .venv/ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# The comparisons that need neither a GPU nor a training; the others are run by name.
bench: .venv/ready
	for name in draws feeding networks samplers steps reader metrics; do \
		echo "== benchmarks/$$name.py"; $(BIN)/python benchmarks/$$name.py || exit; done

.venv/ready: requirements.txt requirements-demo.txt pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "mudi needs Python 3.11 or newer: make PYTHON=python3.11")'
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --requirement requirements.txt
	$(BIN)/python -m pip install --quiet --no-deps --requirement requirements-demo.txt
	$(BIN)/python -m pip install --quiet --no-deps --no-build-isolation --editable .
	touch $@
