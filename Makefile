# Everything runs in a virtual environment inside the clone, made on first use and again when pyproject.toml changes.

PYTHON ?= python3
BACKEND ?= numba
JOBS ?= 2

VENV := .venv
PY := $(VENV)/bin/python
INSTALLED := $(VENV)/.tinyseq-installed

.DEFAULT_GOAL := help
.PHONY: help demo test check bench clean

help:
	@echo "make demo   train a small language model on Shakespeare for about a minute, then sample and draw it"
	@echo "make test   run the tests, doctests included"
	@echo "make check  run the linter, the formatter's check and the type checker"
	@echo "make bench  run the benchmarks"
	@echo "make clean  remove the virtual environment, caches, builds and runs"
	@echo
	@echo "Options: BACKEND=numpy|numba|cupy for the demo (now $(BACKEND)), JOBS=n test processes (now $(JOBS)),"
	@echo "PYTHON=path of a Python 3.11 or newer to make $(VENV) with (now $(PYTHON))."

# One BLAS thread: the compiled loop has threads of its own, and two pools on a busy machine wait for each other.
demo: export OPENBLAS_NUM_THREADS ?= 1
demo: $(INSTALLED)
	$(PY) examples/shakespeare.py --backend $(BACKEND) --seconds 75

test: $(INSTALLED)
	$(PY) -m pytest -n $(JOBS)

check: $(INSTALLED)
	$(PY) -m ruff check
	$(PY) -m ruff format --check
	$(PY) -m mypy

bench: $(INSTALLED)
	$(PY) -m tinyseq.cli bench

clean:
	rm -rf $(VENV) build dist runs .pytest_cache .hypothesis .mypy_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(INSTALLED): pyproject.toml | $(PY)
	$(PY) -m pip install --quiet --disable-pip-version-check -e ".[dev]"
	@touch $@

$(PY):
	@command -v "$(PYTHON)" >/dev/null || { \
	  echo "tinyseq needs Python 3.11 or newer, and '$(PYTHON)' was not found: say which to use with make PYTHON=path." >&2; \
	  exit 1; }
	@"$(PYTHON)" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "tinyseq needs Python 3.11 or newer, and '$(PYTHON)' is older: say which to use with make PYTHON=path." >&2; \
	  exit 1; }
	@"$(PYTHON)" -c 'import ensurepip, venv' 2>/dev/null || { \
	  echo "'$(PYTHON)' lacks venv and ensurepip: install them (on Debian and Ubuntu, apt install python3-venv)." >&2; \
	  exit 1; }
	"$(PYTHON)" -m venv $(VENV) || { rm -rf $(VENV); exit 1; }
