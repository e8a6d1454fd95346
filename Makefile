# make demo    four photographs, degraded, through `codi run superres`, and a before/after sheet
# make test    the tests
# make soak    commands killed with -9 at random moments, 200 times, and a look at what each left
# make bench   speed and memory beside what one would otherwise run; writes docs/performance.md
# make check   lint, format, types, tests
# Each makes its own environment in .venv first, from Python 3.11 or newer.

VENV := .venv
PY := $(VENV)/bin/python
PIP_INSTALL = $(PY) -m pip install --quiet --disable-pip-version-check -c constraints.txt

.PHONY: demo test soak bench check lint format types typing clean
.DELETE_ON_ERROR:

demo: $(VENV)/.demo
	$(PY) -m recipes.demo

test: $(VENV)/.dev
	$(PY) -m pytest

soak: $(VENV)/.dev
	OMP_NUM_THREADS=1 $(PY) tests/soak.py 200

bench: $(VENV)/.dev
	$(PY) -m benchmarks
	$(PY) -m benchmarks.curves

check: lint types test

lint: $(VENV)/.dev
	$(PY) -m ruff check
	$(PY) -m ruff format --check

format: $(VENV)/.dev
	$(PY) -m ruff check --fix
	$(PY) -m ruff format

types: $(VENV)/.dev typing
	cd build/typing && ../../$(PY) -m mypy --config-file ../../pyproject.toml

# Type checkers and editors want one folder per package: links to where the parts really lie.
typing:
	rm -rf build/typing/codi_hub
	mkdir -p build/typing/codi_hub
	cd build/typing/codi_hub && ln -s ../../../codi_hub/* ../../../cli ../../../registry ../../../tasks .

$(VENV)/.demo: $(PY) pyproject.toml constraints.txt
	$(PIP_INSTALL) -e .
	touch $@

$(VENV)/.dev: $(PY) pyproject.toml constraints.txt
	$(PIP_INSTALL) -e '.[dev]'
	touch $@ $(VENV)/.demo

$(PY):
	@for python in $(PYTHON) python3.11 python3.12 python3.13 python3; do \
		if $$python -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then \
			echo "Making $(VENV) with $$($$python --version)"; exec $$python -m venv --clear $(VENV); \
		fi; \
	done; \
	echo "Error: no Python 3.11 or newer with venv found; install one, or name it: make PYTHON=/path/to/python3" >&2; exit 1

clean:
	rm -rf build dist $(VENV) .pytest_cache .mypy_cache .ruff_cache
